"""One run: the loop over batches, the updates that they lead to, and how a run ends."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from tfgrpo_dspy.calls import Calls
from tfgrpo_dspy.calls.reflections import ReflectionClient, approved
from tfgrpo_dspy.errors import RunFailedError, RunStopped, StoreError, described, sentence
from tfgrpo_dspy.events import Proposal
from tfgrpo_dspy.rollout import ROLLOUTS, Rollout
from tfgrpo_dspy.run.deciding import Decisions
from tfgrpo_dspy.run.groups import Groups
from tfgrpo_dspy.run.planning import Batch, Extracted, rollouts_of
from tfgrpo_dspy.run.reflecting import Reflector
from tfgrpo_dspy.settings import RunInputs
from tfgrpo_dspy.store import Journal
from tfgrpo_dspy.user_code import copy_to_change, shared_sizes

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
        self._shared_sizes = shared_sizes(student)
        self._inputs = inputs = replace(inputs, settings=settings, student=copy_to_change(student))
        self.settings = settings
        self._calls = calls = Calls(settings, journal)
        client = ReflectionClient(inputs, calls)
        self._reflector = Reflector(inputs, client, calls)
        self._groups = Groups(inputs, calls, client, recorded)
        self._decisions = Decisions(inputs, calls, self._groups)

    def close(self) -> None:
        """Tasks that still run are dropped, not waited for; their later LM calls are refused."""
        self._calls.ledger.stop("the run is over")
        self._calls.journal.close()
        self._calls.report.close()
        for name, size in shared_sizes(self._inputs.student).items():
            if size != self._shared_sizes.get(name, size):
                fault = "is one for all rollouts, whose prompts may show what others left there"
                logger.warning("%s %s: hold it in self, set in __init__", name, fault)

    def run(self) -> Any:
        """Train, which a budget or the clock may end at any point; then choose the result.

        Raises RunFailedError, StoreError, KeyboardInterrupt: they ended it. Their `program` is the
        best so far; that of a StoreError is None offline, or before the first update.
        """
        ledger, ended_because = self._calls.ledger, ""
        try:
            try:
                with self._calls.pool.running():
                    self._train()
                if ledger.is_failure:  # of the last results: nothing raised it any more
                    ledger.check()
                ended_because = ledger.cut_because
            except RunStopped:
                ended_because = ledger.stopped_because or ledger.cut_because
            program = self._decisions.finish(ended_because)
        except StoreError as error:
            if self._decisions.updates[1:] and not self.settings.offline:
                self._calls.journal.store = None  # the rest is not recorded
                error.program = self._decisions.finish(ended_because)
            raise
        except BaseException as error:  # an interrupt, a gate's fault, or what nobody thought of
            is_fault = isinstance(error, Exception)
            why = ledger.clean(described(error)).rstrip(".") if is_fault else "interrupted"
            vars(error)["program"] = self._decisions.unmeasured(why)
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

    def _train(self) -> None:
        """Sample, learn and decide, a few batches at a time. Raises RunStopped."""
        calls, reflector, groups = self._calls, self._reflector, self._groups
        plan, updates = self._decisions.plan, self._decisions.updates
        window = deque[tuple[Batch, Callable[[], Extracted]]]()  # begun, and not decided
        calls.journal.begin(self._inputs.student, calls.ledger)
        while (batches := [*iter(plan.next, None)]) or window:
            for batch in batches:  # before drafts are asked for: it shows whether anything works
                if batch.update == plan.n_drafts:
                    groups.try_out(batch)
            window += [(batch, self._begun(batch)) for batch in batches]
            batch, extracted = window.popleft()  # its library may lack the last updates
            lessons = extracted()
            if not (batch.is_draft or lessons.groups) and calls.ledger.cut_because:
                continue
            dropped = self._decisions.dropped()
            revised = reflector.revised(batch, updates[-1], lessons.groups, dropped)
            proposed = groups.proposed(batch, lessons, updates)
            guard = reflector.guard_of(batch, proposed)
            operations, refused = reflector.propose(batch, updates[-1], proposed, dropped, guard)
            library, of_batch = updates[-1].decision.library, (lessons.groups, lessons.lessons)
            applied = library.applied(operations, self.settings.limits)
            compared = self._decisions.changes.compared(applied.operations, *of_batch)
            proposal = Proposal(batch.update, library, applied.operations, compared)
            outcome = approved(self._inputs, calls, proposal, applied, guard)
            briefs = (*lessons.briefs, revised()) if revised else lessons.briefs
            outcome = replace(outcome, refused=(*refused, *outcome.refused), briefs=briefs)
            self._decisions.decide(batch, lessons, outcome)
            groups.check_readable(rollouts_of(self._decisions.latest.groups))
            if (why := reflector.why_in_vain(batch)) and not calls.ledger.is_late:
                logger.warning("no more is learned: %s", why)
                calls.ledger.stop(why)  # the final choice follows
                calls.ledger.check()

    def _begun(self, batch: Batch) -> Callable[[], Extracted]:
        """Begin the rollouts of a batch, and a thread that asks for the lessons of its groups.

        What is given waits for these: those of labels for a draft; else of the groups that can
        teach, several in a call.
        """
        if batch.is_draft:
            return self._calls.pool.beside(partial(self._reflector.draft, batch))
        groups, show = self._groups.of(batch), partial(self._groups.shown, batch)
        return self._calls.pool.beside(partial(self._reflector.extract, batch, groups, show))
