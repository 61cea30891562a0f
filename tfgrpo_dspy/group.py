"""The rollouts of one example: which may be compared, whether they differ, their advantages."""

import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from tfgrpo_dspy.rollout import Rollout, fields_text
from tfgrpo_dspy.scores import NO_SCORES, ScoreRange

DECISIVE = 0.2
"""A step decided a rollout if it changed the expected score by this share of the group's spread."""


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one example."""

    example: int
    rollouts: tuple[Rollout, ...]  # to compare: all have finite scores, or none has a score
    all_rollouts: tuple[Rollout, ...]  # that were made
    score_range: ScoreRange = NO_SCORES  # of the scores that the run had seen before

    @classmethod
    def of(
        cls,
        example: int,
        rollouts: Sequence[Rollout],
        has_metric: bool,
        score_range: ScoreRange = NO_SCORES,
    ) -> "Group":
        """The group of these, with `floored` scores; failures of provider and metric stay out."""
        scores = floored(rollouts, score_range) if has_metric else [r.score for r in rollouts]
        counted = [
            rollout if rollout.score is score else replace(rollout, score=score)
            for rollout, score in zip(rollouts, scores, strict=True)
            if rollout.counts
        ]
        return cls(example, tuple(counted), tuple(rollouts), score_range)

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores of its rollouts; empty where there is no metric."""
        return tuple(rollout.score for rollout in self.rollouts if rollout.score is not None)

    @property
    def advantages(self) -> tuple[float, ...]:
        """The distance of each score from the mean, in population standard deviations.

        `(0.0, 1.0) -> (-1.0, 1.0)`; all 0.0 without contrast; empty where there is no metric.
        Scores that look alike in `score_texts` have the same advantage.
        Source: GRPO, arXiv 2402.03300.
        """
        scores = [float(text) for text in self.score_texts]
        if not self.has_contrast:
            return (0.0,) * len(scores)
        mean, deviation = statistics.mean(scores), statistics.pstdev(scores)
        return tuple((score - mean) / deviation for score in scores)

    @property
    def decisive_predictor(self) -> str:
        """The predictor whose step changed the expected score most in any rollout; "": no such."""
        steps: list[tuple[float, str]] = []
        for rollout in self.rollouts:
            index = rollout.decisive_step(self.least_decisive)
            if index is not None:
                before, after = rollout.changes[index]
                names = [s.name for s in rollout.steps[: index + 1] if s.kind == "predictor"]
                steps.append((abs(after - before), names[-1] if names else ""))
        return max(steps, key=lambda step: step[0])[1] if steps else ""

    @property
    def least_decisive(self) -> float:
        """The least change of the values that decides a rollout."""
        are_scores = self.scores and not any(rollout.measure for rollout in self.rollouts)
        return DECISIVE * (max(self.scores) - min(self.scores) if are_scores else 1.0)

    @property
    def majority_answer(self) -> str:
        """The answer that most rollouts give, as first given; the earliest of several."""
        answered = [rollout for rollout in self.rollouts if rollout.failure is None]
        n_by_answer = Counter(rollout.answer for rollout in answered)
        if not answered:
            return ""
        return fields_text(max(answered, key=lambda rollout: n_by_answer[rollout.answer]).outputs)

    @property
    def has_feedback(self) -> bool:
        """True if the metric, an error of the program, or values of steps say what was wrong."""
        return any(r.words or r.failure or r.changes for r in self.rollouts)

    @property
    def has_contrast(self) -> bool:
        """True if its scores differ, by more than a hundredth of all scores that are known."""
        return bool(self.scores) and max(self.scores) - min(self.scores) > self.least_contrast

    @property
    def least_contrast(self) -> float:
        """Two of its scores that differ by no more than this count as equal."""
        return self.score_range.including(self.scores).least_contrast

    @property
    def score_texts(self) -> tuple[str, ...]:
        """The scores as people and the reflection LM read them, by `ScoreRange.texts`."""
        return self.score_range.including(self.scores).texts(self.scores)

    def is_at_best(self, labels: Mapping[str, str]) -> bool:
        """True if all have the best score that is known or, if only one is, the labels' answer."""
        scores = self.score_range.including(self.scores)
        if not self.scores:
            return False
        if scores.is_flat:
            return all(rollout.agrees_with(labels) for rollout in self.rollouts)
        return min(self.scores) >= scores.highest - scores.least_contrast


def floored(
    rollouts: Sequence[Rollout], score_range: ScoreRange, for_advice: bool = False
) -> list[float | None]:
    """The score that each rollout counts with; None: it has none.

    The program's own failures have the `failure_score` of all scores, these and the known ones;
    `for_advice`: so have all failures for which advice may be to blame. The score of a failed
    rollout that was made elsewhere stands.
    """
    floor = score_range.including(rollout.score for rollout in rollouts).failure_score

    def score_of(rollout: Rollout) -> float | None:
        if rollout.failure is None or rollout.score is not None:
            return rollout.score
        failure = rollout.failure
        is_low = failure.counts_against_advice if for_advice else failure.kind.is_programs_own
        return floor if is_low else None

    return [*map(score_of, rollouts)]
