"""The default gate: from scores of rollouts with and without an experience, what does it decide?

The rollouts are made here, without an LM: an example of kind K has its score raised by what the
experiences about K add. So every effect is known exactly.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.operations import Limits
from tfgrpo_dspy.experience.values import Add, Delete, Evidence, Experience, Modify, Operation
from tfgrpo_dspy.gate import (
    BayesianGate,
    Belief,
    Decision,
    GroupPlan,
    Measured,
    NoGate,
    RunEvidence,
)

KINDS = 5
N_EXAMPLES = 40
WORDINGS: Mapping[str, tuple[Callable[[int, int], str], Callable[[int], str]]] = {
    "words": (
        lambda i, kind: f"Case {i}, about {('copper', 'amber', 'cedar', 'slate', 'linen')[kind]}",
        lambda kind: (
            f"When it is about {('copper', 'amber', 'cedar', 'slate', 'linen')[kind]}, ask."
        ),
    ),
    "codes": (
        lambda i, kind: f"Case {i} of kind K{kind}: what now?",
        lambda kind: f"When a case is of kind K{kind}, answer with Z{kind + 5}.",
    ),
    "without when": (
        lambda i, kind: f"Case {i} of kind K{kind}: what now?",
        lambda kind: f"Cases of kind K{kind}: answer with Z{kind + 5}.",
    ),
    "Chinese": (
        lambda i, kind: f"案件{i} 类别{'铜琥柏岩麻'[kind]} 怎么办",
        lambda kind: f"类别{'铜琥柏岩麻'[kind]}的案件 请回答{'甲乙丙丁戊'[kind]}。",
    ),
}

Chance = Callable[[int, Sequence[str]], float]


def texts_of_examples(wording: str) -> tuple[str, ...]:
    return tuple(WORDINGS[wording][0](i, i % KINDS) for i in range(N_EXAMPLES))


def learned_from(*examples: int) -> tuple[Evidence, ...]:
    return tuple(Evidence(0, i, (1, 2), (0.0, 1.0)) for i in examples)


class World:
    """A run of the gate: rollouts whose score is 1 with the chance that `chance` gives."""

    def __init__(
        self,
        chance: Chance,
        wording: str = "words",
        gate: BayesianGate | None = None,
        group_size: int = 3,
        scale: Callable[[float], float] = float,
        limits: Limits | None = None,
    ) -> None:
        self.gate = gate or BayesianGate()
        self.chance = chance
        self.scale = scale
        self.group_size = group_size
        self.evidence = RunEvidence(
            previous=Decision(ExperienceLibrary(), "start"),
            texts=texts_of_examples(wording),
            training=tuple(range(N_EXAMPLES)),
            limits=limits or Limits(),
        )
        self.update = 0

    def decide(self, *operations: Operation, n_examples: int = 10) -> Decision:
        """One update: groups with the latest decision's library, then the operations."""
        previous = self.evidence.previous
        examples = [(self.update * n_examples + k) % N_EXAMPLES for k in range(n_examples)]
        groups = [self._group(previous, example) for example in examples]
        rollouts = [rollout for group in groups for rollout in group]
        self.evidence = RunEvidence(
            previous,
            operations,
            (*self.evidence.rollouts, *rollouts),
            self.evidence.texts,
            self.evidence.training,
            self.evidence.limits,
        )
        decision = self.gate.decide(self.evidence)
        self.evidence = RunEvidence(decision, (), self.evidence.rollouts, *self._rest())
        self.update += 1
        return decision

    def _rest(self) -> tuple[Any, ...]:
        return self.evidence.texts, self.evidence.training, self.evidence.limits

    def _group(self, decision: Decision, example: int) -> list[Measured]:
        plan = GroupPlan(decision, example, self.update, self.group_size)
        rng = random.Random(f"{self.update}/{example}")
        return [
            Measured(
                library,
                example,
                self.scale(float(rng.random() < self.chance(example, [e.text for e in library]))),
            )
            for library in self.gate.assign(plan)
        ]


def of_kinds(wording: str, right: float = 0.6, base: float = 0.35) -> Chance:
    """Each lesson about a kind adds `right` on its cases; one that says WRONG takes it away."""
    lesson = WORDINGS[wording][1]

    def chance(example: int, texts: Sequence[str]) -> float:
        kind = example % KINDS
        good = lesson(kind) in texts
        bad = f"{lesson(kind)} WRONG" in texts
        return base + right * good - base * bad

    return chance


def texts_of(library: ExperienceLibrary) -> set[str]:
    return {experience.text for experience in library}


@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize("is_named", [True, False], ids=["sources named", "sources not named"])
def test_right_lessons_stay_and_wrong_ones_leave_in_any_wording(
    wording: str, is_named: bool
) -> None:
    lesson = WORDINGS[wording][1]
    world = World(of_kinds(wording), wording)
    world.decide()
    adds = [
        Add(text, evidence=learned_from(kind) if is_named else ())
        for kind in range(KINDS)
        for text in ([lesson(kind)] if kind < 3 else [f"{lesson(kind)} WRONG"])
    ]
    world.decide(*adds)
    for _ in range(12):
        decision = world.decide()
    assert texts_of(decision.result) == {lesson(kind) for kind in range(3)}


def test_a_lesson_that_gives_its_source_away_is_not_given_to_the_program() -> None:
    leak = "The answer to case 17 is Q9."

    def chance(example: int, texts: Sequence[str]) -> float:
        return 0.35 + 0.6 * (leak in texts and example == 17) - 0.1 * (leak in texts)

    world = World(chance, "words")
    world.decide(Add(leak, evidence=learned_from(17)))
    for _ in range(12):
        decision = world.decide()
    assert texts_of(decision.result) == set()


def test_a_modified_text_takes_the_place_only_when_it_is_better() -> None:
    lesson = WORDINGS["words"][1]
    better = f"{lesson(0)} Politely."

    def chance(example: int, texts: Sequence[str]) -> float:
        if example % KINDS:
            return 0.5
        return 0.2 + 0.3 * (lesson(0) in texts) + 0.75 * (better in texts)

    world = World(chance, "words")
    world.decide(Add(lesson(0), evidence=learned_from(0)))
    decision = world.decide(Modify("E1", better))
    assert decision.rivals.keys() == {"E1"}
    for _ in range(25):
        decision = world.decide()
    assert [(e.id, e.text) for e in decision.result] == [("E1", better)]


def test_a_settled_text_does_not_fall_to_a_worse_one() -> None:
    lesson = WORDINGS["words"][1]
    world = World(of_kinds("words", right=0.6), "words")
    world.decide(Add(lesson(0), evidence=learned_from(0)))
    for _ in range(12):
        decision = world.decide()
    assert not decision.library["E1"].is_on_trial
    decision = world.decide(Modify("E1", f"{lesson(0)} WRONG", evidence=learned_from(5)))
    assert decision.library["E1"].text == lesson(0)
    for _ in range(12):
        decision = world.decide()
        assert decision.library["E1"].text == lesson(0)


def test_a_settled_text_does_not_fall_to_one_that_is_as_good_and_has_some_luck() -> None:
    for kind in range(KINDS):
        lesson = WORDINGS["words"][1](kind)

        def chance(
            example: int, texts: Sequence[str], kind: int = kind, own: str = lesson
        ) -> float:
            has_either = any(text.startswith(own) for text in texts)
            return 0.8 if example % KINDS == kind and has_either else 0.35

        world = World(chance)
        world.decide(Add(lesson, evidence=learned_from(kind)))
        for _ in range(12):
            world.decide()
        rival = Modify("E1", f"{lesson} Politely.", evidence=learned_from(kind))
        decisions = [world.decide(rival), *(world.decide() for _ in range(11))]
        assert [texts_of(decision.library) for decision in decisions] == [{lesson}] * 12


def test_a_delete_raises_doubt_but_does_not_take_a_proven_experience_away() -> None:
    lesson = WORDINGS["words"][1]
    world = World(of_kinds("words"), "words")
    world.decide(Add(lesson(0), evidence=learned_from(0)), Add("Hurry up."))
    for _ in range(8):
        world.decide()
    decision = world.decide(Delete("E1"), Delete("E2"))
    assert texts_of(decision.library) == {lesson(0)}


def test_rollouts_without_a_score_are_no_evidence() -> None:
    library = ExperienceLibrary([Experience("E1", "Ask.")])
    group = (Measured(library, 0, None), Measured(ExperienceLibrary(), 0, 0.5))
    evidence = RunEvidence(
        Decision(library, "start"), (), group * 5, texts_of_examples("words"), (0, 1, 2)
    )
    belief = BayesianGate().decide(evidence).beliefs["Ask.", "*"]
    assert belief.n_rollouts == 0


def test_the_same_text_for_two_predictors_is_judged_apart() -> None:
    def scored(scope: str) -> float:
        return 1.0 if scope == "plan" else 0.0

    both = [Experience("E1", "Ask.", "plan"), Experience("E2", "Ask.", "answer")]
    groups = [
        Measured(ExperienceLibrary([experience]), i, scored(experience.scope))
        for i in range(N_EXAMPLES)
        for experience in both
    ]
    evidence = RunEvidence(
        Decision(ExperienceLibrary(both), "start"),
        (),
        tuple(groups),
        texts_of_examples("words"),
        tuple(range(N_EXAMPLES)),
    )
    decision = BayesianGate().decide(evidence)
    assert [e.scope for e in decision.result] == ["plan"]


def test_a_run_whose_lessons_are_proven_has_nothing_open() -> None:
    lesson = WORDINGS["words"][1]
    world = World(of_kinds("words"), "words")
    decision = world.decide(
        *[Add(lesson(kind), evidence=learned_from(kind)) for kind in range(KINDS)]
    )
    assert decision.is_open
    for _ in range(20):
        decision = world.decide()
    assert not decision.is_open


def test_uncertain_advice_is_in_some_rollouts_of_a_group_and_settled_advice_in_all() -> None:
    lesson = WORDINGS["words"][1]
    world = World(of_kinds("words"), "words")
    world.decide(Add(lesson(0), evidence=learned_from(0)))
    for _ in range(12):
        world.decide()
    decision = world.decide(Add("Look closely."))
    held = [
        texts_of(library)
        for example in range(20)
        for library in world.gate.assign(GroupPlan(decision, example, 30, 4))
    ]
    share = sum("Look closely." in texts for texts in held) / len(held)
    assert all(lesson(0) in texts for texts in held)
    assert 0 < share < 1


def test_finalists_are_the_whole_result_its_best_halves_and_the_best_alone() -> None:
    lesson = WORDINGS["words"][1]
    world = World(of_kinds("words"), "words")
    world.decide(*[Add(lesson(kind), evidence=learned_from(kind)) for kind in range(KINDS)])
    for _ in range(10):
        decision = world.decide()
    sizes = [len(library) for library in world.gate.finalists(decision)]
    assert sizes == [5, 1, 4, 1, 2, 1]


def test_without_a_gate_every_operation_stays() -> None:
    library = ExperienceLibrary([Experience("E1", "Ask."), Experience("E2", "Guess.")])
    evidence = RunEvidence(Decision(library, "start"), (Delete("E2"), Add("Answer.")))
    decision = NoGate().decide(evidence)
    assert [e.text for e in decision.library] == ["Ask.", "Answer."]
    assert NoGate().assign(GroupPlan(decision, 0, 0, 2)) == (decision.library,) * 2


@given(
    scores=st.lists(st.one_of(st.none(), st.floats(-1e6, 1e6)), min_size=4, max_size=12),
    seed=st.integers(0, 99),
)
@settings(max_examples=30, deadline=None)
def test_any_scores_give_a_decision_that_does_not_depend_on_how_it_was_asked(
    scores: list[float | None], seed: int
) -> None:
    rng = random.Random(seed)
    library = ExperienceLibrary([Experience(f"E{n}", f"Advice {n}.") for n in range(1, 4)])
    parts = [ExperienceLibrary([e for e in library if rng.random() < 0.5]) for _ in scores]
    groups = tuple(
        Measured(part, rng.randrange(N_EXAMPLES), score)
        for part, score in zip(parts, scores, strict=True)
    )
    evidence = RunEvidence(
        Decision(library, "start"), (), groups, texts_of_examples("words"), tuple(range(N_EXAMPLES))
    )
    decision = BayesianGate().decide(evidence)
    assert decision == BayesianGate().decide(evidence)
    ids = [e.id for e in decision.library]
    assert ids == sorted(ids)
    assert set(ids) | decision.dropped.keys() == {"E1", "E2", "E3"}


def test_an_experience_on_trial_is_in_three_of_four_rollouts_at_most() -> None:
    library = ExperienceLibrary([Experience("E1", "Ask.", is_on_trial=True)])
    belief = Belief(mean=0.5, sd=0.2, chance=0.96, n_rollouts=20)
    decision = Decision(library, "on trial", beliefs={("Ask.", "*"): belief})
    for example in range(10):
        given = BayesianGate().assign(GroupPlan(decision, example, update=1, n_rollouts=8))
        assert [len(held) for held in given].count(1) == 6
