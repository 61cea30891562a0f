"""A rollout in another process: what travels there, and what the worker does with it.

A request holds a bundle (program, metric, LMs, settings, API keys included), which all rollouts of
one set of examples share, a library, and what is its own. All travel as bytes and are never written
to a disk; cloudpickle packs them, as plain pickle cannot hold DSPy programs.
"""

import functools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import dspy

from tfgrpo_dspy.budget.ledger import Budget, Ledger, Sampled
from tfgrpo_dspy.dspy_seam import OF_ONE_CALL
from tfgrpo_dspy.errors import RunStopped, SettingsError, described
from tfgrpo_dspy.experience.programs import copy_program, language_models
from tfgrpo_dspy.metric import adapt_metric, held_lms
from tfgrpo_dspy.redaction import cleaned, known_secrets, redacted
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, run_rollout
from tfgrpo_dspy.user_code import LOOP

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


@dataclass(frozen=True, slots=True)
class Request:
    """A request for one rollout, in three pickled parts."""

    bundle: bytes  # by `packed_bundle`: student, metric and prices
    additions: bytes
    sample: bytes  # the fields of its `RolloutTask` that differ from rollout to rollout


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to a request."""

    rollout: dict[str, Any] | None = None  # its record, where one was made
    n_calls: int = 0  # what was used of the reservation, as the next two
    cost: float = 0.0
    n_metric_calls: int = 0
    stopped_because: str = ""  # why none was made
    is_failure: bool = False
    was_started_before: bool = False  # a worker died while it ran this request
    left_out: Mapping[Sampled, str] = field(default_factory=dict)  # refused parameters, in words
    n_unseen: int = 0  # how many of the calls nobody could refuse


def run_request(request: Request, budget: Budget, name: str) -> Reply:
    """Make a rollout here within the budget; no other request may have the `name`."""
    if _was_started_before(name):
        return Reply(was_started_before=True)
    try:
        program_with, metric, context, prices, left_out, secrets = _unpacked(request.bundle)
        program = program_with(request.additions)
        sample = cloudpickle.loads(request.sample)
    except Exception as error:  # noqa: BLE001 - the reply says it
        message = (
            f"a worker of the executor cannot read the program: {described(error)}. "
            f"It needs this package, dspy, and every module that program and metric come from."
        )
        return Reply(stopped_because=message, is_failure=True)
    ledger, record, why = Ledger(budget), None, ""
    ledger.left_out = left_out
    LOOP.set(None)  # a fork has that of the process that it comes from
    task = RolloutTask(program=program, metric=metric, ledger=ledger, prices=prices, **sample)
    try:
        with dspy.context(**context):
            record = cleaned(run_rollout(task).to_dict(), lambda text: redacted(text, secrets))
    except RunStopped:
        why = ledger.stopped_because
    return Reply(
        record,
        ledger.n_lm_calls,
        ledger.cost,
        ledger.n_metric_calls_made,
        why,
        ledger.is_failure,
        left_out={about: redacted(text, secrets) for about, text in left_out.items()},
        n_unseen=ledger.n_unseen,
    )


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

    return program_with, scoring, context, prices, dict[Sampled, str](), secrets


def _was_started_before(name: str) -> bool:
    """True: the request was begun before; dask begins those of a lost worker again."""
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
