"""The faults: what is done to metric, program and LM calls; and the rows of the table.

Each says how a line of a log would have to read to name it. What is run under them is
`fault_cells.py`'s business, and what is made of it `fault_tables.py`'s.
"""

import random
import re
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from dspy import lm15
from simulated import POLICY, REFLECTION, Asked, reflect

MARK = "simulated fault"


class Share:
    """True for a share of all calls, drawn from what is called, and how often it was before.

    So a fault passes: the next call may go well. Equal calls at the same time take turns as the
    threads have it; so figures differ a little from run to run.
    """

    def __init__(self, share: float, salt: str) -> None:
        self.share, self.salt = share, salt
        self.n = 0
        self._calls: Counter[str] = Counter()
        self._lock = threading.Lock()

    def hits(self, name: str) -> bool:
        with self._lock:
            number = self._calls[name]
            self._calls[name] += 1
            hit = random.Random(f"{self.salt}/{name}/{number}").random() < self.share
            self.n += hit
        return hit


class Fault:
    """Nothing goes wrong. Sub-classes spoil the metric, the program or an LM call.

    `named` is a regular expression: what a line of the log has to hold to name this fault.
    `is_hopeless`: no run can give anything of use.
    """

    named = MARK
    is_hopeless = False

    def __init__(self, share: float = 1.0, salt: str = "0") -> None:
        self.share = Share(share, salt)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Fault":
        return self  # programs that hold it are deep-copied

    def metric(self, question: str, score: float) -> Any:  # noqa: ARG002 - for sub-classes
        """What the metric returns instead of the score."""
        return score

    def before(self, question: str) -> None:
        """Called by the program before it asks its LM."""

    def spoil(self, asked: Asked) -> str | None:
        """Called by the engine; see `simulated.Spoiler`."""


class MetricRaises(Fault):
    def metric(self, question: str, score: float) -> Any:
        if self.share.hits(f"{question}/{score}"):
            raise ZeroDivisionError(f"{MARK} of the metric")
        return score


class MetricReturns(Fault):
    def __init__(self, share: float, value: Any, named: str) -> None:
        super().__init__(share)
        self.value, self.named, self.is_hopeless = value, named, share == 1.0

    def metric(self, question: str, score: float) -> Any:
        if not self.share.hits(f"{question}/{score}"):
            return score
        return str(score) if isinstance(self.value, str) else self.value


class ProgramRaises(Fault):
    def before(self, question: str) -> None:
        if self.share.hits(question):
            raise LookupError(f"{MARK} of the program")


class ReflectionAnswers(Fault):
    def __init__(self, share: float, answer: str, named: str = MARK) -> None:
        super().__init__(share)
        self.answer, self.named = answer, named

    def spoil(self, asked: Asked) -> str | None:
        is_hit = asked.model == REFLECTION and self.share.hits(asked.key)
        return self.answer if is_hit else None


class ReflectionAnswersHugely(Fault):
    """In the right format, but every text is 100 kB of one word."""

    named = rf"{MARK}|context|too long|words"

    def spoil(self, asked: Asked) -> str | None:
        if asked.model != REFLECTION:
            return None
        answer = reflect(asked.system, asked.user)
        return re.sub(r"(?:When a case is|Give the code)[^.]*\.", "blah " * 20_000, answer)


class FirstAttemptsFail(Fault):
    """Of the first attempts of all requests, a share fails; second ones do not."""

    def __init__(self, share: float, error: Callable[[], Exception]) -> None:
        super().__init__(share)
        self.error = error

    def spoil(self, asked: Asked) -> str | None:
        if asked.attempt == 0 and self.share.hits(asked.key):
            raise self.error()
        return None


class FirstAttemptsAreRepeatedAtOnce(FirstAttemptsFail):
    """The same refusals and an ideal client: the refused request is sent again, without a pause."""

    def __init__(self, share: float, latency_s: float) -> None:
        super().__init__(share, RuntimeError)
        self.latency_s = latency_s

    def spoil(self, asked: Asked) -> str | None:
        if asked.attempt == 0 and self.share.hits(asked.key):
            threading.Event().wait(self.latency_s)
        return None


class SomeRequestsAlwaysFail(Fault):
    def spoil(self, asked: Asked) -> str | None:
        drawn = random.Random(f"always/{asked.key}").random()
        if asked.model == POLICY and drawn < self.share.share:
            self.share.n += 1
            raise lm15.ServerError(MARK, status=500)
        return None


class OneCallHangs(Fault):
    """The 40th call of the policy never returns."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0
        self._lock = threading.Lock()

    def spoil(self, asked: Asked) -> str | None:
        with self._lock:
            self._calls += asked.model == POLICY
            hangs = asked.model == POLICY and self._calls == 40
        if hangs:
            self.share.n += 1
            threading.Event().wait()
        return None


class WrongKey(Fault):
    named = rf"{MARK}|auth"
    is_hopeless = True

    def spoil(self, asked: Asked) -> str | None:
        self.share.n += 1
        raise lm15.AuthError(f"{MARK}: invalid API key for {asked.model}", status=401)


def _rate_limited() -> Exception:
    return lm15.RateLimitError(MARK, status=429)


def _rate_limited_as_litellm() -> Exception:
    import litellm  # noqa: PLC0415 - takes a second

    return litellm.RateLimitError(MARK, "simulated", "policy")


def _server_error() -> Exception:
    return lm15.ServerError(MARK, status=500)


@dataclass(frozen=True)
class Row:
    """A line of the table."""

    section: str
    title: str
    make: Callable[[], Fault]


ROWS = {
    "none": Row("none", "nothing", Fault),
    "metric raises 5": Row("metric", "metric raises, 5 %", lambda: MetricRaises(0.05)),
    "metric raises 30": Row("metric", "metric raises, 30 %", lambda: MetricRaises(0.3)),
    "metric None": Row(
        "metric", "metric gives None, 10 %", lambda: MetricReturns(0.1, None, "None")
    ),
    "metric nan": Row(
        "metric", "metric gives NaN, 10 %", lambda: MetricReturns(0.1, float("nan"), r"\bnan\b")
    ),
    "metric str": Row(
        "metric", 'metric gives "1.0", 10 %', lambda: MetricReturns(0.1, "", r"'[01]\.0'|\bstr\b")
    ),
    "metric str always": Row(
        "metric", 'metric gives "1.0", always', lambda: MetricReturns(1.0, "", r"'[01]\.0'|\bstr\b")
    ),
    "program raises 5": Row("program", "program raises, 5 %", lambda: ProgramRaises(0.05)),
    "program raises 30": Row("program", "program raises, 30 %", lambda: ProgramRaises(0.3)),
    "reflection garbage": Row(
        "reflection",
        "reflection LM: garbage",
        lambda: ReflectionAnswers(1.0, f"{MARK}: %%% blue 7 7 7 ]]"),
    ),
    "reflection garbage 30": Row(
        "reflection",
        "reflection LM: garbage, 30 %",
        lambda: ReflectionAnswers(0.3, f"{MARK}: %%% blue 7 7 7 ]]"),
    ),
    "reflection empty": Row(
        "reflection", "reflection LM: empty", lambda: ReflectionAnswers(1.0, "", r"pars|empty|no ")
    ),
    "reflection huge": Row("reflection", "reflection LM: 100 kB", ReflectionAnswersHugely),
    "reflection refuses": Row(
        "reflection",
        "reflection LM: refuses",
        lambda: ReflectionAnswers(1.0, "I am sorry, but I cannot help with that.", "cannot help"),
    ),
    "rate limit lm15": Row(
        "provider",
        "429 on 20 % of first attempts",
        lambda: FirstAttemptsFail(0.2, _rate_limited),
    ),
    "rate limit litellm": Row(
        "provider",
        "the same, as litellm's error",
        lambda: FirstAttemptsFail(0.2, _rate_limited_as_litellm),
    ),
    "500 first": Row(
        "provider", "500 on 20 % of first attempts", lambda: FirstAttemptsFail(0.2, _server_error)
    ),
    "500 always": Row(
        "provider", "500 on 2 % of requests, always", lambda: SomeRequestsAlwaysFail(0.02)
    ),
    "wrong key": Row("key", "wrong API key", WrongKey),
    "hang": Row("hang", "one call never returns", OneCallHangs),
}
