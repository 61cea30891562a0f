"""What can never work ends after a handful of tries, with the cause and what to change."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from runs import Run, n_calls, polite_answer, polite_rules, predictor, questions
from scripted import (
    EXTRACT,
    UPDATE,
    Filtered,
    Prompt,
    Refused,
    ScriptedEngine,
    chat,
    lessons,
    operations,
    scripted_lm,
)
from small import grpo

from tfgrpo_dspy import Execution, Reflection, RunFailedError, TrainingFreeGRPO
from tfgrpo_dspy.strategies import Strategy

TOO_LONG = lm15.ContextLengthError("at most 512 tokens")
RAMBLING = "We need to find out what the customer"


def is_right(example: dspy.Example, pred: dspy.Prediction) -> float:
    return float(pred.answer == example.answer)


def learned(
    lm: dspy.LM, n: int, student: Any = None, metric: Any = is_right, **settings: Any
) -> Any:
    """The program that the default learns from so many questions."""
    with dspy.context(lm=lm):
        optimizer = TrainingFreeGRPO(metric, **{"progress": False} | settings)
        return optimizer.compile(student or predictor(), trainset=questions(n))


def failing(rules: list[Any], **given: Any) -> RunFailedError:
    """What ends a compile with 300 calls on an LM of these rules."""
    lm = scripted_lm([*rules, *polite_rules()], max_tokens=77, num_retries=0)
    with pytest.raises(RunFailedError) as caught:
        learned(lm, 45, **{"max_lm_calls": 300, "num_threads": 3} | given)
    return caught.value


@pytest.mark.parametrize(
    "answer", [RAMBLING, "", chat(answer="")], ids=["no form", "nothing", "empty"]
)
@pytest.mark.parametrize("group_size", [None, 2])
def test_a_program_none_of_whose_answers_can_be_read_is_given_up(
    answer: str, group_size: int | None
) -> None:
    reflection = Reflection(drafts=0)
    given = {"group_size": group_size, "batch_size": group_size, "reflection": reflection}
    ended = failing([("question", answer)], **given)
    assert n_calls(ended.program) <= 40
    assert "none of the first 1" in str(ended) and "max_tokens (now 77)" in str(ended)
    assert (answer if answer == RAMBLING else "empty") in str(ended)
    assert ". Answers that are cut" in str(ended)


def test_a_program_whose_empty_answers_score_unlike_is_not_given_up() -> None:
    def metric(example: dspy.Example, _pred: Any) -> float:
        return len(example.question) / 20

    trainset = [dspy.Example(question="q" * n).with_inputs("question") for n in range(1, 21)]
    with dspy.context(lm=scripted_lm([("question", chat(answer=""))])):
        optimizer = grpo(metric, max_lm_calls=60, reflection=Reflection(drafts=0))
        assert n_calls(optimizer.compile(predictor(), trainset=trainset)) > 30


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Filtered(""), "A content filter of the provider held the answer back."),
        (Filtered("I am sorry"), "A content filter of the provider held the answer back."),
        (Refused("I cannot help with that."), "The LM refused to answer: I cannot help with that."),
    ],
)
def test_answers_that_were_held_back_or_refused_are_called_so(answer: str, said: str) -> None:
    assert f"The first: {said}" in str(failing([("question", answer)]))


@pytest.mark.parametrize("adapter", [dspy.ChatAdapter, dspy.JSONAdapter, dspy.XMLAdapter])
@pytest.mark.parametrize(
    "fault",
    [
        Filtered(""),
        lm15.InvalidRequestError("No.", status=400, provider_code="content_filter"),
        lm15.InvalidRequestError("No (content_policy_violation).", status=400),
        lm15.InvalidRequestError("Input data may contain inappropriate content.", status=400),
        lm15.InvalidRequestError("\u5185\u5bb9\u654f\u611f", status=400),
        lm15.InvalidRequestError("Prompt blocked: OTHER", provider_code="promptFeedback"),
    ],
)
def test_a_filtered_answer_of_the_reflection_lm_is_named_and_not_asked_again(
    fault: Any, adapter: type[dspy.Adapter], tmp_path: Path
) -> None:
    for n in (1, 0):  # nor by a second start
        with dspy.context(adapter=adapter()):
            run = Run([["1", "0"]], (EXTRACT, fault), log_dir=tmp_path)
        assert len(run.prompts(EXTRACT)) == n
        assert run.results.failures["reflection filtered"] == 1
    assert "a content filter held an answer of the reflection LM back" in str(run.results)


def test_a_program_of_which_some_of_the_first_answers_can_be_read_goes_on() -> None:
    def answer(prompt: Prompt) -> str:
        return RAMBLING if prompt.random("form").random() < 0.5 else polite_answer(prompt)

    lm = scripted_lm([*polite_rules()[:2], ("question", answer)])
    done = learned(lm, 36, max_lm_calls=200, reflection=Reflection(drafts=0))
    assert done.detailed_results.failures["parse"] > 3
    assert n_calls(done) > 100


def test_a_run_whose_budget_pays_for_one_update_says_so() -> None:
    never = scripted_lm([*polite_rules()[:2], ("", chat(answer="no", lessons="None"))])
    results = learned(never, 20, max_metric_calls=8).detailed_results
    assert sum(bool(update.groups) for update in results.updates) == 1
    assert "after one update; a larger budget has more" in results.nothing_learned


@pytest.mark.parametrize("drafts", [0, None])
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        ("", "could not be read"),
        (chat(semantic_advantage="hm"), "could not be read"),
        (dspy.LMError("no capacity"), "no capacity"),
        (Refused("Not of patients."), "could not be read: Not of patients."),
    ],
)
def test_a_reflection_lm_that_never_gives_anything_of_use_is_given_up(
    fault: Any, cause: str, drafts: int | None
) -> None:
    found = r"`(?:lessons|semantic_advantage)`"
    lm = scripted_lm([(found, fault), *polite_rules()], max_tokens=77, num_retries=0)
    given: dict[str, Any] = {"max_lm_calls": 300, "max_demos": 0}  # nothing else is learned
    reflection = Reflection(drafts=drafts, brief=None)
    results = learned(lm, 45, num_threads=3, reflection=reflection, **given).detailed_results
    assert results.reflection_usage.n_lm_calls <= 40
    for said in (results.ended_because, results.nothing_learned):
        assert "answers in a row that are of no use" in said and cause in said
        assert ("max_tokens (now 77)" in said) == cause.startswith("could not be read")


@pytest.mark.parametrize(("drafts", "threads"), [(0, 3), (None, 3), (None, 1), (None, 16)])
@pytest.mark.parametrize("error", [TOO_LONG, lm15.InvalidRequestError("n_ctx", status=400)])
def test_a_reflection_lm_whose_context_is_too_small_is_given_up_soon_and_costs_no_calls(
    drafts: int | None, threads: int, error: Exception
) -> None:
    refused: list[Prompt] = []

    def fits(prompt: Prompt) -> None:
        if len(prompt.text) > 2000:
            refused.append(prompt)
            raise error

    lm = scripted_lm(polite_rules(), num_retries=0)
    reader = dspy.LM("reader", engine=ScriptedEngine(polite_rules(), fits), cache=False)
    given: dict[str, Any] = {"reflection_lm": reader, "reflection": Reflection(drafts=drafts)}
    results = learned(lm, 45, max_lm_calls=120, num_threads=threads, **given).detailed_results
    assert len(refused) == results.failures["reflection error"] < 8 + threads  # those in flight
    assert results.reflection_usage.n_lm_calls == 0
    for said in (results.ended_because, results.nothing_learned):
        assert "refused every prompt as too long" in said
        assert "pass a reflection_lm with a larger context" in said


def test_the_log_has_the_first_answer_of_the_reflection_lm_that_could_not_be_read(
    caplog: pytest.LogCaptureFixture,
) -> None:
    again = (r"could not be read", lessons("Be exact."))
    run = Run([["1", "0"]], again, (EXTRACT, f"[[ ## {RAMBLING}"))
    assert run.results.failures == {"reflection parse": 1}
    (line,) = [one for one in caplog.messages if "reflection parse" in one]
    assert RAMBLING in line


class Half(Strategy):
    """Fails on all examples but the first."""

    n_asked = 0

    def show(self, context: Any, ask: Any) -> Any:
        self.n_asked += 1
        if context.group.example:
            raise LookupError(f"no {context.group.example}")
        return super().show(context, ask)


def test_a_method_of_a_strategy_that_fails_is_counted_each_time_and_asked_on() -> None:
    half = Half()
    given: dict[str, Any] = {"batch_size": 6, "max_staleness": 0, "epochs": 2}
    run = Run([["1", "0"]] * 6, strategies=(half,), **given)
    assert half.n_asked == 12
    assert run.results.failures == {"strategy": 10}


def test_answers_of_use_end_a_row_of_others() -> None:
    def reflect(prompt: Prompt) -> str:
        return lessons("Be kind.") if prompt.random().random() < 0.4 else ""

    update = operations({"op": "ADD", "text": "Be kind.", "lessons": [1]})
    rules = [(EXTRACT, reflect), (UPDATE, update), ("question", polite_answer)]
    given: dict[str, Any] = {"max_lm_calls": 250, "reflection": Reflection(drafts=0)}
    done = learned(scripted_lm(rules), 36, **given)
    assert done.detailed_results.failures["reflection parse"] > 8


class Calling(dspy.Module):
    """Has one predictor, and calls what the function makes of it."""

    def __init__(self, called: Callable[[dspy.Predict], Callable[..., Any]]) -> None:
        super().__init__()
        self.answer, self.called = predictor(), called

    def forward(self, question: str) -> Any:
        return self.called(self.answer)(question=question)


def overwritten(answer: dspy.Predict) -> dspy.Predict:
    answer.signature = answer.signature.with_instructions("Answer.")
    return answer


@pytest.mark.parametrize(
    ("called", "is_shown", "is_remote"),
    [
        (lambda _: dspy.Predict("question -> answer"), False, False),
        (lambda answer: partial(answer, signature="question -> answer"), False, False),
        (overwritten, False, False),
        (overwritten, False, True),
        (lambda answer: answer, True, True),
        (lambda answer: partial(answer, lm=dspy.settings.lm.copy()), True, False),
    ],
    ids=["another predictor", "another signature", "other instructions", "the same elsewhere",
         "it, elsewhere", "another LM"],
)  # fmt: skip
def test_a_program_that_shows_no_lm_its_experiences_is_said_to(
    called: Callable[..., Any], is_shown: bool, is_remote: bool, caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {"max_lm_calls": 100, "max_demos": 0}
    given["execution"] = Execution(executor=ThreadPoolExecutor(2) if is_remote else None)
    done = learned(scripted_lm(polite_rules()), 30, Calling(called), **given)
    assert bool(done.detailed_results.experiences) == is_shown
    assert ("advice not shown" in done.detailed_results.failures) != is_shown
    assert caplog.text.count("no prompt held the experiences") == (not is_shown)


def kept(answers: dict[str, Any]) -> Callable[..., Any]:
    """Calls the predictor once for each question, and knows the answer from then on."""

    def ask(answer: dspy.Predict, question: str) -> Any:
        if question not in answers:
            answers[question] = answer(question=question)
        return answers[question]

    return lambda answer: partial(ask, answer)


def in_threads(lm: dspy.LM) -> Callable[..., Any]:
    """Calls the predictor in a thread of its own, where the LM is a global one."""

    def ask(answer: dspy.Predict, question: str) -> Any:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(answer, question=question, lm=lm).result()

    return lambda answer: partial(ask, answer)


@pytest.mark.parametrize(
    ("called", "is_learning"),
    [
        (lambda _: lambda question: dspy.Prediction(answer=question), False),
        (kept({}), False),
        (in_threads(scripted_lm(polite_rules())), True),
    ],
    ids=["no LM", "answers that are kept", "threads"],
)
def test_a_program_whose_lm_calls_nobody_sees_is_said_to_be_one(
    called: Callable[..., Any], is_learning: bool, caplog: pytest.LogCaptureFixture
) -> None:
    given: dict[str, Any] = {"max_lm_calls": 150, "max_demos": 0, "num_threads": 1}
    done = learned(scripted_lm(polite_rules()), 30, Calling(called), **given)
    assert done.detailed_results.failures["no LM call"] > 10
    assert "advice not shown" not in done.detailed_results.failures
    assert caplog.text.count("no LM call of the program is seen") == 1
    assert bool(done.detailed_results.experiences) == is_learning


SAID: list[str] = []


class Silent(dspy.Module):
    """Answers, and returns nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")

    def forward(self, question: str) -> None:
        SAID.append(self.answer(question=question).answer)


@pytest.mark.parametrize("looks_elsewhere", [False, True])
def test_a_program_that_returns_nothing_is_said_to_be_one_unless_its_scores_differ(
    looks_elsewhere: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def metric(example: Any, pred: Any, trace: Any = None) -> float:  # noqa: ARG001
        return float((SAID[-1] if looks_elsewhere else getattr(pred, "answer", "")) == "please")

    given: dict[str, Any] = {"max_lm_calls": 150, "num_threads": 1}
    done = learned(scripted_lm(polite_rules()), 30, Silent(), metric, **given)
    assert ("no output" in done.detailed_results.failures) != looks_elsewhere
    assert caplog.text.count("the program returned nothing (None, ") == (not looks_elsewhere)
