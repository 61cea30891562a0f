"""A run's results as a page of text of at most 40 lines, and the same as tables for a notebook."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from jinja2 import Environment

from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import ALL, Effect
from tfgrpo_dspy.results.records import Change, Gain, HeldOut, ScoreSummary, UpdateRecord
from tfgrpo_dspy.rollout import Usage

MOST_EXPERIENCES, MOST_DROPPED, MOST_FAILURES = 11, 5, 4  # so that a page has 40 lines at most
LONGEST_CELL = 300  # characters of a cell
Z_95 = 1.96  # standard errors from an effect to the bounds of its 95 % interval
_HTML = Environment(autoescape=True).from_string("""\
<div style="max-width: 60em">{{ curve | safe }}
{% for section in sections %}<h4>{{ section.title }}</h4>
<table>{% for row in section.rows %}
<tr>{% for cell in row %}<td style="text-align: left">{{ cell }}</td>{% endfor %}</tr>
{%- endfor %}</table>
{% endfor %}<p>Ended: {{ ended }}</p></div>""")


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: a title, and below it rows of cells."""

    title: str
    rows: Sequence[Sequence[str]] = ()


def as_text(sections: Iterable[Section]) -> str:
    """The sections with rows or a title that says all; the first cells of rows are aligned."""
    lines = []
    for section in sections:
        widths = [max(map(len, column)) for column in zip(*section.rows, strict=True)]
        lines.append(section.title)
        for row in section.rows:
            cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
            lines.append(f"  {'  '.join(cells).rstrip()}")
    return "\n".join(lines)


def as_html(sections: Iterable[Section], curve: str, ended: str) -> str:
    """The sections as tables below the curve, which is SVG; all else is escaped."""
    return _HTML.render(sections=list(sections), curve=curve, ended=ended)


def one_line(text: str) -> str:
    """The text on one line, shortened to 300 characters."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_CELL else f"{line[: LONGEST_CELL - 4]} ..."


def effect_text(effect: Effect | None) -> str:
    """`+0.49 [+0.14, +0.84]`: the effect on the score with its 95 % interval."""
    if effect is None:
        return "not measured"
    half = Z_95 * effect.standard_error
    low, high = effect.estimate - half, effect.estimate + half
    return f"{effect.estimate:+.2f} [{low:+.2f}, {high:+.2f}]"


def scope_text(scope: str) -> str:
    """Which predictors are given an experience of this scope."""
    return "every predictor" if scope == ALL else scope


def scores(
    student: ScoreSummary | None,
    best: ScoreSummary | None,
    gain: Gain | None,
    test: HeldOut | None,
) -> Section:
    """The mean scores of student and result on validation and test examples."""
    sets = [("validation", student, best, gain)]
    sets += [("test", test.student, test.best, test.gain)] if test else []
    rows = []
    for name, before, after, difference in sets:
        shown = {"student": before, "result": after, "gain": difference}
        rows += [[name, what, str(value or "not measured")] for what, value in shown.items()]
    notes = "" if test else "; the validation examples chose the result, so its gain is optimistic"
    return Section(f"Mean scores and 95 % intervals{notes}", rows)


def experiences(library: ExperienceLibrary, n_demos: int, nothing_learned: str) -> Section:
    """Each experience of the result, with effect, length and scope."""
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
    title = f"{len(library)} experiences: effect on the score (95 % interval), length, scope, text"
    title += f"; and {n_demos} demos" if n_demos else ""
    if nothing_learned:
        title = f"Nothing was learned: {one_line(nothing_learned)}"
        title += f" (the student's {len(library)} experiences:)" if rows else ""
    return Section(title, rows)


def dropped(updates: Sequence[UpdateRecord], library: ExperienceLibrary) -> Section:
    """What was tried and is not in the result, the latest first, and why."""
    last: dict[str, Change] = {}
    for update in updates:
        for change in update.changes:
            last.pop(change.id, None)
            last[change.id] = change
    gone = [change for change in reversed(last.values()) if change.id not in library]
    rows = []
    for change in gone[:MOST_DROPPED]:
        why = change.reason if change.kind == "dropped" else "it did not win the final choice"
        rows.append([change.id, f"{one_line(change.text)} ({one_line(why)})"])
    n_more = len(gone) - len(rows)
    rows += [["...", f"{n_more} more; see .updates"]] if n_more else []
    return Section(f"{len(gone)} experiences were tried and are not in the result", rows)


def costs(usage: Mapping[str, Usage], reflections: Sequence[str], n_metric_calls: int) -> Section:
    """LM calls, tokens and dollars of the program, of the reflection LM, and of LM judges."""
    of_program = ("rollout", "validation", "test")
    roles = {"program": of_program, "reflection LM": reflections, "LMs in the metric": ("metric",)}
    roles |= {"without a result": ("unfinished",)}
    rows = [["", "LM calls", "tokens", "dollars"]]
    for name, of in roles.items():
        spent = sum((usage[role] for role in of if role in usage), Usage())
        if spent.n_lm_calls or name in ("program", "reflection LM"):
            n_tokens = spent.prompt_tokens + spent.completion_tokens
            dollars = f"{spent.cost_usd:.4f}" if spent.cost_usd else "0 or unknown"
            rows.append([name, f"{spent.n_lm_calls:,}", f"{n_tokens:,}", dollars])
    return Section(f"Costs ({n_metric_calls:,} calls of the metric)", rows)


def failures(counts: Mapping[str, int]) -> Section:
    """How many failures there were of each kind, the most frequent first."""
    kinds = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = [[kind, f"{n:,}"] for kind, n in kinds[:MOST_FAILURES]]
    n_more = sum(n for _, n in kinds[MOST_FAILURES:])
    rows += [["others", f"{n_more:,}"]] if n_more else []
    return Section("Failures" if rows else "No failures", rows)
