"""Asks the user's `approve` whether an update may be made; the answers are recorded."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from tfgrpo_dspy.errors import LibraryError, RunStopped, described
from tfgrpo_dspy.events import Approval, Proposal
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.values import (
    Evidence,
    Keep,
    Operation,
    Refusal,
    carry_out,
    operation_from,
)
from tfgrpo_dspy.reflection.guard import Guard
from tfgrpo_dspy.reflection.operations import admitted
from tfgrpo_dspy.run.context import RunContext

EVIDENCE = TypeAdapter(tuple[Evidence, ...])
REJECTED = "rejected by approve"


@dataclass(frozen=True, slots=True)
class _Approved:
    operations: tuple[Mapping[str, Any], ...]


ANSWERS = TypeAdapter(_Approved)


async def approved(
    run: RunContext, proposal: Proposal, guard: Guard
) -> tuple[list[Operation], list[Refusal]]:
    """The operations that the user lets through or makes instead, and those that are refused.

    Where `approve` answers something else, nothing is made; what it makes instead comes in as the
    operations of the reflection LM do. An answer of which something is refused is not recorded.
    Where `approve` raises, the run ends. Raises MissingRecordError: offline, and the answer is not
    recorded.
    """
    ask, proposed = run.settings.approve, list(proposal.operations)
    if ask is None or all(isinstance(operation, Keep) for operation in proposed):
        return proposed, []
    key = _key(run, proposal)
    found = run.records.find(key, ANSWERS)
    if found is None and run.settings.offline:
        run.stop_for_missing_record("approval", f"update {proposal.update}")
    if found is None:
        try:
            with run.report.progress.hidden(), run.ledger.standing():
                answer = await run.loop.in_thread(lambda: ask(proposal))
        except Exception as error:
            run.ledger.stop(f"approve raised {described(error)}", is_failure=True)
            raise RunStopped(run.ledger.stopped_because) from error
        try:
            found = _Approved(tuple(map(_written, _operations(answer, proposed))))
        except LibraryError as error:
            run.report.count_failure("approval", str(error))
            return [], [Refusal(operation, f"approve failed: {error}") for operation in proposed]
        refusals = _let_in(run, proposal, found, guard)[1]
        if not refusals:
            found = run.records.keep(key, found, ANSWERS, is_lost=False)
        for refusal in refusals:
            run.report.count_failure("approval", f"{refusal.operation}: {refusal.reason}")
    taken, refusals = _let_in(run, proposal, found, guard)
    allowed = [_read(values) for values in found.operations]
    refused = [Refusal(each, REJECTED) for each in proposed if each not in allowed]
    return taken, [*refused, *refusals]


def _let_in(
    run: RunContext, proposal: Proposal, answer: _Approved, guard: Guard
) -> tuple[list[Operation], list[Refusal]]:
    """The operations of an answer that the library takes, and those that are refused."""
    passed: list[Operation] = []
    refused: list[Refusal] = []
    for operation in map(_read, answer.operations):
        taken: list[Operation] = [operation]
        refusals: list[Refusal] = []
        if operation not in proposal.operations:
            taken, refusals = admitted([operation], run.predictors, guard)
        passed += taken
        refused += refusals
    library, limits = proposal.library, run.settings.limits
    _, accepted, refusals = carry_out(passed, library, library.next_number, limits)
    return accepted, [*refused, *refusals]


def _key(run: RunContext, proposal: Proposal) -> str:
    shown = [_written(replace(operation, evidence=())) for operation in proposal.operations]
    library = ExperienceLibrary(
        [replace(e, evidence=(), effect=None, is_on_trial=False) for e in proposal.library],
        next_number=proposal.library.next_number,
    )
    return run.records.keys.approval([library.to_dict(), shown])


def _operations(answer: Approval, proposed: Sequence[Operation]) -> list[Operation]:
    """The operations that an answer stands for. Raises LibraryError: it stands for none."""
    if isinstance(answer, bool):
        return list(proposed) if answer else []
    if not isinstance(answer, Sequence) or isinstance(answer, str):
        raise LibraryError(f"approve gave {answer!r}; give True, False or a list of operations.")
    return [_supported(*pair) for pair in itertools.zip_longest(answer, proposed[: len(answer)])]


def _supported(given: Any, proposed: Operation | None) -> Operation:
    """The operation; an edited one keeps the evidence of the one in whose place it stands."""
    operation = operation_from(given)
    if operation.evidence or type(operation) is not type(proposed):
        return operation
    return replace(operation, evidence=proposed.evidence)


def _written(operation: Operation) -> dict[str, Any]:
    return {"op": operation.op, **asdict(operation)}


def _read(values: Mapping[str, Any]) -> Operation:
    evidence = EVIDENCE.validate_python(values.get("evidence", ()))
    return replace(operation_from(values), evidence=evidence)
