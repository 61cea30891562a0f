"""Records of what a run has made: changes of the library, comparisons, and rows of tables.

A row is a dict by the names of columns, ready for JSON.
"""

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tfgrpo_dspy.experience.library import Applied, ExperienceLibrary
from tfgrpo_dspy.experience.values import Add, Advice, Experience, Modify, Operation
from tfgrpo_dspy.gate.protocol import Decision
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.reflection.texts import clip
from tfgrpo_dspy.results.records import (
    Change,
    ChangeKind,
    Comparison,
    ExampleRow,
    RolloutSummary,
    Row,
)
from tfgrpo_dspy.rollout import Group, Rollout, fields_text
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.sampling.fields import Example
from tfgrpo_dspy.wording import WORD, shortened

ASKED_TOKENS = 2_000  # of an input of the reflection LM
CELL_BYTES = 300  # of a text in an `ExampleRow`
MOST_COMPARISONS = 2  # of a text
INPUT_BYTES, OUTPUT_TOKENS, FEEDBACK_BYTES = 210, 150, 210  # how long a comparison shows them
MANY_REFUSED = 0.8  # of the prompts with an advice, for it to be named as the reason
PUNCTUATION = ".,;:!?()\"'"
RolloutsByExample = Mapping[int, tuple[Rollout, float | None]]
"""By example: a rollout, and the score that it counts with."""


class Changes:
    """Finds the changes of each update; `texts` are the training examples as text."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self._shown, self._refused = Counter[Advice](), Counter[Advice]()
        """The numbers of rollouts that had an advice, and of those whose prompt was refused."""
        self._comparisons: dict[Advice, tuple[Comparison, ...]] = {}
        """By text and scope: a modified text may become that of an experience updates later."""

    def of_update(
        self,
        before: ExperienceLibrary,
        proposed: Applied,
        groups: Sequence[SampledGroup],
        lessons: Sequence[Lesson],
        decision: Decision,
    ) -> tuple[Change, ...]:
        """The changes by the decision on the lessons of these groups, by id."""
        for sampled in groups:
            for one, rollout in zip(sampled.additions, sampled.group.all_rollouts, strict=True):
                self._shown.update(advices := [experience.advice for experience in one.library])
                if rollout.failure is not None and rollout.failure.refuses_prompt:
                    self._refused.update(advices)
        compared, after = self.compared(proposed.operations, groups, lessons), decision.library
        for (id_, operation), comparisons in zip(proposed.accepted, compared, strict=True):
            if isinstance(operation, Add | Modify):
                self._comparisons[proposed.library[id_].advice] = comparisons
        old_of, changes = {each.id: each for each in before}, list[Change]()
        for new in after:
            old, effect = old_of.get(new.id), new.effect
            if old is None or old.advice != new.advice:
                seen = self._comparisons.get(new.advice, ())
                kind: ChangeKind = "born" if old is None else "changed"
                changes.append(Change(kind, new.id, new.text, new.scope, "", effect, seen))
            if not new.is_on_trial and (old is None or old.is_on_trial) and effect:
                changes.append(Change("settled", new.id, new.text, new.scope, effect=effect))
        added = [id_ for id_, operation in proposed.accepted if isinstance(operation, Add)]
        return (
            *changes,
            *self._dropped(before, [proposed.library[id_] for id_ in added], decision),
        )

    def _dropped(
        self, before: ExperienceLibrary, added: Sequence[Experience], decision: Decision
    ) -> Iterator[Change]:
        """What was added and at once refused by the gate, then what has left the library."""
        after = decision.library
        taken = {each.advice for each in after}  # under an id of the gate's, which may be another
        gone = {each.id: each.advice for each in added if each.advice not in taken}
        gone |= {each.id: each.advice for each in before}
        rivals = {rival.advice for rival in decision.rivals.values()}
        for id_, advice in gone.items():
            if id_ in after or advice in rivals:
                continue
            text, scope = advice
            if id_ not in before:
                seen = self._comparisons.get(advice, ())
                yield Change("born", id_, text, scope, comparisons=seen)
            reason = decision.dropped.get(id_, "the reflection LM deleted it")
            n, n_shown = self._refused[advice], self._shown[advice]
            if n >= MANY_REFUSED * n_shown > 0:
                reason = f"the provider refused {n} of {n_shown} prompts with it; {reason}"
            yield Change("dropped", id_, text, scope, reason)

    def compared(
        self,
        operations: Sequence[Operation],
        groups: Sequence[SampledGroup],
        lessons: Sequence[Lesson],
    ) -> tuple[tuple[Comparison, ...], ...]:
        """For each operation, the first groups of this update that it rests on.

        Of those that its evidence names these are the ones whose examples share the most words with
        its text, but for words that all of them have; those with contrast stand first.
        """
        group_of = {sampled.group.example: sampled.group for sampled in groups}
        compared = []
        for operation in operations:
            sources = [one for one in operation.evidence if one.example in group_of]
            if len(sources) > 1:
                words = [_words(self._texts[one.example]) for one in sources]
                special = _words(getattr(operation, "text", "")) - words[0].intersection(*words)
                counts = [len(special & of_one) for of_one in words]
                about = zip(sources, counts, strict=True)
                sources = [one for one, n in about if 2 * n >= max(counts)]
            sources.sort(key=lambda source: len({*source.scores}) < 2)
            shown = []
            for source in sources[:MOST_COMPARISONS]:
                why = next((each.reason for each in lessons if source in each.evidence), "")
                shown.append(self._comparison(group_of[source.example], why))
            compared.append(tuple(shown))
        return tuple(compared)

    def _comparison(self, group: Group, advantage: str) -> Comparison:
        """The best and the worst rollout; of equal scores, those with values of steps say more."""

        def rank(rollout: Rollout, sign: int) -> tuple[float, bool]:
            return sign * (rollout.score or 0.0), any(v is not None for v in rollout.values)

        best = max(group.rollouts, key=lambda rollout: rank(rollout, 1))
        worst = max(reversed(group.rollouts), key=lambda rollout: rank(rollout, -1))
        inputs = shortened(self._texts[group.example], INPUT_BYTES)
        return Comparison(group.example, inputs, _summary(best), _summary(worst), advantage)


def _words(text: str) -> set[str]:
    return {match[0].strip(PUNCTUATION) for match in WORD.finditer(text.casefold())}


def _summary(rollout: Rollout) -> RolloutSummary:
    names = ["start", *(f"{n}. {step.name}" for n, step in enumerate(rollout.steps, start=1))]
    values = zip(names, rollout.values, strict=True)
    return RolloutSummary(
        outputs=clip(_outputs(rollout), OUTPUT_TOKENS),
        score=rollout.score,
        feedback=shortened(rollout.words, FEEDBACK_BYTES),
        values=tuple((name, value) for name, value in values if value is not None),
        measure=rollout.measure,
    )


def _outputs(rollout: Rollout | None) -> str:
    """Its outputs, or why it has none."""
    if rollout is None:
        return ""
    return fields_text(rollout.outputs) or (rollout.failure.message if rollout.failure else "")


def training_rows(update: int, groups: Iterable[SampledGroup]) -> tuple[Row, ...]:
    """The rollouts of an update, with the scores of the metric."""
    rows = []
    for sampled in groups:
        rollouts = (sampled.measured or sampled.group).all_rollouts
        for additions, rollout, aid in zip(sampled.additions, rollouts, sampled.aids, strict=True):
            rows.append(rollout_row(rollout, "training", additions, update, aid))
    return tuple(rows)


def rollout_row(
    rollout: Rollout, set: str, additions: Additions, update: int | None = None, aid: str = ""
) -> Row:
    """The row of a rollout on an example of this set, with the help (`aid`) that it had."""
    failure = rollout.failure
    return {
        "set": set,  # "training", "validation" or "test"
        "update": update,  # from 0; None outside training
        "example": rollout.example,  # the position in its set
        "rollout_id": rollout.rollout_id,
        "score": rollout.score,
        "outputs": fields_text(rollout.outputs),
        "feedback": rollout.words,
        "failure": f"{failure.kind}: {failure.message}" if failure else "",
        "experiences": " ".join(experience.id for experience in additions.library),
        "n_demos": len(additions.demos),
        "aid": aid,  # a hint, a teacher, a start from another rollout
        "n_lm_calls": rollout.usage.n_lm_calls,
        "n_tokens": rollout.usage.n_tokens,
        "dollars": rollout.usage.cost_usd,
        "objectives": dict(rollout.objectives),
    }


def reflection_row(stage: str, update: int, inputs: Mapping[str, Any], answer: Answer) -> Row:
    """The row of an answer to these inputs.

    `answered` is what was read, as JSON, or what could not be read; `fault` says what failed, also
    where the LM was asked once more.
    """
    texts = (f"[{name}]\n{clip(str(value), ASKED_TOKENS)}" for name, value in inputs.items())
    is_read = answer.output is not None
    at_first = f"could not be read at first: {answer.unread}"
    unreadable = at_first if is_read else "nothing in the answer could be read"
    return {
        "stage": stage,
        "update": update,
        "asked": "\n\n".join(texts),
        "answered": json.dumps(answer.output, ensure_ascii=False) if is_read else answer.unread,
        "explanation": answer.explanation,
        "fault": answer.error or (unreadable if answer.parse_failures else ""),
        "n_lm_calls": answer.usage.n_lm_calls,
        "n_tokens": answer.usage.n_tokens,
        "dollars": answer.usage.cost_usd,
    }


def example_rows(
    set: str, examples: Sequence[Example], student: RolloutsByExample, result: RolloutsByExample
) -> list[ExampleRow]:
    """A row for each example that both, or one of them, were measured on."""
    rows = []
    for example in sorted({*student, *result}):
        (before, old), (after, new) = (of.get(example, (None, None)) for of in (student, result))
        gave, words = [_outputs(one) for one in (before, after)], after.words if after else ""
        texts = (examples[example].text, *gave, words)
        inputs, *others = [shortened(text, CELL_BYTES) for text in texts]
        rows.append(ExampleRow(set, example, inputs, old, new, *others))
    return rows


def worst_first(rows: Iterable[ExampleRow]) -> tuple[ExampleRow, ...]:
    """First the examples that the result has no score on, then those with its lowest scores."""

    def place(row: ExampleRow) -> tuple[bool, float, float]:
        result = row.result or 0.0
        return row.result is not None, result, result - (row.student or 0.0)

    return tuple(sorted(rows, key=place))


def objective_means(values: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each objective, over those that have it."""
    columns = [*values]
    names = dict.fromkeys(name for of_one in columns for name in of_one)
    return {n: statistics.fmean(of_one[n] for of_one in columns if n in of_one) for n in names}


def as_columns(rows: Iterable[Any]) -> list[Row]:
    """The rows as dicts that all have the same keys; an objective is a column `objective NAME`."""
    plain = [dict(row) if isinstance(row, Mapping) else asdict(row) for row in rows]
    names = dict.fromkeys(name for row in plain for name in row.get("objectives", ()))
    for row in plain:
        objectives = row.pop("objectives", {})
        row.update({f"objective {name}": objectives.get(name) for name in names})
    return plain
