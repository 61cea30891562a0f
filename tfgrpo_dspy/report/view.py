"""What the report's template shows besides the results: lives of experiences, steps, diffs.

Nothing here is HTML, and nothing is shortened.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from tfgrpo_dspy.experience.values import Effect, Experience
from tfgrpo_dspy.results import REFLECTIONS, RunResults, page
from tfgrpo_dspy.results.curve import curve, scale_of
from tfgrpo_dspy.results.records import Change, Comparison, TriedAdvice, UpdateRecord

CONTEXT = 3  # unchanged lines around a changed one of a prompt


@dataclass(frozen=True, slots=True)
class Life:
    """One experience in the run, from its first change to the end."""

    id: str
    text: str
    scope: str
    changes: Sequence[tuple[UpdateRecord, Change]]
    experience: Experience | None  # None: it is not in the result
    effect: Effect | None
    tried: TriedAdvice | None
    why_gone: str  # from the result
    span: tuple[float, float]  # begin and length of its life, in percent of the run's updates

    @property
    def comparisons(self) -> list[Comparison]:
        """The groups that it was learned from, those of its latest text first."""
        return [one for _, change in reversed(self.changes) for one in change.comparisons]


def view_of(run: RunResults) -> dict[str, Any]:
    """Everything that the template shows besides the results themselves, by name."""
    lives = list(_lives(run))
    spent = page.total(run.usage, run.usage)
    intervals = [life.effect.bounds for life in lives if life.effect]
    return {
        "score_scale": scale_of(run.updates),
        "curve": curve(run.updates, run.student, run.best, run.test),
        "scores": page.scores(run.student, run.best, run.gain, run.test),
        "objectives": page.objectives(run.finalists),
        "costs": page.costs(run.usage, REFLECTIONS, run.metric_calls),
        "budget": page.budget(run.settings, spent, run.metric_calls, run.wall_time_s),
        "failures": page.failures(run.failures, run.is_finished),
        "spent": spent,
        "lives": lives,
        "scale": (
            min([0.0, *(low for low, _ in intervals)]),
            max([0.0, *(h for _, h in intervals)]),
        ),
        "steps": [*_steps(run.updates)],
        "diffs": {name: list(_diff(old, new)) for name, (old, new) in run.instructions.items()},
    }


def _lives(run: RunResults) -> Iterator[Life]:
    """All experiences of the run, in the order of their ids."""
    in_result = {experience.id: experience for experience in run.experiences}
    changes: dict[str, list[tuple[UpdateRecord, Change]]] = {id_: [] for id_ in in_result}
    for record in run.updates:
        for change in record.changes:
            changes.setdefault(change.id, []).append((record, change))
    tried = {(one.text, one.scope): one for one in run.tried}
    places = {record.update: place for place, record in enumerate(run.updates)}
    n = max(1, len(places))
    for id_ in sorted(changes, key=lambda id_: (len(id_), id_)):
        of = changes[id_]
        experience = in_result.get(id_)
        text, scope = experience.advice if experience else (of[-1][1].text, of[-1][1].scope)
        belief = tried.get((text, scope))
        texts = [experience, belief, *(change for _, change in reversed(of))]
        effect = next((one.effect for one in texts if one and one.effect), None)
        why = "" if experience else page.why_gone(of[-1][1], run.finalists, run.is_finished)
        first = places[of[0][0].update] if of and of[0][1].kind == "born" else 0
        is_dropped = bool(why) and of[-1][1].kind == "dropped"
        end = places[of[-1][0].update] + 1 if is_dropped else n
        span = (100 * first / n, 100 * (end - first) / n)
        yield Life(id_, text, scope, of, experience, effect, belief, why, span)


def _steps(
    updates: Sequence[UpdateRecord],
) -> Iterator[tuple[UpdateRecord, Sequence[tuple[Change, str]], Sequence[str]]]:
    """Each update in which something happened: changes with the text before; what was refused."""
    texts: dict[str, str] = {}
    for record in updates:
        changes = [(change, texts.get(change.id, "")) for change in record.changes]
        texts |= {change.id: change.text for change in record.changes}
        refused = [f"Lesson: {text}" for text in record.refused_lessons]
        operations = (op for op in record.operations if op.refused)
        refused += [f"{op.op} {op.id} {op.text}: {op.refused}" for op in operations]
        if changes or refused:
            yield record, changes, refused


def _diff(before: str, after: str) -> Iterator[tuple[str, Sequence[str]]]:
    """Runs of lines: "same", "del" or "ins", and "skip" for unchanged lines that are left out."""
    old, new = before.splitlines(), after.splitlines()
    matcher = SequenceMatcher(None, old, new, autojunk=False)
    end = 0
    for group in matcher.get_grouped_opcodes(CONTEXT):
        if group[0][1] > end:
            yield "skip", old[end : group[0][1]]
        for kind, i1, i2, j1, j2 in group:
            if kind == "equal":
                yield "same", old[i1:i2]
                continue
            if i2 > i1:
                yield "del", old[i1:i2]
            if j2 > j1:
                yield "ins", new[j1:j2]
        end = group[-1][2]
    if end and end < len(old):
        yield "skip", old[end:]
