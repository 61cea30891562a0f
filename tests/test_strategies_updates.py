"""Strategies that propose, narrow and extrapolate advice."""

import asyncio
import re
from collections.abc import Mapping, Sequence
from typing import Any

import dspy
import pytest
from runs import Run, add, library_texts, section
from scripted import EXTRACT, chat, lessons, operations

from tfgrpo_dspy import Evidence, Experience, ExperienceLibrary, SettingsError
from tfgrpo_dspy.experience.values import Add, Modify
from tfgrpo_dspy.group import Group
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.strategies import (
    AttributionPrior,
    ConflictAware,
    Extrapolate,
    GroupContext,
    Strategy,
    UpdateContext,
)

ONE = [["1", "0"]]
ADVICE = Experience("E1", "Take the lift.")
WITH, WITHOUT = ExperienceLibrary([ADVICE]), ExperienceLibrary()
TRAINSET = [
    dspy.Example(question=f"Case {i} about {'copper' if i % 2 else 'linen'}").with_inputs(
        "question"
    )
    for i in range(40)
]


class Asked:
    """Answers questions of strategies, and keeps them."""

    def __init__(self, **answer: str) -> None:
        self.answer = answer
        self.questions: list[Mapping[str, Any]] = []

    async def __call__(self, signature: Any, **inputs: Any) -> Mapping[str, Any]:
        assert set(inputs) <= set(signature.input_fields)
        self.questions.append(inputs)
        return self.answer


def compared(example: int, with_advice: float, without: float, update: int = 0) -> SampledGroup:
    """A group of two rollouts, of which the first had the advice."""
    rollouts = [Rollout(example, k, score=s) for k, s in enumerate((with_advice, without))]
    given = (Additions(WITH), Additions(WITHOUT))
    return SampledGroup(Group.of(example, rollouts, True), given, update)


def update(
    past: Sequence[SampledGroup] = (),
    libraries: Sequence[ExperienceLibrary] = (WITH,),
    number: int = 1,
) -> UpdateContext:
    *earlier, now = past or [None]
    return UpdateContext(
        update=number,
        library=libraries[-1],
        libraries=tuple(libraries),
        lessons=(),
        groups=(now,) if now else (),
        past=tuple(earlier),  # type: ignore[arg-type]
        training=tuple(range(40)),
        trainset=TRAINSET,
        predictors=("self",),
    )


def proposed(strategy: Strategy, context: UpdateContext, asked: Asked) -> list[Any]:
    return list(asyncio.run(strategy.propose(context, asked)).operations)


CONFLICT = [compared(i, 1.0, 0.0) if i % 2 else compared(i, 0.0, 1.0) for i in range(8)]
"""The advice helps with copper, and harms with linen."""
NARROWER = "When a case is about copper, take the lift."


def test_advice_that_helps_on_some_inputs_and_harms_on_others_is_narrowed() -> None:
    asked = Asked(narrower=NARROWER)
    (operation,) = proposed(ConflictAware(), update(CONFLICT), asked)
    assert isinstance(operation, Modify)
    assert (operation.id, operation.text) == ("E1", NARROWER)
    assert {each.example for each in operation.evidence} == {1, 3, 5, 7}
    (question,) = asked.questions
    assert question["advice"] == "Take the lift."
    assert question["helped"].count("copper") == 4
    assert question["harmed"].count("linen") == 4
    assert "linen" not in question["helped"]


def test_advice_that_the_gate_has_dropped_comes_back_narrower() -> None:
    context = update(CONFLICT, [WITH, WITHOUT])
    (operation,) = proposed(ConflictAware(), context, Asked(narrower=NARROWER))
    assert isinstance(operation, Add)
    assert operation.text == NARROWER


@pytest.mark.parametrize(
    "groups",
    [
        [compared(i, 1.0, 0.0) for i in range(16)],
        [compared(i, float(i // 2 % 2), float(1 - i // 2 % 2)) for i in range(16)],
        CONFLICT[:6],
    ],
    ids=["it always helps", "luck, whatever the input", "too few groups"],
)
def test_without_a_conflict_between_kinds_of_inputs_nothing_is_asked(
    groups: list[SampledGroup],
) -> None:
    asked = Asked(narrower=NARROWER)
    assert proposed(ConflictAware(), update(groups), asked) == []
    assert asked.questions == []


def test_a_conflict_is_asked_about_once_and_no_answer_changes_nothing() -> None:
    asked = Asked(narrower="None")
    assert proposed(ConflictAware(), update(CONFLICT), asked) == []
    more = [compared(i, float(i % 2), float(1 - i % 2)) for i in range(16)]
    proposed(ConflictAware(), update(more), asked)
    assert len(asked.questions) == 1


def shown(strategy: Strategy, *entropies: float | None) -> list[int]:
    """The rollout ids that are compared; the first has a score of 1."""
    made = [
        Rollout(0, k, score=float(k == 0), entropy=entropy) for k, entropy in enumerate(entropies)
    ]
    sampled = SampledGroup(Group.of(0, made, True), (Additions(WITH),) * len(made))
    context = GroupContext(sampled, (), WITH, (0,), TRAINSET)
    return [each.rollout_id for each in asyncio.run(strategy.show(context, Asked())).rollouts]


def test_a_rollout_of_high_entropy_is_not_compared_unless_the_contrast_needs_it() -> None:
    strategy = ConflictAware(max_entropy=1.0)
    assert shown(strategy, 0.1, 0.2, 0.1, 9.0) == [0, 1, 2]
    assert shown(strategy, 9.0, 0.2, 0.1, 0.1) == [0, 1, 2, 3]
    assert shown(ConflictAware(max_entropy=0.5), None, 0.2, None, 9.0) == [0, 1, 2]
    assert shown(strategy, None, None, None) == [0, 1, 2]


def experience(number: int, text: str) -> Experience:
    return Experience(f"E{number}", text, evidence=(Evidence(0, number, (1,), (1.0,)),))


GROWN = ExperienceLibrary(
    [experience(1, "Copper rods get A1."), experience(2, "Copper rings get A1.")]
)
GONE = ExperienceLibrary([experience(1, "Copper rods get A1."), experience(3, "Guess.")])


def test_what_lies_further_in_the_direction_of_the_changes_is_proposed() -> None:
    asked = Asked(candidates="- All copper gets A1.\n- [E2] Copper rings, of any size, get A1.")
    context = update(libraries=[WITHOUT, GONE, GROWN], number=5)
    first, second = proposed(Extrapolate(), context, asked)
    assert isinstance(first, Add)
    assert isinstance(second, Modify)
    assert first.text == "All copper gets A1."
    assert (second.id, second.text) == ("E2", "Copper rings, of any size, get A1.")
    (question,) = asked.questions
    assert "Guess." in question["went"]
    assert "Copper rods get A1." in question["came"]


@pytest.mark.parametrize(
    ("number", "libraries"), [(4, [WITHOUT, GROWN]), (0, [WITHOUT, GROWN]), (5, [WITHOUT, WITH])]
)
def test_nothing_is_extrapolated_between_the_times_or_from_a_single_text(
    number: int, libraries: list[ExperienceLibrary]
) -> None:
    asked = Asked(candidates="More.")
    assert proposed(Extrapolate(), update(libraries=libraries, number=number), asked) == []
    assert asked.questions == []


def test_no_more_candidates_are_taken_than_allowed() -> None:
    asked = Asked(candidates="\n".join(f"- Line {i} is here." for i in range(9)))
    context = update(libraries=[WITHOUT, GROWN], number=5)
    assert len(proposed(Extrapolate(most=2), context, asked)) == 2


WHAT_MATTERS = ("`matters`", chat(matters="The material decides.", advice="Name the material."))


def test_before_the_first_rollout_one_question_gives_candidates_and_a_focus() -> None:
    run = Run(ONE * 3, WHAT_MATTERS, strategies=(AttributionPrior(),), batch_size=1, epochs=2)
    assert len(run.prompts("`matters`")) == 1
    first, *_ = run.results.updates
    assert (first.groups, [op.text for op in first.operations]) == ((), ["Name the material."])
    assert "Name the material." in library_texts(run.optimized)
    asked = run.prompts(EXTRACT)
    assert asked
    assert all("The material decides." in section(p.user, "objective") for p in asked)


def test_drafts_from_labels_are_written_with_that_focus() -> None:
    trainset = [dspy.Example(question="question 0", answer="1").with_inputs("question")]
    drafts = ("`examples`", chat(lessons="Be kind."))
    run = Run(
        ONE,
        WHAT_MATTERS,
        drafts,
        (EXTRACT, lessons("Be exact.")),
        ("`operations`", operations(add("Be kind.", 1))),
        strategies=(AttributionPrior(),),
        trainset=trainset,
        drafts=1,
    )
    (draft,) = [p for p in run.prompts("`examples`") if "`matters`" not in p.text]
    assert "The material decides." in section(draft.user, "objective")


def test_an_answer_that_says_nothing_is_no_focus() -> None:
    run = Run(ONE, ("`matters`", chat(matters="None", advice="None")),
              strategies=(AttributionPrior(),))  # fmt: skip
    assert library_texts(run.optimized) == ["Be exact."]
    assert "opinion" not in section(run.prompts(EXTRACT)[0].user, "objective")


def test_advice_that_copies_a_training_example_is_refused_as_from_any_other_lesson() -> None:
    long = "the quick brown fox jumps over the lazy dog near river"
    trainset = [
        dspy.Example(question=f"{long} {i}", answer="x").with_inputs("question") for i in "ab"
    ]
    copied = ("`matters`", chat(matters="The animal.", advice=f"When asked {long} a, say x."))
    run = Run(ONE * 2, copied, strategies=(AttributionPrior(),), trainset=trainset)
    assert library_texts(run.optimized) == ["Be exact."]
    assert any("copies" in refused for refused in run.refusals)


def test_hidden_labels_stay_hidden_from_the_question() -> None:
    trainset = [dspy.Example(question="question 0", answer="seven").with_inputs("question")]
    arguments: dict[str, Any] = {"strategies": (AttributionPrior(),), "trainset": trainset}
    told = Run(ONE, WHAT_MATTERS, **arguments).prompts("`matters`")
    hidden = Run(ONE, WHAT_MATTERS, use_labels=False, **arguments).prompts("`matters`")
    assert ["seven" in prompt.text for prompt in (*told, *hidden)] == [True, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConflictAware(level=1.0), "level=1.0"),
        (lambda: ConflictAware(max_entropy=0), "max_entropy=0"),
        (lambda: Extrapolate(every=0), "every=0"),
        (lambda: AttributionPrior(n_examples=0), "n_examples=0"),
        (lambda: AttributionPrior(most=-1), "most=-1"),
        (lambda: ConflictAware(level="a"), "level='a'"),  # type: ignore[arg-type]
        (lambda: Extrapolate(most=2.5), "most=2.5"),  # type: ignore[arg-type]
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_with_its_value(make: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        make()
