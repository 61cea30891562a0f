"""Every exception of this package, each also of a builtin kind; errors as text; warnings.

Dataclasses that verify their arguments by pydantic, and its faults in words for people.
"""

import functools
import inspect
import reprlib
import traceback
import typing
import warnings
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import AfterValidator, ConfigDict, TypeAdapter, ValidationError

from tfgrpo_dspy.text import printable, shortened

T = TypeVar("T")
SELF = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
SHOWN_BYTES = 80  # of a value in a message
OF_NAMES = ("missing", "unexpected_keyword_argument", "extra_forbidden")
"""Pydantic's types of faults that are in the name of a field, and not in its value."""
NOT_THE_USERS = {"tfgrpo_dspy", "dspy"}  # packages, of whose code no warning speaks


def described(error: BaseException) -> str:
    """The type and the message of an error; the type alone where its message cannot be shown."""
    if isinstance(error, UserCodeError):  # its message describes what the user's code raised
        return str(error)
    name = type(error).__name__
    return written(error, lambda value: printable(f"{name}: {value}"), name)


def written(value: Any, write: Callable[[Any], str] = str, otherwise: str = "") -> str:
    """The value as it is written; its type, where the value is of a kind whose writing raises."""
    try:
        return write(value)
    except (RunStopped, KeyboardInterrupt):
        raise
    except BaseException:  # noqa: BLE001 - the code of a user's type may raise anything
        return otherwise or f"<{type(value).__name__}>"


def caution(message: str) -> None:
    """Warn, at the line of the user's code that has called this package or DSPy."""
    frame, level = inspect.currentframe(), 1
    while frame and str(frame.f_globals.get("__name__")).partition(".")[0] in NOT_THE_USERS:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)


def shareable(error: BaseException, clean: Callable[[str], str]) -> BaseException | None:
    """The error as the cause of another one; None where its traceback shows a secret."""
    text = "".join(traceback.format_exception(error))
    return error if clean(text) == text else None


class Raised(deque[BaseException]):
    """The latest errors of a run, of which one may be the cause of its end."""

    def cause_of(self, reason: str, clean: Callable[[str], str]) -> BaseException | None:
        """The one that the reason quotes, if it is shareable."""
        words = " ".join(reason.split())
        quoted = (e for e in tuple(self) if " ".join(described(e).split())[:40] in words)
        error = next(quoted, None)
        return error and shareable(error, clean)


def sentence(text: object) -> str:
    """The text with one full stop at its end, such as a message of a library in one of ours."""
    return str(text).rstrip(" .\n") + "."


class TrainingFreeGRPOError(Exception):
    """The base of every exception of this package."""

    program: Any = None  # where it ended a compile: the best so far, as `compile` returns it


class SettingsError(TrainingFreeGRPOError, ValueError):
    """Arguments or data that were refused before the first LM call; names every fault found."""


class LibraryError(TrainingFreeGRPOError, ValueError):
    """An experience, an operation or a library that breaks its invariants."""


class LibraryFormatError(LibraryError):
    """Text that was to be read as a library and is not one."""


class GateError(TrainingFreeGRPOError, RuntimeError):
    """A method of a gate raised, or gave something else than docs/how-it-works.md asks for."""


class StrategyError(TrainingFreeGRPOError, ValueError):
    """A method of a strategy gave something that cannot be used; the run counts it and goes on."""


class NotReplayedError(TrainingFreeGRPOError, RuntimeError):
    """The program does not repeat the steps of a rollout exactly, so they cannot be valued."""


class UnpaidError(TrainingFreeGRPOError, RuntimeError):
    """The budget does not reach for the further rollouts that a strategy asks for."""


class MetricError(TrainingFreeGRPOError, ValueError):
    """The metric raised, or returned something that is not a finite score."""


class StoreError(TrainingFreeGRPOError, RuntimeError):
    """The run store cannot be opened, read or written, or was changed by something else."""


class MissingRecordError(StoreError):
    """`offline=True`, and the store has no such record; names the stage, the example, a reason."""


class RunFailedError(TrainingFreeGRPOError, RuntimeError):
    """Failures ended the run: a refused key, a broken executor, more than `max_errors`, ..."""


class UserCodeError(TrainingFreeGRPOError, RuntimeError):
    """A function of the user's raised what would end a task, a generator or the process."""


class RunStopped(BaseException):
    """No more calls in this run; it never leaves `compile`, and no `except Exception` stops it."""


class CallSparedError(BaseException):
    """Raised by a callback before an LM call is made, which costs nothing."""


class TrainingCut(RunStopped):
    """A limit refuses this rollout or answer; what is finished counts, and the end is paid for."""


class LocalLMUnavailableError(TrainingFreeGRPOError, ImportError):
    """The package or the file of the embedded LM is missing; says how to install both."""


class MathUnavailableError(TrainingFreeGRPOError, ImportError):
    """The package that compares formulas is missing or does not start; names the extra `math`."""


def such_that(is_usable: Callable[[Any], Any], hint: str) -> Any:
    """A condition on a value beside its type; `hint` says what to pass."""

    def checked_value(value: Any) -> Any:
        if not is_usable(value):
            raise ValueError(hint)
        return value

    return AfterValidator(checked_value)


def shown(value: Any) -> str:
    """The value for a message: short, whatever it holds."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxstring, short.maxother = 2, 3, 3, 60, 60
    return shortened(written(value, short.repr), SHOWN_BYTES)


def faults_in(error: ValidationError, arguments: Mapping[str, Any] | None = None) -> list[str]:
    """A sentence for each value that cannot be used; of `arguments`, for each whole argument."""
    hints: dict[str, dict[str, None]] = {}
    for fault in error.errors(include_url=False):
        where, value, is_named = fault["loc"], fault["input"], fault["type"] in OF_NAMES
        if arguments and where and where[0] in arguments:
            where, value, is_named = where[:1], arguments[str(where[0])], False
        parts = (f"[{part}]" if isinstance(part, int) else f".{part[:40]}" for part in where)
        place = "".join(parts).removeprefix(".")
        place += "" if is_named else f"{place and '='}{shown(value)}"
        hint = fault["msg"].removesuffix(".").removeprefix("Value error, ")
        hint = hint.replace("Input should", "it should", 1)
        hints.setdefault(place, {})[hint[:1].lower() + hint[1:]] = None
    return [f"{place}: {' or '.join(of_place)}." for place, of_place in hints.items()]


def text_of(error: ValueError) -> str:
    """All faults of pydantic's in sentences; the message of any other error."""
    return " ".join(faults_in(error)) if isinstance(error, ValidationError) else str(error)


@typing.dataclass_transform(frozen_default=True, field_specifiers=(field,))
def checked(
    error_type: Callable[[str], Exception], prefix: str = "", slots: bool = False, **config: Any
) -> Callable[[type[T]], type[T]]:
    """Makes a class a frozen dataclass that verifies its arguments; one error names all faults."""

    def decorate(kind: type[T]) -> type[T]:
        result: Any = dataclass(frozen=True, slots=slots)(kind)
        result.__pydantic_config__ = ConfigDict(arbitrary_types_allowed=True, **config)  # type: ignore[typeddict-item]
        taken = inspect.signature(result)
        validator = functools.cache(lambda: TypeAdapter(result).validator)

        @functools.wraps(result.__init__)
        def verified(self: Any, *args: Any, **kwargs: Any) -> None:
            arguments = taken.bind(*args, **kwargs).arguments  # raises the usual TypeError
            try:
                validator().validate_python(arguments, self_instance=self)
            except ValidationError as error:
                raise error_type(prefix + " ".join(faults_in(error, arguments))) from None

        plain = typing.get_type_hints(result)  # without the bounds, for people
        parameters = [p.replace(annotation=plain[p.name]) for p in taken.parameters.values()]
        vars(verified)["__signature__"] = taken.replace(parameters=[SELF, *parameters])
        result.__init__ = verified
        return result  # type: ignore[no-any-return]

    return decorate
