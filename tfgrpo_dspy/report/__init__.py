"""A run as one HTML page that needs no network, no other file and no script.

Every text of a user or an LM is escaped; characters that would hide or turn text are shown by
their code points.
"""

import functools
from collections.abc import Iterator, Mapping, Sequence
from difflib import unified_diff
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from pydantic import ValidationError

from tfgrpo_dspy import results as page
from tfgrpo_dspy.errors import SettingsError, StoreError, described, faults_in
from tfgrpo_dspy.files import write_text
from tfgrpo_dspy.results import RunResults
from tfgrpo_dspy.rollout import NO_SCORES
from tfgrpo_dspy.store import saved_runs
from tfgrpo_dspy.text import counted, printable

CONTEXT = 3  # unchanged lines around a changed one of a prompt
LONGEST_TEXT = 3000  # characters of one text on the page
FORMS = "pass a RunResults, a program with detailed_results, or the log_dir of a run"


def write_html(results: Any, path: str | PathLike[str]) -> Path:
    """Write the report of a run to this file, which may exist, and return its path.

    `results` are a `RunResults`; a program with `detailed_results`, also one that was saved and
    loaded; the dict that `RunResults.to_dict` gives; or a run directory (`log_dir`), whose last run
    is shown, finished or not.

    Raises:
        SettingsError: `results` are none of these.
        StoreError: the run directory cannot be read, or holds no run.
        OSError: the file cannot be written; it is as it was.
    """
    write_text(path, html(results))
    return Path(path)


def html(results: Any) -> str:
    """The report as text; arguments and errors are those of `write_html`.

    The same results always give the same page.
    """
    run = _run_of(results)
    try:
        return _template().render(run=run, **_computed(run))
    except Exception as error:  # values of the right types that no run gives
        fault = f"results: the values do not fit together ({described(error)})"
        raise SettingsError(f"{fault}; {FORMS}.") from error


def _run_of(results: Any) -> RunResults:
    if isinstance(results, str | PathLike):
        if runs := saved_runs(results):
            return runs[-1]
        raise StoreError(f"log_dir={fspath(results)!r} holds no run yet; compile with it first.")
    held = getattr(results, "detailed_results", results)
    if isinstance(held, RunResults):
        return held
    if not isinstance(held, Mapping):
        what = f"results={type(results).__name__}(...)"
        raise SettingsError(f"{what} has no detailed_results of a run; {FORMS}.")
    try:
        return RunResults.from_dict(held)
    except ValidationError as error:
        fault = faults_in(error)[0].rstrip(".")
        raise SettingsError(f"results={{...}} is not of a run ({fault}); {FORMS}.") from error


@functools.cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("tfgrpo_dspy", "report"), autoescape=True,
        undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_plain,
    )  # fmt: skip
    environment.globals |= {"page": page, "counted": counted, "bounds_text": page.bounds_text}
    environment.globals["in_words"] = page.CHANGES_IN_WORDS
    return environment.get_template("report.html.jinja")


def _plain(value: Any) -> Any:
    """A text as it can be shown: what nobody sees stands as escapes; long ones are shortened."""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # this page's own HTML
        return value
    text = value.replace("\r\n", "\n")
    if (n_more := len(text) - LONGEST_TEXT) > 0:
        text = f"{text[:LONGEST_TEXT]} ... ({n_more:,} more characters)"
    return printable(text)


def _computed(run: RunResults) -> dict[str, Any]:
    """What the template shows besides the results themselves, by name."""
    lives = list(_lives(run))
    intervals = [(0.0, 0.0), *(life["effect"].bounds for life in lives if life["effect"])]
    scale = NO_SCORES.including(score for update in run.updates for score in update.scores)
    means = [page.ScoreSummary.of(update.scores, scale) for update in run.updates]
    sets = {"validation": (run.student, run.best)}
    sets |= {"test": (run.test.student, run.test.best)} if run.test else {}
    return {
        "training": [(u.n_lm_calls, m) for u, m in zip(run.updates, means, strict=True) if m],
        "sets": {name: pair for name, pair in sets.items() if any(one and one.n for one in pair)},
        "lives": lives,
        "effects_from": min(low for low, _ in intervals),
        "effects_to": max(high for _, high in intervals),
        "steps": [*_steps(run.updates, means)],
        "diffs": {name: [*_diff(old, new)] for name, (old, new) in run.instructions.items()},
    }


def _lives(run: RunResults) -> Iterator[dict[str, Any]]:
    """All experiences of the run: those of the result, the strongest first, then the others."""
    in_result = {experience.id: experience for experience in page.strongest_first(run.experiences)}
    missing = page.gone(run)
    changes: dict[str, list[Any]] = {id_: [] for id_ in in_result}
    for update in run.updates:
        for change in update.changes:
            changes.setdefault(change.id, []).append((update, change))
    changes |= {id_: [] for id_ in missing if id_ not in changes}  # of the student
    tried = {(one.text, one.scope): one for one in run.tried}
    for id_, of in changes.items():
        experience, (last, why) = in_result.get(id_), missing.get(id_, (None, ""))
        now: Any = experience or last
        belief = tried.get((now.text, now.scope))
        latest_first = [change for _, change in reversed(of)]
        texts = [experience, belief, *latest_first]
        yield {
            "id": id_,
            "text": now.text,
            "scope": now.scope,
            "changes": of,  # with their updates
            "experience": experience,
            "effect": next((one.effect for one in texts if one and one.effect), None),
            "tried": belief,
            "why_gone": why,  # "": it is in the result
            "comparisons": [one for change in latest_first for one in change.comparisons],
        }


def _steps(
    updates: Sequence[page.UpdateRecord], means: Sequence[page.ScoreSummary | None]
) -> Iterator[tuple[Any, ...]]:
    """Each update in which something happened: mean score, changes (with old texts), refusals."""
    texts: dict[str, str] = {}
    for record, mean in zip(updates, means, strict=True):
        changes = [(change, texts.get(change.id, "")) for change in record.changes]
        texts |= {change.id: change.text for change in record.changes}
        refused = [f"Lesson: {text}" for text in record.refused_lessons]
        operations = (op for op in record.operations if op.refused)
        refused += [f"{op.op} {op.id} {op.text}: {op.refused}" for op in operations]
        if changes or refused:
            yield record, mean, changes, refused


def _diff(before: str, after: str) -> Iterator[tuple[str, str]]:
    """The changed lines of instructions and those around them: "ins", "del", "same", or "skip"."""
    lines = unified_diff(before.splitlines(), after.splitlines(), n=CONTEXT, lineterm="")
    kinds = {"+": "ins", "-": "del", "@": "skip"}
    for n, line in enumerate(lines):
        if n > 2 or (n == 2 and not line.startswith("@@ -1")):  # two lines are the names of files
            yield kinds.get(line[0], "same"), line[1:]
