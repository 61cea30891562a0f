"""Changes of the library by an update, and the rollouts that each text was learned from."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from tfgrpo_dspy.experience.library import Applied, ExperienceLibrary
from tfgrpo_dspy.experience.values import Add, Advice, Evidence, Modify, Operation
from tfgrpo_dspy.gate.protocol import Decision
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.texts import clip
from tfgrpo_dspy.results.records import Change, ChangeKind, Comparison, RolloutSummary
from tfgrpo_dspy.rollout import Group, Rollout, fields_text
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.wording import WORD, shortened

MOST_COMPARISONS = 2  # of a text
MANY_REFUSED = 0.8  # of the prompts with an advice, for it to be named as the reason
PUNCTUATION = ".,;:!?()\"'"
INPUT_BYTES, OUTPUT_TOKENS, FEEDBACK_BYTES = 210, 150, 210  # how long they are shown


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
                self._shown.update(experience.advice for experience in one.library)
                if rollout.failure is not None and rollout.failure.refuses_prompt:
                    self._refused.update(experience.advice for experience in one.library)
        compared, after = self.compared(proposed.operations, groups, lessons), decision.library
        taken = {each.advice for each in after}  # under an id of the gate's, which may be another
        added: dict[str, Advice] = {}
        for (id_, operation), comparisons in zip(proposed.accepted, compared, strict=True):
            if isinstance(operation, Add | Modify):
                advice = proposed.library[id_].advice
                self._comparisons[advice] = comparisons
                if isinstance(operation, Add) and advice not in taken:
                    added[id_] = advice
        rivals = {rival.advice for rival in decision.rivals.values()}
        changes = list(self._stayed(before, after))
        for id_, advice in {**added, **{old.id: old.advice for old in before}}.items():
            text, scope = advice
            if id_ not in after and advice not in rivals:
                if id_ not in before:  # the gate drops it at once
                    comparisons = self._comparisons.get(advice, ())
                    changes.append(Change("born", id_, text, scope, comparisons=comparisons))
                reason = decision.dropped.get(id_, "the reflection LM deleted it")
                n, n_shown = self._refused[advice], self._shown[advice]
                if n >= MANY_REFUSED * n_shown > 0:
                    reason = f"the provider refused {n} of {n_shown} prompts with it; {reason}"
                changes.append(Change("dropped", id_, text, scope, reason))
        return tuple(changes)

    def compared(
        self,
        operations: Sequence[Operation],
        groups: Sequence[SampledGroup],
        lessons: Sequence[Lesson],
    ) -> tuple[tuple[Comparison, ...], ...]:
        """For each operation, the first groups of this update that it rests on."""
        by_example = {sampled.group.example: sampled.group for sampled in groups}
        return tuple(tuple(self._compared(each, by_example, lessons)) for each in operations)

    def _stayed(self, before: ExperienceLibrary, after: ExperienceLibrary) -> Iterator[Change]:
        by_id = {experience.id: experience for experience in before}
        for new in after:
            old = by_id.get(new.id)
            if old is None or old.advice != new.advice:
                kind: ChangeKind = "born" if old is None else "changed"
                comparisons = self._comparisons.get(new.advice, ())
                yield Change(
                    kind, new.id, new.text, new.scope, effect=new.effect, comparisons=comparisons
                )
            if not new.is_on_trial and (old is None or old.is_on_trial) and new.effect:
                yield Change("settled", new.id, new.text, new.scope, effect=new.effect)

    def _compared(
        self, operation: Operation, groups: Mapping[int, Group], lessons: Sequence[Lesson]
    ) -> Iterator[Comparison]:
        """The groups of this update that the evidence names, and the text is about, if it tells."""
        sources = [one for one in operation.evidence if one.example in groups]
        sources = self._about(getattr(operation, "text", ""), sources)
        sources.sort(key=lambda source: len({*source.scores}) < 2)  # contrast first
        for source in sources[:MOST_COMPARISONS]:
            about = (lesson for lesson in lessons if source in lesson.evidence)
            advantage = next((lesson.reason for lesson in about), "")
            yield self._comparison(groups[source.example], advantage)

    def _about(self, text: str, sources: list[Evidence]) -> list[Evidence]:
        """The sources whose examples share the most words with the text, but for common ones."""
        words = [_words(self._texts[one.example]) for one in sources]
        if len(words) < 2:
            return sources
        special = _words(text) - words[0].intersection(*words)
        counts = [len(special & of_one) for of_one in words]
        return [one for one, n in zip(sources, counts, strict=True) if 2 * n >= max(counts)]

    def _comparison(self, group: Group, advantage: str) -> Comparison:
        def has_values(rollout: Rollout) -> bool:  # of equal scores, such a rollout says more
            return any(value is not None for value in rollout.values)

        def score(rollout: Rollout) -> float:
            return rollout.score or 0.0

        best = max(group.rollouts, key=lambda rollout: (score(rollout), has_values(rollout)))
        latest = reversed(group.rollouts)
        worst = min(latest, key=lambda rollout: (score(rollout), not has_values(rollout)))
        inputs = shortened(self._texts[group.example], INPUT_BYTES)
        good, bad = _attempt(best), _attempt(worst)
        return Comparison(group.example, inputs, good, bad, advantage)


def _words(text: str) -> set[str]:
    return {match[0].strip(PUNCTUATION) for match in WORD.finditer(text.casefold())}


def _attempt(rollout: Rollout) -> RolloutSummary:
    outputs = fields_text(rollout.outputs) or getattr(rollout.failure, "message", "")
    feedback = shortened(rollout.words, FEEDBACK_BYTES)
    return RolloutSummary(
        clip(outputs, OUTPUT_TOKENS), rollout.score, feedback, _values(rollout), rollout.measure
    )


def _values(rollout: Rollout) -> tuple[tuple[str, float], ...]:
    names = ["start", *(f"{n}. {step.name}" for n, step in enumerate(rollout.steps, start=1))]
    pairs = zip(names, rollout.values, strict=True)
    return tuple((name, value) for name, value in pairs if value is not None)
