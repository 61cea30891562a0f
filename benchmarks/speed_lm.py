"""A simulated LM for measuring speed: every answer and every latency is known before the run.

Policy and reflection LM are told apart by the model's name, stages by the output fields asked for.
What an answer is and how long it takes follow from the stage and the sample (the seed that the
optimizer gives each call) alone, not from the library or the order of calls: so two schedules that
make the same calls get the same answers after the same times, and `speed_graph` knows both in
advance. A rollout is right with such a chance that 60 % of groups of 5 have contrast, whatever was
learned; a group gives one lesson, an update adds one experience. Cases are `simulated.py`'s.

Trials of a gate run at temperature 0, have no seed, and are told apart by case and library.
"""

import hashlib
import json
import math
import re
import statistics
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy import lm15
from simulated import CODES, POLICY, output_fields

from tfgrpo_dspy.rollout import SEED_RANGE

GROUP_SIZE = 5
CHANCE = 1 - 0.4 ** (1 / GROUP_SIZE)
"""Of a right answer. A group has contrast unless all 5 are wrong (.4), or all right (.0001)."""

_CASE = re.compile(rf"Case (\d+), of kind ({'|'.join(CODES)})")
_EXPERIENCE = re.compile(r"\bReview note \d+")
_NORMAL = statistics.NormalDist()

STAGES = {"summary": "summary", "lessons": "lesson", "operations": "update"}
"""The stage that asks for an output field."""


def drawn(key: str) -> float:
    """A number between 0 and 1, both excluded, that belongs to the key."""
    number = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest())
    return (number + 0.5) / 2**48


def is_right(rollout_id: int) -> bool:
    """Whether the program answers rightly in this training rollout."""
    return drawn(f"right/{rollout_id % SEED_RANGE}") < CHANCE


@dataclass(frozen=True, slots=True)
class Latency:
    """Lognormal, by stage and sample. Another `draw` is another set of latencies."""

    median_s: float = 0.05
    sigma: float = 1.0
    reflection_factor: float = 1.0
    draw: int = 0

    def of(self, stage: str, sample: int | str) -> float:
        """Seconds that this call takes; a sample is a rollout id, or that of a trial."""
        name = sample % SEED_RANGE if isinstance(sample, int) else sample
        seconds = self.median_s * math.exp(
            self.sigma * _NORMAL.inv_cdf(drawn(f"latency/{self.draw}/{stage}/{name}"))
        )
        return seconds * (self.reflection_factor if stage in STAGES.values() else 1.0)


@dataclass(slots=True)
class Call:
    """A call that was made: what for, and when it began and ended."""

    stage: str
    sample: int | str
    began_s: float
    ended_s: float


@dataclass(slots=True)
class SpeedEngine:
    """Answers at once, or after the latency; notes the calls where there is a latency."""

    latency: Latency | None = None
    n_calls: Counter[str] = field(default_factory=Counter)
    calls: list[Call] = field(default_factory=list)
    busy_s: float = 0.0
    _lock: Any = field(default_factory=threading.Lock)
    _never: Any = field(default_factory=threading.Event)

    supported_params = frozenset({"temperature", "max_tokens", "seed"})
    fingerprint = "speed-1"

    def __deepcopy__(self, memo: dict[int, Any]) -> "SpeedEngine":
        return self  # calls are counted in one place

    def __reduce__(self) -> Any:
        return SpeedEngine, (self.latency,)  # in another process it counts its own

    def complete(self, request: lm15.Request) -> lm15.Response:
        user = request.messages[-1].text or ""
        if request.model == POLICY:
            stage, sample, answer = _solved(request, user)
        else:
            stage, sample, answer = _reflected(request)
        if self.latency is None:
            with self._lock:
                self.n_calls[stage] += 1
        else:
            self._wait(self.latency, stage, sample)
        message = lm15.Message.assistant([lm15.TextPart(f"{answer}\n\n[[ ## completed ## ]]")])
        usage = lm15.Usage(input_tokens=100, output_tokens=10)
        return lm15.Response(None, request.model, message, "stop", usage)

    def _wait(self, latency: Latency, stage: str, sample: int | str) -> None:
        seconds = latency.of(stage, sample)
        began_s = time.perf_counter()
        self._never.wait(seconds)
        with self._lock:
            self.n_calls[stage] += 1
            self.busy_s += seconds
            self.calls.append(Call(stage, sample, began_s, time.perf_counter()))


def trial_sample(case: int, n_experiences: int) -> str:
    """The sample of a trial: the case, with a library of so many experiences."""
    return f"{case}/{n_experiences}"


def _solved(request: lm15.Request, user: str) -> tuple[str, int | str, str]:
    found = _CASE.search(user)
    case, kind = (found[1], found[2]) if found else ("", "")
    seed = request.config.seed
    if seed is None or not request.config.temperature:
        sample = trial_sample(int(case), len(set(_EXPERIENCE.findall(_text(request.system)))))
        right = drawn(f"right/{sample}") < CHANCE
        stage: str = "trial"
    else:
        stage, sample, right = "rollout", seed, is_right(seed)
    return stage, sample, f"[[ ## answer ## ]]\n{CODES[kind] if right else 'unsure'}"


def _reflected(request: lm15.Request) -> tuple[str, int | str, str]:
    fields = output_fields(_text(request.system))
    stage = next(STAGES[name] for name in fields if name in STAGES)
    seed = request.config.seed or 0
    if stage == "update":
        operation = {"op": "ADD", "text": f"Review note {seed}.", "lessons": [1]}
        values = {"operations": json.dumps([operation])}
    elif stage == "lesson":
        line = f"Lesson {seed}: look twice."
        values = {"semantic_advantage": "One was right.", "lessons": json.dumps([line])}
    else:
        values = {"summary": "It gave an answer."}
    parts = [f"[[ ## {name} ## ]]\n{values[name]}" for name in fields]
    return stage, seed, "\n\n".join(parts)


def _text(system: Any) -> str:
    if system is None or isinstance(system, str):
        return system or ""
    return "".join(part.text for part in system)


def lms(engine: Any) -> tuple[dspy.LM, dspy.LM]:
    """Policy LM (temperature 0, as deployed) and reflection LM (1) on one engine, uncached."""
    return (
        dspy.LM(POLICY, engine=engine, temperature=0.0, cache=False),
        dspy.LM("simulated/reflection", engine=engine, temperature=1.0, cache=False),
    )
