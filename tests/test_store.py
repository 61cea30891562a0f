"""The run store: records survive, and nothing in it is ever executed.

Databases are changed by sqlite3 in a closed store.
"""

import contextlib
import multiprocessing
import re
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import contents, records
from test_promise_resume import compiled, facts, offline

from tfgrpo_dspy import best_so_far
from tfgrpo_dspy.errors import StoreError
from tfgrpo_dspy.store import DATABASE, Store, saved_runs

KEY = "rollout:1"
ALL = {KEY: {"x": 1}, "run:1": {"n": 1}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed store with two records."""
    store = Store(tmp_path / "log")
    for key, record in ALL.items():
        store.put(key, record)
    store.close()
    return tmp_path / "log"


def change(folder: Path, sql: str, **values: Any) -> None:
    """Run one statement on the database of a closed store."""
    with contextlib.closing(sqlite3.connect(folder / DATABASE)) as connection, connection:
        connection.execute(sql, {name: values[name] for name in values if f":{name}" in sql})


@pytest.mark.parametrize(
    "text", ["x" * 200_000, "nul \0, lone \ud800, \u2028, emoji \U0001f600", "", "\\u0000"]
)
def test_texts_of_any_length_and_letters_come_back_and_make_no_file(
    text: str, folder: Path
) -> None:
    store = Store(folder)
    store.put("rollout:long", {"text": text})
    assert store.get("rollout:long") == {"text": text}
    store.close()
    assert {path.name for path in folder.iterdir()} == {DATABASE}


# ---------------------------------------------------------------------- damage

DAMAGED: dict[str, tuple[str, str]] = {
    **{
        f"the text {text[:9]!r}": (f"'{text}'", "The record 'rollout:1' is damaged")
        for text in ("", "{", "[1]", "null", '"x"', "[" * 100_000, "9" * 5000)
    },
    "a number": ("7", "The record 'rollout:1' is damaged"),
    "a pickle": ("x'80049505000000000000008c0178942e'", "The record 'rollout:1' is damaged"),
    "bytes that are no UTF-8": ("CAST(x'ff7b7d' AS TEXT)", r"Cannot read the run .* is damaged"),
}


@pytest.mark.parametrize(("value", "message"), DAMAGED.values(), ids=DAMAGED)
def test_a_row_that_holds_no_record_is_an_error_that_says_so(
    value: str, message: str, folder: Path
) -> None:
    change(folder, f"UPDATE entries SET value = {value} WHERE key = '{KEY}'")
    store = Store(folder)
    with pytest.raises(StoreError, match=message) as refusal:
        store.get(KEY)
    assert str(refusal.value).endswith("restore its folder from a copy, or take another log_dir.")
    store.close()


def test_a_store_that_is_only_read_changes_no_file_and_reads_what_a_killed_run_left_in_the_log(
    folder: Path, tmp_path: Path
) -> None:
    writer = Store(folder)
    writer.put("rollout:2", {"x": 2})
    killed = Path(shutil.copytree(folder, tmp_path / "killed"))  # its last rows stand in the log
    writer.close()
    for path in folder, killed:
        files = {file: content for file, content in contents(path).items() if "-shm" not in file}
        store = Store.existing(path)
        assert store is not None
        assert store.get("rollout:2") == {"x": 2}
        with pytest.raises(StoreError, match="readonly"):
            store.put("rollout:3", {"x": 3})
        assert {file.name for file in path.iterdir()} <= {Path(file).name for file in files} | {
            f"{DATABASE}-shm" if path == killed else DATABASE
        }
        store.close()
        assert files.items() <= contents(path).items()


def older(folder: Path, version: int = 4) -> sqlite3.Connection:
    """A store as earlier versions made it; of version 0, somebody's database."""
    folder.mkdir()
    database = sqlite3.connect(folder / DATABASE, isolation_level=None)
    database.execute("CREATE TABLE records (key TEXT PRIMARY KEY, text TEXT NOT NULL)")
    database.execute(f"PRAGMA user_version = {version}")
    return database


def test_a_folder_that_is_no_store_of_this_format_is_refused_and_left_alone(
    folder: Path, tmp_path: Path
) -> None:
    change(folder, "PRAGMA user_version = 77")
    with contextlib.closing(older(tmp_path / "older")) as database:
        database.executemany("INSERT INTO records VALUES (?, ?)", [(KEY, "{}")])
    older(tmp_path / "foreign", version=0).close()
    (tmp_path / "a file").write_text("x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / DATABASE).write_bytes(b"somebody's" * 1000)
    before = contents(tmp_path)
    for path, message in (
        (folder, "of format 77; this version of tfgrpo_dspy reads format"),
        (
            tmp_path / "older",
            "of format 4; .* reads format 7: take another folder, or the version that wrote it",
        ),
        (tmp_path / "foreign", "^log_dir=.* is a run store of format 0; this version"),
        (tmp_path / "other", r"Cannot open the run store .* is damaged"),
        (tmp_path / "a file", "Cannot open the run store log_dir="),
        (tmp_path / "a file" / "log", "Cannot open the run store log_dir="),
    ):
        for is_read_only in (False, True):
            with pytest.raises(StoreError, match=message):
                Store(path, is_read_only=is_read_only)
    assert Store.existing(tmp_path / "nothing") is None
    assert contents(tmp_path) == before


def written_by(name: str, folder: Path) -> list[int]:
    """The numbers of the records that this process was the first to write."""
    store = Store(folder)
    first = []
    for number in range(150):
        first += [] if store.put(f"rollout:{number}", {"by": name}) else [number]
        store.put(f"rollout:{name}/{number}", {})
    store.close()
    return first


@pytest.mark.slow
def test_several_processes_write_at_once_and_nothing_is_lost_or_written_twice(
    tmp_path: Path,
) -> None:
    together = multiprocessing.Barrier(3).wait
    with ProcessPoolExecutor(3, initializer=together) as executor:
        first = dict(zip("abc", executor.map(written_by, "abc", [tmp_path] * 3), strict=True))
    written = records(tmp_path, "rollout")
    assert len(written) == 150 + 3 * 150
    owners = {number: name for name, numbers in first.items() for number in numbers}
    assert owners == {n: written[f"rollout:{n}"]["by"] for n in range(150)}
    assert sum(map(len, first.values())) == 150


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


@pytest.mark.parametrize("which", ["run:", "decided:"])
def test_a_damaged_record_of_a_run_is_named_and_hides_no_other(
    which: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    student = dspy.Predict("question -> answer")
    compiled(tmp_path, student=student, epochs=1, seed=1)
    compiled(tmp_path, student=student, epochs=1)
    first, last = (run.origin["run"] for run in saved_runs(tmp_path))
    with contextlib.closing(Store(tmp_path)) as store:
        store.replace(next(key for key in store.keys(which) if first in key), {"odd": 1})
    assert [run.origin["run"] for run in saved_runs(tmp_path)] == [last]
    assert best_so_far(tmp_path, student).detailed_results.origin["run"] == last
    assert re.search(r"a run is left out: The record '.*' is damaged", caplog.text)
