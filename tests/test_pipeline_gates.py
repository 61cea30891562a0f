"""Gates in whole compiles: what the pipeline tells them, does for them and makes of their answers.

The LM is scripted. A case of one of four kinds has to be given the code of its kind; a lesson
'When a case is of kind slate, answer T08.' makes that likely, a wrong one unlikely. Luck is that of
case and sample, whatever the library, so that two libraries are compared pair by pair.
"""

import random
import re
import statistics
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
import pytest
from scripted import EXTRACT, UPDATE, HigherMean, Prompt, chat, lessons, operations, scripted_lm

from tfgrpo_dspy import (
    AddLessons,
    Decision,
    Effect,
    Experience,
    ExperienceLibrary,
    GateError,
    NoGate,
    TrainingFreeGRPO,
    TrialEvidence,
    Trials,
)
from tfgrpo_dspy.gate import AutoGate, GroupEvidence, GroupPlan, Trial, TrialThenConfirm
from tfgrpo_dspy.pipeline.heldout import gain_of
from tfgrpo_dspy.pipeline.worth import with_worth
from tfgrpo_dspy.results import Gain
from tfgrpo_dspy.rollout import rollout_id_for
from tfgrpo_dspy.settings import Settings

CODES = {"slate": "T08", "amber": "B20", "cedar": "M55", "linen": "V93"}
RIGHT = {kind: f"When a case is of kind {kind}, answer {code}." for kind, code in CODES.items()}
WRONG = {kind: f"When a case is of kind {kind}, answer X99." for kind in CODES}
GROUP_SIZE, EPOCHS, BATCH = 4, 3, 10


def cases(n: int, start: int = 0) -> list[dspy.Example]:
    kinds = [list(CODES)[i % len(CODES)] for i in range(start, start + n)]
    return [
        dspy.Example(question=f"Case {i}, of kind {kind}", answer=CODES[kind]).with_inputs(
            "question"
        )
        for i, kind in enumerate(kinds, start)
    ]


def is_right(case: dspy.Example, pred: dspy.Prediction, _trace: Any = None) -> dspy.Prediction:
    told = f"{case.question}: expected {case.answer}."
    return dspy.Prediction(score=float(pred.answer == case.answer), feedback=told)


def kind_in(text: str) -> str:
    return re.findall(r"of kind (\w+)", text)[-1]


def solved(prompt: Prompt) -> str:
    """By the lessons in the prompt; the luck is that of case and sample."""
    case = re.findall(r"Case \d+", prompt.user)[-1]
    kind = kind_in(prompt.user)
    chance = 0.4 + 0.55 * (RIGHT[kind] in prompt.system) - 0.35 * (WRONG[kind] in prompt.system)
    luck = random.Random(f"{case}/{prompt.seed}").random()
    return chat(answer=CODES[kind] if luck < chance else "unsure")


def drawn(prompt: Prompt) -> str:
    """A lesson on the kind that the attempts are at; that of every third case is wrong."""
    number, kind = re.findall(r"Case (\d+), of kind (\w+)", prompt.user)[-1]
    return lessons((RIGHT if int(number) % 3 else WRONG)[kind])


def world(**lm_arguments: Any) -> dspy.LM:
    return scripted_lm([(EXTRACT, drawn), ("question", solved)], **lm_arguments)


def compiled(
    lm: dspy.LM, *, n: int = 40, n_validation: int = 24, testset: Any = None, **settings: Any
) -> Any:
    chosen = {
        "metric": is_right,
        "group_size": GROUP_SIZE,
        "epochs": EPOCHS,
        "batch_size": BATCH,
        "num_threads": 4,
        "progress": False,
        "update_library": AddLessons(),
    }
    with dspy.context(lm=lm):
        return TrainingFreeGRPO(**(chosen | settings)).compile(
            dspy.Predict("question -> answer"),
            trainset=cases(n),
            valset=cases(n_validation, start=200),
            testset=testset,
        )


def texts(program: Any) -> set[str]:
    return {own.text for own in ExperienceLibrary.from_program(program)}


@dataclass(frozen=True)
class Learned:
    """One run with the default gate, looked at by several tests."""

    program: Any
    prompts: Sequence[Prompt]
    log_dir: Path

    @property
    def results(self) -> Any:
        return self.program.detailed_results

    @property
    def groups(self) -> dict[tuple[int, int], list[Prompt]]:
        """The training prompts by epoch and example."""
        by_seed = {
            rollout_id_for(0, epoch, example, index, "training") % 2**31: (epoch, example)
            for epoch in range(EPOCHS)
            for example in range(40)
            for index in range(GROUP_SIZE)
        }
        found: dict[tuple[int, int], list[Prompt]] = defaultdict(list)
        for prompt in self.prompts:
            if prompt.seed in by_seed:
                found[by_seed[prompt.seed]].append(prompt)
        return found


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Learned:
    dspy.configure_cache(enable_disk_cache=False)
    log_dir = tmp_path_factory.mktemp("run")
    with dspy.context(lm=None, adapter=None, callbacks=[]):
        lm = world()
        program = compiled(lm, log_dir=log_dir)
    return Learned(program, lm.engine.prompts, log_dir)


# ---------------------------------------------------------------------- what the default gate does


@pytest.mark.timeout(120)
def test_the_default_gate_learns_lessons_that_are_right_and_none_that_is_wrong(
    learned: Learned,
) -> None:
    assert texts(learned.program) <= set(RIGHT.values())
    assert len(texts(learned.program)) >= 3
    assert learned.results.best.mean > learned.results.student.mean + 0.2
    dropped = [why for update in learned.results.updates for why in update.dropped.values()]
    assert dropped
    assert all("P(helps)" in why for why in dropped)


def test_some_rollouts_of_a_group_are_given_a_lesson_that_concerns_its_example_and_some_not(
    learned: Learned,
) -> None:
    n_split = 0
    for prompts in learned.groups.values():
        held = [set(re.findall(r"\] (When .*)", prompt.system)) for prompt in prompts]
        for text in set.union(*held) - set.intersection(*held):
            n_split += 1
            assert kind_in(text) == kind_in(prompts[0].user)
            assert sum(text in each for each in held) == GROUP_SIZE / 2
    assert n_split > 3


def test_groups_that_the_gate_skips_are_recorded_so_and_not_reflected_on(
    learned: Learned,
) -> None:
    uses = [group.used_as for update in learned.results.updates for group in update.groups]
    skipped = [use for use in uses if use.startswith("skipped: ")]
    assert any("solved by" in use for use in skipped)
    n_reflected = sum(use in ("contrast", "failure analysis") for use in uses)
    assert n_reflected == sum(bool(re.search(EXTRACT, p.text)) for p in learned.prompts)
    assert len(uses) == BATCH * len(learned.results.updates)


def test_what_was_learned_carries_its_effect_and_its_price(learned: Learned) -> None:
    library = ExperienceLibrary.from_dict(learned.results.library)
    for own in library:
        assert own.effect is not None
        assert 0 < own.effect.estimate <= 1
        assert own.effect.n_rollouts >= 4
        assert (
            own.price == 14
        )  # "[E1*] When a case is of kind slate, answer T08.", a line's end: 48 / 3.5
        assert f"{own.price} tokens" in str(library)
    assert learned.results.gain.mean == pytest.approx(
        learned.results.best.mean - learned.results.student.mean
    )
    assert learned.results.gain.low > 0


@pytest.mark.parametrize("num_threads", [1, 16])
@pytest.mark.timeout(120)
def test_any_number_of_threads_learns_the_same(num_threads: int) -> None:
    """Promise 3, with experiences on trial and skipped groups."""
    small: dict[str, Any] = {"n": 16, "n_validation": 8, "batch_size": 4, "epochs": 2}
    one = compiled(world(), num_threads=4, **small)
    never = threading.Event()

    def slowly(prompt: Prompt) -> None:
        never.wait(prompt.random("latency").random() / 200)

    other = compiled(world(before=slowly), num_threads=num_threads, **small)
    assert one.signature.instructions == other.signature.instructions
    mine, theirs = one.detailed_results, other.detailed_results
    assert mine.updates == theirs.updates
    assert mine.library == theirs.library
    assert any(own["effect"] for own in mine.library["experiences"] if "effect" in own)


@pytest.mark.timeout(120)
def test_offline_a_run_with_trials_is_replayed_without_a_call(learned: Learned) -> None:
    """Promise 5."""
    lm = scripted_lm([("", RuntimeError("offline"))])
    again = compiled(lm, log_dir=learned.log_dir, offline=True)
    assert lm.engine.n_calls() == 0
    assert again.signature.instructions == learned.program.signature.instructions
    assert again.detailed_results.updates == learned.results.updates
    assert again.detailed_results.library == learned.results.library


@pytest.mark.timeout(120)
def test_a_run_that_was_stopped_goes_on_to_the_result_of_one_that_was_not(tmp_path: Path) -> None:
    """Promise 4, with experiences on trial over the break."""
    small: dict[str, Any] = {"n": 16, "n_validation": 8, "batch_size": 4, "epochs": 2}
    whole = compiled(world(), **small)
    n_calls = sum(usage.n_lm_calls for usage in whole.detailed_results.usage.values())
    part = compiled(world(), log_dir=tmp_path, max_lm_calls=n_calls // 2, **small)
    assert len(part.detailed_results.updates) < len(whole.detailed_results.updates)
    lm = world()
    resumed = compiled(lm, log_dir=tmp_path, **small)
    assert lm.engine.n_calls() < n_calls
    assert resumed.signature.instructions == whole.signature.instructions
    assert resumed.detailed_results.updates == whole.detailed_results.updates
    assert resumed.detailed_results.library == whole.detailed_results.library


# ---------------------------------------------------------------------- advice without a condition


EXACT, BRIEF, SHOUT = "Be exact.", "Be brief.", "Shout at everybody."
BROAD: dict[str, Any] = {"n": 24, "batch_size": 12, "epochs": 4, "failure_analysis": False}


def advised(*advice: str, **lm_arguments: Any) -> dspy.LM:
    """To be exact helps in every case, to shout does harm, to be brief does nothing."""

    def told(prompt: Prompt) -> str:
        number = int(re.findall(r"Case (\d+), of kind", prompt.user)[-1])
        return lessons(advice[number % len(advice)])

    def answered(prompt: Prompt) -> str:
        case = re.findall(r"Case \d+", prompt.user)[-1]
        chance = 0.3 + 0.6 * (EXACT in prompt.system) - 0.3 * (SHOUT in prompt.system)
        luck = random.Random(f"{case}/{prompt.seed}").random()
        return chat(answer=CODES[kind_in(prompt.user)] if luck < chance else "unsure")

    return scripted_lm([(EXTRACT, told), ("question", answered)], **lm_arguments)


@pytest.mark.timeout(120)
def test_of_advice_on_every_case_what_helps_is_learned_and_what_does_not_is_not() -> None:
    lm = advised(EXACT, BRIEF, SHOUT)
    program = compiled(lm, n_validation=40, **BROAD)
    assert texts(program) == {EXACT}
    results = program.detailed_results
    assert results.best.mean > results.student.mean + 0.3
    assert any("tested E" in update.reason for update in results.updates)
    reasons = [why for update in results.updates for why in update.dropped.values()]
    assert any("above 0 with probability 0." in why for why in reasons)


@pytest.mark.timeout(120)
def test_advice_that_does_harm_in_groups_is_never_tested_while_groups_are_to_come() -> None:
    """At the end, where no group would show the harm, the validation set does (`least_ahead`)."""
    lm = advised(EXACT, BRIEF, SHOUT)
    gate = AutoGate(TrialThenConfirm(least_ahead=0))
    program = compiled(lm, gate=gate, n_validation=40, **BROAD)
    assert texts(program) == {EXACT}
    validated = [p for p in lm.engine.prompts if re.search(r"Case 2\d\d", p.user)]
    assert any(EXACT in prompt.system for prompt in validated)
    assert not any(SHOUT in prompt.system for prompt in validated)


@pytest.mark.timeout(120)
def test_each_rollout_of_a_group_holds_advice_on_trial_or_not_half_of_them_each() -> None:
    lm = advised(BRIEF)
    compiled(lm, n_validation=8, **BROAD)
    groups: dict[tuple[int, int], list[bool]] = defaultdict(list)
    seeds = {
        rollout_id_for(0, epoch, example, index, "training") % 2**31: (epoch, example)
        for epoch in range(4)
        for example in range(24)
        for index in range(GROUP_SIZE)
    }
    for prompt in lm.engine.prompts:
        if prompt.seed in seeds:
            groups[seeds[prompt.seed]].append(BRIEF in prompt.system)
    counts = [sum(held) for held in groups.values()]
    assert set(counts) == {0, GROUP_SIZE / 2}
    assert counts.count(2) >= 24


@pytest.mark.timeout(120)
def test_advice_on_trial_over_a_break_is_decided_as_if_there_had_been_none(tmp_path: Path) -> None:
    """Promise 4: what the gate remembers is made again from the store."""
    whole = compiled(advised(EXACT, BRIEF, SHOUT), n_validation=40, **BROAD).detailed_results
    shorter = {**BROAD, "epochs": 2}
    compiled(advised(EXACT, BRIEF, SHOUT), n_validation=40, log_dir=tmp_path, **shorter)
    lm = advised(EXACT, BRIEF, SHOUT)
    again = compiled(lm, n_validation=40, log_dir=tmp_path, **BROAD).detailed_results
    assert 0 < lm.engine.n_calls() < sum(usage.n_lm_calls for usage in whole.usage.values())
    assert again.updates == whole.updates
    assert again.library == whole.library


def traces_of(n: int) -> list[dict[str, Any]]:
    return [
        {"inputs": {"question": case.question}, "outputs": {"answer": text}, "score": score}
        for case in cases(n)
        for text, score in ((case.answer, 1.0), ("unsure", 0.0))
    ]


@pytest.mark.parametrize("gate", [None, TrialThenConfirm()], ids=["default", "its broad part"])
@pytest.mark.parametrize(("advice", "learned_"), [(EXACT, {EXACT}), (SHOUT, set()), (BRIEF, set())])
def test_where_no_group_is_sampled_advice_is_confirmed_on_the_validation_set_at_once(
    gate: Any, advice: str, learned_: set[str]
) -> None:
    optimizer = TrainingFreeGRPO(
        is_right, gate=gate, progress=False, num_threads=4, update_library=AddLessons()
    )
    lm = advised(advice)
    with dspy.context(lm=lm):
        program = optimizer.learn(
            dspy.Predict("question -> answer"), traces=traces_of(6), valset=cases(40, start=200)
        )
    assert texts(program) == learned_
    assert any(advice in p.system for p in lm.engine.prompts if "Case 2" in p.user)


# ---------------------------------------------------------------------- the end


SMALL: dict[str, Any] = {"n": 8, "n_validation": 8, "batch_size": 4, "epochs": 1}


@dataclass(frozen=True)
class Exports:
    """Lets everything stay, on trial, and exports something of its own."""

    exported: ExperienceLibrary
    metric: Any = None

    def next(self, evidence: TrialEvidence) -> Decision:
        return Decision(evidence.proposed, "stays", self.exported, memory="mine")


def library_of(*lines: str) -> ExperienceLibrary:
    return ExperienceLibrary([Experience(f"E{i}", text) for i, text in enumerate(lines, 1)])


def test_what_was_exported_and_turns_out_worse_in_the_end_is_not_returned() -> None:
    """Promise 2, also where no trial had shown it."""
    program = compiled(world(), gate=Exports(library_of(*WRONG.values())), **SMALL)
    assert texts(program) == set()
    results = program.detailed_results
    assert results.best == results.student
    assert results.gain == Gain(0.0, None, None, 8)
    assert "did not beat the student" in results.nothing_learned


def test_the_program_is_given_what_was_exported_not_what_is_on_trial() -> None:
    program = compiled(world(), gate=Exports(library_of(*RIGHT.values())), **SMALL)
    assert texts(program) == set(RIGHT.values())
    assert program.detailed_results.best.mean > program.detailed_results.student.mean


def test_the_test_set_is_measured_when_all_else_is_done_and_changes_nothing() -> None:
    gate = Exports(library_of(*RIGHT.values()))
    lm, alone = world(), world()
    program = compiled(lm, gate=gate, testset=cases(12, start=400), **SMALL)
    assert texts(program) == texts(compiled(alone, gate=gate, **SMALL))
    numbers = [int(re.findall(r"Case (\d+)", prompt.user)[-1]) for prompt in lm.engine.prompts]
    first = next(i for i, number in enumerate(numbers) if number >= 400)
    assert all(number >= 400 for number in numbers[first:])
    assert len(numbers) - first == 2 * 12
    test = program.detailed_results.test
    assert (test.student.n, test.best.n, test.gain.n) == (12, 12, 12)
    assert test.gain.mean == pytest.approx(test.best.mean - test.student.mean)
    assert program.detailed_results.usage["test"].n_lm_calls == 24


@pytest.mark.parametrize("budget", [{"max_metric_calls": 100}, {"max_lm_calls": 120}], ids=str)
def test_of_a_budget_enough_is_kept_back_for_the_test_set(budget: dict[str, int]) -> None:
    program = compiled(
        world(), gate=HigherMean(), testset=cases(12, start=400), **{**SMALL, "epochs": 9}, **budget
    )
    results = program.detailed_results
    assert results.ended_because.startswith("max_")
    assert (results.test.student.n, results.test.best.n) == (12, 12)
    assert results.metric_calls <= budget.get("max_metric_calls", 10**9)
    spent = sum(usage.n_lm_calls for usage in results.usage.values())
    assert spent <= budget.get("max_lm_calls", 10**9)


@pytest.mark.parametrize("budget", [{"max_metric_calls": 70}, {"max_lm_calls": 90}], ids=str)
def test_so_it_is_where_nothing_else_is_measured(budget: dict[str, int]) -> None:
    optimizer = TrainingFreeGRPO.paper(
        is_right, group_size=4, summarize_always=False, update_library=AddLessons(),
        progress=False, **budget,
    )  # fmt: skip
    with dspy.context(lm=world()):
        program = optimizer.compile(
            dspy.Predict("question -> answer"), trainset=cases(8), testset=cases(10, start=400)
        )
    results = program.detailed_results
    assert results.ended_because.startswith("max_")
    assert (results.student, results.best) == (None, None)
    assert (results.test.student.n, results.test.best.n) == (10, 10)
    assert texts(program)


# ---------------------------------------------------------------------- intervals, by hand


def test_the_interval_of_three_pairs_is_students() -> None:
    """Gains 0.1, 0.2, 0.3: mean 0.2, deviation 0.1, error 0.1 / sqrt 3, times t(2) = 4.303."""
    gain = gain_of([(0.6, 0.5), (0.6, 0.4), (0.6, 0.3), (None, 0.3), (0.4, None)])
    assert gain is not None
    assert (gain.mean, gain.n) == (pytest.approx(0.2), 3)
    assert (gain.low, gain.high) == (
        pytest.approx(-0.0484, abs=1e-4),
        pytest.approx(0.4484, abs=1e-4),
    )
    assert not gain.is_harmless
    assert str(gain) == "+0.200 [-0.048, +0.448] on 3 examples"


def test_one_large_gain_among_none_tells_of_no_gain() -> None:
    """0, 0, 0, 1: mean 0.25, deviation 0.5, error 0.25, times t(3) = 3.182."""
    gain = gain_of([(0.0, 0.0)] * 3 + [(1.0, 0.0)])
    assert gain is not None
    assert (gain.low, gain.high) == (
        pytest.approx(-0.5456, abs=1e-4),
        pytest.approx(1.0456, abs=1e-4),
    )


@pytest.mark.parametrize(
    "pairs",
    [[(1.0, 0.0)], [(1.0, 1.0)] * 5, [(0.6, 0.5), (0.4, 0.3), (0.3, 0.2)]],
    ids=["one", "the same", "the same but for rounding"],
)
def test_where_differences_do_not_differ_there_is_no_interval_and_no_word_of_no_harm(
    pairs: list[tuple[float | None, float | None]],
) -> None:
    gain = gain_of(pairs)
    assert gain is not None
    assert (gain.low, gain.high, gain.is_harmless) == (None, None, False)
    assert "differ too little for an interval" in str(gain)


def test_without_a_pair_there_is_no_gain() -> None:
    assert gain_of([(None, 1.0), (1.0, None)]) is None
    assert gain_of([]) is None


# ---------------------------------------------------------------------- degenerate programs


def scaled(shift: float, factor: float) -> Any:
    def metric(case: dspy.Example, pred: dspy.Prediction, _trace: Any = None) -> float:
        return shift + factor * float(pred.answer == case.answer)

    return metric


@pytest.mark.timeout(120)
def test_scores_outside_0_and_1_teach_the_same_lessons() -> None:
    small: dict[str, Any] = {"n": 16, "n_validation": 8, "batch_size": 4, "epochs": 2}
    plain = compiled(world(), metric=scaled(0.0, 1.0), failure_analysis=False, **small)
    other = compiled(world(), metric=scaled(-50.0, 200.0), failure_analysis=False, **small)
    assert texts(plain) == texts(other) != set()
    effects = [
        [own["effect"]["estimate"] for own in run.detailed_results.library["experiences"]]
        for run in (plain, other)
    ]
    assert effects[1] == pytest.approx([200 * effect for effect in effects[0]], rel=1e-6)


def test_constant_scores_teach_nothing_and_promise_nothing() -> None:
    program = compiled(world(), metric=lambda _case, _pred, _trace=None: 0.5, **SMALL)
    results = program.detailed_results
    assert texts(program) == set()
    assert "8 of 8 groups had no contrast" in results.nothing_learned
    assert results.gain == Gain(0.0, None, None, 8)


def everywhere(*advice: str) -> dspy.LM:
    """An LM that draws these lessons, which say of no example that they concern it."""
    adds = [{"op": "ADD", "text": text, "lessons": [i]} for i, text in enumerate(advice, 1)]
    rules = [(EXTRACT, lessons(*advice)), (UPDATE, operations(*adds)), ("question", solved)]
    return scripted_lm(rules)


def test_three_validation_examples_are_too_few_for_the_default_gate_and_it_says_so() -> None:
    program = compiled(advised(EXACT), n_validation=3, **BROAD)
    assert texts(program) == set()
    reasons = [update.reason for update in program.detailed_results.updates]
    assert any("E1: too few trials to tell a gain from luck" in reason for reason in reasons)
    assert "too few trials to tell a gain from luck (3 examples)" in reasons[-1]


def test_an_example_that_always_fails_costs_itself_only() -> None:
    class Broken(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.ask = dspy.Predict("question -> answer")

        def forward(self, question: str) -> dspy.Prediction:
            if re.search(r"Case (1|201),", question):
                raise ValueError(question)
            return self.ask(question=question)

    optimizer = TrainingFreeGRPO(
        is_right, group_size=4, epochs=2, batch_size=4, progress=False, num_threads=4,
        update_library=AddLessons(), gate=Exports(library_of(*RIGHT.values())),
    )  # fmt: skip
    with dspy.context(lm=world()):
        program = optimizer.compile(Broken(), trainset=cases(8), valset=cases(8, start=200))
    results = program.detailed_results
    assert (results.student.n, results.best.n, results.gain.n) == (8, 8, 8)
    assert results.best.mean <= 7 / 8
    failed = [group for update in results.updates for group in update.groups if group.example == 1]
    assert [group.scores for group in failed] == [(0.0,) * 4] * 2
    assert len(texts(program)) == 4


def test_skewed_scores_of_useless_lessons_are_not_believed() -> None:
    """One case in ten is worth 100, whatever is answered, by luck; the others nothing."""

    def jackpot(case: dspy.Example, pred: dspy.Prediction, _trace: Any = None) -> float:
        return 100.0 * (pred.answer == case.answer and int(case.question.split()[1][:-1]) % 10 == 0)

    useless: dict[str, Any] = {**SMALL, "n_validation": 30, "update_library": None}
    program = compiled(everywhere("Be exact.", "Be brief."), metric=jackpot, **useless)
    assert texts(program) == set()
    assert program.detailed_results.gain == Gain(0.0, None, None, 30)


# ---------------------------------------------------------------------- worth


def test_effects_are_taken_from_all_rollouts_within_their_examples() -> None:
    """With it, 0.6 more on even examples (0.1 to 0.7), 0.4 more on odd (0.2 to 0.6): 0.5 more.

    Examples where all or none held it say nothing of it, however they score.
    """
    none, held = ExperienceLibrary(next_number=2), library_of("Be exact.")
    both = (none, none, held, held)
    groups = [
        *(GroupEvidence(i, both, (0.0, 0.2, 0.6, 0.8)) for i in range(0, 10, 2)),
        *(GroupEvidence(i, both, (0.1, 0.3, 0.5, 0.7)) for i in range(1, 10, 2)),
        GroupEvidence(10, (held,) * 4, (0.0, 0.0, 0.1, 0.0)),
        GroupEvidence(11, (none,) * 4, (1.0, 1.0, 0.9, None)),
    ]
    (own,) = with_worth(held, groups, {})
    assert own.effect is not None
    assert own.effect.n_rollouts == 40
    assert 0.45 < own.effect.estimate <= 0.5  # drawn towards 0 by what is usual
    assert own.effect.standard_error > 0
    trials: dict[Trial, float | None] = {Trial(held, 0, on="training"): 0.7, Trial(held, 9): None}
    (own,) = with_worth(held, groups, trials)
    assert own.effect is not None
    assert own.effect.n_rollouts == 41


def test_an_effect_that_a_gate_has_measured_stays_and_an_unknown_one_is_left_out() -> None:
    effect = Effect(0.3, 0.1, 12)
    library = ExperienceLibrary(
        [Experience("E1", "Be exact.", effect=effect), Experience("E2", "Ask.")]
    )
    groups = [GroupEvidence(0, (library, ExperienceLibrary()), (1.0, 0.0))]
    first, second = with_worth(library, groups, {})
    assert (first.effect, second.effect) == (effect, None)


def test_the_price_of_an_experience_is_that_of_its_line() -> None:
    (own,) = with_worth(library_of("Be exact."), [], {})
    assert own.price == 5  # "[E1*] Be exact." and a line's end: 16 bytes, / 3.5


# ---------------------------------------------------------------------- gates of one's own


@dataclass
class Own:
    """A gate with `assign` and `skips`: what is proposed stays on trial, half of a group has it."""

    metric: Any = None
    plans: list[GroupPlan] = field(default_factory=list)
    told: list[TrialEvidence] = field(default_factory=list)
    skipped: list[tuple[int, Any]] = field(default_factory=list)

    def next(self, evidence: TrialEvidence) -> Decision:
        self.told.append(evidence)
        trial = {own.id: {"is_on_trial": True} for own in evidence.proposed}
        library = evidence.proposed.annotated(trial)
        return Decision(library, "on trial", evidence.incumbent, memory=evidence.update)

    def assign(self, plan: GroupPlan) -> list[ExperienceLibrary]:
        self.plans.append(plan)
        without = ExperienceLibrary(next_number=plan.library.next_number)
        return [plan.library if i < 2 else without for i in range(plan.n_rollouts)]

    def skips(self, group: GroupEvidence, memory: Any) -> str:
        self.skipped.append((group.example, memory))
        return "it is number 3" if group.example == 3 else ""


def test_a_gate_of_ones_own_says_who_is_given_what_and_what_is_not_reflected_on() -> None:
    gate = Own()
    program = compiled(world(), gate=gate, **{**SMALL, "epochs": 3})
    assert gate.plans
    assert all(plan.n_rollouts == 4 and plan.update >= 2 for plan in gate.plans)
    by_example = {(e.update, group.example): group for e in gate.told for group in e.groups}
    for plan in gate.plans:
        group = by_example[plan.update, plan.example]
        assert [len(library) for library in group.libraries] == [len(plan.library)] * 2 + [0, 0]
    uses = {
        group.example: group.used_as
        for update in program.detailed_results.updates
        for group in update.groups
        if group.used_as.startswith("skipped")
    }
    assert uses == {3: "skipped: it is number 3"}
    assert [evidence.memory for evidence in gate.told] == [None, *range(len(gate.told) - 1)]
    assert {memory for _, memory in gate.skipped} >= {None, 0}


def test_evidence_tells_the_sizes_the_updates_and_the_groups_of_the_update() -> None:
    gate = Own()
    compiled(world(), gate=gate, **{**SMALL, "epochs": 2})
    for number, evidence in enumerate(gate.told):
        assert (evidence.update, evidence.n_updates) == (number, 4)
        assert (evidence.n_examples, evidence.n_training) == (8, 8)
        assert len(evidence.groups) == 4
        assert all(len(g.libraries) == len(g.scores) == 4 for g in evidence.groups)


@dataclass(frozen=True)
class Deletes:
    """Lets an ADD stay, and knows whom what is proposed and what is deleted concerns."""

    metric: Any = None
    told: list[TrialEvidence] = field(default_factory=list)

    def concern(self, experiences: Any, inputs: Any, domains: Any = ()) -> Any:
        assert not domains
        return {own.id: frozenset(range(len(inputs))) for own in experiences}

    def next(self, evidence: TrialEvidence) -> Decision:
        self.told.append(evidence)
        return Decision(evidence.proposed, "stays")


def test_a_gate_is_told_whom_an_experience_concerns_that_a_delete_names() -> None:
    rules = [
        (EXTRACT, lessons("Drop it.")),
        (UPDATE, operations({"op": "DELETE", "id": "E1"})),
        ("question", solved),
    ]
    gate, student = Deletes(), library_of("Be exact.").bake(dspy.Predict("question -> answer"))
    optimizer = TrainingFreeGRPO(
        is_right, gate=gate, group_size=4, epochs=1, batch_size=8, progress=False
    )
    with dspy.context(lm=scripted_lm(rules)):
        optimizer.compile(student, trainset=cases(8), valset=cases(4, start=200))
    assert gate.told[0].concerns == {"E1": frozenset(range(8))}


def test_what_a_keep_says_is_evidence_also_in_what_is_exported() -> None:
    known = library_of(RIGHT["slate"])
    add = {"op": "ADD", "text": "Be brief.", "lessons": [1]}
    rules = [
        (EXTRACT, lessons(RIGHT["slate"], "Be brief.")),
        (UPDATE, operations(add)),
        ("question", solved),
    ]
    optimizer = TrainingFreeGRPO(
        is_right, gate=Exports(known), group_size=4, epochs=1, batch_size=8, progress=False
    )
    with dspy.context(lm=scripted_lm(rules)):
        student = known.bake(dspy.Predict("question -> answer"))
        program = optimizer.compile(student, trainset=cases(8), valset=cases(4, start=200))
    results = program.detailed_results
    assert {op.op for op in results.updates[0].operations} == {"KEEP", "ADD"}
    (own,) = results.library["experiences"]
    assert own["evidence"]


def test_a_library_that_says_what_the_students_says_is_not_measured_again() -> None:
    class Retires:
        """Takes nothing, but retires the ids that it was asked about."""

        metric = None

        def next(self, evidence: TrialEvidence) -> Decision:
            number = evidence.proposed.next_number
            return Decision(ExperienceLibrary(evidence.incumbent, next_number=number), "no")

    lm = world()
    program = compiled(lm, gate=Retires(), **SMALL)
    results = program.detailed_results
    assert results.usage["gate"].n_lm_calls == 8
    assert not any(update.accepted for update in results.updates)
    assert "updates were rejected by the gate" in results.nothing_learned


def test_rollouts_made_elsewhere_held_nothing_of_what_this_run_learns() -> None:
    gate = Own()
    traces = [
        {"inputs": {"question": case.question}, "outputs": {"answer": text}, "score": score}
        for case in cases(6)
        for text, score in ((case.answer, 1.0), ("unsure", 0.0))
    ]
    optimizer = TrainingFreeGRPO(
        is_right, gate=gate, batch_size=2, max_staleness=0, progress=False,
        update_library=AddLessons(),
    )  # fmt: skip
    with dspy.context(lm=world()):
        student = dspy.Predict("question -> answer")
        optimizer.learn(student, traces=traces, valset=cases(4, start=200))
    assert len(gate.told[-1].incumbent) > 0
    held = [len(library) for e in gate.told for g in e.groups for library in g.libraries]
    assert set(held) == {0}


def test_without_a_metric_the_default_is_no_gate() -> None:
    assert isinstance(Settings(None).gate, NoGate)
    assert isinstance(Settings(is_right).gate, AutoGate)
    with pytest.warns(UserWarning, match="metric=None"):
        program = compiled(world(), metric=None, **SMALL)
    assert texts(program)
    results = program.detailed_results
    assert (results.student, results.best, results.gain, results.test) == (None, None, None, None)


# ---------------------------------------------------------------------- wrong answers


@dataclass(frozen=True)
class Answers:
    """A gate that always answers the same."""

    answer: Any
    metric: Any = None

    def next(self, evidence: TrialEvidence) -> Any:
        return self.answer(evidence)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda _: None, "answered None; return Trials or a Decision"),
        (lambda _: Decision(None, "?"), "return Trials or a Decision on a library"),  # type: ignore[arg-type]
        (lambda e: Decision(e.incumbent, "?", exported=[]), "return Trials or a Decision"),  # type: ignore[arg-type]
        (lambda e: Trials((Trial(e.incumbent, 8),)), "on validation example 8; there are 8"),
        (lambda e: Trials((Trial(e.incumbent, 8, on="training"),)), "on training example 8"),
        (lambda e: Trials((Trial(e.incumbent, 0, on="test"),)), "which is no Trial"),  # type: ignore[arg-type]
        (lambda _: Trials((Trial(None, 0),)), "which is no Trial"),  # type: ignore[arg-type]
        (lambda _: Trials((0,)), "asks for 0, which is no Trial"),  # type: ignore[arg-type]
        (lambda e: Trials.of([e.incumbent], [0]), "asks again for trials that it has the scores"),
    ],
    ids=range(9),
)
def test_a_gate_that_answers_nonsense_is_told_what_was_wrong(answer: Any, message: str) -> None:
    with pytest.raises(GateError, match=re.escape(message)):
        compiled(world(), gate=Answers(answer), **SMALL)


@pytest.mark.parametrize("given", [[], [None] * 4, None, "four"], ids=repr)
def test_a_gate_that_does_not_give_each_rollout_a_library_is_told_so(given: Any) -> None:
    class Careless(Own):
        def assign(self, _plan: GroupPlan) -> Any:
            return given

    with pytest.raises(GateError, match="return 4 libraries, one for each rollout"):
        compiled(world(), gate=Careless(), **{**SMALL, "epochs": 3})


def test_the_scores_of_the_world_are_what_its_description_says() -> None:
    """So that a test that learns nothing is not one of a world in which nothing can be learned."""
    lm = world()
    for advice, expected in (([], 0.4), (RIGHT.values(), 0.95), (WRONG.values(), 0.05)):
        program = library_of(*advice).bake(dspy.Predict("question -> answer"))
        with dspy.context(lm=lm):
            scores = [is_right(case, program(question=case.question)).score for case in cases(100)]
        assert statistics.fmean(scores) == pytest.approx(expected, abs=0.11)
