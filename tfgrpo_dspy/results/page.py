"""A run's results as a page of text of at most 40 lines, and the same as tables for a notebook."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment

from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import ALL, Effect
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.results.records import (
    Change,
    Finalist,
    Gain,
    HeldOut,
    ScoreSummary,
    UpdateRecord,
    bounds_text,
    compared,
    front_of,
)
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.wording import aligned, counted, shortened

MOST_EXPERIENCES, MOST_DROPPED, MOST_FAILURES = 10, 4, 4  # so that a page has 40 lines at most
MOST_CANDIDATES = 4
LONGEST_CELL = 300  # bytes of a cell
OF_PROGRAM = ("rollout", "validation", "test")  # the roles of LM calls that the program made
FAILURES_IN_WORDS = {
    "program": "the program raised an error",
    "parse": "an answer of the policy LM did not have the form that the program asks for",
    "provider": "the provider of the LM failed",
    "metric": "the metric raised an error, or gave no score",
    "timeout": "a rollout took longer than it may",
    "worker": "the worker of a rollout was lost",
    "reflection error": "a call of the reflection LM failed",
    "reflection parse": "an answer of the reflection LM could not be read",
    "unknown scope": "a lesson was for a predictor that the program does not have",
    "lesson refused": "a lesson was a copy of an example, too long, or asked for something unsafe",
    "lesson too many": "an answer had more lessons than are read",
    "advice let in": "Reflection(guard=) let in what copies an example",
    "guard": "the function of Reflection(guard=) raised an error, so the advice was refused",
    "advice not shown": "the program had experiences, and no prompt of it held them",
    "no LM call": "the program called no LM, or only where no call is seen, as in its own threads",
    "no output": "the program returned nothing (None, or no fields), and no score differed",
    "image not shown": "the reflection LM was told of an image, and not shown it",
    "approval": "what approve= answered could not be used",
    "listener": "what on_event= calls raised an error",
    "budget": "a strategy wanted further rollouts, for which the budget did not reach",
    "strategy switched off": "a method of a strategy always failed, or was of no use (.switched)",
    "strategy": "a method of a strategy failed, or gave something that cannot be used",
    "replay": "a program or a tool did not repeat what it had done, so steps have no value",
    "parameter left out": "a provider refused a sampling parameter, so it was not sent again",
    "unseen call": "an LM call was counted after it was made, so no limit could refuse it",
}
_HTML = Environment(autoescape=True).from_string("""\
<div style="max-width: 60em">{{ curve | safe }}
{% for section in sections if section.title %}<h4>{{ section.title }}</h4>
<table>{% if section.header %}
<tr>{% for cell in section.header %}<th scope="col" style="text-align: left">{{ cell }}</th>
{%- endfor %}</tr>{% endif %}{% for row in section.rows %}
<tr>{% for cell in row %}<td style="text-align: left">{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}</table>
{% endfor %}</div>""")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a title and rows of cells, with a header or not; "": it is left out."""

    title: str
    rows: Sequence[Sequence[str]] = ()
    header: Sequence[str] = ()


def as_text(sections: Iterable[Section]) -> str:
    """The titles of the sections, and below them their rows, with aligned cells."""
    lines = []
    for section in sections:
        rows = [section.header, *section.rows] if section.header else section.rows
        lines += [section.title] if section.title else []
        lines += [f"  {line}" for line in aligned(rows)]
    return printable("\n".join(lines))


def as_html(sections: Iterable[Section], curve: str) -> str:
    """The sections as tables below the curve, which is SVG; all else is escaped."""
    return _HTML.render(sections=list(sections), curve=curve)


def one_line(text: str) -> str:
    """The text on one line, shortened to about 300 characters."""
    return shortened(text, LONGEST_CELL)


def effect_text(effect: Effect | None) -> str:
    """`+0.49 [+0.14, +0.84]`: the effect on the score with its 95 % interval."""
    if effect is None:
        return "not measured"
    low, high = effect.bounds
    return f"{effect.estimate:+z.2f}{bounds_text(low, high, '+z.2f')}"


def scope_text(scope: str) -> str:
    """Which predictors are given an experience of this scope."""
    return "every predictor" if scope == ALL else scope


def scores(
    student: ScoreSummary | None,
    best: ScoreSummary | None,
    gain: Gain | None,
    test: HeldOut | None,
) -> Section:
    """The mean scores of student and result, first on the test examples, which count most."""
    sets: dict[str, tuple[object, object, object]] = {}
    if test:
        sets["held-out test"] = (test.student, test.best, test.gain)
    if student or best:
        sets["validation"] = (student, best, gain)
    rows = []
    for name, values in sets.items():
        shown = dict(zip(("student", "result", "gain"), values, strict=True))
        rows += [[name, what, str(value or "not measured")] for what, value in shown.items()]
    if not rows:
        return Section("Mean score: not measured")
    too_high = "" if test else "; too high for the result, which was chosen by these very scores"
    return Section(f"Mean score [95 % interval]{too_high}", rows)


def objectives(finalists: Sequence[Finalist]) -> Section:
    """The mean objectives of student, result and further candidates, if the metric gives any.

    Only those are compared that were measured on the most examples, as the student is. One of them
    is best in its own way (Pareto) if no other is as good in all objectives.
    """
    rivals = compared(finalists)
    if not rivals:
        return Section("")
    names = list(dict.fromkeys(name for each in rivals for name in each.objectives))
    best = set(map(id, front_of(finalists)))
    rows = []
    order = sorted(rivals[1:], key=lambda other: (not other.is_best, id(other) not in best))
    for each in [rivals[0], *order][:MOST_CANDIDATES]:
        more = [f"demos {each.demo_set}"] if each.demo_set else []
        name = "result" if each.is_best else "student" if each is finalists[0] else "candidate"
        means = [f"{each.objectives[n]:z.3f}" if n in each.objectives else "" for n in names]
        parts = one_line(", ".join([*each.ids, *more]))
        rows.append((name, *means, "yes" if id(each) in best else "no", parts))
    header = ("", *names, "best in its own way", "consists of")
    title = f"Mean objectives on {counted(rivals[0].n_measured, 'validation example')}"
    if any(each.is_best and id(each) not in best for each in rivals):
        title += "; the result has the best score, which counts the objectives as the metric does"
    return Section(title, rows, header)


def experiences(
    library: ExperienceLibrary,
    n_demos: int,
    nothing_learned: str,
) -> Section:
    """Each experience of the result, with effect, price and scope."""
    rows = [
        [
            experience.id,
            effect_text(experience.effect),
            f"{experience.price} tokens" if experience.price is not None else "",
            scope_text(experience.scope),
            one_line(experience.text),
        ]
        for experience in list(library)[:MOST_EXPERIENCES]
    ]
    n_more = len(library) - len(rows)
    rows += [["...", f"{n_more} more", "", "", "see .experiences"]] if n_more else []
    title = learned_text(library, n_demos)
    if nothing_learned:
        title = f"Nothing was learned: {one_line(nothing_learned)}"
        title += f". What the student has: {counted(len(library), 'experience')}" if rows else ""
    header = ["", "effect on the score", "price", "read by", "text"] if rows else []
    return Section(title, rows, header)


def learned_text(library: ExperienceLibrary, n_demos: int) -> str:
    """`The result has 2 experiences and 1 demo`."""
    demos = f" and {counted(n_demos, 'demo')}" if n_demos else ""
    return f"The result has {counted(len(library), 'experience')}{demos}"


def gone(updates: Sequence[UpdateRecord], library: ExperienceLibrary) -> list[Change]:
    """The last change of each experience that is not in the library, the latest first."""
    last: dict[str, Change] = {}
    for update in updates:
        for change in update.changes:
            last.pop(change.id, None)
            last[change.id] = change
    return [change for change in reversed(last.values()) if change.id not in library]


def why_gone(change: Change, finalists: Sequence[Finalist], is_finished: bool) -> str:
    """Why an experience is not in the result, by its last change and the measured finalists."""
    if change.kind == "dropped":
        return change.reason
    if not is_finished:
        return "no final choice was made yet"
    if not any(change.id in finalist.ids for finalist in finalists):
        return "it was not measured in the final choice"
    return "it did not win the final choice"


def dropped(
    updates: Sequence[UpdateRecord],
    library: ExperienceLibrary,
    finalists: Sequence[Finalist],
    is_finished: bool,
) -> Section:
    """The experiences that were tried and are not in the result, the latest first, with reasons."""
    missing = gone(updates, library)
    if not missing:
        return Section("")
    rows = [
        [
            change.id,
            f"{one_line(change.text)} ({one_line(why_gone(change, finalists, is_finished))})",
        ]
        for change in missing[:MOST_DROPPED]
    ]
    n_more = len(missing) - len(rows)
    rows += [["...", f"{n_more:,} more; see .updates"]] if n_more else []
    return Section(f"Not in the result: {counted(len(missing), 'experience')}, and why", rows)


def costs(usage: Mapping[str, Usage], reflections: Sequence[str], n_metric_calls: int) -> Section:
    """LM calls, tokens and dollars of the program, of the reflection LM, and of LM judges."""
    roles = {"program": OF_PROGRAM, "reflection LM": reflections, "LMs in the metric": ("metric",)}
    roles |= {"calls without a result": ("unfinished",)}
    if set(usage) == {"rollout"}:  # of a run that is not finished only the sum is known
        row = ["so far, in all", f"{usage['rollout'].n_lm_calls:,}", _dollars(usage["rollout"])]
        title = "Costs: tokens and calls of the metric are recorded at the end of a run"
        return Section(title, [row], ["", "LM calls", "dollars"])
    rows = []
    for name, of in roles.items():
        spent = total(usage, of)
        if spent.n_lm_calls or name in ("program", "reflection LM"):
            n_calls, n_tokens = f"{spent.n_lm_calls:,}", f"{spent.n_tokens:,}"
            rows.append([name, n_calls, n_tokens, _dollars(spent)])
    title = f"Costs, and {counted(n_metric_calls, 'call')} of the metric"
    if n_failed := total(usage, usage).n_failed_calls:
        title += f"; {counted(n_failed, 'request')} failed or were refused"
    return Section(title, rows, ["", "LM calls", "tokens", "dollars"])


def _dollars(spent: Usage) -> str:
    return f"{spent.cost_usd:.4f}" if spent.cost_usd else "0 or unknown"


def total(usage: Mapping[str, Usage], roles: Iterable[str]) -> Usage:
    """The usage of all calls of these roles."""
    return sum((usage[role] for role in roles if role in usage), Usage())


def budget(
    settings: Mapping[str, Any], spent: Usage, n_metric_calls: int, wall_time_s: float
) -> Section:
    """How much was used of each limit that was set."""
    used: dict[str, tuple[str, float, str]] = {
        "max_lm_calls": ("LM calls", spent.n_lm_calls, ",.0f"),
        "max_metric_calls": ("calls of the metric", n_metric_calls, ",.0f"),
        "max_cost": ("dollars", spent.cost_usd, ",.4f"),
        "max_minutes": ("minutes", wall_time_s / 60, ",.1f"),
    }
    rows = []
    for name, (what, amount, form) in used.items():
        if limit := settings.get(name):
            share = f"{amount / limit:.0%}"
            rows.append([what, f"{amount:{form}}", f"{limit:,}", share, name])
    if not rows:
        unknown = "Limits are recorded at the end of a run"
        return Section("No limit was set" if settings else unknown)
    return Section("Used of the limits", rows, ["", "used", "limit", "share", "set by"])


def failures(counts: Mapping[str, int], is_finished: bool) -> Section:
    """How many failures there were of each kind, the most frequent first."""
    kinds = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    shown = kinds[:MOST_FAILURES]
    rows = [[f"{n:,}", kind, FAILURES_IN_WORDS.get(kind, "")] for kind, n in shown]
    n_more = sum(n for _, n in kinds[MOST_FAILURES:])
    rows += [[f"{n_more:,}", "others", "see .failures"]] if n_more else []
    none = "No failures" if is_finished else "Failures are recorded at the end of a run"
    return Section("Failures, by kind" if rows else none, rows)
