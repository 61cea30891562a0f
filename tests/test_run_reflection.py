"""What reflection LMs are shown in a run, and what of their answers is held back."""

import itertools
import threading
from pathlib import Path
from typing import Any

import dspy
import pydantic
import pytest
from runs import ADVICE, Run, is_score, learned, polite_lm, polite_rules, predictor
from scripted import EXTRACT, UPDATE, Prompt, lessons, operations, scripted_lm
from small import grpo
from test_run import is_score_with_feedback

from tfgrpo_dspy import ExperienceLibrary, NoGate
from tfgrpo_dspy.run.planning import NOT_ASKED, TEACHING


class Hops(dspy.Module):
    """Predictors in a list, as multi-hop programs have them."""

    def __init__(self) -> None:
        super().__init__()
        self.hops = [predictor(), dspy.ChainOfThought("question -> answer")]

    def forward(self, question: str) -> Any:
        return [hop(question=question) for hop in self.hops][-1]


def test_a_lesson_for_a_predictor_in_a_list_is_for_that_one() -> None:
    program = learned(Hops(), polite_lm(f"[hops[1]] {ADVICE}"), gate=NoGate(), epochs=1)
    assert [(e.text, e.scope) for e in ExperienceLibrary.from_program(program)] == [
        (ADVICE, "hops[1].predict")
    ]
    assert ADVICE not in program.hops[0].signature.instructions
    assert not program.detailed_results.failures


def test_attempts_that_were_made_without_what_is_known_say_so() -> None:
    traces = [
        {"inputs": {"question": f"question {i}"}, "outputs": {"answer": a}, "score": float(a)}
        for i in range(2)
        for a in ("1", "0")
    ]
    given: dict[str, Any] = {"gate": NoGate(), "batch_size": 1, "max_staleness": 0}
    run = Run([["1", "0"]])  # its LM answers by the usual rules
    with dspy.context(lm=run.lm):
        grpo(is_score, **given, progress=False).learn(predictor(), traces=traces)
    *_, first, second = run.texts(EXTRACT)
    assert "Attempt 1 (score 1, advantage +1.00)" in first
    assert "Attempt 1 (score 1, advantage +1.00, with no experience)" in second


@pytest.mark.parametrize(("batch_size", "epochs"), [(1, 2), (2, 1)])
def test_a_group_of_equal_scores_below_the_best_so_far_is_analysed(
    batch_size: int, epochs: int
) -> None:
    given: dict[str, Any] = {"batch_size": batch_size, "epochs": epochs, "max_staleness": 0}
    run = Run([["0.5", "0.5"], ["1", "0"]], metric=is_score_with_feedback, **given)
    last = {g.example: g.used_as for u in run.results.updates for g in u.groups}
    assert last == {0: "failure analysis", 1: "contrast"}


def test_a_group_is_compared_with_what_was_known_for_sure_when_its_batch_was_made() -> None:
    """The second of three updates has the best score; it may be decided before the third begins."""

    def update(_prompt: Prompt) -> str:
        threading.Event().wait(0.2)  # the second group is done by then
        return operations()

    given: dict[str, Any] = {"metric": is_score_with_feedback, "max_staleness": 1, "batch_size": 1}
    run = Run([["0.5", "0"], ["0.5", "0.5"], ["1", "1"]], (UPDATE, update), **given)
    uses = [group.used_as for update in run.results.updates for group in update.groups]
    assert uses == ["contrast", "failure analysis", "no contrast"], "the second knows no other"


def test_what_is_replayed_counts_as_when_it_was_made(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    for _ in range(2):
        Run([["1", "0"]], log_dir=tmp_path)
    first, again = [line for line in caplog.messages if "LM calls so far" in line]
    assert first == again and "4 LM calls so far" in first


def test_an_example_cannot_be_taken_for_a_section_of_the_prompt() -> None:
    asked = "question 0\n\n[[ ## attempts ## ]]\nAttempt 1 (score 9)"
    trainset = [dspy.Example(question=asked).with_inputs("question")]
    (prompt,) = Run([["1", "0"]], trainset=trainset).prompts(EXTRACT)
    assert prompt.user.count("[[ ## attempts ## ]]\n") == 1


NO_LESSON = "please"  # nothing but a label


@pytest.mark.parametrize("said", ["None", NO_LESSON], ids=["none", "refused"])
def test_after_eight_groups_without_a_lesson_one_call_of_a_batch_asks_for_more(said: str) -> None:
    given: dict[str, Any] = {"group_size": 2, "epochs": 9, "max_staleness": 0, "drafts": 0}
    lms = [scripted_lm([(EXTRACT, lessons(text)), *polite_rules()]) for text in (ADVICE, said)]
    taught, in_vain = (learned(lm=lm, max_lm_calls=200, **given).detailed_results for lm in lms)
    assert "those before gave nothing new" in in_vain.nothing_learned
    uses = [[group.used_as for group in update.groups] for update in in_vain.updates]
    n_asked = [sum(use in TEACHING for use in of_update) for of_update in uses]
    n_before = [sum(n_asked[:n]) for n in range(len(uses))]
    per_call = in_vain.schedule["groups_per_call"]
    pairs = [*zip(n_asked, n_before, strict=True)]
    assert all(n <= per_call for n, before in pairs if before >= 8) and max(n_before) > 8
    assert not any("late" in group.used_as for u in taught.updates for group in u.groups)


def test_lessons_that_the_library_has_already_count_as_asked_for_in_vain() -> None:
    useless = "Count twice."
    student = ExperienceLibrary.from_texts([useless]).bake(dspy.Predict("question -> answer"))
    lm = scripted_lm([(EXTRACT, lessons(useless)), *polite_rules()])
    given: dict[str, Any] = {"group_size": 2, "epochs": 9, "max_staleness": 0, "drafts": 0}
    results = learned(student, lm, max_lm_calls=200, **given).detailed_results
    uses = [group.used_as for update in results.updates for group in update.groups]
    assert NOT_ASKED in uses
    assert any(update.lessons for update in results.updates)


def test_a_lesson_after_many_calls_in_vain_makes_all_groups_worth_asking_again() -> None:
    said = itertools.chain([lessons("None")] * 12, itertools.repeat(lessons(ADVICE)))
    lm = scripted_lm([(EXTRACT, lambda _prompt: next(said)), *polite_rules()])
    given: dict[str, Any] = {"group_size": 2, "epochs": 30, "max_staleness": 0, "drafts": 0}
    results = learned(lm=lm, max_lm_calls=500, num_threads=1, **given).detailed_results
    uses = [[group.used_as for group in update.groups] for update in results.updates]
    last = max(n for n, of_update in enumerate(uses) if NOT_ASKED in of_update)
    asked = [sum(use in TEACHING for use in of_update) for of_update in uses]
    assert not any(update.lessons for update in results.updates[:last])
    assert max(asked[last + 1 :]) > results.schedule["groups_per_call"]


class Proposal(pydantic.BaseModel):
    op: str = "ADD"
    text: str = "Own words."


class Proposing(dspy.Module):
    def forward(self, **_: Any) -> dspy.Prediction:
        return dspy.Prediction(operations=[Proposal()])


def test_a_module_of_ones_own_may_answer_in_types_of_its_own() -> None:
    assert Run([["1", "0"]], update=Proposing()).library.render() == "[E1*] Own words."


# ---------------------------------------------------------------------- what is held back

MANY = [f"Rule {chr(65 + n)} holds." for n in range(25)]


@pytest.mark.parametrize(
    ("said", "taken", "refused"),
    [
        (MANY, MANY[:10], "15 more lessons (10 lessons of an answer are read for each example)"),
        (["word " * 241], [], f"{'word ' * 241}(more than 3 times as long as an experience)"),
    ],
    ids=["many", "a long one"],
)
def test_lessons_that_are_not_taken_are_shown_with_the_reason_and_not_passed_on(
    said: list[str], taken: list[str], refused: str
) -> None:
    run = Run([["1", "0"]], (EXTRACT, lessons(*said)))
    assert run.results.updates[0].lessons == tuple(taken)
    assert run.results.updates[0].refused_lessons == (refused,)
