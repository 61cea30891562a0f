"""Whose fault is an LM's error, and does it pass? Retry it, end the run, or let it be.

DSPy classifies the errors of its own engines. What a user's engine raises comes as an
LMUnexpectedError with the error as its cause; those of litellm and the openai client carry an HTTP
status, by which they are classified here.
"""

import re
from typing import Any

import dspy

PASSING_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
PASSING_NAMES = frozenset({"APIConnectionError", "Timeout", "APITimeoutError"})
FATAL_STATUS = frozenset({401, 402, 403, 404})
FATAL = (
    dspy.LMAuthError,
    dspy.LMBillingError,
    dspy.LMUnsupportedModelError,
    dspy.LMConfigurationError,
)
TIMED_OUT, TOO_MANY, MODERATED, BROKEN = 408, 429, 403, (500, 502, 503)
TOO_LARGE, MAYBE_TOO_LARGE = 413, (400, 422)
"""HTTP statuses of a request that is too large: that alone, and those of any request refused."""
UNLIKE_A_REFUSAL = (*FATAL[:3], dspy.LMRateLimitError, dspy.LMTimeoutError, dspy.LMTransportError)
"""Errors that refuse no sampling parameter, whatever they name."""
LEAST_CHARACTERS = 2000  # a shorter prompt is refused for another reason


def is_passing(error: BaseException) -> bool:
    """Whether the same call may well be answered later: rate limits, timeouts, resets, 5xx."""
    if not isinstance(error, dspy.LMError) or is_too_long(error):
        return False
    cause = _foreign_cause(error)
    if dspy.is_retryable_lm_error(error) or isinstance(cause, ConnectionError | TimeoutError):
        return True
    if _status(error) in PASSING_STATUS or type(cause).__name__ in PASSING_NAMES:
        return True
    is_no_reply = type(error) is dspy.LMProviderError and _status(error) in (None, 200)
    return is_no_reply or bool(re.search(r"\b(loading|overloaded)\b", str(error), re.IGNORECASE))


def refuses_prompt(error: BaseException, is_repeated: bool) -> bool:
    """Whether the provider refused what it was sent, or breaks on it each time."""
    if _status(error) in BROKEN:
        return is_repeated
    return _status(error) in (*MAYBE_TOO_LARGE, MODERATED) and not is_passing(error)


def is_fatal(error: dspy.LMError, has_answered: bool) -> bool:
    """Whether every further call would fail: a refused key, no credit, no such model.

    A model that has answered and then forbids a prompt has moderated it.
    """
    is_kind = isinstance(error, FATAL) or _status(error) in FATAL_STATUS
    is_moderated = has_answered and _status(error) == MODERATED
    return is_kind and not is_moderated and not is_too_long(error)


def is_too_long(error: BaseException, n_characters: int = 0, n_answered: int = 0) -> bool:
    """Whether the prompt was longer than the model's context.

    DSPy tells by OpenAI's error code, which few providers send, and each words it in its own way;
    so a refused request also tells by its size. Of `n_characters`, it is taken for too long if the
    model has answered prompts, but none that was as long (`n_answered` is the longest).
    """
    if isinstance(error, dspy.ContextWindowExceededError):
        return True
    if type(_foreign_cause(error)).__name__ == "ContextWindowExceededError":
        return True
    is_longest = 0 < n_answered < n_characters
    return _status(error) == TOO_LARGE or (is_longest and may_be_too_long(error, n_characters))


def may_be_too_long(error: BaseException, n_characters: int) -> bool:
    """Whether a shorter prompt may be answered; a model that has answered none may refuse all."""
    is_filtered = getattr(error, "provider_code", None) == "content_filter"  # whatever its length
    may_be = n_characters > LEAST_CHARACTERS and not is_filtered
    return may_be and _status(error) in MAYBE_TOO_LARGE


def is_refused(error: BaseException) -> bool:
    """Whether the provider did nothing but refuse the request, which nobody bills then."""
    status = _status(error)
    is_clients = isinstance(status, int) and 400 <= status < 500 and status != TIMED_OUT
    return is_clients or isinstance(error, dspy.LMRateLimitError) or is_too_long(error)


def is_rate_limit(error: BaseException) -> bool:
    """Whether there were too many requests."""
    return isinstance(error, dspy.LMRateLimitError) or _status(error) == TOO_MANY


def is_unanswered(error: BaseException) -> bool:
    """Whether nobody knows what the provider did: it may bill such a call."""
    return _status(error) is None


def names(error: BaseException | None, parameter: str) -> bool:
    """Whether the error, or a cause of it, refuses the sampling parameter of this name."""
    if isinstance(error, UNLIKE_A_REFUSAL) or error is None or is_too_long(error):
        return False
    texts = [str(error)]
    while (error := error.__cause__) is not None:
        texts.append(str(error))
    pattern = rf"(?<![A-Za-z]){parameter}(?![A-Za-z])"
    return bool(re.search(pattern, str(texts), re.IGNORECASE))


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
    return error.__cause__ if isinstance(error, dspy.LMUnexpectedError) else None


def _status(error: BaseException) -> Any:
    status = getattr(error, "status", None)
    return status if status is not None else getattr(_foreign_cause(error), "status_code", None)
