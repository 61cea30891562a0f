"""What a strategy may decide, seen through a compile; the strategies here are a user's own."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import Guesser, Run, learned_in, library_texts, predictor, questions, records, section
from scripted import EXTRACT, UPDATE, chat, scripted_lm

from tfgrpo_dspy import (
    ExperienceLibrary,
    MissingRecordError,
    RunFailedError,
    SettingsError,
    strategies,
)
from tfgrpo_dspy.experience import Add
from tfgrpo_dspy.strategies.base import (
    Ask,
    Attempt,
    BatchPlan,
    Credit,
    GroupContext,
    Play,
    Proposed,
    Scored,
    Shown,
    Strategy,
    UpdateContext,
)

ROWS = [["1", "0"], ["0", "0"], ["1", "1"], ["1", "0"]]


@dataclass(frozen=True)
class Only(Strategy):
    """Trains on one example; all rollouts of a batch are its own."""

    example: int

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        return {self.example: sum(plan.sizes.values())}


def groups_of(run: Run) -> list[list[tuple[int, int]]]:
    """The examples of each update, each with its number of scores."""
    updates = run.results.updates
    return [[(group.example, len(group.scores)) for group in u.groups] for u in updates]


def test_a_strategy_chooses_the_examples_of_a_batch_and_how_often_each_is_run_always_anew() -> None:
    run = Run(ROWS, strategies=(Only(3),), batch_size=2, epochs=2)
    assert groups_of(run) == [[(3, 4)]] * 4
    in_training = [p.seed for p in run.prompts("question 3") if p.temperature == 0.7]
    assert len(set(in_training)) == len(in_training) == 16


@dataclass(frozen=True)
class Notes(Strategy):
    """Notes what it is told, and leaves everything as it is."""

    plans: list[BatchPlan]

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        self.plans.append(plan)
        return plan.sizes


def test_strategies_are_asked_in_their_order_and_know_the_decided_groups() -> None:
    plans: list[BatchPlan] = []
    Run(ROWS, strategies=(Only(1), Notes(plans)), batch_size=2, epochs=2, max_staleness=1)
    assert [dict(plan.sizes) for plan in plans] == [{1: 4}] * 4
    known = [[group.update for group in plan.past] for plan in plans]
    assert known == [[], [], [0], [0, 1]]


@dataclass(frozen=True)
class Broken(Strategy):
    """Gives something that cannot be used."""

    sizes: Any = None

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        if self.sizes is None:
            raise RuntimeError(plan.update)
        return self.sizes

    def propose(self, context: UpdateContext, ask: Ask) -> Any:
        return context.update


@pytest.mark.parametrize(
    "sizes", [None, {7: 2}, {}, {0: 1}, {0: 99}, {"first": 2}, {0: 2.5}, [0]], ids=repr
)
def test_a_strategy_that_fails_costs_its_own_part_only_and_is_counted(
    sizes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    plain, run = Run(ROWS, batch_size=2), Run(ROWS, strategies=(Broken(sizes),), batch_size=2)
    assert learned_in(run.results) == learned_in(plain.results)
    choices, proposals = 2, 2
    assert run.results.failures["strategy"] == choices + proposals
    (said,) = [r.getMessage() for r in caplog.records if "'strategy'" in r.getMessage()]
    assert "Broken.choose" in said


@dataclass(frozen=True)
class Rewards(Strategy):
    """Gives 5 more; raises where a rollout answered 7, and gives no score where it answered 8."""

    def reward(self, scored: Scored) -> Sequence[float | None]:
        answers = [rollout.outputs["answer"] for rollout in scored.rollouts]
        if "7" in answers:
            raise ValueError(answers)
        pairs = zip(answers, scored.rollouts, strict=True)
        return [None if answer == "8" else 5 + (each.score or 0) for answer, each in pairs]


def test_rollouts_whose_rewards_fail_have_no_score_and_never_one_of_another_scale() -> None:
    rows = [["1", "0"], ["7", "1"], ["8", "1"]]
    run = Run(rows, strategies=(Rewards(),), batch_size=1, max_staleness=0)
    groups = [group for update in run.results.updates for group in update.groups]
    scores = {group.example: [*group.scores] for group in groups}
    assert scores == {0: [6.0, 5.0], 1: [], 2: [6.0]}
    assert run.results.failures["strategy"] >= 1


def test_a_choice_that_fails_in_the_first_three_batches_ends_the_run() -> None:
    with pytest.raises(
        RunFailedError, match=r"first 3 batches; correct or leave out Broken\.choose"
    ):
        Run(ROWS * 3, strategies=(Broken(),), batch_size=1, max_staleness=0)


@dataclass(frozen=True)
class Asks(Strategy):
    """Asks what is no signature, adds what is no attempt, or changes its arguments."""

    signature: Any = None
    attempt: Any = None

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        plan.sizes.clear()  # type: ignore[attr-defined]
        return plan.sizes

    def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        return ["text"] if self.attempt is None else [Attempt(**self.attempt)]  # type: ignore[list-item]

    def show(self, context: GroupContext, ask: Ask) -> Shown:
        ask(self.signature, topic="all")
        return Shown(())


@pytest.mark.parametrize("signature", ["topic", None, 5, dspy.Predict])
@pytest.mark.parametrize(
    "attempt",
    [None, {"hint": 5}, {"hint": "[[ ## x ## ]]"}, {"teacher": "gpt"}, {"temperature": 2.1}],
)
def test_wrong_questions_attempts_and_changes_are_counted_and_the_run_goes_on(
    signature: Any, attempt: Any
) -> None:
    plain, run = Run(ROWS[:2]), Run(ROWS[:2], strategies=(Asks(signature, attempt),))
    assert learned_in(run.results) == learned_in(plain.results)
    assert run.results.failures["strategy"] >= 4


@dataclass(frozen=True)
class Hint(Strategy):
    """A group that fails gets an attempt with a hint that the reflection LM writes."""

    def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        if context.group.has_contrast or len(context.group.all_rollouts) > 2:
            return ()
        answer = ask("topic -> advice", topic="all")
        return [Attempt(hint=answer["advice"])]


def hinted_rules() -> list[Any]:
    return [
        ("`advice`", chat(advice="Count twice.")),
        (r"A hint for this input: Count twice\.", chat(answer="1")),
    ]


def test_a_group_that_fails_gets_extra_attempts_which_the_reflection_lm_compares() -> None:
    run = Run([["0", "0"], ["1", "0"]], *hinted_rules(), strategies=(Hint(),))
    assert run.uses == ["contrast", "contrast"]
    (shown,) = [p for p in run.prompts(EXTRACT) if "Count twice" in p.text]
    attempts = section(shown.user, "attempts")
    assert 'Attempt 1 (score 1, advantage +1.41, with the hint "Count twice.")' in attempts
    assert not run.library or "Count twice" not in str(library_texts(run.optimized))


def test_the_score_of_an_aided_rollout_is_no_evidence_for_experiences_and_stands_apart() -> None:
    student = ExperienceLibrary.from_texts(["Be kind."]).bake(predictor())
    told: list[Any] = []

    @dataclass(frozen=True)
    class Past(Strategy):
        def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
            told.extend(context.groups)
            return Proposed(context.lessons)

    run = Run([["0", "0"]], *hinted_rules(), strategies=(Hint(), Past()), student=student)
    (group,) = run.results.updates[0].groups
    assert (group.scores, group.aided_scores) == ((0.0, 0.0), (1.0,))
    (sampled,) = told
    assert sampled.unaided.scores == (0.0, 0.0)
    assert [one.hint for one in sampled.additions] == ["", "", "Count twice."]


def test_the_same_question_of_a_strategy_is_asked_once_and_its_calls_are_shown() -> None:
    run = Run([["0", "0"]] * 3, *hinted_rules(), strategies=(Hint(),))
    assert len(run.prompts("`advice`")) == 1
    assert run.results.usage["strategy"].n_lm_calls == 1


@dataclass(frozen=True)
class Taught(Strategy):
    """A group without contrast gets an attempt of the teacher."""

    teacher: Any

    def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:
        done = len(context.group.all_rollouts) > 2 or context.group.has_contrast
        return () if done else [Attempt(teacher=self.teacher)]


@pytest.mark.parametrize("kind", ["program", "LM"])
def test_a_teacher_is_another_program_or_an_lm_on_which_the_student_runs(kind: str) -> None:
    strong = scripted_lm([("question", chat(answer="1"))])
    teacher = Guesser() if kind == "program" else strong
    run = Run([["0", "0"]], ("`guess`", chat(guess="1")), strategies=(Taught(teacher),))
    (group,) = run.results.updates[0].groups
    assert (group.scores, group.aided_scores) == ((0.0, 0.0), (1.0,))
    assert "by a teacher" in section(run.prompts(EXTRACT)[0].user, "attempts")
    assert strong.engine.n_calls() == (kind == "LM")
    assert run.results.usage["rollout"].n_lm_calls == 3


@dataclass(frozen=True)
class Shorter(Strategy):
    """What counts is what remains of the score above the best of the first batch."""

    def reward(self, scored: Scored) -> Sequence[float]:
        best = max(rollout.score or 0.0 for rollout in scored.first)
        return [(rollout.score or 0.0) - best for rollout in scored.rollouts]


def test_what_a_rollout_counts_with_is_known_to_the_gate_the_lessons_and_the_final_choice() -> None:
    rows = [["3", "1"], ["2", "5"]]
    run = Run(rows, strategies=(Shorter(),), valset=questions(2, start=50), batch_size=1)
    scores = [group.scores for update in run.results.updates for group in update.groups]
    first = max(scores[0])
    assert first == 0.0
    assert {len(each) for each in scores} == {2}
    best = 5.0 if run.results.updates[0].groups[0].example else 3.0
    assert run.results.best.mean == pytest.approx(0.5 - best)
    assert f"score {-(5 - 2) if best == 5 else -2}" in str(run.texts(EXTRACT))


@dataclass(frozen=True)
class Extremes(Strategy):
    """Shows the best and the worst rollout, with the value of each step."""

    def show(self, context: GroupContext, ask: Ask) -> Shown:
        ranked = sorted(context.group.rollouts, key=lambda rollout: rollout.score or 0.0)
        return Shown((ranked[0], ranked[-1]), "Look at the first word.")

    def credit(self, context: GroupContext, ask: Ask, play: Play) -> Credit:
        rollouts = context.group.rollouts
        return Credit({each.rollout_id: [None, *[0.25] * len(each.steps)] for each in rollouts})


def test_a_strategy_chooses_what_the_reflection_lm_compares_and_values_steps() -> None:
    run = Run([["1", "0.5", "0"]], strategies=(Extremes(),))
    attempts = section(run.prompts(EXTRACT)[0].user, "attempts")
    assert re.findall(r"Attempt \d \(score [\d.]+", attempts) == [
        "Attempt 1 (score 1", "Attempt 2 (score 0"
    ]  # fmt: skip
    assert "Look at the first word." in section(run.prompts(EXTRACT)[0].user, "objective")
    (group,) = run.results.updates[0].groups
    assert group.scores == (1.0, 0.5, 0.0)


@dataclass(frozen=True)
class Own(Strategy):
    """Proposes an experience, which it asks the reflection LM for, in place of lessons."""

    def propose(self, context: UpdateContext, ask: Ask) -> Proposed:
        answer = ask("topic -> advice", topic="all")
        return Proposed((), (Add(answer["advice"]),) * (not context.update))


def test_a_strategy_proposes_experiences_and_drops_lessons() -> None:
    run = Run(ROWS, *hinted_rules(), strategies=(Own(),))
    assert library_texts(run.optimized) == ["Count twice."]
    assert not run.prompts(UPDATE)


ALL = (Only(0), Hint(), Shorter(), Extremes(), Own())


def everything(log_dir: Path, **arguments: Any) -> Run:
    given = {"strategies": ALL, "log_dir": log_dir, "batch_size": 2, "epochs": 2, **arguments}
    return Run([["0", "0"], *ROWS[1:]], *hinted_rules(), **given)


def test_strategies_decide_the_same_in_any_number_of_threads_and_offline(tmp_path: Path) -> None:
    first = everything(tmp_path, num_threads=1)
    assert records(tmp_path, "strategy")
    again = everything(tmp_path, offline=True)
    assert not again.prompts("")
    others = again, everything(tmp_path / "other", num_threads=5)
    assert [learned_in(run.results) for run in others] == [learned_in(first.results)] * 2


def test_offline_a_question_of_a_strategy_that_is_not_recorded_is_named(tmp_path: Path) -> None:
    everything(tmp_path, strategies=())
    with pytest.raises(MissingRecordError, match="strategy"):
        everything(tmp_path, strategies=(Hint(),), offline=True)


def test_the_calls_of_extra_attempts_and_questions_stay_within_the_budget() -> None:
    for budget in range(12, 40, 3):
        run = everything(None, max_lm_calls=budget, epochs=9)  # type: ignore[arg-type]
        assert len(run.prompts("")) <= budget


class Later(Strategy):
    """Its `choose` has to be awaited, which a run does not."""

    async def choose(self, plan: BatchPlan) -> Mapping[int, int]:  # type: ignore[override]
        return plan.sizes


def test_a_strategy_whose_method_would_have_to_be_awaited_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"ater\.choose should not be async"):
        Run(ROWS, strategies=[Later()])


REFUSED: list[tuple[str, dict[str, Any]]] = [
    ("LearningFrontier", {"most": 1}), ("DomainBandit", {"domain": None}),
    ("HardSampleWeights", {"domain": 5}), ("TeacherRollouts", {"teacher": predictor(), "share": 2}),
    ("BranchingRollouts", {"leaves": 0}), ("Induction", {"every": 0}),
    ("GlobalConstraint", {"quantity": "help"}), ("ClippedDiversity", {"temperature": 3}),
    *(("Objectives", {"weights": bad}) for bad in ({}, {"a": 0.0}, {"a": float("nan")}, "score")),
    ("Objectives", {"weights": {"a": 1}, "computed": {"x": 3}}),
    ("StepOrder", {"reference": ["a", "b"]}), ("TeacherRollouts", {"teacher": "gpt-5"}),
]  # fmt: skip
"""The last argument is the one that cannot be used."""


@pytest.mark.parametrize(("name", "arguments"), REFUSED)
def test_a_setting_that_cannot_be_used_is_refused_with_its_value(
    name: str, arguments: dict[str, Any]
) -> None:
    *_, (argument, value) = arguments.items()
    with pytest.raises(SettingsError, match=re.escape(f"{argument}={value!r}: ")):
        getattr(strategies, name)(**arguments)
