"""Rollouts in the user's executor (`concurrent.futures`, dask), which is never shut down.

A request holds a bundle (program, metric, LMs, settings, API keys included), which all rollouts of
one set of examples share, a library, and what is its own. All travel as bytes and are never written
to a disk; cloudpickle packs them, as plain pickle cannot hold DSPy programs.
"""

import functools
import itertools
import math
import sys
import threading
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import BrokenExecutor, CancelledError, Executor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import dspy

from tfgrpo_dspy.budget.ledger import LIMITS, NOTHING, Amount, Budget, Ledger, Reservation
from tfgrpo_dspy.dspy_seam import OF_ONE_CALL
from tfgrpo_dspy.errors import RunStopped, SettingsError, described
from tfgrpo_dspy.experience.programs import copy_program, language_models
from tfgrpo_dspy.metric import adapt_metric, held_lms
from tfgrpo_dspy.rollout import Failure, FailureKind, Rollout
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, run_rollout
from tfgrpo_dspy.text import cleaned, known_secrets, redacted
from tfgrpo_dspy.user_code import LOOP, check_wanted

KEPT = 8  # bundles, and programs of each; both may be large


def packed_bundle(
    student: Any,
    metric: Any,
    prices: Mapping[str, tuple[float, float]],
    plain: Sequence[str],  # what would be secrets, but stands in the user's own data
) -> bytes:
    """Program, metric and the settings of this thread's `dspy.context`. Raises SettingsError."""
    context = {k: v for k, v in dspy.settings.copy().items() if k not in OF_ONE_CALL}
    if isinstance(context["lm"], dspy.BaseLM):
        context["lm"] = context["lm"].copy()  # without the history of its calls
    parts = {
        "the program": copy_program(student, lambda lm: lm.copy()),
        "the metric": metric,
        "the settings of dspy.context (LM, adapter, callbacks)": context,
    }
    for name, part in parts.items():
        packed(part, name)
    return packed((*parts.values(), dict(prices), [*plain]), "this run")


def packed(part: Any, name: str) -> bytes:
    """The part as bytes. Raises SettingsError: it cannot be sent to another process."""
    try:
        return bytes(cloudpickle.dumps(part))
    except Exception as error:  # whatever a user's object raises
        raise SettingsError(
            f"executor: {name} cannot be sent to other processes ({described(error)}); leave the "
            f"lock, connection or client out that it holds, or pass num_threads, not executor."
        ) from error


Request = tuple[bytes, bytes, bytes]
"""A bundle (`packed_bundle`), additions, and the fields of a `RolloutTask` that are its own."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request."""

    rollout: dict[str, Any] | None = None  # its record, where one was made
    used: Amount = NOTHING  # of the reservation
    stopped_because: str = ""  # why none was made
    is_failure: bool = False
    was_started_before: bool = False  # a worker died while it ran this request
    left_out: Mapping[tuple[str, str], str] = field(default_factory=dict)  # as in a ledger


def run_request(request: Request, budget: Budget, name: str) -> Reply:
    """Make a rollout here within the budget; no other request may have the `name`."""
    if _was_started_before(name):
        return Reply(was_started_before=True)
    bundle, additions, packed_sample = request
    try:
        program_with, metric, context, prices, left_out, secrets = _unpacked(bundle)
        program, sample = program_with(additions), cloudpickle.loads(packed_sample)
    except Exception as error:  # noqa: BLE001 - the reply says it
        message = (
            f"a worker of the executor cannot read the program: {described(error)}. "
            f"It needs this package, dspy, and every module that program and metric come from."
        )
        return Reply(stopped_because=message, is_failure=True)
    ledger, record = Ledger(budget), None
    ledger.left_out = left_out
    LOOP.set(None)  # a fork has that of the process that it comes from
    task = RolloutTask(program=program, metric=metric, ledger=ledger, prices=prices, **sample)
    with suppress(RunStopped), dspy.context(**context):
        record = cleaned(run_rollout(task).to_dict(), lambda text: redacted(text, secrets))
    refused = {about: redacted(text, secrets) for about, text in left_out.items()}
    return Reply(record, ledger.taken, ledger.stopped_because, ledger.is_failure, left_out=refused)


@functools.lru_cache(KEPT)
def _unpacked(bundle: bytes) -> tuple[Any, ...]:
    """The parts of a bundle, the program as a function of additions; and this machine's secrets."""
    student, metric, context, prices, plain = cloudpickle.loads(bundle)
    scoring = None if metric is None else adapt_metric(metric)
    held = (*held_lms(metric), *held_lms(context.get("adapter")))
    secrets = known_secrets([*language_models(student), *held, context["lm"]], "\n".join(plain))

    @functools.lru_cache(KEPT)
    def program_with(additions: bytes) -> Any:
        return cloudpickle.loads(additions).bake(student)

    return program_with, scoring, context, prices, dict[tuple[str, str], str](), secrets


def _was_started_before(name: str) -> bool:
    """True: the request was begun before; dask begins those of a lost worker again."""
    distributed = sys.modules.get("distributed")
    try:
        distributed and distributed.get_worker()
    except ValueError:
        distributed = None
    if distributed is None:  # not in a worker of dask
        return False
    begun = distributed.Event(f"tfgrpo/{name}")
    is_begun = bool(begun.is_set())
    begun.set()
    return is_begun


MAX_LOST_WORKERS = 3  # A request that lost this many workers is not sent again
POLL_S, WATCH_S = 0.02, 0.1
"""How often a request that waits for budget looks for calls given back; and one that waits for its
reply, whether anybody still waits for it."""
LEAST, FIRST = Amount(1, cost=1e-9), Amount(16)
"""The most that is reserved for a rollout before any cost is known; 0: a part of what is left."""
HEADROOM = 2.0  # how much more than any rollout took so far is reserved, where there is enough


def workers_of(executor: Executor) -> int | None:
    """The number of tasks that an executor runs at once; None: it does not say."""
    with suppress(Exception):  # a client of dask that is closed; the first request will say so
        n_workers = getattr(executor, "_max_workers", None)
        client: Any = getattr(executor, "_client", None)
        return n_workers or sum(client.nthreads().values()) or None
    return None


class RemoteRollouts:
    """Runs rollouts in the user's executor.

    Workers cannot ask the ledger for each call. So calls and dollars are reserved for a request,
    and what it did not need comes back. A rollout whose reservation was too small is made again.
    """

    def __init__(self, ledger: Ledger, executor: Executor, n_at_once: int) -> None:
        self._ledger, self._executor, self._n_at_once = ledger, executor, n_at_once
        self._largest = NOTHING
        self._name, self._count = uuid.uuid4().hex, itertools.count()

    def rollout(self, request: Request, n_metric_calls: int = 0) -> Rollout | Failure:
        """The rollout, or a failure if too many workers are lost to it. Raises RunStopped."""
        ledger, n_losses, why = self._ledger, 0, ""
        while n_losses < MAX_LOST_WORKERS:
            while (share := self._reserve(n_metric_calls)) is None:
                threading.Event().wait(POLL_S)
            try:
                reply = self._reply(share, request)
            except (BrokenExecutor, ImportError) as error:
                needs = "; install this package and dspy on its workers"
                message = f"the executor is broken: {described(error)}"
                ledger.fail(message + needs * isinstance(error, ImportError), error)
            except Exception as error:  # noqa: BLE001 - whatever an executor raises
                why = f"the executor raised {described(error)}"
            else:
                if not reply.was_started_before:
                    ledger.settle(share, reply.used)
                    ledger.left_out |= reply.left_out
                    self._largest |= reply.used
                    if reply.rollout is not None:
                        return Rollout.from_dict(reply.rollout)
                    if reply.is_failure:
                        ledger.stop(reply.stopped_because, is_failure=True)
                    ledger.check()
                    self._grow(share, reply.stopped_because.partition("=")[0])
                    continue
                why = "its worker died"
            share.abandoned.set()  # it counts as spent
            n_losses += 1
        message = f"the executor lost this rollout {n_losses} times; last reason: {why}"
        return Failure(FailureKind.WORKER, message)

    def _reserve(self, n_metric_calls: int) -> Reservation | None:
        """Reserve an equal part of what is left, at least as much as any rollout took so far.

        None if that is not there now. Raises RunStopped.
        """

        def wanted(left: float, reach: float, largest: float, first: float, least: float) -> float:
            most = max(first, HEADROOM * largest) or math.inf
            part = max(largest, min(left / self._n_at_once, most))
            return 0 if math.isinf(left) else max(least, min(part, reach))

        left, reach = self._ledger.left(True), self._ledger.reach(True)
        n_calls, _, cost = map(wanted, left, reach, self._largest, FIRST, LEAST)
        amount = Amount(math.ceil(n_calls), n_metric_calls, cost)
        return self._ledger.take(amount, is_share=True, leaves_lessons=True)

    def _grow(self, share: Reservation, limit: str) -> None:
        """Reserve twice as much of a limit from now on. Raises RunStopped: there is no more."""
        reserved, most = (
            dict(zip(LIMITS, amount, strict=True))
            for amount in (share.amount, self._ledger.reach(True))
        )
        if limit in most and most[limit] <= reserved[limit]:
            self._ledger.use_up(limit)
        self._largest |= Amount(*(2.0 * n * (name == limit) for name, n in reserved.items()))

    def _reply(self, share: Reservation, request: Request) -> Reply:
        """The reply to the request; of one that takes too long the whole share counts as spent."""
        limits, seconds_left = self._ledger.budget, self._ledger.seconds_left()
        budget = Budget(
            max_lm_calls=None if limits.max_lm_calls is None else int(share.amount.n_lm_calls),
            max_cost=None if limits.max_cost is None else share.amount.cost,
            max_minutes=None if math.isinf(seconds_left) else max(0.0, seconds_left) / 60,
        )
        name = f"{self._name}/{next(self._count)}"  # dask runs tasks of equal arguments only once
        try:
            reply = self._executor.submit(run_request, request, budget, name)
            while not reply.done():
                wait([reply], WATCH_S)
                check_wanted()
        except RunStopped:  # it took too long, or the run has ended
            reply.cancel()
            share.abandoned.set()
            raise
        except Exception as error:  # closed, or whatever it raises then; or this is no future
            raise BrokenExecutor(described(error)) from error
        try:
            return reply.result()
        except CancelledError as error:
            raise RuntimeError(f"the executor cancelled request {name}") from error
