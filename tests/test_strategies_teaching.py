"""Strategies that make failing groups teach: marks of a teacher, states as tasks, exploration."""

import re
from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from runs import Run, section
from scripted import EXTRACT, chat
from small import Answering

from tfgrpo_dspy import ExperienceLibrary
from tfgrpo_dspy.rollout import Group, Rollout, Step
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.sampling.fields import Example
from tfgrpo_dspy.strategies import (
    ClippedDiversity,
    Credit,
    GroupContext,
    ImplicitStepRewards,
    InformationGain,
    MonteCarloCredit,
    TeacherMarks,
)

EXAMPLES = [
    Example(dspy.Example(question=f"question {name}", answer="1").with_inputs("question"))
    for name in "ab"
]


def turns(id_: int, score: float | None, *ways: str, n_replayed: int | None = None) -> Rollout:
    steps = tuple(Step("predictor", "go", {}, {"way": way}) for way in ways)
    outputs = {"answer": ways[-1]}
    return Rollout(0, id_, outputs=outputs, steps=steps, score=score, n_replayed=n_replayed)


def context(
    rollouts: Sequence[Rollout], past: Sequence[SampledGroup] = (), update: int = 0
) -> GroupContext:
    has_metric = rollouts[0].score is not None
    additions = (Additions(ExperienceLibrary()),) * len(rollouts)
    sampled = SampledGroup(Group.of(0, rollouts, has_metric), additions, update)
    return GroupContext(
        sampled=sampled,
        past=tuple(past),
        library=ExperienceLibrary(),
        training=(0, 1),
        examples=EXAMPLES,
    )


def other(score: float) -> SampledGroup:
    """A group of another example, by which it is known that there are other scores."""
    rollouts = [Rollout(1, 100, score=score)]
    return SampledGroup(Group.of(1, rollouts, True), (Additions(ExperienceLibrary()),))


class Played:
    """Goes on with these scores, and keeps from where."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.states = scores, list[int]()

    def __call__(self, rollout: Rollout, n_steps: int, n: int = 1, **_: Any) -> Sequence[Rollout]:
        self.states.append(n_steps)
        ways = [step.outputs["way"] for step in rollout.steps[:n_steps]]
        first = 1000 * len(self.states)
        return [
            turns(first + k, score, *ways, "new", n_replayed=n_steps)
            for k, score in enumerate(self.scores[:n])
        ]


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError


def credit(strategy: Any, group: GroupContext, ask: Any = never, play: Any = never) -> Credit:
    found = strategy.credit(group, ask, play)
    assert isinstance(found, Credit)
    return found


FAILING = [turns(1, 0.0, "a", "b", "c"), turns(2, 0.0, "a", "b", "d")]


def test_the_marks_of_a_teacher_are_the_values_of_the_students_own_states() -> None:
    asked = Answering(marks="1: 7, 7, 2\n2: 7, 1, 1")
    found = credit(TeacherMarks(), context(FAILING, [other(1.0)]), asked)
    assert dict(found.values) == {1: [0.5, 0.7, 0.7, 0.2], 2: [0.5, 0.7, 0.1, 0.1]}
    assert found.measure == "mark of the teacher"
    (question,) = asked.questions
    assert "way: c" in question["attempts"]
    assert question["expected"] == "answer: 1"


@pytest.mark.parametrize("marks", ["", "None", "1: 7", "1: 7, 70, 2", "1: a, b, c"])
def test_marks_that_cannot_be_read_value_nothing(marks: str) -> None:
    assert (
        dict(credit(TeacherMarks(), context(FAILING, [other(1.0)]), Answering(marks=marks)).values)
        == {}
    )


class TwoSteps(dspy.Module):
    """Plans, then answers."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = dspy.Predict("question -> answer")
        self.act = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        self.plan(question=question)
        return self.act(question=question)


def test_failing_groups_of_a_silent_metric_teach_by_the_marks_of_the_teacher() -> None:
    rules: list[Any] = [("`marks`", chat(marks="1: 8, 1\n2: 8, 1"))]
    rows = [["0", "0"]] * 3 + [["1", "1"]]
    arguments: dict[str, Any] = {"student": TwoSteps(), "use_labels": False, "epochs": 2}
    marked = Run(rows, *rules, strategies=(TeacherMarks(),), **arguments)
    assert marked.results.failures.get("strategy", 0) == 0
    attempts = [section(prompt.user, "attempts") for prompt in marked.prompts(EXTRACT)]
    assert attempts
    assert all("the mark of the teacher fell from 0.80 to 0.10" in text for text in attempts)


def test_a_state_of_a_failing_rollout_becomes_a_task_and_gives_the_group_contrast() -> None:
    played = Played(1.0, 0.0)
    found = credit(MonteCarloCredit(tasks=2), context(FAILING, [other(1.0)]), play=played)
    assert [rollout.score for rollout in found.beside] == [1.0, 0.0]
    assert played.states == [2] or played.states == [1]
    assert found.values[1][played.states[0]] == pytest.approx(1 / 4)


def test_with_a_metric_pairs_are_made_by_outcome_and_no_judge_is_asked() -> None:
    rollouts = [turns(1, 1.0, "a", "b"), turns(2, 0.0, "a", "c")]
    found = credit(ImplicitStepRewards(), context(rollouts))
    assert found.values[1][-1] > 0.5 > found.values[2][-1]
    assert credit(ImplicitStepRewards(), context(FAILING, [other(1.0)])) == Credit({})


def test_without_a_metric_a_judge_makes_the_pairs() -> None:
    rollouts = [turns(1, None, "a", "b"), turns(2, None, "a", "c")]
    asked = Answering(better="1")
    assert credit(ImplicitStepRewards(), context(rollouts), asked).values
    assert len(asked.questions) == 1


def test_the_gain_of_information_values_every_rollout_that_the_calls_pay_for() -> None:
    rollouts = [turns(1, 1.0, "a", "b"), turns(2, 0.0, "a", "c"), turns(3, 0.0, "a", "d")]
    for each in rollouts:
        object.__setattr__(each, "usage", type(each.usage)(4))
    found = credit(InformationGain(samples=1), context(rollouts), play=Played(0.5))
    assert set(found.values) == {1, 2, 3}
    few = credit(InformationGain(samples=1, calls=0.2), context(rollouts), play=Played(0.5))
    assert set(few.values) == {1}


def test_attempts_that_agree_and_fail_are_followed_by_one_that_must_differ() -> None:
    rules: list[Any] = [(r"agree, and are not right: answer: 0\.", chat(answer="1"))]
    run = Run([["0", "0"], ["1", "0"]], *rules, strategies=(ClippedDiversity(),))
    aided = {group.example: group.aided_scores for u in run.results.updates for group in u.groups}
    assert aided == {0: (1.0,), 1: ()}
    none = Run([["0", "0"], ["1", "0"]], *rules, strategies=(ClippedDiversity(explore=0),))
    assert not any(group.aided_scores for u in none.results.updates for group in u.groups)


@pytest.mark.parametrize(
    ("usual", "explores_at", "sampled_at"),
    [(None, {}, 1.0), (None, {"temperature": 1.5}, 1.5), (1.4, {}, 1.4), ("own", {}, 0.3)],
)
def test_an_attempt_that_must_differ_is_sampled_warmer_unless_the_run_is_warm_or_at_its_own(
    usual: Any, explores_at: dict[str, float], sampled_at: float
) -> None:
    agree = r"answer: 0\. Take another way"
    run = Run(
        [["0", "0"]],
        (agree, chat(answer="1")),
        strategies=(ClippedDiversity(**explores_at),),
        temperature=usual,
        lm_arguments={"temperature": 0.3},
    )
    explored = [prompt for prompt in run.prompts(agree) if re.search(agree, prompt.system)]
    assert [prompt.temperature for prompt in explored] == [sampled_at]
    assert run.results.updates[0].groups[0].aided_scores == (1.0,)
