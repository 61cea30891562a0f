"""Asks the user's `approve` whether an update may be made; the answers are recorded."""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from tfgrpo_dspy.calls.paid import Calls
from tfgrpo_dspy.errors import LibraryError, RunStopped, described
from tfgrpo_dspy.events import Approval, Proposal
from tfgrpo_dspy.experience.library import Applied, ExperienceLibrary
from tfgrpo_dspy.experience.values import AnyOperation, Keep, Operation, Refusal, operation_from
from tfgrpo_dspy.reflection.guard import Guard
from tfgrpo_dspy.reflection.lessons import admitted
from tfgrpo_dspy.settings.schedule import RunInputs
from tfgrpo_dspy.user_code import settled

REJECTED = "rejected by approve"


@dataclass(frozen=True, slots=True)
class _Approved:
    """The operations that `approve` lets through; or why its answer cannot be used."""

    operations: tuple[AnyOperation, ...]
    error: str = ""


ANSWERS = TypeAdapter(_Approved)


def approved(
    inputs: RunInputs, calls: Calls, proposal: Proposal, applied: Applied, guard: Guard
) -> Applied:
    """The library with the operations that the user lets through, or gives in their place.

    `refused` are those that the user rejects, and those in their place that cannot be made: they
    are checked as the operations of the reflection LM are. An answer with one of them is not
    recorded. Any other answer of `approve` changes nothing; if it raises, the run ends. Raises
    MissingRecordError: offline, and there is no record.
    """
    ask, proposed = inputs.settings.approve, proposal.operations
    if ask is None or all(isinstance(operation, Keep) for operation in proposed):
        return replace(applied, refused=())

    @functools.cache  # a guard is asked once, and counted once
    def outcome_of(operations: tuple[Operation, ...]) -> Applied:
        return _made(inputs, proposal, operations, guard)

    key = calls.journal.keys.approval(_shown(proposal))
    answer = calls.lookup(f"approval of update {proposal.update}", key, ANSWERS)
    if answer is None:
        answer = _asked(ask, calls, proposal)
        if not (answer.error or _faults(outcome_of(answer.operations))):
            answer = calls.journal.keep(key, answer, ANSWERS, is_lost=False)
    if answer.error:
        calls.report.count_failure("approval", answer.error)
        refused = tuple(Refusal(op, f"approve failed: {answer.error}") for op in proposed)
        return replace(proposal.library.applied(()), refused=refused)
    for fault in _faults(outcome_of(answer.operations)):
        calls.report.count_failure("approval", f"{fault.operation}: {fault.reason}")
    return outcome_of(answer.operations)


def _asked(ask: Any, calls: Calls, proposal: Proposal) -> _Approved:
    """The answer of the user, while the clock of the run stands still."""
    try:
        with calls.ledger.standing():
            approval = calls.pool.call(lambda: _whole(settled(ask(proposal))))
    except (RunStopped, KeyboardInterrupt):
        raise
    except BaseException as error:  # noqa: BLE001 - whatever the user's function raises ends the run
        calls.ledger.raised.note(error)
        calls.ledger.fail(f"approve raised {described(error)}", error)
    try:
        return _Approved(tuple(_operations(approval, proposal.operations)))
    except LibraryError as error:
        return _Approved((), calls.journal.redacted(str(error)))


def _faults(applied: Applied) -> list[Refusal]:
    return [refusal for refusal in applied.refused if refusal.reason != REJECTED]


def _made(
    inputs: RunInputs, proposal: Proposal, answer: Sequence[Operation], guard: Guard
) -> Applied:
    """The library with the operations of an answer, and those that are refused."""
    checked = [
        op if op in proposal.operations else admitted(op, inputs.predictors, guard) for op in answer
    ]
    refused = [Refusal(op, REJECTED) for op in proposal.operations if op not in answer]
    refused += [each for each in checked if isinstance(each, Refusal)]
    passed = [each for each in checked if not isinstance(each, Refusal)]
    applied = proposal.library.applied(passed, inputs.settings.limits)
    return replace(applied, refused=(*refused, *applied.refused))


def _shown(proposal: Proposal) -> list[Any]:
    shown = [asdict(replace(operation, evidence=())) for operation in proposal.operations]
    library = ExperienceLibrary(
        [replace(e, evidence=(), effect=None, is_on_trial=False) for e in proposal.library],
        next_number=proposal.library.next_number,
    )
    return [library.to_dict(), shown]


def _whole(answer: Approval) -> Approval:
    """The answer; a sequence as a list, so that one which raises does so where `approve` does."""
    return [*answer] if isinstance(answer, Sequence) and not isinstance(answer, str) else answer


def _operations(answer: Approval, proposed: Sequence[Operation]) -> list[Operation]:
    """The operations that an answer stands for. Raises LibraryError: it stands for none."""
    if isinstance(answer, bool):
        return list(proposed) if answer else []
    if not isinstance(answer, list):
        raise LibraryError(f"approve gave {answer!r}; give True, False or a list of operations.")
    pairs = itertools.zip_longest(answer, proposed[: len(answer)])
    return [_supported(operation, in_place_of) for operation, in_place_of in pairs]


def _supported(answer: Any, proposed: Operation | None) -> Operation:
    """The operation; an edited one keeps the evidence of the one in whose place it stands."""
    operation = operation_from(answer)
    if operation.evidence or type(operation) is not type(proposed):
        return operation
    return replace(operation, evidence=proposed.evidence)
