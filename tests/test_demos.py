"""Demos: the best training rollouts, shown by the result if validation says that they help."""

import datetime
import re
from collections.abc import Sequence
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import coded_cases
import dspy
import pytest
from coded_cases import CODES, FIRST_VALIDATION, case_in, cases, is_right, luck_of
from runs import predictor
from scripted import Prompt, chat, lessons, scripted_lm
from small import grpo

from tfgrpo_dspy import ExperienceLibrary, Gate, StoreError, best_so_far
from tfgrpo_dspy.rollout import Failure, Group, Rollout, Step
from tfgrpo_dspy.sampling.examples import (
    Additions,
    Demo,
    DemoPool,
    Example,
    best_rollouts,
    demos_of,
)


def numbers_in(prompt: Prompt) -> list[int]:
    """The cases that a prompt shows; the last is asked. 900 is a demo of the student's own."""
    found = [int(number) for number in re.findall(r"Case (\d+)", prompt.user)]
    return [number for number in found if number != 900]


class Imitator:
    """Answers rightly by chance, which each case that it is shown before changes."""

    def __init__(self, chance: float, with_demos: float) -> None:
        self.chance, self.with_demos = chance, with_demos

    def __call__(self, prompt: Prompt) -> str:
        chance = self.with_demos if len(numbers_in(prompt)) > 1 else self.chance
        is_good = luck_of(prompt) < chance
        return chat(answer=CODES[case_in(prompt.user)[1]] if is_good else "unsure")


def world(chance: float = 0.4, with_demos: float = 0.95, answers: Any = None) -> dspy.LM:
    answers = answers or Imitator(chance, with_demos)
    return coded_cases.world(answers, lessons("Think of it."), num_retries=0)


def compiled(lm: dspy.LM, student: Any = None, **settings: Any) -> Any:
    given: dict[str, Any] = {"n": 12, "n_validation": 14, "batch_size": 6, "epochs": 1}
    given |= {"max_demos": 4, "gate": Gate(), "student": student}
    return coded_cases.compiled(lm, **given | settings)


UNLABELLED: dict[str, Any] = {"use_labels": False}


def shown(program: Any) -> list[tuple[str, str]]:
    return [(demo["question"], demo["answer"]) for demo in program.predictors()[0].demos]


def test_good_rollouts_are_shown_by_the_result_where_they_help() -> None:
    student = predictor()
    optimized = compiled(world(), student)
    results = optimized.detailed_results
    assert len(shown(optimized)) == 4
    assert set(shown(optimized)) <= {(case.question, case.answer) for case in cases(12)}
    assert student.demos == []
    assert results.n_demos == 4
    (best,) = [finalist for finalist in results.candidates if finalist.is_best]
    assert best.demo_set
    assert best.chance > 0.95
    assert results.best.mean == pytest.approx(results.student.mean + results.gain.mean)
    assert results.nothing_learned == ""


def confused(prompt: Prompt) -> str:
    return "no answer" if len(numbers_in(prompt)) > 1 else Imitator(0.4, 1.0)(prompt)


@pytest.mark.parametrize(
    "lm", [world(0.4, 0.0), world(0.4, 0.4), world(answers=confused)], ids=["bad", "none", "fails"]
)
def test_where_they_do_not_help_the_result_is_as_without(lm: dspy.LM) -> None:
    optimized = compiled(lm)
    assert shown(optimized) == []
    assert optimized.detailed_results.n_demos == 0
    assert any(finalist.demo_set for finalist in optimized.detailed_results.candidates)
    without = compiled(world(), max_demos=0)
    assert optimized.dump_state() == without.dump_state()
    assert optimized.detailed_results.best == without.detailed_results.best


def test_an_example_of_the_validation_set_is_not_shown_with_its_answer() -> None:
    with pytest.warns(UserWarning, match="6 of 14 validation examples are training examples"):
        optimized = compiled(world(), first_validation=6, max_demos=12)
    asked = {question for question, _ in shown(optimized)}
    assert asked and asked <= {case.question for case in cases(6)}


def test_a_student_that_never_succeeds_is_shown_what_the_labels_say() -> None:
    optimized = compiled(world(chance=0.0, with_demos=0.9), max_demos=8)
    labelled = [(case.question, case.answer) for case in cases(12)]
    assert len(shown(optimized)) == 8
    assert set(shown(optimized)) <= set(labelled)
    assert shown(optimized) != labelled[:8], "in an order mixed by the seed"


@pytest.mark.parametrize(
    ("seed", "in_training"), [(0, False), (3, True), (4, True)],
    ids=["given up in training", "seed 3", "seed 4"],
)  # fmt: skip
def test_of_several_sets_of_demos_the_result_has_one_that_helps(
    seed: int, in_training: bool
) -> None:
    def answers(prompt: Prompt) -> str:
        """Follows the last demo alone: only those of cases 0 to 3 help, others mislead."""
        *demos, _ = numbers_in(prompt)
        chance = 0.4 if not demos else 0.95 if demos[-1] < 4 else 0.1
        return chat(answer=CODES[case_in(prompt.user)[1]] if luck_of(prompt) < chance else "no")

    lm = world(answers=answers)
    optimized = compiled(lm, max_demos=6, gate=None, epochs=4, seed=seed)
    question, _ = shown(optimized)[-1]
    assert int(question.split()[1].rstrip(",")) < 4
    asked = map(numbers_in, (p for p in lm.engine.prompts if "Attempt" not in p.text))
    helped = [demos[-1] < 4 for *demos, case in asked if demos and case < 12]
    assert not all(helped[:24]), "the others are tried"
    assert all(helped[-24:]) is in_training, "else only the race finds it"
    (best,) = (finalist for finalist in optimized.detailed_results.candidates if finalist.is_best)
    assert best.demo_set


@pytest.mark.parametrize("first", [0, 24], ids=["labels", "best rollouts"])
@pytest.mark.parametrize(("chances", "is_helpful"), [((0.4, 0.95), True), ((0.6, 0.0), False)])
def test_training_rollouts_show_demos_of_others_on_trial_and_later_only_where_they_help(
    chances: tuple[float, float], is_helpful: bool, first: int
) -> None:
    lm, shares = world(*chances), UNLABELLED if first else {}
    optimized = compiled(lm, gate=None, epochs=12, group_size=2, num_threads=1, **shares)
    asked = (numbers_in(prompt) for prompt in lm.engine.prompts if "Attempt" not in prompt.text)
    training = [numbers for numbers in asked if numbers and numbers[-1] < 12]
    showing = [len(numbers) > 1 for numbers in training]
    assert not any(showing[:first]), "in the first epoch no rollout is good enough"
    assert 0 < sum(showing[first : first + 24]) < 24, "they are on trial"
    assert set(showing[-24:]) == {is_helpful}
    assert all(numbers.count(numbers[-1]) == 1 for numbers in training), "no case shows itself"
    assert len(shown(optimized)) == 4 * is_helpful


def test_a_run_with_demos_resumes_replays_and_is_found_in_its_store(tmp_path: Path) -> None:
    first = compiled(world(), log_dir=tmp_path)
    assert len(shown(first)) == 4
    assert first.dump_state() == compiled(world()).dump_state(), "as without a store"
    for is_offline in (False, True):
        replayed = compiled(scripted_lm([]), log_dir=tmp_path, offline=is_offline)
        assert replayed.dump_state() == first.dump_state()
        assert replayed.detailed_results.candidates == first.detailed_results.candidates
    found = best_so_far(tmp_path, student=predictor())
    assert shown(found) == shown(first)
    with pytest.raises(StoreError, match="pass the student that was compiled"):
        best_so_far(tmp_path, student=dspy.ChainOfThought("question -> answer"))


def test_traces_with_steps_are_shown_where_they_help() -> None:
    def trace(case: dspy.Example, answer: str) -> dict[str, Any]:
        fields = {"inputs": {"question": case.question}, "outputs": {"answer": answer}}
        score = float(answer == case.answer)
        return {**fields, "score": score, "steps": [{"name": "self", **fields}]}

    traces = [trace(case, answer) for case in cases(12) for answer in (case.answer, "unsure")]
    with dspy.context(lm=world()):
        optimizer = grpo(is_right, max_demos=3, gate=Gate(), progress=False)
        learned = optimizer.learn(predictor(), traces=traces, valset=cases(20, FIRST_VALIDATION))
    assert len(shown(learned)) == 3


def rollout(example: int, score: float | None, answer: str = "a", **changes: Any) -> Rollout:
    steps = (Step("predictor", "self", {"question": f"Case {example}"}, {"answer": answer}),)
    return Rollout(example, 1, {"answer": answer}, steps, score, **changes)


@pytest.mark.parametrize(
    ("made", "shown"),
    [
        ([(0, 0.1), (1, 0.9), (2, 0.0), (3, 1.0), (4, 0.8)], "314"),  # 0, 2 are below the mean
        ([(0, 0.0), (3, 1.0), (1, 1.0), (2, 1.0)], "213"),  # the latest of equals comes first
        ([(5, 0.0), (1, 1.0, "o"), (1, 1.0, "n")], "n"),
        ([(5, 0.0), (1, 1.0, "o"), (1, 0.9, "n")], "o"),
        ([(1, -1.0), (2, None)], ""),  # what failed
        ([(0, 1.0), (1, 1.0), (2, 1.0)], ""),
    ],
)
def test_the_best_rollout_of_each_example_is_shown_where_it_is_above_the_mean(
    made: list[tuple[Any, ...]], shown: str
) -> None:
    groups = []
    for example, score, *answer in made:
        failure = {} if score is not None else {"failure": Failure("program", "it raised")}
        done = rollout(example, score, *(answer or [str(example)]), **failure)
        groups.append(Group.of(example, [done], has_metric=True))
    assert "".join(rollout.outputs["answer"] for rollout in best_rollouts(groups)) == shown


def baked(program: Any, demos: Sequence[Demo]) -> Any:
    return Additions(ExperienceLibrary(), tuple(demos)).bake(program)


class Agent(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.act = dspy.Predict("question, history -> action")
        self.say = dspy.ChainOfThought("history -> answer: list[int]")


STEPS = (
    Step("predictor", "act", {"question": "q", "history": "a"}, {"action": "look"}),
    Step("tool", "look", {}, {"result": "nothing"}),
    Step("predictor", "act", {"question": "q", "history": "a b"}, {"action": "end"}),
    Step("predictor", "say.predict", {"history": "h"}, {"reasoning": "r", "answer": "[1, 2]"}),
)


def test_every_predictor_is_shown_its_own_last_step() -> None:
    program = Agent()
    demos = demos_of(Rollout(0, 1, steps=STEPS, score=1.0), program)
    (act,), (say,) = (each.demos for each in baked(program, demos).predictors())
    assert act.toDict() == {"question": "q", "history": "a b", "action": "end"}
    assert say.toDict() == {"history": "h", "reasoning": "r", "answer": [1, 2]}
    assert set(act.inputs().keys()) == {"question", "history"}
    assert all(predictor.demos == [] for predictor in program.predictors())


class Grade(Enum):
    GOOD, BAD = "very good", "bad"


class Size(Enum):
    SMALL, LARGE = 1, 2


def answering(annotation: Any) -> dspy.Predict:
    program = dspy.Predict("question -> answer")
    program.signature.output_fields["answer"].annotation = annotation
    return program


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        (str, "[1]", "[1]"),
        (bool, "True", True),
        (Grade, "very good", Grade.GOOD),
        (Size, "2", Size.LARGE),
        (str | None, "None", None),
        (list[Grade], '["bad"]', ["bad"]),
        (datetime.date, "2025-01-02", datetime.date(2025, 1, 2)),
        (dspy.Reasoning, "it follows", dspy.Reasoning(content="it follows")),
        (Literal["yes", "no"], "no", "no"),
        (dict[str, Any], '{"a": [1]}', {"a": [1]}),
    ],
)
def test_a_value_comes_back_from_its_text(annotation: Any, text: str, value: Any) -> None:
    program = answering(annotation)
    program = baked(program, demos_of(rollout(0, 1.0, text), program))
    (demo,) = program.demos
    assert demo.answer == value
    assert type(demo.answer) is type(value)


@pytest.mark.parametrize(
    ("annotation", "text", "saved"),
    [
        (Decimal, "1.50", "1.50"),
        (set[str], '["a", "b"]', ["a", "b"]),
        (dict[int, set[int]], '{"7": [1, 3]}', {"7": [1, 3]}),
        (datetime.timedelta, "PT1H", "PT1H"),
        (Path, "[a]/b", "[a]/b"),
        (int, f"{2**70}", f"{2**70}"),
    ],
)
def test_a_program_with_demos_of_values_that_json_does_not_have_can_be_saved(
    annotation: Any, text: str, saved: Any, tmp_path: Path
) -> None:
    program, loaded = answering(annotation), answering(annotation)
    program = baked(program, demos_of(rollout(0, 1.0, text), program))
    program.save(tmp_path / "program.json")
    loaded.load(tmp_path / "program.json")
    assert [demo["answer"] for demo in loaded.demos] == [saved]
    prompts = [
        dspy.ChatAdapter().format(one.signature, one.demos, {"question": "Why?"})
        for one in (program, loaded)
    ]
    assert prompts[0] == prompts[1]
    assert text in str(prompts[0])


class Odd(str):
    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> Any:
        raise RuntimeError


INCOMPLETE = ("question, context -> answer", "question -> answer, reason")


@pytest.mark.parametrize(
    "program",
    [*map(answering, (dspy.Image, list[dspy.Image], int, Odd)), *map(dspy.Predict, INCOMPLETE)],
)
def test_a_step_with_a_field_missing_or_that_cannot_be_had_back_is_not_shown(program: Any) -> None:
    assert demos_of(rollout(0, 1.0, "<image>"), program) == ()


# ------------------------------------------------------------------------------ pipelines, agents


class Pipeline(dspy.Module):
    """Sums a case up, then gives its code."""

    def __init__(self) -> None:
        super().__init__()
        self.sum_up = dspy.Predict("question -> summary")
        self.answer = dspy.Predict("question, summary -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        summary = self.sum_up(question=question).summary
        return self.answer(question=question, summary=summary)


def look(question: str) -> str:
    """Look a case up."""
    return f"{question} is listed"


def agent() -> dspy.Module:
    return dspy.ReAct("question -> answer", tools=[look], max_iters=2)


def pipeline_world() -> dspy.LM:
    """Gives a code only where a demo has shown what a code looks like."""

    def answers(prompt: Prompt) -> str:
        if "next_tool_name" in prompt.system:
            return chat(next_thought="Done.", next_tool_name="finish", next_tool_args="{}")
        if "`summary`" in prompt.system and "`answer`" not in prompt.system:
            return chat(summary="It is a case.")
        is_shown = re.search(rf"\b(?:{'|'.join(CODES.values())})\b", prompt.user)
        code = CODES[case_in(prompt.user)[1]] if is_shown else "unsure"
        return chat(reasoning="So it is.", answer=code)

    return world(answers=answers)


@pytest.mark.parametrize(
    ("student", "last"), [(Pipeline, "answer"), (agent, "extract.predict")], ids=["two", "agent"]
)
def test_the_last_predictor_is_shown_labels_without_what_was_found_before(
    student: Any, last: str
) -> None:
    optimized = compiled(pipeline_world(), student(), max_demos=8)
    shown = {name: predictor.demos for name, predictor in optimized.named_predictors()}
    labelled = {(case.question, case.answer) for case in cases(12)}
    assert len(shown[last]) == 8
    assert {(demo["question"], demo["answer"]) for demo in shown.pop(last)} <= labelled
    assert not any(shown.values()), "no label is an output of another predictor"
    assert optimized.detailed_results.student.mean == 0.0
    assert optimized.detailed_results.best.mean == 1.0


def test_an_example_is_shown_by_its_best_rollout_once_that_is_good() -> None:
    program, inputs = Pipeline(), [case.question for case in cases(8)]
    pool = DemoPool(program, [*map(Example, cases(8))], range(8), 6, seed=0)
    best = [Rollout(i, 1, steps=_steps(inputs[i]), score=1.0) for i in range(4)]
    at_first = _questions(pool.choose(1, (), set()), "answer")
    shown = pool.choose(1, best, set())
    assert _questions(shown, "answer") == at_first, "the same examples in the same order"
    assert set(_questions(shown, "sum_up")) == set(at_first) & set(inputs[:4])
    of_rollouts = [dict(demo.fields) for demo in shown if "summary" in dict(demo.fields)]
    assert {fields["question"] for fields in of_rollouts} == set(at_first) & set(inputs[:4])


def _steps(question: str) -> tuple[Step, ...]:
    return (
        Step("predictor", "sum_up", {"question": question}, {"summary": "s"}),
        Step("predictor", "answer", {"question": question, "summary": "s"}, {"answer": "a"}),
    )


def _questions(demos: tuple[Demo, ...], predictor: str) -> list[str]:
    return [dict(demo.fields)["question"] for demo in demos if demo.predictor == predictor]
