"""One run, by the verbs of `optimizer`'s loop; each returns its result."""

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Coroutine, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.calls.approvals import approved
from tfgrpo_dspy.calls.paid import Calls
from tfgrpo_dspy.calls.reflections import ReflectionClient
from tfgrpo_dspy.errors import RunFailedError, RunStopped, StoreError, described, sentence
from tfgrpo_dspy.events import Proposal
from tfgrpo_dspy.experience.library import Applied, ExperienceLibrary
from tfgrpo_dspy.experience.programs import copy_to_change
from tfgrpo_dspy.rollout import ROLLOUTS, Rollout
from tfgrpo_dspy.run.briefing import Briefer
from tfgrpo_dspy.run.final_choice import FinalChoice
from tfgrpo_dspy.run.groups import Groups
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.run.proposing import Guards, propose
from tfgrpo_dspy.run.reflecting import Reflector
from tfgrpo_dspy.run.strategy_calls import Strategies
from tfgrpo_dspy.run.updates import Batch, Extracted, rollouts_of
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.settings.schedule import RunInputs
from tfgrpo_dspy.store.journal import Journal

logger = logging.getLogger(__name__)


class Run:
    """One run over a student and its examples."""

    def __init__(
        self,
        inputs: RunInputs,
        recorded: Sequence[Sequence[Rollout]] | None = None,  # made elsewhere, for each example
    ) -> None:
        student, validation = inputs.student, [each.raw for each in inputs.valset]
        of_user = [*inputs.trainset, *validation, *(each.raw for each in inputs.testset)]
        journal = Journal(inputs.settings, student, of_user)
        recorded = recorded and [[journal.cleaned(r, ROLLOUTS) for r in each] for each in recorded]
        sets = {"training": [inputs.trainset[i] for i in inputs.training], "validation": validation}
        settings = journal.continued(student, sets, recorded)
        self._inputs = inputs = replace(inputs, settings=settings, student=copy_to_change(student))
        self.settings = settings
        self._calls = calls = Calls(settings, journal)
        self._client = client = ReflectionClient(inputs, calls)
        self._guards = Guards(inputs, calls.report)
        self._briefer = Briefer(inputs, client, calls)
        self._reflector = Reflector(inputs, client, self._guards, self._briefer)
        self._strategies = Strategies(settings.strategies, client, calls)
        self._history = History(inputs, calls, client, self._strategies)
        self._groups = Groups(inputs, calls, self._history, self._strategies, recorded)
        self._updates: list[Awaitable[ExperienceLibrary]] = []
        self._ready: list[Batch | None] = []

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        """Tasks that still run are dropped, not waited for; their later LM calls are refused."""
        self._calls.ledger.stop("the run is over")
        self._calls.journal.close()
        self._calls.report.progress.close()

    def run(self, loop: Coroutine[Any, Any, None]) -> Any:
        """Run the loop, which a budget or the clock may end at any point; then choose the result.

        Raises RunFailedError, StoreError, KeyboardInterrupt: they ended it. Their `program` is the
        best so far; that of a StoreError is None offline, or before the first update.
        """
        ledger, ended_because = self._calls.ledger, ""
        try:
            try:
                self._calls.loop.run(loop)
                if ledger.is_failure:  # of the last results: nothing raised it any more
                    ledger.check()
                ended_because = ledger.cut_because
            except RunStopped:
                ended_because = ledger.stopped_because or ledger.cut_because
                logger.info("the run ends: %s", ended_because)
            program = self._choice(ended_because).finish()
        except StoreError as error:
            if self._history.updates[1:] and not self.settings.offline:
                self._calls.journal.store = None  # the rest is not recorded
                error.program = self._choice(ended_because).finish()
            raise
        except BaseException as error:  # an interrupt, a gate's fault, or what nobody thought of
            is_fault = isinstance(error, Exception)
            why = ledger.clean(described(error)).rstrip(".") if is_fault else "interrupted"
            vars(error)["program"] = self._choice(why).unmeasured()
            raise
        if ledger.is_failure:  # before or during the final choice
            failed = RunFailedError(
                f"The run was ended by failures: {sentence(ledger.stopped_because)} What was "
                f"finished is kept in log_dir, if there is one; `.program` of this error is the "
                f"best so far."
            )
            failed.program = program
            raise failed from ledger.raised.cause_of(str(failed), ledger.clean)
        return program

    def _choice(self, ended_because: str) -> FinalChoice:
        """The final choice of a run that ended so; "": as its plan says."""
        why = ended_because or self._history.plan.ended_because
        return FinalChoice(self._inputs, self._calls, self._history, why)

    async def try_out(self) -> None:
        """Make the first rollouts, if they need no drafts, to see what works. Raises RunStopped."""
        self._calls.journal.begin(self._inputs.student, self._calls.ledger)
        plan = self._history.plan
        if not self.settings.data.is_recorded and not plan.n_awaited(plan.n_drafts):
            self._ready = [plan.batch(number) for number in range(plan.n_drafts + 1)]
            if batch := self._ready[-1]:
                await self._groups.try_out(batch)

    async def batches(self) -> AsyncIterator[Batch]:
        """The batches that are planned, each when its library is there; a draft may be first.

        They end when every update is decided.
        """
        plan = self._history.plan
        for number in range(plan.n_updates):
            if n_awaited := plan.n_awaited(number):
                await self._updates[n_awaited - 1]
            batch = self._ready.pop(0) if self._ready else plan.batch(number)
            if batch is None and plan.postpone(number):
                await self._updates[number - 1]
                batch = plan.batch(number)
            if batch is None:
                break
            if number == plan.n_drafts and not self.settings.data.is_recorded:
                await self._groups.try_out(batch)
            yield batch
        for update in self._updates:
            await update

    def begin(self, update: Coroutine[Any, Any, ExperienceLibrary]) -> None:
        """Begin what gives the library after the latest batch."""
        self._updates.append(self._calls.loop.spawn(update))

    def sample(self, batch: Batch) -> Sequence[Awaitable[SampledGroup]]:
        """The groups of the batch: `group_size` rollouts of each example with its library."""
        return self._groups.of(batch)

    async def extract(self, batch: Batch, groups: Sequence[Awaitable[SampledGroup]]) -> Extracted:
        """The lessons of the groups that can teach, several in a call; of labels for a draft."""
        if batch.is_draft:
            context = self._history.context(batch, Extracted())
            note = (await self._strategies.proposed(context, batch)).note
            return await self._reflector.draft(batch, note)
        valued = self._groups.credited(batch, groups)
        show = functools.partial(self._groups.shown, batch)
        return await self._reflector.extract(batch, valued, show)

    async def propose(self, batch: Batch, extracted: Extracted) -> Applied:
        """The library of the update before with the operations that the lessons call for."""
        if batch.update:
            await self._updates[batch.update - 1]
        if self._is_cut(batch, extracted):
            return self._history.decision.library.applied(())
        latest = self._history.latest
        library, dropped = latest.decision.library, self._history.dropped()
        revisions = self._client.spawn(
            self._briefer.revisions(batch, latest, extracted.groups, dropped)
        )
        context = self._history.context(batch, extracted)
        proposed = await self._strategies.proposed(context, batch)
        lessons, added = proposed.lessons, proposed.operations
        shown = replace(extracted, lessons=tuple(lessons))
        guard = self._guards.of_update(batch, shown, added)
        operations, refused = await propose(
            self._inputs, self._client, batch, library, lessons, dropped, added, guard
        )
        applied = library.applied(operations, self.settings.limits)
        find = self._history.changes.compared
        compared = find(applied.operations, extracted.groups, extracted.lessons)
        proposal = Proposal(batch.update, library, applied.operations, compared)
        outcome = await approved(self._inputs, self._calls, proposal, applied, guard)
        refused = [*refused, *applied.refused, *outcome.refused]
        briefs = (*extracted.briefs, *await revisions)
        return replace(outcome, refused=tuple(refused), briefs=briefs)

    async def decide(
        self, batch: Batch, extracted: Extracted, proposed: Applied
    ) -> ExperienceLibrary:
        """The library after the gate has decided on the operations."""
        if self._is_cut(batch, extracted):
            return self._history.decision.library
        library = self._history.decide(batch, extracted, proposed)
        self._groups.check_readable(rollouts_of(self._history.latest.groups))
        if why := self._reflector.why_in_vain(batch):
            logger.warning("no more is learned: %s", why)
            self._calls.ledger.stop(why)  # the final choice follows
            self._calls.ledger.check()
        return library

    def _is_cut(self, batch: Batch, extracted: Extracted) -> bool:
        """Whether a limit ended the training before any rollout of the batch was made."""
        return not (batch.is_draft or extracted.groups) and bool(self._calls.ledger.cut_because)
