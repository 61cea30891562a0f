"""Whose fault is an LM's error, and does it pass? Retry it, end the run, or let it be.

DSPy classifies the errors of its own engines. What a user's engine raises comes as an
LMUnexpectedError with the error as its cause; those of litellm and the openai client carry an HTTP
status, by which they are classified here.
"""

import re
from typing import Any

from dspy.utils import exceptions
from dspy.utils.exceptions import LMError

PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
PASSING_NAMES = frozenset({"APIConnectionError", "Timeout", "APITimeoutError"})
FATAL_STATUS = frozenset({401, 402, 403, 404})
FATAL = (
    exceptions.LMAuthError,
    exceptions.LMBillingError,
    exceptions.LMUnsupportedModelError,
    exceptions.LMConfigurationError,
)
TOO_LONG = re.compile(r"\bcontext (?:size|length|window)\b", re.IGNORECASE)
"""How llama.cpp and vLLM word it; DSPy goes by OpenAI's error code, which these do not send."""


def is_passing(error: BaseException) -> bool:
    """Whether the same call may well be answered later: rate limits, timeouts, resets, 5xx."""
    if not isinstance(error, LMError) or is_too_long(error):
        return False
    cause = _foreign_cause(error)
    if exceptions.is_retryable_lm_error(error) or isinstance(cause, ConnectionError | TimeoutError):
        return True
    return _status(error) in PASSING_STATUS or type(cause).__name__ in PASSING_NAMES


def is_fatal(error: LMError) -> bool:
    """Whether every further call would fail: a refused key, no credit, no such model."""
    is_kind = isinstance(error, FATAL) or _status(error) in FATAL_STATUS
    return is_kind and not is_too_long(error)


def is_too_long(error: BaseException) -> bool:
    """Whether the prompt was longer than the model's context."""
    if isinstance(error, exceptions.ContextWindowExceededError):
        return True
    if isinstance(error, exceptions.LMInvalidRequestError) and error.status in (400, 413):
        return TOO_LONG.search(str(error)) is not None
    return type(_foreign_cause(error)).__name__ == "ContextWindowExceededError"


def is_unanswered(error: BaseException) -> bool:
    """Whether nobody knows what the provider did: it may bill such a call."""
    return _status(error) is None


def retry_after(error: BaseException | None) -> float | None:
    """The seconds of a pause that the provider asks for."""
    hint = getattr(error, "retry_after", None)
    if hint is None:
        response = getattr(_foreign_cause(error), "response", None)
        hint = (getattr(response, "headers", None) or {}).get("retry-after")
    try:
        return None if hint is None else max(0.0, float(hint))
    except (TypeError, ValueError):  # a date: the backoff does
        return None


def _foreign_cause(error: BaseException | None) -> BaseException | None:
    return error.__cause__ if isinstance(error, exceptions.LMUnexpectedError) else None


def _status(error: BaseException) -> Any:
    own = getattr(error, "status", None)
    return own if own is not None else getattr(_foreign_cause(error), "status_code", None)
