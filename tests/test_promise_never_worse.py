"""Promise 2: on the validation set, what comes back scores at least what the student scored.

Measured again here: both programs are called on every validation example with the same rollout
ids, at the LM's own temperature. The LM is scripted; what its lessons do to the score is drawn
by hypothesis: most of them are useless or do harm.
"""

import statistics
from typing import Any

import dspy
import pytest
from dspy import lm15
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scripted import EXTRACT, UPDATE, HigherMean, Prompt, chat, lessons, operations, scripted_lm
from test_dspy_contract import Pair, is_polite, library_texts, predictor, questions

from tfgrpo_dspy import Decision, ExperienceLibrary, TrainingFreeGRPO
from tfgrpo_dspy.gate import TrialEvidence
from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.rollout import rollout_id_for
from tfgrpo_dspy.sampling import RolloutTask, run_rollout

ADVICE = ("Greet first.", "Name the product.", "Ask what went wrong.", "Offer help.", "Be brief.")
EFFECTS = st.lists(st.sampled_from([-0.4, -0.2, 0.0, 0.2, 0.4]), min_size=5, max_size=5)
VALSET = questions(12, start=100)


def world(effects: list[float], provider_fails: float = 0.0, program_fails: float = 0.0) -> dspy.LM:
    """An LM whose every piece of advice moves the chance of a good answer by its effect."""

    def answer(prompt: Prompt) -> Any:
        luck = prompt.random("luck").random()
        if luck < provider_fails:
            return lm15.ServerError("overloaded")
        if luck < provider_fails + program_fails:
            return "no form at all"
        known = [i for i, text in enumerate(ADVICE) if text in prompt.system]
        chance = 0.5 + sum(effects[i] for i in known)
        return chat(answer="please" if prompt.random().random() < chance else "no")

    def extract(prompt: Prompt) -> str:
        return lessons(*prompt.random("lessons").sample(ADVICE, 2))

    def update(prompt: Prompt) -> str:
        draw = prompt.random("update")
        known = [f"E{i}" for i in range(1, 9) if f"[E{i}*]" in prompt.user]
        changes = [{"op": "ADD", "text": draw.choice(ADVICE), "lessons": [1]} for _ in range(2)]
        if known:
            changes.append({"op": "DELETE", "id": draw.choice(known)})
            changes.append({"op": "MODIFY", "id": draw.choice(known), "text": draw.choice(ADVICE)})
        return operations(*changes)

    rules = [(EXTRACT, extract), (UPDATE, update), ("question", answer)]
    return scripted_lm(rules, num_retries=0)


def scores(program: Any, lm: dspy.LM, seed: int, failure_score: float = 0.0) -> list[float | None]:
    """The program's score on each validation example; None where the provider failed."""
    found: list[float | None] = []
    with dspy.context(lm=lm):
        for index, example in enumerate(VALSET):
            rollout_id = rollout_id_for(seed, 0, index, 0, "validation")
            score = adapt_metric(is_polite)
            task = RolloutTask(program, example, index, rollout_id, None, score)
            rollout = run_rollout(task)
            found.append(failure_score if rollout.failure and rollout.counts else rollout.score)
    return found


def compiled(lm: dspy.LM, student: Any = None, **given_settings: Any) -> Any:
    chosen: dict[str, Any] = {
        "group_size": 3,
        "epochs": 2,
        "batch_size": 3,
        "num_threads": 2,
        "progress": False,
        "gate": HigherMean(),
    }
    with dspy.context(lm=lm):
        return TrainingFreeGRPO(is_polite, **(chosen | given_settings)).compile(
            student or predictor(), trainset=questions(6), valset=VALSET
        )


@given(effects=EFFECTS, seed=st.integers(0, 1000))
@example(effects=[-0.4, 0.0, 0.0, -0.4, 0.0], seed=0)  # worse, were ties and losses let stay
@settings(max_examples=5, derandomize=True)
def test_the_program_scores_at_least_what_the_student_scored(
    effects: list[float], seed: int
) -> None:
    lm = world(effects)
    optimized = compiled(lm, seed=seed)
    ours, theirs = scores(optimized, lm, seed), scores(predictor(), lm, seed)
    results = optimized.detailed_results
    assert statistics.fmean(ours) >= statistics.fmean(theirs)
    assert results.best.mean == pytest.approx(statistics.fmean(ours))
    assert results.student.mean == pytest.approx(statistics.fmean(theirs))
    if library_texts(optimized):
        assert statistics.fmean(ours) > statistics.fmean(theirs)


@given(effects=EFFECTS, seed=st.integers(0, 1000))
@example(effects=[0.4, 0.4, -0.4, 0.0, -0.2], seed=0)
@settings(max_examples=2, derandomize=True)
@pytest.mark.timeout(60)
def test_so_it_does_with_the_default_gate(effects: list[float], seed: int) -> None:
    lm = world(effects)
    optimized = compiled(lm, seed=seed, gate=None)
    ours, theirs = scores(optimized, lm, seed), scores(predictor(), lm, seed)
    assert statistics.fmean(ours) >= statistics.fmean(theirs)
    assert optimized.detailed_results.best.mean == pytest.approx(statistics.fmean(ours))


@given(effects=EFFECTS, seed=st.integers(0, 1000), failure_score=st.sampled_from([0.0, -1.0, 0.7]))
@settings(max_examples=6, derandomize=True)
def test_so_it_does_where_the_provider_or_the_program_fails_now_and_then(
    effects: list[float], seed: int, failure_score: float
) -> None:
    lm = world(effects, provider_fails=0.15, program_fails=0.15)
    optimized = compiled(lm, seed=seed, failure_score=failure_score)
    floor = min(failure_score, 0.0)
    ours = scores(optimized, lm, seed, floor)
    theirs = scores(predictor(), lm, seed, floor)
    gains = [a - b for a, b in zip(ours, theirs, strict=True) if None not in (a, b)]
    assert sum(gains) >= -1e-9
    results = optimized.detailed_results
    assert results.best.n_failed == ours.count(None)
    assert results.best.n == len(VALSET) - ours.count(None)


@given(effects=EFFECTS, seed=st.integers(0, 1000))
@example(effects=[0.2, 0.2, -0.4, -0.4, -0.4], seed=0)
@settings(max_examples=4, derandomize=True)
def test_so_it_does_for_a_student_that_has_a_library_already(
    effects: list[float], seed: int
) -> None:
    lm = world(effects)
    known = ExperienceLibrary().apply([{"op": "ADD", "text": text} for text in ADVICE[:2]])
    student = known.bake(Pair())
    optimized = compiled(lm, student, seed=seed)
    ours, theirs = scores(optimized, lm, seed), scores(student, lm, seed)
    assert statistics.fmean(ours) >= statistics.fmean(theirs)
    assert optimized.detailed_results.student.mean == pytest.approx(statistics.fmean(theirs))


class Gullible:
    """Measures nothing and lets every update stay."""

    metric = None

    def next(self, evidence: TrialEvidence) -> Decision:
        return Decision(evidence.proposed, "why not")


@given(seed=st.integers(0, 1000))
@settings(max_examples=4, derandomize=True)
def test_a_gate_that_lets_harm_stay_does_not_make_the_program_worse(seed: int) -> None:
    lm = world([-0.4, -0.4, -0.4, -0.4, -0.4])
    optimized = compiled(lm, seed=seed, gate=Gullible())
    assert any(update.accepted for update in optimized.detailed_results.updates)
    ours, theirs = scores(optimized, lm, seed), scores(predictor(), lm, seed)
    assert statistics.fmean(ours) >= statistics.fmean(theirs)


def test_lessons_that_all_do_harm_leave_the_student_and_say_so() -> None:
    student = predictor()
    optimized = compiled(world([-0.4] * 5), student)
    results = optimized.detailed_results
    assert optimized.signature.instructions == student.signature.instructions
    assert results.best == results.student
    assert "updates were rejected by the gate" in results.nothing_learned
    assert not any(update.accepted for update in results.updates)


def test_one_good_lesson_among_harmful_ones_is_found() -> None:
    optimized = compiled(world([-0.4, -0.4, 0.4, -0.4, -0.4]), epochs=3, gate=None)
    assert library_texts(optimized) == [ADVICE[2]]
    results = optimized.detailed_results
    assert results.best.mean > results.student.mean
