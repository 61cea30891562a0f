"""Sampling parameters that a provider refuses: left out of the call, and of all later ones like it.

A refusal is known by its kind and by the parameter's name, which stands in it in any language. What
the optimizer sets is left out before what the user set; where the refusal stays the same without a
parameter, that one is not to blame.
"""

import logging
import re
import threading
from collections.abc import Iterator, Mapping
from typing import Any

import dspy

from tfgrpo_dspy.budget.faults import is_too_long
from tfgrpo_dspy.errors import sentence
from tfgrpo_dspy.redaction import known_secrets, redacted
from tfgrpo_dspy.wording import shortened

logger = logging.getLogger(__name__)

OWN = "own"  # the `temperature` of training rollouts that leaves each LM and predictor at its own
SAMPLING = ("temperature", "seed", "top_p", "top_k", "min_p", "presence_penalty",
            "frequency_penalty", "repetition_penalty")  # fmt: skip
"""In the order in which they are left out; the optimizer sets the first two."""
OTHER_FAULTS = (
    dspy.LMAuthError,
    dspy.LMBillingError,
    dspy.LMRateLimitError,
    dspy.LMTimeoutError,
    dspy.LMTransportError,
    dspy.LMUnsupportedModelError,
)
LOGGED_BYTES = 300  # of a refusal


class ParameterRefusedError(Exception):
    """The provider refused a parameter; the call is to be made again, without it."""


class LeftOut:
    """The sampling parameters that the providers of a run refuse; `messages` say so, by model."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}
        self._names: dict[Any, frozenset[str]] = {}
        self._lock = threading.Lock()

    def names(self, like: Any) -> frozenset[str]:
        """The parameters that are left out of calls like this one."""
        return self._names.get(like, frozenset())

    def learn(self, like: Any, refused: Mapping[str, str], model: str) -> None:
        """Leave these out of all calls like this one, which was answered without them."""
        with self._lock:
            self._names[like] = frozenset(refused)
            for name, why in refused.items():
                self.add({f"{name} of {model}": why})

    def add(self, messages: Mapping[str, str]) -> None:
        """Log and keep the sentences that are new."""
        for about, why in messages.items():
            if about not in self.messages:
                self.messages[about] = why
                logger.warning("%s", why)


class SampledCall:
    """One call of an LM, with what is left out of it now; `lm` and `kwargs` are those to use."""

    def __init__(self, left_out: LeftOut, lm: Any, kwargs: Mapping[str, Any]) -> None:
        self._left_out, self._whole = left_out, (lm, kwargs)
        values = {**getattr(lm, "kwargs", {}), **kwargs}
        self._sent = {k: values[k] for k in SAMPLING if values.get(k) is not None}
        shown = tuple((k, k == "seed" or repr(v)) for k, v in self._sent.items())
        self._like = lm.model, values.get("api_base"), shown
        self._out = left_out.names(self._like)
        self._why: dict[str, str] = {}
        self._tried = set(self._out)
        self._apply()

    def _apply(self) -> None:
        lm, kwargs = self._whole
        self.lm, self.kwargs = lm, {k: v for k, v in kwargs.items() if k not in self._out}
        of_lm = dict.fromkeys(self._out & lm.kwargs.keys())
        if of_lm and isinstance(lm, dspy.LM):  # its clients leave out what is None
            self.kwargs |= of_lm
        elif of_lm:
            self.lm = lm.copy(**of_lm)
            self.lm.history = lm.history

    def leaves_out(self, error: dspy.LMError) -> bool:
        """Whether the error refuses a parameter that can be left out, as it is from now on."""
        named = _named(error, self._sent)
        new = [name for name in named if name not in self._tried]
        # one of them alone; where none helps alone, all of them
        out = (self._out - set(named)) | {new[0]} if new else self._out | set(named)
        if not named or out == self._out:
            return False
        self._why |= {name: str(error) for name in out if name not in self._why}
        self._tried |= out
        self._out = frozenset(out)
        self._apply()
        return True

    def answered(self) -> None:
        """The call was answered: leave its refused parameters out of all calls like this one."""
        if self._why:
            model = self._like[0]
            texts = {name: self._said(name, model) for name in self._out}
            self._left_out.learn(self._like, texts, model)

    def _said(self, name: str, model: str) -> str:
        # redacted first: the first part of a secret would not be known as one
        why = redacted(self._why.get(name, ""), known_secrets([self.lm]))
        way = f'pass temperature="{OWN}" to leave it out from the start'
        return (
            f"{model} refused {name}={self._sent[name]!r}, which is left out of such calls from "
            f"now on ({way if name == 'temperature' else 'take it off the LM'}): "
            f"{sentence(shortened(why, LOGGED_BYTES))}"
        )


def _named(error: dspy.LMError, sent: Mapping[str, Any]) -> list[str]:
    """The sampling parameters that were sent and that the error names, if it can be a refusal."""
    if isinstance(error, OTHER_FAULTS) or is_too_long(error):
        return []
    text = "\n".join(_texts(error))
    if re.search(r"\bsampling\b", text, re.IGNORECASE) and not _mentioned(text, SAMPLING):
        return list(sent)
    return _mentioned(text, sent)


def _mentioned(text: str, names: Any) -> list[str]:
    """The names that the text mentions, in any spelling (`topP`, `top-p`)."""
    forms = ((name, name.replace("_", "[-_ ]?")) for name in names)
    pattern = r"(?<![A-Za-z]){}(?![A-Za-z])"
    return [name for name, form in forms if re.search(pattern.format(form), text, re.IGNORECASE)]


def _texts(error: BaseException | None) -> Iterator[str]:
    """All that an error and its causes say; a body may name what its message does not."""
    while error is not None:
        yield str(error)
        parts = (getattr(error, name, None) for name in ("body", "param", "features", "issues"))
        yield from (str(part) for part in parts if part)
        error = error.__cause__
