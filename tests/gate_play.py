"""A gate is asked, its trials are scored, it is asked again: the pipeline's part, for tests."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.experience import Experience, ExperienceLibrary, Operation
from tfgrpo_dspy.gate import Decision, Trial, TrialEvidence, Trials

INCUMBENT = ExperienceLibrary([Experience(id="E1", text="Be brief.")])

ScoreOf = Callable[[Trial], float | None]


def question(*operations: Operation, n_examples: int, update: int = 0) -> TrialEvidence:
    """What a gate is asked first: may these operations change the incumbent?"""
    return TrialEvidence(INCUMBENT, operations, n_examples, update)


def play(
    gate: Any, evidence: TrialEvidence, score_of: ScoreOf, max_turns: int = 100
) -> tuple[Decision, list[Trials]]:
    """The gate's decision, and the trials that it asked for on the way."""
    asked: list[Trials] = []
    for _ in range(max_turns):
        answer = gate.next(evidence)
        if isinstance(answer, Decision):
            return answer, asked
        asked.append(answer)
        new = {t: score_of(t) for t in answer.trials if t not in evidence.scores}
        evidence = replace(evidence, scores={**evidence.scores, **new})
    raise AssertionError(f"no decision after {max_turns} turns")


def by_text(**scores: float) -> ScoreOf:
    """Scores by the first word of the library's last experience."""
    return lambda trial: scores[list(trial.library)[-1].text.rstrip(".").split()[0]]
