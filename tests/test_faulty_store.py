"""A run store that cannot be written to, looked into, or is damaged."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import contents
from test_promise_resume import compiled, facts, offline

from tfgrpo_dspy import StoreError, best_so_far
from tfgrpo_dspy.store import Store
from tfgrpo_dspy.store.journal import saved_runs


def test_offline_and_best_so_far_write_nothing_so_a_store_may_be_read_only(tmp_path: Path) -> None:
    log_dir, student = tmp_path / "log", dspy.Predict("question -> answer")
    first = compiled(log_dir, student=student, epochs=1)
    before = contents(log_dir)
    assert facts(offline(log_dir, student=student, epochs=1)) == facts(first)
    assert type(best_so_far(log_dir, student)) is dspy.Predict
    assert contents(log_dir) == before


@pytest.mark.parametrize("of", [compiled, offline, saved_runs])
def test_a_log_dir_that_cannot_be_looked_into_is_named(
    of: Callable[[Path], Any], tmp_path: Path
) -> None:
    log_dir = tmp_path / ("a" * 300)  # as refused by the system as a folder of somebody else is
    with pytest.raises(StoreError, match="Cannot open the run store") as raised:
        of(log_dir)
    assert str(log_dir) in str(raised.value)


def test_the_damaged_note_of_another_run_does_not_hide_the_best_so_far(tmp_path: Path) -> None:
    student = dspy.Predict("question -> answer")
    compiled(tmp_path, student=student, epochs=1, seed=1)
    latest = compiled(tmp_path, student=student, epochs=1)
    store = Store(tmp_path)
    earlier, _ = store.keys("run:")
    store.replace(earlier, {"odd": 1})
    found = best_so_far(tmp_path, student)
    assert found.detailed_results.updates == latest.detailed_results.updates
    store.replace(store.keys("run:")[0], {"odd": 1})
    with pytest.raises(StoreError, match=r"The record 'run:.*' is damaged"):
        best_so_far(tmp_path, student)
    store.close()
