"""The default gate: from scores of rollouts with and without an experience, what does it decide?

The rollouts are made here, without an LM: an example of kind K has its score raised by what the
experiences about K add. So every effect is known exactly.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multivariate_normal, norm

from tfgrpo_dspy import BayesianGate, Belief, Decision, Experience, ExperienceLibrary, GroupPlan
from tfgrpo_dspy.experience import Add, Delete, Evidence, Limits, Modify, Operation
from tfgrpo_dspy.gate.bayesian import DROP_BELOW, RETRY_ABOVE, Measured, NoGate, RunEvidence
from tfgrpo_dspy.gate.model import Data, posterior
from tfgrpo_dspy.text import meaning

KINDS = 5
N_EXAMPLES = 40
WOODS = ("copper", "amber", "cedar", "slate", "linen")
WORDINGS: Mapping[str, tuple[Callable[[int, int], str], Callable[[int], str]]] = {
    "words": (
        lambda i, kind: f"Case {i}, about {WOODS[kind]}",
        lambda kind: f"When it is about {WOODS[kind]}, ask.",
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
LESSON = WORDINGS["words"][1]

Chance = Callable[[int, Sequence[str]], float]


def evidence_on(
    library: ExperienceLibrary, rollouts: Sequence[Measured] = (), wording: str = "words"
) -> RunEvidence:
    """What a gate is told of a run that has this library and these rollouts."""
    text_of = WORDINGS[wording][0]
    return RunEvidence(
        previous=Decision(library, "start"),
        rollouts=tuple(rollouts),
        texts=tuple(text_of(i, i % KINDS) for i in range(N_EXAMPLES)),
        training=tuple(range(N_EXAMPLES)),
    )


def of_kinds(wording: str = "words") -> Chance:
    """Each lesson about a kind makes its cases right; one that says WRONG makes them wrong."""
    lesson = WORDINGS[wording][1]

    def chance(example: int, texts: Sequence[str]) -> float:
        own = lesson(example % KINDS)
        return 0.35 + 0.6 * (own in texts) - 0.35 * (f"{own} WRONG" in texts)

    return chance


class World:
    """A run of the gate: rollouts whose score is 1 with the chance that `chance` gives."""

    def __init__(self, chance: Chance, wording: str = "words", n_demo_sets: int = 0) -> None:
        self.gate = BayesianGate()
        self.chance = chance
        evidence = evidence_on(ExperienceLibrary(), wording=wording)
        self.evidence = replace(evidence, n_demo_sets=n_demo_sets)
        self.update = 0

    def decide(self, *operations: Operation) -> Decision:
        """One update: groups with the latest decision's library, then the operations."""
        made = [self._group((self.update * 10 + k) % N_EXAMPLES) for k in range(10)]
        rollouts = (*self.evidence.rollouts, *(rollout for group in made for rollout in group))
        self.evidence = replace(self.evidence, operations=operations, rollouts=rollouts)
        decision = self.gate.decide(self.evidence)
        self.evidence = replace(self.evidence, previous=decision)
        self.update += 1
        return decision

    def after(self, n: int, *operations: Operation) -> Decision:
        """The decision on these operations, and on `n` updates without any."""
        decision = self.decide(*operations)
        for _ in range(n):
            decision = self.decide()
        return decision

    def _group(self, example: int) -> list[Measured]:
        rng = random.Random(f"{self.update}/{example}")
        n_demo_sets = self.evidence.n_demo_sets
        plan = GroupPlan(self.evidence.previous, example, self.update, 3, n_demo_sets)
        shown = self.gate.demo_sets(plan) if n_demo_sets else (0, 0, 0)
        chances = [self.chance(example, texts_in(each)) for each in self.gate.assign(plan)]
        return [
            Measured(each, example, float(rng.random() < chance + 0.1 * demo_set), demo_set)
            for each, chance, demo_set in zip(self.gate.assign(plan), chances, shown, strict=True)
        ]


def learned(text: str, *examples: int) -> Add:
    """An ADD of a text that was learned from these examples."""
    return Add(text, evidence=tuple(Evidence(0, i, (1, 2), (0.0, 1.0)) for i in examples))


def approx(*figures: float) -> Any:
    return pytest.approx(figures, abs=2e-5)


def texts_in(library: ExperienceLibrary) -> list[str]:
    return [experience.text for experience in library]


def texts_of(library: ExperienceLibrary) -> set[str]:
    return set(texts_in(library))


@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize("is_named", [True, False], ids=["sources named", "sources not named"])
def test_right_lessons_stay_and_wrong_ones_leave_in_any_wording(
    wording: str, is_named: bool
) -> None:
    lesson = WORDINGS[wording][1]
    world = World(of_kinds(wording), wording)
    world.decide()
    texts = [lesson(kind) if kind < 3 else f"{lesson(kind)} WRONG" for kind in range(KINDS)]
    adds = [learned(text, *([kind] if is_named else [])) for kind, text in enumerate(texts)]
    assert texts_of(world.after(12, *adds).result) == {lesson(kind) for kind in range(3)}


def test_a_lesson_that_gives_its_source_away_is_not_given_to_the_program() -> None:
    leak = "The answer to case 17 is Q9."

    def chance(example: int, texts: Sequence[str]) -> float:
        return 0.35 + 0.6 * (leak in texts and example == 17) - 0.1 * (leak in texts)

    assert texts_of(World(chance).after(12, learned(leak, 17)).result) == set()


def test_a_modified_text_takes_the_place_only_when_it_is_better() -> None:
    better = f"{LESSON(0)} Politely."

    def chance(example: int, texts: Sequence[str]) -> float:
        of_kind = 0.2 + 0.3 * (LESSON(0) in texts) + 0.75 * (better in texts)
        return 0.5 if example % KINDS else of_kind

    world = World(chance)
    world.decide(learned(LESSON(0), 0))
    decision = world.decide(Modify("E1", better))
    assert decision.rivals.keys() == {"E1"}
    decision = world.after(24)
    assert [(e.id, e.text) for e in decision.result] == [("E1", better)]


SAID = st.sampled_from(["Look it up.", "look it up", "Count twice.", "Ask."])
SCOPES = st.sampled_from(["*", "a", "b"])
CHANGES = st.one_of(
    st.builds(Modify, st.sampled_from(["E1", "E2"]), SAID, st.none() | SCOPES),
    st.builds(Add, SAID, SCOPES),
)


@pytest.mark.parametrize("wording", WORDINGS)
@pytest.mark.parametrize("scope", ["*", "reply"])
def test_of_two_lines_about_one_case_a_rollout_and_a_result_have_at_most_one(
    wording: str, scope: str
) -> None:
    lesson = WORDINGS[wording][1]
    right, wrong, others = lesson(2), f"{lesson(2)} WRONG", [lesson(k) for k in (0, 1, 3, 4)]
    world = World(of_kinds(wording), wording)
    world.decide(learned(wrong, 2), *(learned(lesson(k), k) for k in (0, 1, 3, 4)))
    decision = world.decide(replace(learned(right, 7), scope=scope))
    for update in range(7):
        for example in range(KINDS):
            for held in world.gate.assign(GroupPlan(decision, example, update, 4)):
                assert len(texts_of(held) & {right, wrong}) < 2
        for library in (decision.result, *world.gate.finalists(decision)):
            assert len(texts_of(library) & {right, wrong}) < 2
        decision = world.decide()
    assert texts_of(decision.result) == {right, *others}


@settings(max_examples=30)
@hypothesis.example([[Modify("E1", "Count twice."), Modify("E2", "Ask.")], [], []])
@hypothesis.example([[Modify("E1", "Count twice.")], [Modify("E2", "Count twice.")], [], []])
@hypothesis.example([[Modify("E1", "Count twice.")], [Add("Count twice.", "b")], [], []])
@given(st.lists(st.lists(CHANGES, max_size=2), min_size=3, max_size=6))
def test_no_two_experiences_ever_say_the_same_to_one_predictor(
    updates: list[list[Operation]],
) -> None:
    world = World(lambda _, texts: 0.3 + 0.3 * ("Count twice." in texts))
    for operations in ([Add("Ask."), Add("Guess.", "a")], *updates, [], []):
        decision = world.decide(*operations)
        plan = GroupPlan(decision, 0, world.update, 4)
        for library in (decision.library, decision.result, *world.gate.assign(plan)):
            for predictor in "ab":
                told = [meaning(each.text) for each in library if each.scope in ("*", predictor)]
                assert len(set(told)) == len(told)


@pytest.mark.parametrize("kind", range(KINDS))
@pytest.mark.parametrize(("rival", "worth"), [("WRONG", 0.0), ("Always politely.", 0.6)])
def test_a_settled_text_does_not_fall_to_a_worse_one_or_to_one_that_has_some_luck(
    kind: int, rival: str, worth: float
) -> None:
    def chance(example: int, texts: Sequence[str]) -> float:
        if example % KINDS != kind or not texts:
            return 0.35
        return 0.8 if texts[0] == LESSON(kind) else worth

    world = World(chance)
    assert not world.after(12, learned(LESSON(kind), kind)).library["E1"].is_on_trial
    modify = Modify("E1", f"{LESSON(kind)} {rival}", evidence=learned("", kind).evidence)
    decisions = [world.decide(modify), *(world.decide() for _ in range(11))]
    assert [texts_of(decision.library) for decision in decisions] == [{LESSON(kind)}] * 12
    assert decisions[0].rivals and decisions[0].library["E1"].is_on_trial


def test_a_delete_raises_doubt_but_does_not_take_a_proven_experience_away() -> None:
    world = World(of_kinds())
    world.after(8, learned(LESSON(0), 0), Add("Hurry up."))
    assert texts_of(world.decide(Delete("E1"), Delete("E2")).library) == {LESSON(0)}


def test_without_room_the_experience_that_is_least_likely_to_help_leaves() -> None:
    library = ExperienceLibrary.from_texts(["Count.", "Guess.", "Look.", "Ask."])
    rollouts = [
        Measured(each, i, 0.1 + 0.5 * len(each) + 0.1 * (i % 3) - 0.3 * ("E2" in each))
        for i in range(N_EXAMPLES)
        for each in (library.holding([]), *(library.holding([own]) for own in library))
    ]
    evidence = replace(evidence_on(library, rollouts), limits=Limits(4))  # one is kept free
    decision = BayesianGate().decide(evidence)
    assert texts_in(decision.library) == ["Count.", "Look.", "Ask."]
    assert decision.dropped["E2"].startswith("no room: effect +")


def test_new_experiences_take_the_place_of_those_that_are_deleted() -> None:
    library = ExperienceLibrary.from_texts(["Guess.", "Count."])
    rollouts = [Measured(each, i, 0.5) for i in range(9) for each in (library, library.holding([]))]
    operations = (Delete("E1"), Delete("E2"), Add("Look."), Add("Ask."))
    evidence = replace(evidence_on(library, rollouts), limits=Limits(2), operations=operations)
    decision = BayesianGate().decide(evidence)
    assert set(texts_in(decision.library)) <= {"Look.", "Ask."}
    assert len(decision.library) > 0


def test_an_effect_is_a_mean_over_all_examples_also_those_that_the_text_is_not_about() -> None:
    """The lesson adds 0.6 to the cases of one kind in five."""
    effect = World(of_kinds()).after(20, learned(LESSON(0), 0)).library["E1"].effect
    assert effect.estimate == pytest.approx(0.6 / KINDS, abs=0.05)


def test_rollouts_without_a_score_are_no_evidence() -> None:
    library = ExperienceLibrary.from_texts(["Ask."])
    group = (Measured(library, 0, None), Measured(ExperienceLibrary(), 0, 0.5))
    decision = BayesianGate().decide(evidence_on(library, group * 5))
    assert decision.beliefs["Ask.", "*"].n_rollouts == 0


def test_the_same_text_for_two_predictors_is_judged_apart() -> None:
    both = [Experience("E1", "Ask.", "plan"), Experience("E2", "Ask.", "answer")]
    rollouts = [
        Measured(ExperienceLibrary([experience]), i, float(experience.scope == "plan"))
        for i in range(N_EXAMPLES)
        for experience in both
    ]
    decision = BayesianGate().decide(evidence_on(ExperienceLibrary(both), rollouts))
    assert [e.scope for e in decision.result] == ["plan"]


def test_a_run_whose_lessons_are_proven_has_nothing_open_and_its_parts_are_finalists() -> None:
    world = World(of_kinds())
    assert world.decide(*(learned(LESSON(kind), kind) for kind in range(KINDS))).is_open
    decision = world.after(19)
    assert not decision.is_open
    sizes = [len(library) for library in world.gate.finalists(decision)]
    assert sizes == [5, 5, 1, 4, 1, 2, 1], "the result, all, halves of the result, the best alone"


def test_what_is_believed_of_a_run_changes_only_on_purpose() -> None:
    """Every constant of the model was chosen in simulated worlds; a slip in one shows here."""
    world = World(of_kinds(), n_demo_sets=2)
    texts = [LESSON(0), LESSON(1), f"{LESSON(2)} WRONG", "Case 17: ask.", "Case 33: answer K."]
    adds = [
        learned(text, *about) for text, about in zip(texts, ([0], [], [2], [17], []), strict=True)
    ]
    world.after(2, *adds, Add("Hurry up."))
    world.after(2, Modify("E1", f"{LESSON(0)} Politely."), Delete("E2"))
    decision = world.decide()
    believed = [*decision.beliefs.items(), *enumerate(decision.demos, start=1)]
    figures = {key: (belief.mean, belief.sd, belief.chance) for key, belief in believed}
    assert figures == {
        (LESSON(0), "*"): approx(0.08759, 0.03291, 0.99314),
        (f"{LESSON(0)} Politely.", "*"): approx(0.05100, 0.05909, 0.67353),
        (LESSON(1), "*"): approx(0.11316, 0.03500, 0.99899),
        (f"{LESSON(2)} WRONG", "*"): approx(-0.04436, 0.03929, 0.10377),
        ("Case 17: ask.", "*"): approx(-0.00933, 0.05821, 0.39823),
        ("Case 33: answer K.", "*"): approx(-0.01085, 0.05474, 0.35502),
        ("Hurry up.", "*"): approx(-0.00948, 0.05477, 0.36246),
        1: approx(0.12672, 0.08967, 0.87222),
        2: approx(0.17899, 0.09123, 0.95954),
    }
    effect = decision.library["E1"].effect
    assert (effect.estimate, effect.standard_error) == approx(0.08759, 0.04212)
    assert [e.id for e in decision.library if not e.is_on_trial] == ["E2"]
    finalists = [[e.id for e in library] for library in world.gate.finalists(decision)]
    every = [f"E{number}" for number in range(1, 7)]
    assert finalists == [["E1", "E2"], every, ["E2"], ["E1"], ["E4"]]
    assert decision.rivals.keys() == {"E1"} and decision.is_open


def test_without_a_gate_every_operation_stays_and_nothing_is_open() -> None:
    evidence = evidence_on(ExperienceLibrary.from_texts(["Ask.", "Guess."]))
    decision = NoGate().decide(replace(evidence, operations=(Delete("E2"), Add("Answer."))))
    assert texts_in(decision.library) == ["Ask.", "Answer."] and not decision.is_open
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
    library = ExperienceLibrary.from_texts([f"Advice {n}." for n in range(3)])
    rollouts = [
        Measured(library.apply([Delete(e.id) for e in library if rng.random() < 0.5]), i, score)
        for i, score in enumerate(scores)
    ]
    decision = BayesianGate().decide(evidence_on(library, rollouts))
    assert decision == BayesianGate().decide(evidence_on(library, rollouts))
    ids = [e.id for e in decision.library]
    assert ids == sorted(ids)
    assert set(ids) | decision.dropped.keys() == {"E1", "E2", "E3"}


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.floats(0, 1)), min_size=1),
    tells=st.booleans(),
)
@settings(deadline=None)
def test_an_effect_is_what_the_model_says_by_its_definition(rows: Any, tells: bool) -> None:
    near = np.array([0.0, 0.3, 0.7, 1.0])
    example, given_it, y = map(np.array, zip(*rows, (0, False, 3.0), strict=True))
    scale = float(y.std())
    cells = [y[(example == e) & (given_it == g)] for e in range(4) for g in (False, True)]
    within = sum(((cell - cell.mean()) ** 2).sum() for cell in cells if len(cell))
    n_cells = sum(len(cell) > 0 for cell in cells)
    noise = (within + 5 * (0.8 * scale) ** 2) / (len(y) - n_cells + 5)
    x = np.column_stack([given_it, given_it * near[example], np.ones(len(y))])
    ease = 0.25 * scale**2 * (example[:, None] == example) + noise * np.eye(len(y))
    centre = np.array([0.0 if tells else -0.1, 0.4 if tells else 0.2, y.mean() / scale]) * scale
    asked = np.array([1.0, near.mean(), 0.0])
    logs, means, sds = [], [], []
    for local, broad in itertools.product((0.2, 0.5, 1.0), (0.01, 0.05, 0.15, 0.3)):
        elsewhere = min(0.05, broad) ** 2 if tells else broad**2 + 0.1**2
        prior = np.diag([elsewhere, local**2 + 0.4**2, 1.0]) * scale**2
        spread = x @ prior @ x.T + ease
        gain = np.linalg.solve(spread, x @ prior).T
        logs.append(multivariate_normal(x @ centre, spread).logpdf(y))
        means.append(asked @ (centre + gain @ (y - x @ centre)))
        sds.append(np.sqrt(asked @ (prior - gain @ x @ prior) @ asked))
    share = np.exp(np.array(logs) - max(logs)) / np.exp(np.array(logs) - max(logs)).sum()
    mean = share @ means
    expected = mean, np.sqrt(share @ (np.square(sds) + (means - mean) ** 2))
    chance = share @ norm.cdf((np.array(means) - 0.01 * scale) / sds)
    found = posterior(
        Data(example, y, given_it[:, None], near[None], np.array([tells]), *no_arms(len(y)))
    )
    assert [float(each[0]) for each in found] == pytest.approx([*expected, chance], abs=1e-6)


def test_more_is_asked_of_an_experience_where_a_better_one_leaves_nothing_to_gain() -> None:
    cells = itertools.product(range(4), (False, True), (False, True), (False, True))
    example, *given = np.array([cell for cell in cells for _ in range(8)]).T
    present = np.column_stack(given).astype(bool)
    near = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1]], dtype=float)
    scores = 0.9 * (present[:, 0] & (example < 2)) + 0.02 * (present[:, 1:].sum(axis=1))
    data = Data(example, scores, present, near, np.array([True, True, True]), *no_arms(len(scores)))
    (_, second, alone), _, (first, covered, needed) = posterior(data)
    assert second == pytest.approx(alone, abs=0.002), "both add as little"
    assert first > 0.99
    assert covered < 0.5 < needed


def no_arms(n_rollouts: int) -> tuple[Any, Any, Any]:
    """Rollouts without briefs and demos."""
    shapes: list[Any] = [(n_rollouts, 0), 0, (0, 0)]
    arms, are_briefs, chains = (np.zeros(shape, dtype=bool) for shape in shapes)
    return arms, are_briefs, chains


def test_advice_about_none_of_the_training_examples_leaves_other_beliefs_sound() -> None:
    example, helped = np.arange(40) % 4, np.arange(40) % 3 > 0
    present, near = np.column_stack([helped, ~helped]), np.array([[1.0] * 4, [0.0] * 4])
    told = np.array([True, True])
    assert posterior(Data(example, 1.0 * helped, present, near, told, *no_arms(40)))[2][0] > 0.9


def test_uncertain_advice_is_in_some_rollouts_of_a_group_and_settled_advice_in_all() -> None:
    world = World(of_kinds())
    world.after(12, learned(LESSON(0), 0))
    decision = world.decide(Add("Look closely."))
    held = [
        texts_of(library)
        for example in range(20)
        for library in world.gate.assign(GroupPlan(decision, example, 30, 4))
    ]
    assert all(LESSON(0) in texts for texts in held)
    assert 0 < sum("Look closely." in texts for texts in held) < len(held)


def test_an_experience_on_trial_is_in_three_of_four_rollouts_at_most() -> None:
    library = ExperienceLibrary([Experience("E1", "Ask.", is_on_trial=True)])
    belief = Belief(mean=0.5, sd=0.2, chance=0.96, n_rollouts=20)
    decision = Decision(library, "on trial", beliefs={("Ask.", "*"): belief})
    for example in range(10):
        given = BayesianGate().assign(GroupPlan(decision, example, update=1, n_rollouts=8))
        assert [len(held) for held in given].count(1) == 6


@pytest.mark.parametrize(("n_lacking", "is_on_trial"), [(15, True), (16, False)])
def test_an_experience_settles_after_16_rollouts_that_lacked_nothing_else(
    n_lacking: int, is_on_trial: bool
) -> None:
    settled = Experience("E1", "Ask.")
    both = ExperienceLibrary([settled, Experience("E2", "Sum up.", is_on_trial=True)])
    rollouts = [Measured(both, i, 1.0) for i in range(N_EXAMPLES)]
    rollouts += [Measured(ExperienceLibrary(), i, 0.0) for i in range(N_EXAMPLES)]
    rollouts += [Measured(ExperienceLibrary([settled]), i, 0.0) for i in range(n_lacking)]
    decision = BayesianGate().decide(evidence_on(both, rollouts))
    assert decision.beliefs["Sum up.", "*"].chance > 0.97
    assert [e.is_on_trial for e in decision.library] == [False, is_on_trial]


def test_advice_that_was_tried_and_left_comes_back_only_with_some_chance() -> None:
    """Its chance is above what drops an experience on trial, and below what lets it in again."""
    tried = ExperienceLibrary.from_texts(["Guess."])
    for n in range(4, 60, 2):
        rollouts = [
            Measured(each, i % N_EXAMPLES, 0.5 + 0.2 * (i % 3) - 0.2 * (each is tried))
            for i in range(n)
            for each in (tried, tried.holding([]))
        ]
        held = BayesianGate().decide(evidence_on(tried, rollouts))
        if DROP_BELOW < held.beliefs["Guess.", "*"].chance < RETRY_ABOVE:
            break
    assert texts_in(held.library) == ["Guess."]
    again = replace(evidence_on(tried.holding([]), rollouts), operations=(Add("Guess."),))
    decision = BayesianGate().decide(again)
    assert texts_in(decision.library) == [] and len(decision.dropped) == 1


@pytest.mark.parametrize(("chance", "n_shown"), [(0.05, 0), (0.6, 60), (0.9, 75), (0.98, 100)])
def test_uncertain_demos_are_in_at_most_three_quarters_of_the_rollouts_and_settled_ones_in_all(
    chance: float, n_shown: int
) -> None:
    demos = tuple(Belief(0.1, 0.1, each, 9) for each in (chance, chance / 2))
    decision = Decision(ExperienceLibrary(), "", demos=demos)
    shown = [BayesianGate().demo_sets(GroupPlan(decision, n, 1, 4, 2)) for n in range(25)]
    assert abs(sum(k > 0 for group in shown for k in group) - n_shown) <= 5 * (n_shown % 50 > 0)
