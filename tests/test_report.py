"""The report of a run, in a real browser: what it says, to whom, and what cannot break it."""

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from browser import MISSING, Opened, opened_browser
from report_runs import HOSTILE, SHOWN, a_large_run, poisoned
from runs import ADVICE, Pair, Run, learned, optimizer_of, polite_rules, questions
from scripted import scripted_lm

from tfgrpo_dspy import SettingsError, StoreError
from tfgrpo_dspy.report import html, write_html
from tfgrpo_dspy.results import NOT_FINISHED, RunResults

if "axe_playwright_python" not in MISSING:
    from axe_playwright_python.sync_playwright import Axe

pytestmark = [pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with opened_browser() as found:
        yield found


@pytest.fixture(scope="module")
def polite() -> RunResults:
    """A run on the polite task with a test set, by the scripted LM."""
    with dspy.context(lm=scripted_lm(polite_rules()), adapter=None, callbacks=[]):
        optimized = optimizer_of(epochs=4, max_lm_calls=150).compile(
            dspy.Predict("question -> answer"),
            trainset=questions(6),
            valset=questions(12, start=100),
            testset=questions(8, start=200),
        )
    found: RunResults = optimized.detailed_results
    return found


def written(results: Any, tmp_path: Path) -> Path:
    return write_html(results, tmp_path / "report.html")


def check_accessible(opened: Opened) -> None:
    opened.open_all()
    found = Axe().run(opened.page).response["violations"]
    bad = [one for one in found if one["impact"] in ("serious", "critical")]
    assert [(one["id"], one["nodes"][0]["html"]) for one in bad] == []


def overflow(opened: Opened) -> int:
    return int(opened.page.evaluate("document.scrollingElement.scrollWidth - window.innerWidth"))


@pytest.mark.parametrize(("width", "scheme"), [(375, "light"), (1280, "dark")])
def test_a_report_is_accessible_and_fits_phone_and_desktop_in_light_and_dark(
    browser: Any, polite: RunResults, tmp_path: Path, width: int, scheme: str
) -> None:
    opened = Opened(browser, written(polite, tmp_path), width, color_scheme=scheme)
    check_accessible(opened)
    assert overflow(opened) <= 0
    assert opened.complaints == []
    assert len(opened.requests) == 1  # the page itself
    text = opened.text()
    compared = [one for step in polite.updates for c in step.changes for one in c.comparisons]
    assert compared
    for one in compared:
        assert f"Training example {one.example + 1}\n" in text
        assert one.good.feedback in text


def test_every_folded_part_is_reached_and_opened_by_the_keyboard_alone(
    browser: Any, polite: RunResults, tmp_path: Path
) -> None:
    page = Opened(browser, written(polite, tmp_path)).page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.innerText") == "Skip to the content"
    for _ in range(200):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.matches('details:not([open]) > summary')"):
            page.keyboard.press("Enter")
    assert page.locator("details").count() >= 2
    assert page.locator("details:not([open])").count() == 0


def test_hostile_text_in_every_place_of_the_results_stays_text(
    browser: Any, polite: RunResults, tmp_path: Path
) -> None:
    values = poisoned(json.loads(json.dumps(polite.to_dict())))
    values["lms"] = [HOSTILE, HOSTILE]
    values["library"]["experiences"][0]["scope"] = HOSTILE
    clean = Opened(browser, written(polite, tmp_path)).tags()
    opened = Opened(browser, written(values, tmp_path), width=375)
    assert opened.tags() <= clean | {"del"}
    text = re.sub(r"\s+", " ", opened.text())
    assert text.count(SHOWN) >= 20
    for start in (ADVICE, "answer: please", "Say please.", "attempts follow the advice."):
        assert f"{start} {SHOWN[:20]}" in text
    assert opened.page.evaluate("typeof window.pwned") == "undefined"
    assert (opened.complaints, len(opened.requests)) == ([], 1)
    assert overflow(opened) <= 0
    check_accessible(opened)


def test_the_report_of_10000_rollouts_is_small_opens_at_once_and_says_what_it_leaves_out(
    browser: Any, tmp_path: Path
) -> None:
    run = a_large_run()
    assert sum(len(group.scores) for update in run.updates for group in update.groups) == 10_000
    path = written(run, tmp_path)
    started = time.monotonic()
    opened = Opened(browser, path)
    assert time.monotonic() - started < 10  # one second, on a loaded machine
    assert path.stat().st_size < 3_000_000
    text = opened.text()
    assert "The 30 latest are shown; 1,440 earlier ones" in text
    assert "The 100 latest updates with changes are shown; 400 earlier ones" in text
    assert "1,400 more: see results.tried." in text


def test_the_report_says_what_the_results_say(
    browser: Any, polite: RunResults, tmp_path: Path
) -> None:
    opened = Opened(browser, written(polite, tmp_path))
    text = opened.text()
    (experience,) = polite.experiences
    effect, test = experience.effect, polite.test
    assert effect and test and test.gain and test.student.mean is not None
    half = 1.96 * effect.standard_error
    low, high = effect.estimate - half, effect.estimate + half
    assert f"{effect.estimate:+.2f} [{low:+.2f}, {high:+.2f}]" in text
    assert f"{effect.n_rollouts} rollouts had it" in text
    assert f"{experience.n_tokens} tokens in each call" in text
    for score in (test.student, test.best, test.gain, polite.student, polite.best, polite.gain):
        assert str(score) in text
    n_calls = sum(usage.n_lm_calls for usage in polite.usage.values())
    assert f"{n_calls} LM calls" in text
    assert "Why, says the reflection LM: The better attempts follow the advice." in text
    (pair, *_) = opened.page.locator(".pair").all_inner_texts()
    assert "alike" in pair or "Best rollout: score 1" in pair
    shown = opened.page.locator("ins").all_text_contents()
    before, after = polite.instructions["self"]
    assert "\n".join([before, *(line.partition("added: ")[2] for line in shown)]) == after
    assert opened.page.locator("svg[role=img]").get_attribute("aria-label").startswith("Mean score")


def test_a_dropped_experience_stands_there_with_the_reason_and_each_predictor_has_its_diff() -> (
    None
):
    values = learned(Pair()).detailed_results.to_dict()
    change = {"kind": "dropped", "id": "E9", "text": "Shout.", "scope": "first"}
    values["updates"][0]["changes"].append(change | {"reason": "it did harm"})
    page = html(values)
    assert "Why it is not in the result:</span> it did harm" in page
    assert page.count("Instructions of the predictor <bdi>") == 2


def test_runs_without_an_end_a_metric_or_a_lesson_have_a_report(polite: RunResults) -> None:
    values = polite.to_dict() | dict.fromkeys(("student", "best", "gain", "test"))
    values |= {"ended_because": NOT_FINISHED, "usage": {"rollout": {"n_lm_calls": 7}}}
    unfinished = {**values, "settings": {}, "schedule": {}, "instructions": {}, "candidates": []}
    page = html(unfinished)
    assert "The run is not finished." in page
    assert "1 experience so far" in page
    assert "0 calls of the metric" not in page
    assert "start the same compile with its log_dir again" in page

    with pytest.warns(UserWarning, match="metric=None"):
        unscored = html(Run([["a", "b", "b"]], metric=None).results)
    assert "Another rollout: no score" in unscored
    nothing = Run([["0.5", "0.5"]], use_labels=False).results
    page = html(nothing)
    assert "Nothing: the result is the student" in page
    assert "The result has no experiences." in page


def test_the_report_takes_results_a_program_a_dict_or_a_run_directory(tmp_path: Path) -> None:
    optimized = learned(log_dir=tmp_path / "run")
    results = optimized.detailed_results
    page = html(results)
    assert html(optimized) == page
    without_origin = re.sub(r"<br>Run [^<]*", "", page)
    assert html(results.to_dict()) == without_origin
    optimized.save(tmp_path / "saved", save_program=True)
    assert html(dspy.load(tmp_path / "saved", allow_pickle=True)) == without_origin
    assert html(str(tmp_path / "run")) == page
    assert write_html(tmp_path / "run", tmp_path / "r.html").read_text("utf-8") == page


@pytest.mark.parametrize("wrong", [3, None, {}, dspy.Predict("question -> answer")])
def test_what_is_no_run_is_refused_with_what_to_pass(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="pass a RunResults, a program with detailed_results"):
        write_html(wrong, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize("was_killed_at_once", [False, True])
def test_a_folder_without_a_run_is_refused(was_killed_at_once: bool, tmp_path: Path) -> None:
    if was_killed_at_once:
        (tmp_path / "tfgrpo_store.db").touch()
    with pytest.raises(StoreError, match="is no run store; pass the one of a compile"):
        html(tmp_path)
