"""The end of a run: which program is returned, and that the budget reaches for finding out."""

import itertools
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import pytest
from coded_cases import (
    CODES,
    FIRST_TEST,
    FIRST_VALIDATION,
    RIGHT,
    SMALL,
    WRONG,
    case_in,
    cases,
    compiled,
    is_right,
    luck_of,
    solved,
    texts,
    world,
)
from runs import (
    ADVICE,
    agent,
    agent_lm,
    is_polite,
    knowing,
    learned,
    library_texts,
    n_calls,
    predictor,
    questions,
)
from scripted import Prompt, chat, lessons

from tfgrpo_dspy import Decision, ExperienceLibrary, Gate, NoGate, RunEvidence, TrainingFreeGRPO
from tfgrpo_dspy.experience import Effect
from tfgrpo_dspy.report import html
from tfgrpo_dspy.results import Gain, ScoreSummary
from tfgrpo_dspy.rollout import ScoreRange


@dataclass(frozen=True)
class Proposes(Gate):
    """Lets everything stay, and proposes libraries of its own at the end."""

    libraries: tuple[ExperienceLibrary, ...]

    def finalists(self, _decision: Decision) -> Sequence[ExperienceLibrary]:
        return self.libraries


def proposing(*libraries: Sequence[str]) -> Proposes:
    return Proposes(tuple(map(ExperienceLibrary.from_texts, libraries)))


def test_the_report_names_the_candidates_with_the_student_first_and_what_was_learned() -> None:
    program = compiled(world(), epochs=2)
    results = program.detailed_results
    student, *others = results.candidates
    assert results.finalists == results.candidates and not student.demo_set
    assert (student.ids, student.score, student.is_best) == ((), results.student, False)
    (best,) = [finalist for finalist in others if finalist.is_best]
    assert set(best.ids) == {own.id for own in ExperienceLibrary.from_program(program)}
    assert best.score == results.best
    assert best.chance > 0.9
    assert all(0 < finalist.score.n <= 24 for finalist in others)
    n_measured = sum(finalist.score.n for finalist in results.candidates)
    assert results.usage["validation"].n_lm_calls == n_measured
    library = ExperienceLibrary.from_dict(results.library)
    for own in library:
        assert own.effect is not None
        assert 0 < own.effect.estimate <= 1
        assert own.effect.n_rollouts >= 4
        assert own.n_tokens == 14  # "[E1*] When a case is of kind slate, answer T08.": 48 / 3.5
        assert f"{own.n_tokens} tokens" in str(library)


@pytest.mark.parametrize("lines", [list(WRONG.values()), ["Be kind."]], ids=["it harms", "a draw"])
def test_what_is_not_better_than_the_student_is_not_returned(lines: list[str]) -> None:
    program = compiled(world(), gate=proposing(lines), **SMALL)
    results = program.detailed_results
    assert texts(program) == set()
    assert results.best == results.student
    assert results.gain == Gain(0.0, None, None, 12)
    assert "none beat the student" in results.nothing_learned


class Forgets(Gate):
    """Keeps E1 only: the ids of what is proposed are retired."""

    def decide(self, evidence: RunEvidence) -> Decision:
        proposed = evidence.proposed
        return Decision(proposed.holding(e for e in proposed if e.id == "E1"), "forgets")


def test_a_result_with_the_experiences_of_the_student_is_the_student() -> None:
    student = knowing("Be kind.")
    program = compiled(world(), student=student, gate=Forgets(), **SMALL)
    assert program.dump_state() == student.dump_state()
    assert program.detailed_results.candidates == (), "there is nothing to measure"


def test_of_nested_libraries_the_one_that_is_better_without_the_rest_is_returned() -> None:
    """Experiences that help alone may spoil each other: the whole library answers X99."""
    good, spoilt = list(RIGHT.values()), [*RIGHT.values(), *WRONG.values()]

    def spoiling(prompt: Prompt) -> str:
        return chat(answer="X99") if WRONG["slate"] in prompt.system else solved(prompt)

    gate = proposing(spoilt, good, good[:1])
    program = compiled(world(spoiling), gate=gate, **{**SMALL, "n_validation": 24})
    assert texts(program) == set(good)
    assert [len(finalist.ids) for finalist in program.detailed_results.candidates] == [0, 8, 4, 1]


TERSE = "Be terse."
UNIT = ScoreRange(0.0, 1.0)


def number_given(_case: Any, pred: Any, _trace: Any = None) -> float:
    return float(pred.answer)


@pytest.mark.parametrize(
    ("failure", "given"),
    [
        ("metric", {"gate": None, "n": 20, "epochs": 2}),
        ("metric", {"gate": proposing([TERSE]), **SMALL}),
        ("timeout", {"gate": proposing([TERSE]), "rollout_timeout_s": 0.15, **SMALL}),
    ],
    ids=["cannot be read, default gate", "cannot be read", "comes too late"],
)
def test_an_answer_without_a_score_counts_against_the_advice_that_caused_it(
    failure: str, given: dict[str, Any]
) -> None:
    """The advice makes more of the answers right; the others then come to nothing."""
    released = threading.Event()

    def answered(prompt: Prompt) -> str:
        luck = luck_of(prompt)
        if TERSE not in prompt.system:
            return chat(answer="1" if luck < 0.6 else "0")
        if luck < 0.7 and failure == "timeout":
            released.wait(20)
        return chat(answer="one" if luck < 0.7 and failure == "metric" else "1")

    lm = world(answered, lessons(TERSE))
    program = compiled(lm, metric=number_given, max_errors=1000, **given)
    released.set()
    assert texts(program) == set()
    assert program.detailed_results.failures[failure] > 0


def test_what_the_result_gives_no_score_for_counts_in_what_is_reported() -> None:
    def answered(prompt: Prompt) -> str:
        return chat(answer="one" if TERSE in prompt.system else str(int(luck_of(prompt) < 0.6)))

    lm, given = world(answered, lessons(TERSE)), {"max_errors": 1000, **SMALL}
    results = compiled(lm, metric=number_given, gate=NoGate(), **given).detailed_results
    assert results.student.mean > 0
    assert (results.best.mean, results.gain.mean) == (0.0, -results.student.mean)


@pytest.mark.timeout(120)
def test_two_equal_runs_in_one_process_return_the_same_with_dspys_cache_in_between() -> None:
    """The second is answered from the memory cache, which costs nothing: it goes no further."""
    found, n_calls = [], []
    for num_threads in (1, 8):
        dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=True)
        dspy.cache.reset_memory_cache()
        lm = world(cache=True)
        for _ in range(2):
            chosen = {"num_threads": num_threads, "batch_size": 5, "epochs": 50}
            program = compiled(lm, max_lm_calls=100, **chosen)
            results = program.detailed_results
            found.append((program.dump_state(), results.updates, results.candidates))
            n_calls.append(lm.engine.n_calls())
    assert found[0][2]
    assert found == [found[0]] * 4
    assert n_calls[0] == n_calls[1] > 0


def test_the_test_set_is_measured_when_all_else_is_done_and_changes_nothing() -> None:
    gate = proposing(list(RIGHT.values()))
    lm, alone = world(), world()
    program = compiled(lm, gate=gate, testset=cases(12, FIRST_TEST), **SMALL)
    assert texts(program) == texts(compiled(alone, gate=gate, **SMALL)) == set(RIGHT.values())
    numbers = [case_in(prompt.user)[0] for prompt in lm.engine.prompts]
    first = next(i for i, number in enumerate(numbers) if number >= FIRST_TEST)
    assert all(number >= FIRST_TEST for number in numbers[first:])
    assert len(numbers) - first == 2 * 12
    test = program.detailed_results.test
    assert (test.student.n, test.best.n, test.gain.n) == (12, 12, 12)
    assert test.gain.mean == pytest.approx(test.best.mean - test.student.mean)
    assert program.detailed_results.usage["test"].n_lm_calls == 24


@pytest.mark.parametrize("budget", [{"max_metric_calls": 100}, {"max_lm_calls": 120}], ids=str)
def test_of_a_budget_enough_is_kept_back_for_the_test_set(budget: dict[str, int]) -> None:
    lm = world()
    program = compiled(lm, testset=cases(12, FIRST_TEST), **{**SMALL, "epochs": 20}, **budget)
    results = program.detailed_results
    assert results.ended_because.startswith("max_")
    assert (results.test.student.n, results.test.best.n) == (12, 12)
    assert results.student.n >= 10  # nor does the validation set pay for it
    assert results.metric_calls <= budget.get("max_metric_calls", 10**9)
    assert lm.engine.n_calls() <= budget.get("max_lm_calls", 10**9)


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-3.0, -2.0), (0.0, 100.0)], ids=str)
def test_no_stated_effect_is_larger_than_the_scale_of_the_scores(low: float, high: float) -> None:
    def metric(case: dspy.Example, pred: dspy.Prediction, _trace: Any = None) -> Any:
        scored = is_right(case, pred)
        scored.score = low + (high - low) * scored.score
        return scored

    def answer(prompt: Prompt) -> str:
        chance = 0.9 if "Read the list." in prompt.system else 0.03
        return chat(answer=CODES[case_in(prompt.user)[1]] if luck_of(prompt) < chance else "no")

    lm = world(answer, lessons("Read the list."))
    program = compiled(lm, metric=metric, n=8, batch_size=2, epochs=2)
    results = program.detailed_results
    effects = [one.effect for one in (*results.experiences, *results.tried) if one.effect]
    assert effects
    for effect in effects:
        (least, most), widest = effect.bounds, high - low
        assert -widest <= least <= effect.estimate <= most <= widest
    pages = f"{results} {results._repr_html_()} {html(results)}"
    number = r"[+-]?\d+\.\d+"
    bounds = re.findall(rf"\[({number}), ({number})\]", pages)
    of_effects = {float(bound) for pair in bounds for bound in pair if pair[0][-3] == "."}
    others = [pair for pair in bounds if pair[0][-4] == "." and pair[1][0] != "+"]
    of_scores = {float(bound) for pair in others for bound in pair}  # gains have signs
    assert max(map(abs, of_effects)) <= high - low
    assert low <= min(of_scores) <= max(of_scores) <= high
    again = ExperienceLibrary.from_dict(ExperienceLibrary.from_dict(results.library).to_dict())
    assert [e.effect.bounds for e in again] == [e.effect.bounds for e in results.experiences]


@pytest.mark.parametrize(
    ("limit", "n_alike"), [({}, 10), ({"max_lm_calls": 200}, 9), ({"max_minutes": 60}, 1)], ids=str
)
def test_prompts_that_begin_alike_are_asked_one_after_the_other_unless_a_clock_may_end_them(
    limit: dict[str, Any], n_alike: int
) -> None:
    lm = world()
    given: dict[str, Any] = {**SMALL, "max_demos": 0, **limit}
    compiled(lm, gate=proposing(list(RIGHT.values())), num_threads=1, **given)
    asked = [p for p in lm.engine.prompts if "Case" in p.user and "`answer`" in p.text]
    systems = [p.system for p in asked if case_in(p.user)[0] >= FIRST_VALIDATION]
    in_a_row = [len([*alike]) for _, alike in itertools.groupby(systems)]
    assert max(in_a_row[:-1]) == n_alike


def weakly_solved(prompt: Prompt) -> str:
    """The right lessons help a little; that is seen on many examples only."""
    chance = 0.4 + 0.15 * (RIGHT[case_in(prompt.user)[1]] in prompt.system)
    return chat(answer=CODES[case_in(prompt.user)[1]] if luck_of(prompt) < chance else "unsure")


def test_what_the_test_set_does_not_need_goes_to_the_race() -> None:
    """The student leads when all but the test set is spent; 20 more rollouts show that it loses."""
    lm = world(weakly_solved)
    given: dict[str, Any] = {"first_validation": 800, **SMALL, "n_validation": 100}
    gate = proposing(list(RIGHT.values()))
    program = compiled(lm, gate=gate, testset=cases(40, 3000), max_lm_calls=180, **given)
    results = program.detailed_results
    assert texts(program) == set(RIGHT.values())
    assert results.student.n == 40
    assert (results.test.student.n, results.test.best.n, results.test.gain.n) == (30, 30, 30)
    assert lm.engine.n_calls() == 180


TOO_LITTLE = "; the gains differ too little for an interval"


@pytest.mark.parametrize(
    ("figure", "shown"),
    [  # mean 0.2, deviation 0.1, error 0.1 / sqrt 3, times t(2) = 4.303
        (
            Gain.between([0.5, 0.4, 0.3, 0.3, None], [0.6, 0.6, 0.6, None, 0.4]),
            "+0.200 [-0.048, +0.448] on 3 examples",
        ),
        (Gain.between([0.0], [1.0]), f"+1.000 on 1 example{TOO_LITTLE}"),
        (Gain.between([0.5, 0.3], [0.6, 0.4]), f"+0.100 on 2 examples{TOO_LITTLE}"),  # rounded
        # 19 of 20 right: t(19) = 2.093 times sqrt(.05 / 20) = .05 reaches beyond 1
        (ScoreSummary.of([1.0] * 19 + [0.0], UNIT), "0.950 [0.845, 1.000] on 20 examples"),
        (
            Gain.between([0.0] * 20, [1.0] * 19 + [0.0], UNIT),
            "+0.950 [+0.845, +1.000] on 20 examples",
        ),
        # Clopper and Pearson's table
        (ScoreSummary.of([1.0] * 20, UNIT), "1.000 [0.832, 1.000] on 20 examples"),
        (ScoreSummary.of([0.0] * 20, UNIT), "0.000 [0.000, 0.168] on 20 examples"),
        (ScoreSummary.of([0.5] * 20, UNIT), "0.500 on 20 examples"),
        # no figure is a negative zero
        (ScoreSummary.of([-0.0001, 0.0]), "0.000 [-0.001, 0.001] on 2 examples"),
        (Effect(-0.001, 0.01, 5), "effect +0.00 ± 0.01 by 5 rollouts"),
    ],
)
def test_figures_are_told_with_intervals_that_stay_within_the_scores_seen(
    figure: Any, shown: str
) -> None:
    assert str(figure) == shown


class DearerLater(dspy.Module):
    """One call for a training question, so many for a validation question."""

    def __init__(self, n_later: int = 5) -> None:
        super().__init__()
        self.ask, self.more, self.n_more = predictor(), predictor(), n_later - 1

    def forward(self, question: str) -> Any:
        for seed in range(self.n_more * (int(question.split()[1]) >= 100)):
            self.more(question=question, config={"seed": seed})
        return self.ask(question=question)


@pytest.mark.parametrize("num_threads", [1, 4])
@pytest.mark.parametrize(("max_lm_calls", "n_measured"), [(120, 8), (140, 10)])
def test_examples_that_all_candidates_finished_count_where_a_budget_cuts_a_round(
    max_lm_calls: int, n_measured: int, num_threads: int
) -> None:
    budget: dict[str, Any] = {"max_lm_calls": max_lm_calls, "num_threads": num_threads}
    optimized = learned(DearerLater(), gate=Gate(), **budget)
    results = optimized.detailed_results
    assert results.student.n == results.best.n == n_measured
    assert n_calls(optimized) <= max_lm_calls


def learned_at_the_end(student: Any, **settings: Any) -> Any:
    """A run whose budget pays for one batch: no training rollout tries what that teaches."""
    optimizer = TrainingFreeGRPO(is_polite, progress=False, **{"max_demos": 0, **settings})
    with dspy.context(lm=agent_lm()):
        program = optimizer.compile(student, trainset=questions(12), valset=questions(8, start=100))
    assert not program.detailed_results.tried
    assert "is spent as planned" in program.detailed_results.ended_because
    return program


@pytest.mark.parametrize(
    ("student", "max_lm_calls", "n"), [(predictor(), 24, 8), (agent(), 60, 7)], ids=["24", "60"]
)
def test_advice_that_no_training_rollout_tried_races_against_the_student_with_what_is_left(
    student: Any, max_lm_calls: int, n: int
) -> None:
    program = learned_at_the_end(student, max_lm_calls=max_lm_calls)
    results = program.detailed_results
    assert library_texts(program) == [ADVICE]
    assert results.student.n == results.best.n == n
    assert results.best.mean > results.student.mean
    assert n_calls(program) <= max_lm_calls


@pytest.mark.parametrize("num_threads", [1, 4])
def test_where_the_rest_does_not_reach_for_both_the_student_is_measured_and_it_is_said(
    num_threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A validation question takes thirteen calls, which nothing lets a run expect."""
    program = learned_at_the_end(DearerLater(13), max_lm_calls=24, num_threads=num_threads)
    results = program.detailed_results
    assert library_texts(program) == []
    assert [finalist.ids for finalist in results.candidates] == [()]
    assert results.student.n == results.best.n == 1
    why = f"E1  {ADVICE} (it was not measured in the final choice)"
    assert why in str(results)
    assert "it was not measured in the final choice" in html(results)
    assert results.taken_because == "the student: no other candidate was measured"
    assert "the result could not be measured, so the student is returned" in caplog.text
