"""A simulated task and a simulated LM for benchmarks: learning is possible, nothing is real.

The task: a case of one of six kinds has to be given the code of its kind, which nobody has told
the program. The policy knows a code with a chance between .10 and .50, different for each
question; with .75 when a right demo of the kind is in its prompt, and with .97 when a lesson is.
Its luck is drawn from question and sample alone (rollout id, or seed), so the same question has
the same luck under every prompt.

The reflection LM answers whatever signature it is asked, in the format that it is asked for, the
same way for every optimizer. It writes a lesson about a kind only if its prompt holds a case of
that kind together with the right code (in feedback, label or demo), and then with chance .6; a
lesson that its prompt has already, it keeps. `SimulatedLM` tells the engine the rollout id,
which DSPy itself keeps from engines.
"""

import hashlib
import itertools
import json
import os
import random
import re
import statistics
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import dspy
from dspy import lm15

CODES = {
    "copper": "Q71",
    "amber": "B20",
    "cedar": "M55",
    "slate": "T08",
    "linen": "V93",
    "ivory": "K46",
}
CHANCE_WITH_LESSON, CHANCE_WITH_DEMO, CHANCE_OF_LESSON = 0.97, 0.75, 0.6
CONTEXT_WORDS = 12_000
POLICY, REFLECTION = "simulated/policy", "simulated/reflection"

_CASE = re.compile(r"Case \d+, of kind (\w+)")
_FIELD = re.compile(r"^\d+\. `(\w+)`", re.MULTILINE)
_rollout_id: ContextVar[Any] = ContextVar("rollout_id", default=None)


def lesson(kind: str) -> str:
    """What there is to learn about a kind."""
    return f"When a case is of kind {kind}, answer {CODES[kind]}."


def examples(n: int, start: int = 0) -> list[dspy.Example]:
    """Cases, the kinds in turn."""
    kinds = list(CODES)
    cases = [(i, kinds[i % len(kinds)]) for i in range(start, start + n)]
    return [
        dspy.Example(question=f"Case {i}, of kind {kind}", answer=CODES[kind]).with_inputs(
            "question"
        )
        for i, kind in cases
    ]


class Triage(dspy.Module):
    """The program: one predictor. `before` may raise, as a program with a bug does."""

    def __init__(self, before: Callable[[str], None] | None = None) -> None:
        super().__init__()
        self.ask = dspy.Predict(
            dspy.Signature("question -> answer", "Give the code of the case, or say 'unsure'.")
        )
        self.before = before

    def forward(self, question: str) -> dspy.Prediction:
        if self.before is not None:
            self.before(question)
        return self.ask(question=question)


def is_right(example: Any, pred: Any) -> float:
    """The score: 1.0 for the right code, else 0.0."""
    return float(pred.answer == example.answer)


def with_feedback(example: Any, score: Any) -> dspy.Prediction:
    """The score with what a person would write beside it."""
    told = "Right." if score == 1.0 else f"Wrong. {example.question}: expected {example.answer}."
    return dspy.Prediction(score=score, feedback=told)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request as it arrives: by which model, with which prompt, and for which time (from 0)."""

    model: str
    system: str
    user: str
    key: str
    attempt: int


Spoiler = Callable[[Asked], str | None]
"""Called with each request: may raise, wait, or give another answer than the LM's own."""


class SimulatedEngine:
    """Policy and reflection LM, told apart by the model's name; a pure function of the request.

    Args:
        spoil: what is done to requests before they are answered.
        latency_s: how long an answer takes.
        log_path: every request that arrives is a line of this file, appended at once.
    """

    supported_params = frozenset({"temperature", "max_tokens", "seed"})
    fingerprint = "simulated-1"

    def __init__(
        self, spoil: Spoiler | None = None, latency_s: float = 0.0, log_path: str = ""
    ) -> None:
        self.spoil = spoil
        self.latency_s = latency_s
        self.n_calls: Counter[str] = Counter()
        self.chances: list[float] = []
        self._attempts: Counter[str] = Counter()
        self._lock = threading.Lock()
        self._never = threading.Event()
        self._log = os.open(log_path, os.O_WRONLY | os.O_APPEND | os.O_CREAT) if log_path else -1

    def __deepcopy__(self, memo: dict[int, Any]) -> "SimulatedEngine":
        return self  # programs that carry an LM are deep-copied; calls are counted in one place

    def complete(self, request: lm15.Request) -> lm15.Response:
        system, user = _texts(request)
        key = _key(request, system, user)
        with self._lock:
            attempt = self._attempts[key]
            self._attempts[key] += 1
            self.n_calls[request.model] += 1
        if self._log >= 0:
            os.write(self._log, f"{key} {request.model}\n".encode())
        if self.latency_s:
            self._never.wait(self.latency_s)
        if len(system.split()) + len(user.split()) > CONTEXT_WORDS:
            message = f"the prompt is longer than {CONTEXT_WORDS} words, the simulated context"
            raise lm15.ContextLengthError(message)
        asked = Asked(request.model, system, user, key, attempt)
        answer = self.spoil(asked) if self.spoil else None
        if answer is None:
            answer = self._answer(request, system, user)
        usage = lm15.Usage(input_tokens=len(user.split()), output_tokens=len(answer.split()))
        message = lm15.Message.assistant([lm15.TextPart(answer)])
        return lm15.Response(
            id=None, model=request.model, message=message, finish_reason="stop", usage=usage
        )

    def _answer(self, request: lm15.Request, system: str, user: str) -> str:
        if request.model == REFLECTION:
            return reflect(system, user)
        return self._solve(request, system)

    def _solve(self, request: lm15.Request, system: str) -> str:
        turns = [(message.role, message.text or "") for message in request.messages]
        question = _CASE.findall(turns[-1][1])[-1]
        case = re.findall(r"Case \d+", turns[-1][1])[-1]
        chance = _chance(question, case, system, turns[:-1])
        self.chances.append(chance)
        luck = random.Random(f"luck/{case}/{_sample(request)}").random()
        answer = CODES[question] if luck < chance else "unsure"
        return _formatted(["answer"], lambda _: answer, system)


class SimulatedLM(dspy.LM):
    """A `dspy.LM` whose engine learns the rollout id, so that samples of one prompt differ."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        token = _rollout_id.set(kwargs.get("rollout_id", self.kwargs.get("rollout_id")))
        try:
            return super().__call__(*args, **kwargs)
        finally:
            _rollout_id.reset(token)


def lms(engine: SimulatedEngine, **kwargs: Any) -> tuple[SimulatedLM, SimulatedLM]:
    """Policy LM (temperature 0, as deployed) and reflection LM (temperature 1) on one engine."""
    policy = SimulatedLM(POLICY, engine=engine, temperature=0.0, **kwargs)
    return policy, SimulatedLM(REFLECTION, engine=engine, temperature=1.0, **kwargs)


def accuracy(program: Any, cases: Sequence[dspy.Example]) -> float:
    """The exact expected accuracy of the program on these cases, without luck or faults."""
    engine = SimulatedEngine()
    with dspy.context(lm=lms(engine, cache=False)[0], adapter=dspy.ChatAdapter()):
        for case in cases:
            program(**case.inputs())
    return statistics.fmean(engine.chances)


def score_without_faults(program: Any, cases: Sequence[dspy.Example]) -> float:
    """What a metric without faults measures of the program on these cases, as deployed."""
    with dspy.context(lm=lms(SimulatedEngine(), cache=False)[0], adapter=dspy.ChatAdapter()):
        return statistics.fmean(is_right(case, program(**case.inputs())) for case in cases)


def reflect(system: str, user: str) -> str:
    """The reflection LM's answer: lessons for which its prompt holds the evidence."""
    lines = _lessons_in(user)
    known = [lesson(kind) for kind in CODES if lesson(kind) in user]

    def value(name: str) -> Any:
        if name == "lessons":
            return [line for line in lines if line not in known]
        if name == "operations":
            told = _section("lessons", user)
            present = _section("experiences", user)
            new = [line for line in lines if line in told and line not in present]
            return [{"op": "ADD", "text": line, "lessons": [1]} for line in new]
        if name == "module_advice":
            return {"ask": "\n".join(lines)}
        return "\n".join(["Give the code of the case.", *lines])

    return _formatted(output_fields(system), value, system)


def output_fields(system: str) -> list[str]:
    """The output fields that an adapter's system message asks for."""
    asked = system.partition("Your output fields are:")[2]
    return _FIELD.findall(asked.partition("\nAll interactions")[0])


def _lessons_in(user: str) -> list[str]:
    lines = []
    for kind in CODES:
        luck = random.Random(f"lesson/{kind}/{user}").random()
        shown = re.search(rf"of kind {kind}\b", user) and CODES[kind] in user
        if lesson(kind) in user or (shown and luck < CHANCE_OF_LESSON):
            lines.append(lesson(kind))
    return lines


def _section(name: str, user: str) -> str:
    return user.partition(f"[[ ## {name} ## ]]")[2].partition("[[ ## ")[0]


def _chance(kind: str, case: str, system: str, demos: Sequence[tuple[str, str]]) -> float:
    if lesson(kind) in system:
        return CHANCE_WITH_LESSON
    pairs = itertools.pairwise(demos)
    if any(f"of kind {kind}" in asked and CODES[kind] in got for (_, asked), (_, got) in pairs):
        return CHANCE_WITH_DEMO
    return random.Random(f"base/{case}").uniform(0.1, 0.5)


def _formatted(names: Sequence[str], value: Callable[[str], Any], system: str) -> str:
    values = {name: value(name) for name in names}
    if "Outputs will be a JSON object" in system:
        return json.dumps(values)
    texts = {n: v if isinstance(v, str) else json.dumps(v) for n, v in values.items()}
    parts = [f"[[ ## {name} ## ]]\n{text}" for name, text in texts.items()]
    return "\n\n".join([*parts, "[[ ## completed ## ]]"])


def _texts(request: lm15.Request) -> tuple[str, str]:
    system = request.system or ""
    if not isinstance(system, str):
        system = "".join(part.text for part in system)
    return system, "\n\n".join(message.text or "" for message in request.messages)


def _sample(request: lm15.Request) -> Any:
    """What sets this sample apart; at temperature 0 there is only one."""
    if not request.config.temperature:
        return "deterministic"
    return (_rollout_id.get(), request.config.seed)


def _key(request: lm15.Request, system: str, user: str) -> str:
    content = f"{request.model}/{_sample(request)}/{system}/{user}"
    return hashlib.sha256(content.encode()).hexdigest()[:24]
