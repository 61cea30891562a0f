"""Hints, teachers and exploration for groups that fail throughout; `strategies="auto"`."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from runs import Run, is_polite, learned, section, untimed
from scripted import EXTRACT, Rule, chat, scripted_lm
from small import group_of

from tfgrpo_dspy import SettingsError, TrainingFreeGRPO
from tfgrpo_dspy.report import html
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.examples import SampledGroup
from tfgrpo_dspy.strategies import (
    ClippedDiversity,
    ImplicitStepRewards,
    InformationGain,
    MonteCarloCredit,
    TeacherMarks,
    TeacherRollouts,
    TieredHints,
)
from tfgrpo_dspy.strategies.attempts import gives_away, needs_hints, unlike_spreads
from tfgrpo_dspy.strategies.base import Strategy

FAIL = [["0", "0"]]
HINTS = {"concept": "Think of sums.", "plan": "Add both.", "step": "Begin with three."}
AT_ONCE = (TieredHints(after=0),)


def hinting(works: str, **written: str) -> list[Rule]:
    """The reflection LM writes hints; with that one in its prompt the program is right."""
    return [
        ("`concept`", chat(**HINTS | written)),
        (f"A hint for this input: {re.escape(works)}", chat(answer="1")),
        ("A hint for this input", chat(answer="0")),
    ]


def labelled(*labels: str) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"question {i}", answer=label).with_inputs("question")
        for i, label in enumerate(labels)
    ]


def hints_given(run: Run) -> list[str]:
    """The hints in the prompts of the program, in the order of their requests."""
    found = (re.search("A hint for this input: (.*)", p.system) for p in run.prompts("question"))
    return [each[1] for each in found if each]


def aided(run: Run) -> list[tuple[float | None, ...]]:
    return [group.aided_scores for update in run.results.updates for group in update.groups]


def test_hints_go_from_concept_to_step_until_one_works_and_no_further() -> None:
    run = Run(FAIL, *hinting("Add both."), strategies=AT_ONCE)
    assert hints_given(run) == ["Think of sums.", "Add both."]
    assert aided(run) == [(0.0, 1.0)]
    assert run.uses == ["contrast"]
    assert 'with the hint "Add both."' in section(run.prompts(EXTRACT)[0].user, "attempts")


def test_where_no_hint_works_all_are_tried_once_and_the_label_is_what_teaches() -> None:
    run = Run(FAIL, *hinting("Guess."), strategies=AT_ONCE)
    assert hints_given(run) == [*HINTS.values()]
    assert run.uses == ["failure analysis"]


def test_an_example_gets_hints_only_after_it_has_stagnated() -> None:
    run = Run(FAIL * 2, *hinting("Think of sums."), strategies=(TieredHints(),), epochs=2,
              max_staleness=0)  # fmt: skip
    assert aided(run) == [(), (), (1.0,), (1.0,)]
    run = Run([["1", "0"]], *hinting("Think of sums."), strategies=AT_ONCE)
    assert aided(run) == [()]


def test_who_writes_hints_sees_label_and_attempt_and_no_hidden_label() -> None:
    trainset = labelled("seven")
    run = Run(FAIL, *hinting("Add both."), strategies=AT_ONCE, trainset=trainset)
    (asked,) = run.prompts("`concept`")
    assert section(asked.user, "expected") == "answer: seven"
    assert section(asked.user, "attempt") == "answer: 0"
    hidden = Run(
        FAIL, *hinting("Add both."), strategies=AT_ONCE, trainset=trainset, use_labels=False
    )
    (asked,) = hidden.prompts("`concept`")
    assert "seven" not in asked.text


def test_a_hint_that_gives_the_answer_away_is_not_given() -> None:
    rules = hinting("Begin with three.", concept="It is SEVEN.", plan="Say  seven, then stop.")
    run = Run(FAIL, *rules, strategies=AT_ONCE, trainset=labelled("seven"))
    assert hints_given(run) == ["Begin with three."]
    assert not [p for p in run.prompts("question") if "seven" in p.system.casefold()]


def test_no_demo_shows_what_a_teacher_or_a_hinted_rollout_wrote() -> None:
    told = [("A hint for this input", chat(reasoning="The hint says it.", answer="1"))]
    rules = [hinting("")[0], *told, ("question", chat(reasoning="mine", answer="0"))]
    wise = scripted_lm([("question", chat(reasoning="The teacher says it.", answer="1"))])
    for strategy in (TieredHints(after=0), TeacherRollouts(wise)):
        student = dspy.ChainOfThought("question -> answer")
        run = Run(FAIL * 4, *rules, strategies=(strategy,), student=student, epochs=3, max_demos=2)
        assert any(aided(run)), "some rollouts were aided"
        assert not [p for p in run.prompts("`reasoning`") if "says it" in p.user]
        assert not run.optimized.predictors()[0].demos


@pytest.mark.parametrize(
    ("label", "text", "is_told"),
    [
        *(("seven", "It is SEVEN.", True), ("seven", "Seventy of them.", False)),
        *(
            ("B", "答案选B。", True),
            ("阳虚证", "此为阳虚证也。", True),
            ("42", "答案是４２。", True),
        ),
        *(("да", "Когда?", False), ("да", "Скажи да.", True), ("Café", "the Cafe\u0301", True)),
        *(("two  words", "Two words.", True), ("", "Nothing.", False)),
        *(("no", "A good answer has no doubt", False), ("no", "The answer is no.", True)),
        *(("A", "Say 'A' here", True), ("A", "Look at a rule in 1 place", False)),
        *(("1", "Look at a rule in 1 place", False), ("1", "Choose: 1", True)),
    ],
)
def test_a_label_is_found_in_any_language_as_a_whole_word_and_a_short_one_as_an_answer(
    label: str, text: str, is_told: bool
) -> None:
    assert gives_away(text, {"answer": label}) == is_told


def strong(answer: str = "1") -> dspy.LM:
    return scripted_lm([("question", chat(answer=answer))])


def test_a_teacher_joins_only_the_groups_that_fail_with_a_bounded_share() -> None:
    rows = [["0"] * 4, ["1"] * 4, ["1", "0", "0", "0"]]
    teacher = TeacherRollouts(strong(), share=0.5)
    run = Run(rows, strategies=(teacher,), trainset=labelled("1", "1", "1"))
    by_example = {g.example: g for g in run.results.updates[0].groups}
    assert [len(by_example[i].aided_scores) for i in range(3)] == [2, 0, 0]
    assert [len(by_example[i].scores) for i in range(3)] == [4, 4, 4]


def test_attempts_that_agree_and_fail_are_followed_by_one_that_must_differ() -> None:
    rules: list[Any] = [(r"agree, and are not right: answer: 0\.", chat(answer="1"))]
    run = Run([["0", "0"], ["1", "0"]], *rules, strategies=(ClippedDiversity(),))
    aided = {group.example: group.aided_scores for u in run.results.updates for group in u.groups}
    assert aided == {0: (1.0,), 1: ()}


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


SILENT = 13  # groups of two failures each, of 16
FAILING = [["0", "0"]] * SILENT + [["1", "1"], ["1", "0"], ["1", "0"]]


def sampled(scores: Sequence[float], feedback: str = "") -> SampledGroup:
    return group_of(*(Rollout(0, k, score=s, feedback=feedback) for k, s in enumerate(scores)))


FAILED, GOOD, MIXED = map(sampled, ([0, 0], [1, 1], [0, 1]))
TOLD = sampled([0, 0], "No.")


@pytest.mark.parametrize(
    ("past", "is_needed"),
    [
        ([FAILED] * 12 + [MIXED] * 4, True),
        ([FAILED] * 12 + [MIXED] * 3, False),  # too few groups
        ([TOLD] * 12 + [MIXED] * 4, False),  # the metric says why
        ([GOOD] * 14 + [FAILED, MIXED], False),
        ([sampled([0.4, 0.4])] * 15 + [GOOD], True),  # all of them below the best
        ([FAILED] * 11 + [MIXED] * 5 + [FAILED] * 90, False),  # the first ones decide
    ],
)
def test_hints_are_needed_where_twelve_of_the_first_sixteen_groups_fail_without_a_word(
    past: list[SampledGroup], is_needed: bool
) -> None:
    assert needs_hints(past) == is_needed


def failing(**arguments: Any) -> Run:
    more = {"epochs": 3, "batch_size": 4, "max_staleness": 0, "strategies": "auto"} | arguments
    return Run(FAILING, *hinting("Think of sums."), **more)


def test_failing_examples_get_hints_from_the_second_epoch_on_and_all_pages_say_so() -> None:
    run = failing(num_threads=1)
    assert not any(aided(run)[:16])
    assert sum(map(bool, aided(run)[16:32])) == SILENT
    message = "auto: TieredHints is on"
    assert run.results.switched == (message,)
    assert message in str(run.results)
    assert message in html(run.optimized)
    of_others = untimed(failing(num_threads=4).results)
    assert of_others | {"settings": {}} == untimed(run.results) | {"settings": {}}


@pytest.mark.parametrize(("n", "n_epochs"), [(16, 2), (8, 1)])
def test_a_run_that_fails_throughout_goes_on_for_the_hints_if_they_are_needed(
    n: int, n_epochs: int
) -> None:
    unlabelled = [dspy.Example(question=f"question {i}").with_inputs("question") for i in range(n)]
    run = Run(
        [["0", "0"]] * n, *hinting("Nothing."), strategies="auto", epochs=4, batch_size=4,
        max_staleness=0, trainset=unlabelled,
    )  # fmt: skip
    assert len(run.results.updates) == n_epochs * n // 4
    assert sum(map(bool, aided(run))) == n * (n_epochs - 1)


def silent(example: Any, pred: Any, trace: Any = None) -> float:
    return float(is_polite(example, pred, trace).score)


@pytest.mark.parametrize(("seed", "metric"), [(0, silent), (1, is_polite), (2, silent)])
def test_a_run_that_needs_nothing_is_the_same_as_without(seed: int, metric: Any) -> None:
    one, other = (
        learned(metric=metric, seed=seed, epochs=4, strategies=used).detailed_results
        for used in ((), "auto")
    )
    assert untimed(other) | {"settings": {}} == untimed(one) | {"settings": {}}


# ---- objectives
def with_objectives(pairs: Sequence[tuple[float, float]], score: Any = None) -> list[Rollout]:
    return [
        Rollout(
            0,
            k,
            score=(right + length) / 2 if score is None else score,
            objectives={"right": right, "length": length},
        )
        for k, (right, length) in enumerate(pairs)
    ]


UNLIKE = [(0.0, -40.0), (1.0, -10.0)] * 4


@pytest.mark.parametrize(
    ("first", "names"),
    [
        (with_objectives(UNLIKE), ["right", "length"]),
        (with_objectives(UNLIKE[:7]), []),  # too few
        (with_objectives(UNLIKE, 0.5), []),  # the metric weighs them itself
        (with_objectives([(0.0, 1.0), (1.0, 0.0)] * 4), []),  # of one scale
        (with_objectives([(0.0, -40.0), (0.0, -10.0)] * 4), []),  # the scale of one is not known
        ([*with_objectives(UNLIKE), Rollout(0, 9, score=1.0)], []),  # not throughout
    ],
)
def test_objectives_are_scaled_where_their_plain_mean_is_the_score_and_scales_are_unlike(
    first: list[Rollout], names: list[str]
) -> None:
    assert list(unlike_spreads(first)) == names


def test_the_objectives_of_a_run_count_alike_and_the_results_say_so() -> None:
    lengths = itertools.cycle(["0", "1"])

    def metric(_example: Any, pred: Any) -> dspy.Prediction:
        return dspy.Prediction(
            objectives={"right": float(pred.answer), "length": -30.0 * float(pred.answer)}
        )

    rows = [[next(lengths), next(lengths)] for _ in range(6)]
    run, plain = (Run(rows, metric=metric, strategies=used, batch_size=6) for used in ("auto", ()))
    scores = [group.scores for group in run.results.updates[0].groups]
    assert scores == [pytest.approx((0.0, 0.0), abs=1e-9)] * 6  # one up, one down, of one size
    assert plain.results.updates[0].groups[0].scores == (0.0, -14.5)
    assert run.results.switched == ("auto: Objectives is on",)


def test_another_word_than_auto_is_refused() -> None:
    with pytest.raises(SettingsError, match=r"strategies='on'.*'auto'"):
        TrainingFreeGRPO(is_polite, strategies="on")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "strategy", [InformationGain(), MonteCarloCredit(), TeacherMarks(), ImplicitStepRewards()]
)
def test_a_program_of_one_turn_has_no_step_to_value_and_takes_no_call_for_it(
    strategy: Strategy,
) -> None:
    rows = [["1", "0"], ["0", "0"], ["0", "1"]]
    run, usual = (Run(rows, strategies=used) for used in ((strategy,), ()))
    assert run.texts("") == usual.texts("")
    assert run.results.updates == usual.results.updates
