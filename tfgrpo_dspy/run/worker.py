"""A rollout in another process: what travels there, and what the worker does with it.

All rollouts of one set of examples share a bundle (program, metric, LMs, settings, API keys
included), which travels as bytes and is never written to a disk; cloudpickle packs it, as plain
pickle cannot hold DSPy programs. Each rollout has a request. A worker keeps the bundles that it has
seen; a request comes without its bundle, and asks for it where it is unknown.
"""

import functools
import hashlib
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import dspy

from tfgrpo_dspy.budget import Budget, Ledger
from tfgrpo_dspy.errors import RunStopped, SettingsError, described
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.programs import copy_program, language_models
from tfgrpo_dspy.experience.values import Experience
from tfgrpo_dspy.metric import adapt_metric, held_lms
from tfgrpo_dspy.redaction import cleaned, known_secrets, redacted
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, run_rollout

OF_ONE_CALL = frozenset(
    "trace caller_modules caller_predict usage_tracker send_stream stream_listeners".split()  # noqa: SIM905
)
"""DSPy settings that belong to the call they were made for, not to the user's context."""
KEPT_BUNDLES = 8
KEPT_PROGRAMS = 32


@dataclass(frozen=True, slots=True)
class Bundle:
    """What the rollouts of one set of examples have in common, as bytes, and its hash."""

    key: str
    blob: bytes = field(repr=False)

    @classmethod
    def of(
        cls,
        student: Any,
        metric: Any,
        temperature: float | None,
        prices: Mapping[str, tuple[float, float]],
    ) -> "Bundle":
        """Program, metric and the settings of this thread's `dspy.context`, packed.

        Raises:
            SettingsError: a part of it cannot be sent to another process.
        """
        context = {k: v for k, v in dspy.settings.copy().items() if k not in OF_ONE_CALL}
        if isinstance(context["lm"], dspy.BaseLM):
            context["lm"] = context["lm"].copy()  # without the history of its calls
        lms = {id(lm): lm.copy() for lm in language_models(student)}
        parts = {
            "the program": copy_program(student, lms),
            "the metric": metric,
            "the settings of dspy.context (LM, adapter, callbacks)": context,
        }
        try:
            blob = cloudpickle.dumps((*parts.values(), temperature, dict(prices)))
        except Exception as error:  # whatever a user's object raises
            culprits = [name for name, part in parts.items() if not _can_be_sent(part)]
            raise SettingsError(
                f"executor: {' and '.join(culprits) or 'this run'} cannot be sent to other "
                f"processes ({described(error)}); leave the lock, connection or "
                f"client out that it holds, or pass num_threads instead of executor."
            ) from error
        return cls(hashlib.blake2b(blob, digest_size=16).hexdigest(), blob)


@dataclass(frozen=True, slots=True)
class Request:
    """One rollout that is to be made; `library` is a `packed_library`."""

    library: bytes
    example: Any
    index: int
    rollout_id: int

    def packed(self) -> bytes:
        """As bytes. Raises SettingsError: the example cannot be sent."""
        try:
            return bytes(cloudpickle.dumps(self))
        except Exception as error:  # whatever a user's object raises
            raise SettingsError(
                f"executor: example {self.index} cannot be sent to other processes "
                f"({described(error)})."
            ) from error


@functools.lru_cache(KEPT_PROGRAMS)
def packed_library(library: ExperienceLibrary) -> bytes:
    """A library without annotations, as bytes: packed once for all its requests."""
    plain = library.holding(Experience(each.id, each.text, each.scope) for each in library)
    return bytes(cloudpickle.dumps(plain))


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request.

    `rollout` is the record of the rollout, where one was made; else `stopped_because` says why not.
    `n_calls` and `cost` are what was used of the reservation. `lacks_bundle`: the worker has not
    seen the bundle. `was_started_before`: a worker died while it ran this request.
    """

    rollout: dict[str, Any] | None = None
    n_calls: int = 0
    cost: float = 0.0
    n_metric_calls: int = 0
    stopped_because: str = ""
    is_failure: bool = False
    lacks_bundle: bool = False
    was_started_before: bool = False


@dataclass(slots=True)
class _Unpacked:
    student: Any
    score: Any
    context: dict[str, Any]
    temperature: float | None
    prices: Mapping[str, tuple[float, float]]
    secrets: list[str]
    programs: dict[bytes, Any] = field(default_factory=dict)

    def baked(self, library: bytes) -> Any:
        """The program with this (packed) library; a few are kept."""
        found = self.programs.get(library)
        if found is None:
            if len(self.programs) >= KEPT_PROGRAMS:
                self.programs.clear()
            found = self.programs[library] = cloudpickle.loads(library).bake(self.student)
        return found

    def record(self, rollout: Rollout) -> dict[str, Any]:
        """The rollout without the secrets of this machine, which the run does not know."""
        values = rollout.to_dict()
        if not self.secrets:
            return values
        return dict(cleaned(values, lambda text: redacted(text, self.secrets)))


_bundles: dict[str, _Unpacked] = {}
_unpacking = threading.Lock()


def run_request(key: str, blob: bytes | None, packed: bytes, budget: Budget, name: str) -> Reply:
    """Make a rollout in this process; nothing but memory is written.

    Args:
        key, blob: the bundle; None: as this worker is thought to have it.
        packed: the `Request`.
        budget: the reservation, as a budget.
        name: of the request, which must be used once only.
    """
    if _was_started_before(name):  # before it is said that the bundle is lacking
        return Reply(was_started_before=True)
    try:
        unpacked = _unpacked(key, blob)
        request = cloudpickle.loads(packed)
    except Exception as error:  # noqa: BLE001 - the reply says it
        message = (
            f"a worker of the executor cannot read the program: {described(error)}. "
            f"It needs this package, dspy, and every module that program and metric come from."
        )
        return Reply(stopped_because=message, is_failure=True)
    if unpacked is None:
        return Reply(lacks_bundle=True)
    return _run(unpacked, request, Ledger(budget))


def _run(unpacked: _Unpacked, request: Request, ledger: Ledger) -> Reply:
    rollout = None
    try:
        with dspy.context(**unpacked.context):
            task = RolloutTask(
                program=unpacked.baked(request.library),
                example=request.example,
                index=request.index,
                rollout_id=request.rollout_id,
                temperature=unpacked.temperature,
                score=unpacked.score,
                ledger=ledger,
                prices=unpacked.prices,
            )
            rollout = run_rollout(task)
    except RunStopped:
        pass  # the reply says why
    return Reply(
        rollout=None if rollout is None else unpacked.record(rollout),
        n_calls=ledger.n_lm_calls,
        cost=ledger.cost,
        n_metric_calls=ledger.n_metric_calls_made,
        stopped_because="" if rollout is not None else ledger.stopped_because,
        is_failure=ledger.is_failure,
    )


def _unpacked(key: str, blob: bytes | None) -> _Unpacked | None:
    """The bundle of that key; None where it is not here."""
    with _unpacking:
        if key not in _bundles:
            if blob is None:
                return None
            if len(_bundles) >= KEPT_BUNDLES:
                _bundles.clear()
            student, metric, context, temperature, prices = cloudpickle.loads(blob)
            score = None if metric is None else adapt_metric(metric)
            secrets = known_secrets([*language_models(student), *held_lms(metric), context["lm"]])
            _bundles[key] = _Unpacked(student, score, context, temperature, prices, secrets)
        return _bundles[key]


def _was_started_before(name: str) -> bool:
    """Whether this request was begun before: dask makes those of a lost worker again by itself.

    Other executors never run a task twice.
    """
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return False
    try:
        distributed.get_worker()
    except ValueError:  # not in a worker of dask
        return False
    begun = distributed.Event(f"tfgrpo/{name}")
    if begun.is_set():
        return True
    begun.set()
    return False


def _can_be_sent(part: Any) -> bool:
    try:
        cloudpickle.dumps(part)
    except Exception:  # noqa: BLE001 - as above
        return False
    return True
