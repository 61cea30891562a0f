"""What LM calls cost, counted."""

import itertools
import threading
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils import DummyLM
from runs import Pair, learned, polite_lm
from scripted import chat

from tfgrpo_dspy.budget import NOTHING, Amount, Budget, Ledger
from tfgrpo_dspy.budget.meter import CallWatcher, Meter, metered
from tfgrpo_dspy.dspy_seam import watching
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.store import Journal


class FixedEngine:
    """Answers every request with 7 tokens in and 3 out."""

    def __init__(self, *answers: str, tokens: lm15.Usage | None = None) -> None:
        self.answers = list(answers)
        self.tokens = tokens or lm15.Usage(input_tokens=7, output_tokens=3)

    def complete(self, request: lm15.Request) -> lm15.Response:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return lm15.Response(
            id=None,
            model=request.model,
            message=lm15.Message.assistant([lm15.TextPart(answer)]),
            finish_reason="stop",
            usage=self.tokens,
        )


YES = chat(answer="yes")


def fixed_lm(*answers: str, **kwargs: Any) -> dspy.LM:
    tokens = kwargs.pop("tokens", None)
    settings = {"cache": False, "num_retries": 0, "temperature": 1.0, **kwargs}
    return dspy.LM("fixed", engine=FixedEngine(*answers, tokens=tokens), **settings)


def used(lm: Any, program: Any = None, **context: Any) -> Usage:
    """What one call of the program costs, as a meter sees it."""
    meter = Meter()
    program = program or dspy.Predict("question -> answer")
    lm = metered(lm.copy(), meter)
    with dspy.context(lm=lm, **context):
        program(question="why?")
    return meter.usage


class Twice(dspy.Module):
    """Calls its predictor, or its LM, twice."""

    def __init__(self, calls_lm: bool) -> None:
        super().__init__()
        self.ask, self.calls_lm = dspy.Predict("question -> answer"), calls_lm

    def forward(self, question: str) -> Any:
        ask = dspy.settings.lm if self.calls_lm else lambda text: self.ask(question=text)
        return ask(question), ask(question)


class Remembering(DummyLM):
    """Answers as LiteLLM does from DSPy's cache."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        response = super().forward(*args, **kwargs)
        response.cache_hit = True
        return response


BEST_OF_3 = dspy.BestOfN(
    dspy.Predict("question -> answer"), N=3, reward_fn=lambda _args, _pred: 0.0, threshold=1.0
)
COUNTED: dict[str, tuple[Any, Any, Usage]] = {
    "a call": (fixed_lm(YES), None, Usage(1, 0, 0, 7, 3)),
    "three completions": (fixed_lm(YES, n=3), None, Usage(3, 0, 0, 21, 9)),
    "no tokens reported": (fixed_lm(YES, tokens=lm15.Usage()), None, Usage(1, 0, 0, 162, 13)),
    "a second attempt": (fixed_lm("no form", '{"answer": "yes"}'), None, Usage(2, 0, 0, 14, 6)),
    "a predictor, twice": (fixed_lm(YES), Twice(calls_lm=False), Usage(2, 0, 0, 14, 6)),
    "an LM, twice": (fixed_lm(YES), Twice(calls_lm=True), Usage(2, 0, 0, 14, 6)),
    "best of three": (fixed_lm(YES), BEST_OF_3, Usage(3, 0, 0, 21, 9)),
    "DSPy's dummy LM": (DummyLM([{"answer": "yes"}]), None, Usage(1, 0, 0, 162, 7)),
    "LiteLLM's cache": (Remembering([{"answer": "yes"}]), None, Usage(n_cached_calls=1)),
}


@pytest.mark.filterwarnings("ignore:Implementing custom LMs:DeprecationWarning")
@pytest.mark.parametrize(("lm", "program", "usage"), COUNTED.values(), ids=COUNTED)
def test_each_completion_and_each_second_attempt_of_an_adapter_is_a_call(
    lm: Any, program: Any, usage: Usage
) -> None:
    assert used(lm, program) == usage


@pytest.mark.parametrize(("disabled", "n_entries"), [(False, 1), (True, 0)])
def test_the_history_of_a_module_is_kept_as_the_user_set_it(disabled: bool, n_entries: int) -> None:
    program = dspy.Predict("question -> answer")
    with dspy.context(disable_history=disabled):
        usage = used(fixed_lm(YES), program, disable_history=False)
    assert len(program.history) == n_entries
    assert usage.n_lm_calls == 1


def test_an_engine_that_names_a_listed_model_is_paid_by_its_tokens() -> None:
    ledger = Ledger(Budget(max_cost=9.0))
    lm = dspy.LM("openai/gpt-4o-mini", engine=FixedEngine(YES), cache=False, max_tokens=1000)
    meter = Meter(ledger)
    metered(lm.copy(), meter)("why?")
    with dspy.context(**watching(CallWatcher(meter))):  # as an adapter calls a second LM
        lm("why?")
    dollars = 2 * (7 * 0.15e-6 + 3 * 0.60e-6)
    assert meter.usage.cost_usd == ledger.taken.cost == pytest.approx(dollars)


@pytest.mark.parametrize(
    ("fault", "is_paid"),
    [(lm15.RateLimitError("slow down", status=429), False), (lm15.TransportError("reset"), True)],
    ids=["refused", "unanswered"],
)
def test_what_a_failed_call_of_such_an_lm_cost_is_not_known_unless_it_was_refused(
    fault: Exception, is_paid: bool
) -> None:
    ledger = Ledger(Budget(max_cost=9.0))
    lm = dspy.LM("fixed", engine=RefusingOnce(fault), cache=False, num_retries=0, max_tokens=9)
    with (
        dspy.context(**watching(CallWatcher(Meter(ledger, {"fixed": (1.0, 1.0)})))),
        pytest.raises(dspy.LMError),
    ):
        lm("why?")
    assert (ledger.taken.n_lm_calls, ledger.taken.cost > 0.0) == (is_paid, is_paid)


class RefusingOnce(FixedEngine):
    def __init__(self, refusal: Exception) -> None:
        super().__init__(YES)
        self.refusals = [refusal]

    def complete(self, request: lm15.Request) -> lm15.Response:
        if self.refusals:
            raise self.refusals.pop()
        return super().complete(request)


STATUSES = dict.fromkeys((408, 425, 429, 500, 502, 503, 504, 529), "made again")
STATUSES |= dict.fromkeys((401, 402, 403, 404), "ends the run")
STATUSES |= dict.fromkeys((400, 405, 407, 409, 410, 422, 426, 428, 501, 505), "fails")


@pytest.mark.parametrize(("status", "follows"), STATUSES.items())
def test_what_follows_from_the_status_of_a_refusal(status: int, follows: str) -> None:
    ledger, found, refusal = Ledger(), "made again", Exception(f"status {status}")
    vars(refusal)["status_code"] = status  # as clients of providers raise it
    lm = dspy.LM("fixed", engine=RefusingOnce(refusal), cache=False, num_retries=3)
    try:
        metered(lm, Meter(ledger))("why?")
    except RunStopped:
        found = "ends the run"
    except dspy.LMError:
        found = "fails"
    assert (found, ledger.is_failure) == (follows, follows == "ends the run")


def test_the_clock_of_a_run_stands_still_while_a_person_is_asked() -> None:
    ledger = Ledger(Budget(max_minutes=0.5 / 60))
    with ledger.standing():
        began = ledger.seconds
        threading.Event().wait(0.7)
        ledger.check()
        assert ledger.seconds == began
    assert ledger.seconds_left() > 0
    threading.Event().wait(0.6)
    with pytest.raises(RunStopped, match="max_minutes"):
        ledger.check()


def test_what_a_run_has_cost_is_the_sum_of_its_entries_and_of_what_was_given_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    journals, calls, never = list[Journal](), itertools.count(), threading.Event()
    seen = lambda *args: journals.append(Journal(*args)) or journals[-1]  # noqa: E731
    monkeypatch.setattr("tfgrpo_dspy.run.Journal", seen)
    for _ in range(2):
        results = learned(log_dir=tmp_path, max_lm_calls=120).detailed_results
        total = sum((Amount.of(entry.value) for entry in journals[-1].entries), NOTHING)
        assert total.n_lm_calls == results.spent.n_lm_calls
        assert total.n_metric_calls == results.metric_calls
        assert not results.usage["unfinished"].n_lm_calls
    made, replayed = ({entry.key for entry in each.entries} for each in journals)
    assert made == replayed and len(made) > 50
    assert [{e.is_replayed for e in each.entries} for each in journals] == [{False}, {True}]
    hangs = lambda prompt: "question 3" in prompt.user and next(calls) == 1 and never.wait(8)  # noqa: E731
    lm, limits = polite_lm(before=hangs), {"max_lm_calls": 120, "rollout_timeout_s": 2.0}
    results = learned(Pair(), lm, num_threads=1, **limits).detailed_results
    total = sum((Amount.of(entry.value) for entry in journals[-1].entries), NOTHING)
    n_given_up = results.usage["unfinished"].n_lm_calls
    assert n_given_up == 2  # of one rollout: the answered one, and the one that hangs
    assert total.n_lm_calls + n_given_up == results.spent.n_lm_calls == len(lm.engine.prompts)
