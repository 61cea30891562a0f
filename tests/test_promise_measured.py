"""Promise 6 for whatever is drawn: no limit is exceeded, and student and result are measured.

Budgets, strategies, shapes of programs, metrics and threads are drawn: 12 times by default. 300
draws take about ten minutes:

    TFGRPO_DRAWS=300 .venv-test/bin/python -m pytest tests/test_promise_measured.py
"""

import json
import math
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import dspy
import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st
from runs import ADVICE, Pair, is_polite, learned_in, look_up, n_calls, predictor, questions
from scripted import EXTRACT, UPDATE, Latency, Prompt, chat, lessons, operations
from tally import Tally, lm_on, priced
from test_promise_budgets import unlike_rules

from tfgrpo_dspy import Execution, NoGate, TrainingFreeGRPO
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.settings import RunData
from tfgrpo_dspy.settings.preparation import prepare
from tfgrpo_dspy.strategies import (
    Ask,
    Attempt,
    BranchingRollouts,
    ClippedDiversity,
    GroupContext,
    ImplicitStepRewards,
    LearningFrontier,
    MonteCarloCredit,
    Strategy,
    TeacherRollouts,
    TieredHints,
)

N_DRAWS = int(os.environ.get("TFGRPO_DRAWS", "12"))
DOLLARS = 1e-6  # of a token
MOST_TURNS = 6  # of the agent


class Pace:
    """When the calls of a run began, by the clock."""

    def __init__(self) -> None:
        self.begun: list[float] = []

    def __call__(self, _prompt: Prompt) -> None:
        self.begun.append(time.monotonic())

    def n_after(self, seconds: float) -> int:
        """How many calls began so long after the first one, or later."""
        return sum(at > min(self.begun, default=0.0) + seconds for at in self.begun)

    def seconds_of(self, n_calls: float) -> float:
        """How long so many calls take as a part of the run."""
        return n_calls * (max(self.begun) - min(self.begun)) / len(self.begun)


class Rules:
    """Answers all prompts; chat prompts of the program that many times in ten with no form."""

    def __init__(self, unformed: float) -> None:
        self.unformed = unformed

    def __call__(self, prompt: Prompt) -> str:
        is_chat = "[[ ## completed ## ]]" in prompt.text
        if is_chat and prompt.random("form").random() < self.unformed:
            return "I had rather not say."
        fields = self.fields(prompt)
        return chat(**fields) if is_chat else json.dumps(fields)

    def fields(self, prompt: Prompt) -> dict[str, Any]:
        draw = prompt.random()
        if "next_tool_name" in prompt.text:
            number = int(prompt.user.rpartition("question ")[2].split()[0])
            is_done = prompt.user.count("page 7") >= number % MOST_TURNS
            name, args = ("finish", {}) if is_done else ("look_up", {"page": "7"})
            return {"next_thought": "go on", "next_tool_name": name, "next_tool_args": args}
        if "`verdict`" in prompt.text:
            return {"verdict": "yes"}
        chance = 0.9 if ADVICE in prompt.system else 0.3
        answer = {"answer": "please" if draw.random() < chance else "no"}
        return {"reasoning": "hm"} | answer if "`reasoning`" in prompt.text else answer


def rules(unformed: float) -> list[Any]:
    update = operations({"op": "ADD", "text": ADVICE, "lessons": [1]})
    hints = chat(concept="Be kind.", plan="Think first.", step="Begin.")
    return [
        (EXTRACT, lessons(ADVICE)),
        (UPDATE, update),
        ("`concept`", hints),
        ("`preferred`", chat(preferred="1", chance="0.7")),
        ("", Rules(unformed)),
    ]


class Metric:
    """Counts its calls."""

    def __init__(self, lm: Any = None) -> None:
        self.lm, self.n_calls, self._lock = lm, 0, threading.Lock()

    def count(self) -> None:
        with self._lock:
            self.n_calls += 1


class TwoArguments(Metric):
    def __call__(self, _example: Any, pred: Any) -> float:
        self.count()
        return float(pred.answer == "please")


class FiveArguments(Metric):
    def __call__(
        self, _gold: Any, pred: Any, _trace: Any = None, pred_name: Any = None, _calls: Any = None
    ) -> Any:
        self.count()
        score = float(pred.answer == "please")
        if pred_name is None:
            return score
        return dspy.Prediction(score=score, feedback=f"{pred_name} should say please.")


class Judge(Metric):
    """Asks an LM of its own."""

    def __call__(self, _example: Any, pred: Any, _trace: Any = None) -> Any:
        self.count()
        with dspy.context(lm=self.lm):
            dspy.Predict("answer -> verdict")(answer=str(pred.answer))
        return dspy.Prediction(score=float(pred.answer == "please"), feedback="Say please.")


@dataclass(frozen=True)
class GroupRescue(Strategy):
    """Gives each group that fails two more rollouts, twice."""

    def rescue(self, context: GroupContext, ask: Ask) -> Sequence[Attempt]:  # noqa: ARG002
        n_extra = sum(bool(one.aid) for one in context.sampled.additions)
        is_wanted = context.fails and n_extra < 4
        return [Attempt(hint=f"Try again ({n}).") for n in range(2)] if is_wanted else ()


def react() -> Any:
    return dspy.ReAct("question -> answer", tools=[look_up], max_iters=MOST_TURNS)


def cot() -> Any:
    return dspy.ChainOfThought("question -> answer")


class LongAgent(dspy.Module):
    """Takes from one to nine calls, which nothing lets a run expect."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = predictor()

    def forward(self, question: str) -> Any:
        for k in range(int(question.rpartition(" ")[2]) % 9):
            self.ask(question=question, config={"seed": k})
        return self.ask(question=question)


STUDENTS: dict[str, Callable[[], Any]] = {
    "predictor": predictor,
    "ChainOfThought": cot,
    "pipeline": Pair,
    "agent": react,
    "calls that nothing lets expect": LongAgent,
}
UNFORMED = {"always parsed": 0.0, "some in JSON": 0.3, "all in JSON": 1.0}
METRICS: dict[str, Any] = {"two": TwoArguments, "five": FiveArguments, "judge": Judge}
STRATEGIES: dict[str, Callable[[Any], tuple[Strategy, ...]]] = {
    "none": lambda _lm: (),
    "TieredHints": lambda _lm: (TieredHints(after=0),),
    "GroupRescue": lambda _lm: (GroupRescue(),),
    "TeacherRollouts": lambda lm: (TeacherRollouts(lm, share=1.0),),
    "MonteCarloCredit": lambda _lm: (MonteCarloCredit(),),
    "BranchingRollouts": lambda _lm: (BranchingRollouts(),),
    "ImplicitStepRewards": lambda _lm: (ImplicitStepRewards(),),
    "LearningFrontier, ClippedDiversity": lambda _lm: (LearningFrontier(), ClippedDiversity()),
    "TieredHints, MonteCarloCredit": lambda _lm: (TieredHints(after=0), MonteCarloCredit()),
    "GroupRescue, LearningFrontier": lambda _lm: (GroupRescue(), LearningFrontier()),
}
LIMITS: Any = st.one_of(
    st.fixed_dictionaries({"max_lm_calls": st.integers(12, 320)}),
    st.fixed_dictionaries({"max_lm_calls": st.integers(12, 320)}),
    st.fixed_dictionaries({"max_metric_calls": st.integers(8, 150)}),
    st.fixed_dictionaries({"max_cost": st.integers(1, 200).map(lambda n: n * 1000 * DOLLARS)}),
    st.fixed_dictionaries({"max_minutes": st.floats(0.002, 0.08)}),
    st.just({"auto": "light"}),
    st.fixed_dictionaries(
        {
            "max_lm_calls": st.integers(40, 320),
            "max_metric_calls": st.integers(30, 150),
            "max_cost": st.integers(10, 80).map(lambda n: n * 1000 * DOLLARS),
        }
    ),
)


@dataclass(frozen=True)
class Draw:
    """What one run is made of."""

    limits: dict[str, Any]
    strategy: str
    shape: str
    form: str
    kind: str
    num_threads: int
    n_training: int
    n_validation: int
    n_test: int
    gate: Any
    epochs: int | None


DRAWS = st.builds(
    Draw,
    limits=LIMITS,
    strategy=st.sampled_from(sorted(STRATEGIES)),
    shape=st.sampled_from(sorted(STUDENTS)),
    form=st.sampled_from(sorted(UNFORMED)),
    kind=st.sampled_from(sorted(METRICS)),
    num_threads=st.integers(1, 8),
    n_training=st.integers(6, 20),
    n_validation=st.integers(3, 20),
    n_test=st.sampled_from([0, 0, 5]),
    gate=st.sampled_from([None, None, NoGate()]),
    epochs=st.sampled_from([None, None, 2]),
)


def broken(draw: Draw) -> list[str]:
    """What the run of this draw does not keep of the promise."""
    pace = Pace()
    engine = Tally(rules(UNFORMED[draw.form]), pace)
    student, metric = STUDENTS[draw.shape](), METRICS[draw.kind](lm_on(engine, num_retries=0))
    limits = draw.limits
    if "max_minutes" in limits:  # else it takes all of them
        limits = {**limits, "max_lm_calls": 2000}
    optimizer = TrainingFreeGRPO(
        metric,
        strategies=STRATEGIES[draw.strategy](lm_on(engine)),
        num_threads=draw.num_threads,
        gate=draw.gate,
        epochs=draw.epochs,
        execution=Execution(**priced(DOLLARS)),
        progress=False,
        **limits,
    )
    data: dict[str, Any] = {
        "trainset": questions(draw.n_training),
        "valset": questions(draw.n_validation, start=100),
        "testset": questions(draw.n_test, start=200) or None,
    }
    with dspy.context(lm=lm_on(engine)):
        try:
            enough = enough_of(prepare(optimizer.settings, student, **data).settings.data)
        except SettingsError as error:
            event(f"refused: {str(error).partition('=')[0]}")
            return []
        optimized = optimizer.compile(student, **data)
    results = optimized.detailed_results
    event(results.ended_because.partition("=")[0])
    faults = overrun(optimized, engine, metric)
    seconds = 60 * limits.get("max_minutes", math.inf)
    if (n_late := pace.n_after(seconds)) > draw.num_threads:
        faults.append(f"{n_late} calls began after {seconds:.2f} s")
    n_least = 1 if draw.shape == "calls that nothing lets expect" else min(10, draw.n_validation)
    if "max_minutes" in limits:
        n_calls_of_end = 20 * results.usage["rollout"].n_lm_calls / max(1, len(trained(results)))
        if seconds < max(2.0, 8 * pace.seconds_of(n_calls_of_end)):
            return faults
    return faults + unmeasured(results, enough, n_least)


def overrun(optimized: Any, engine: Tally, metric: Metric) -> list[str]:
    """Which calls and dollars are not stated as they were made, or are more than the limit."""
    results, dollars = optimized.detailed_results, engine.dollars * DOLLARS
    stated = sum(usage.cost_usd for usage in results.usage.values())
    said = {
        "LM calls": (n_calls(optimized), engine.n_calls()),
        "metric calls": (results.metric_calls, metric.n_calls),
        "dollars": (round(stated, 9), round(dollars, 9)),
    }
    most = {
        "LM calls": results.settings["max_lm_calls"],
        "metric calls": results.settings["max_metric_calls"],
        "dollars": results.settings["max_cost"],
    }
    faults = [f"stated {a} {name}, made {b}" for name, (a, b) in said.items() if a != b]
    faults += [
        f"{made} {name} of {most[name]}"
        for name, (_, made) in said.items()
        if most[name] is not None and made > most[name] + 1e-9
    ]
    return faults


def trained(results: Any) -> list[float]:
    """The scores of the training rollouts."""
    return [score for update in results.updates for score in update.scores]


def enough_of(data: RunData) -> dict[str, float]:
    """Limits that pay for an update, student and result, each call twice and as dear as any."""
    n_end, n_calls = data.smallest_end, 2 * data.most_calls_per_rollout
    n_lm_calls = max(4 * n_calls + 6, n_end * n_calls) + (n_end + data.n_of_test_set) * n_calls
    return {
        "max_lm_calls": n_lm_calls,
        "max_metric_calls": 4 * data.n_metric_calls + n_end + data.n_of_test_set,
        "max_cost": 1.5 * n_lm_calls * data.dollars_of_dearest_call,
    }


def unmeasured(results: Any, enough: Any, n_least: int) -> list[str]:
    """What is not measured of student and result, though the budget lets one expect it.

    Calls always pay for one example at least, dollars from what is enough. Minutes do
    where they are eight times what the end takes by the pace of the run.
    """
    pairs = [(results.settings[name], limit) for name, limit in enough.items()]
    is_enough = all(limit is None or limit >= least for limit, least in pairs)
    dollars = results.settings["max_cost"]
    if "no other candidate was there" in results.taken_because:
        return []
    if dollars and dollars < enough["max_cost"]:
        return []
    of_student, of_result = (each.n if each else 0 for each in (results.student, results.best))
    n_least = n_least if is_enough and not results.settings["max_minutes"] else 1
    if of_student < n_least or of_result != of_student:
        measured = f"{of_student} and {of_result} of {n_least} examples"
        return [f"not measured: {measured}, {results.ended_because}"]
    return []


@pytest.mark.timeout(60 + 10 * N_DRAWS)
@given(DRAWS)
@settings(max_examples=N_DRAWS, derandomize=True, print_blob=False)
def test_no_limit_is_exceeded_and_student_and_result_are_measured(draw: Draw) -> None:
    assert broken(draw) == []


PREDICTABLE: list[dict[str, Any]] = [
    {"max_lm_calls": 90},
    {"max_metric_calls": 75},
    {"max_cost": 0.037},
    {"auto": "light"},
    {"max_lm_calls": 150, "max_metric_calls": 100, "max_cost": 0.06},
]


@pytest.mark.parametrize(
    ("budget", "max_staleness"),
    [*((budget, 1) for budget in PREDICTABLE), (PREDICTABLE[0], 0), (PREDICTABLE[2], 2)],
    ids=str,
)
def test_where_rollouts_take_the_same_no_planned_batch_is_cut_with_any_number_of_threads(
    budget: dict[str, Any], max_staleness: int
) -> None:
    """Dollars differ from answer to answer, and some groups teach nothing."""
    found = []
    for num_threads, latency in ((1, 1), (16, 3)):
        optimizer = TrainingFreeGRPO(
            is_polite,
            num_threads=num_threads,
            batch_size=4,
            execution=Execution(max_staleness=max_staleness, **priced(DOLLARS)),
            progress=False,
            **budget,
        )
        with dspy.context(lm=lm_on(Tally(unlike_rules(), Latency(latency)))):
            program = optimizer.compile(
                predictor(), trainset=questions(12), valset=questions(10, start=100)
            )
        results = program.detailed_results
        assert "is spent as planned" in results.ended_because
        found.append((learned_in(results), results.best, results.candidates, program.dump_state()))
    assert len(found[0][0]) > 2
    assert found[1] == found[0]
