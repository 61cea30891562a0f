"""Strategies that propose, narrow and extrapolate advice."""

from collections.abc import Sequence
from typing import Any

import dspy
from runs import Run, library_texts, section
from scripted import EXTRACT, chat
from small import Answering, group_of

from tfgrpo_dspy import Effect, Evidence, Experience, ExperienceLibrary
from tfgrpo_dspy.experience import Add, Modify
from tfgrpo_dspy.rollout import Rollout, Step
from tfgrpo_dspy.sampling.examples import Additions, Example
from tfgrpo_dspy.strategies import (
    AttributionPrior,
    ConflictAware,
    GroupContext,
    Induction,
    Shown,
    Strategy,
    UpdateContext,
)

ONE = [["1", "0"]]
ADVICE = Experience("E1", "Take the lift.")
WITH, WITHOUT = ExperienceLibrary([ADVICE]), ExperienceLibrary()
CASES = (f"Case {i} about {'copper' if i % 2 else 'linen'}" for i in range(40))
EXAMPLES = [Example(dspy.Example(question=case).with_inputs("question")) for case in CASES]


def update(libraries: Sequence[ExperienceLibrary], number: int) -> UpdateContext:
    return UpdateContext(
        update=number, library=libraries[-1], libraries=tuple(libraries), lessons=(), groups=(),
        past=(), training=tuple(range(40)), examples=EXAMPLES, predictors=("self",),
    )  # fmt: skip


def proposed(strategy: Strategy, context: UpdateContext, asked: Answering) -> list[Any]:
    return list(strategy.propose(context, asked).operations)


def shown(strategy: Strategy, *rollouts: Rollout) -> Shown:
    """What is shown of a group of these rollouts."""
    sampled = group_of(*rollouts, added=Additions(WITH))
    context = GroupContext(sampled=sampled, past=(), library=WITH, training=(0,), examples=EXAMPLES)
    return strategy.show(context, Answering())


def taken(id_: int, score: float, *ways: str) -> Rollout:
    steps = tuple(Step("predictor", "go", {}, {"way": way}) for way in ways)
    return Rollout(0, id_, outputs={"answer": ways[-1]}, steps=steps, score=score)


def test_steps_that_good_and_bad_attempts_share_are_not_to_be_blamed() -> None:
    note = shown(ConflictAware(), taken(1, 1.0, "left", "up"), taken(2, 0.0, "left", "down")).note
    assert "predictor go: left" in note
    assert "up" not in note.partition("against them.")[2]
    assert "down" not in note
    apart = shown(ConflictAware(), taken(1, 1.0, "left"), taken(2, 0.0, "right"))
    same = shown(ConflictAware(), taken(1, 1.0, "left", "up"), taken(2, 1.0, "left", "down"))
    assert (apart.note, same.note) == ("", "")


def test_sentences_of_the_reasoning_that_both_have_are_shared_whatever_their_case() -> None:
    def thought(id_: int, score: float, text: str) -> Rollout:
        return Rollout(0, id_, outputs={"reasoning": text, "answer": str(id_)}, score=score)

    good, bad = thought(1, 1.0, "It is copper. So A1."), thought(2, 0.0, "it is copper. So B2.")
    note = shown(ConflictAware(), good, bad).note
    assert "- It is copper" in note
    assert "A1" not in note
    assert "B2" not in note


def experience(number: int, text: str) -> Experience:
    return Experience(f"E{number}", text, evidence=(Evidence(0, number, (1,), (1.0,)),))


GROWN = ExperienceLibrary(
    [experience(1, "Copper rods get A1."), experience(2, "Copper rings get A1.")]
)
GONE = ExperienceLibrary([experience(1, "Copper rods get A1."), experience(3, "Guess.")])


def test_rules_behind_the_lines_that_came_are_proposed() -> None:
    asked = Answering(candidates="- All copper gets A1.\n- [E2] Copper rings, of any size, get A1.")
    context = update(libraries=[WITHOUT, GONE, GROWN], number=5)
    first, second = proposed(Induction(every=5), context, asked)
    assert isinstance(first, Add)
    assert isinstance(second, Modify)
    assert first.text == "All copper gets A1."
    assert (second.id, second.text) == ("E2", "Copper rings, of any size, get A1.")
    (question,) = asked.questions
    assert "Guess." in question["went"]
    assert "Copper rods get A1." in question["came"]


def test_the_worse_text_of_an_experience_is_shown_beside_the_better_one_to_go_on_that_way() -> None:
    def worth(text: str, effect: float) -> list[Experience]:
        return [Experience("E1", text, effect=Effect(effect, 0.05, 20)), experience(2, "Greet.")]

    asked = Answering(candidates="E1: Answer in one word.")
    states = [worth("Be brief.", 0.1), worth("Answer in one sentence.", 0.3)]
    libraries = [WITHOUT, *map(ExperienceLibrary, states)]
    (operation,) = proposed(Induction(every=5), update(libraries=libraries, number=5), asked)
    assert (operation.id, operation.text) == ("E1", "Answer in one word.")
    (question,) = asked.questions
    assert "Be brief.  (effect +0.10" in question["went"]
    assert "Answer in one sentence.  (effect +0.30" in question["came"]


ASKS_WHAT_MATTERS = "decide what the right answer is"
WHAT_MATTERS = (ASKS_WHAT_MATTERS, chat(matters="The material decides."))


def test_one_question_gives_a_focus_and_no_advice() -> None:
    run = Run(ONE * 3, WHAT_MATTERS, strategies=(AttributionPrior(),), batch_size=1, epochs=2)
    assert len(run.prompts(ASKS_WHAT_MATTERS)) == 1
    assert library_texts(run.optimized) == ["Be exact."]
    asked = run.prompts(EXTRACT)
    assert asked
    assert all("The material decides." in section(p.user, "objective") for p in asked)
