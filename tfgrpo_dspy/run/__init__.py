"""One run: the loop over batches, the updates that they lead to, and how a run ends."""

import functools
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.calls import Calls
from tfgrpo_dspy.calls.reflections import ReflectionClient, approved
from tfgrpo_dspy.errors import RunFailedError, RunStopped, StoreError, described, sentence
from tfgrpo_dspy.events import Proposal
from tfgrpo_dspy.experience import Applied
from tfgrpo_dspy.rollout import ROLLOUTS, Rollout
from tfgrpo_dspy.run.deciding import FinalChoice, History
from tfgrpo_dspy.run.groups import Groups
from tfgrpo_dspy.run.planning import Batch, Extracted, rollouts_of
from tfgrpo_dspy.run.reflecting import Briefer, Reflector
from tfgrpo_dspy.settings import RunInputs
from tfgrpo_dspy.store import Journal
from tfgrpo_dspy.strategies.base import UpdateContext
from tfgrpo_dspy.user_code import copy_to_change

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
        client = ReflectionClient(inputs, calls)
        self._briefer = Briefer(inputs, client, calls)
        self._reflector = Reflector(inputs, client, calls.report, self._briefer)
        self._groups = Groups(inputs, calls, client, recorded)
        self._history = History(inputs, calls, self._groups)

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, *_: object) -> None:
        """Tasks that still run are dropped, not waited for; their later LM calls are refused."""
        self._calls.ledger.stop("the run is over")
        self._calls.journal.close()
        self._calls.report.close()

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

    def _train(self) -> None:
        """Sample, learn and decide, a few batches at a time. Raises RunStopped."""
        self._calls.journal.begin(self._inputs.student, self._calls.ledger)
        plan, window = self._history.plan, deque[tuple[Batch, Callable[[], Extracted]]]()
        is_first = not self.settings.data.is_recorded and not plan.n_awaited(plan.n_drafts)
        planned = [b for _ in range(is_first * (plan.n_drafts + 1)) if (b := plan.next())]
        if len(planned) > plan.n_drafts:  # it needs no drafts, and shows whether anything works
            self._groups.try_out(planned[-1])
        while (batch := planned.pop(0) if planned else plan.next()) or window:
            if batch:  # its library may lack the last updates
                window.append((batch, self._extracted(batch)))
                continue
            batch, extracted = window.popleft()
            lessons = extracted()
            if batch.is_draft or lessons.groups or not self._calls.ledger.cut_because:
                self._history.decide(batch, lessons, self._propose(batch, lessons))
                self._groups.check_readable(rollouts_of(self._history.latest.groups))
                why, ledger = self._reflector.why_in_vain(batch), self._calls.ledger
                if why and not ledger.is_late:
                    logger.warning("no more is learned: %s", why)
                    ledger.stop(why)  # the final choice follows
                    ledger.check()

    def _extracted(self, batch: Batch) -> Callable[[], Extracted]:
        """Begin the rollouts of a batch, and a thread that asks for the lessons of its groups.

        What is given waits for these: those of labels for a draft; else of the groups that can
        teach, several in a call.
        """
        if batch.is_draft:
            return self._calls.pool.beside(lambda: self._reflector.draft(batch))
        if batch.update == self._history.plan.n_drafts:
            self._groups.try_out(batch)
        groups = self._groups.of(batch)
        show = functools.partial(self._groups.shown, batch)
        return self._calls.pool.beside(lambda: self._reflector.extract(batch, groups, show))

    def _propose(self, batch: Batch, extracted: Extracted) -> Applied:
        """The library of the update before with the operations that the lessons call for."""
        latest = self._history.latest
        library, dropped = latest.decision.library, self._history.dropped()
        revisions = self._briefer.revisions(batch, latest, extracted.groups, dropped)
        context = UpdateContext(
            update=batch.update,
            library=library,
            libraries=tuple(update.decision.library for update in self._history.updates),
            lessons=extracted.lessons,
            groups=extracted.groups,
            past=latest.groups,
            training=self._inputs.training,
            examples=self._inputs.examples,
            predictors=tuple(self._inputs.predictors),
            shows_labels=self.settings.shows_labels,
        )
        proposed = self._groups.proposed(context, batch)
        lessons, added = proposed.lessons, proposed.operations
        guard = self._reflector.guard_of(batch, lessons, added)
        propose, compare = self._reflector.propose, self._history.changes.compared
        operations, refused = propose(batch, library, lessons, dropped, added, guard)
        applied = library.applied(operations, self.settings.limits)
        compared = compare(applied.operations, extracted.groups, extracted.lessons)
        proposal = Proposal(batch.update, library, applied.operations, compared)
        outcome = approved(self._inputs, self._calls, proposal, applied, guard)
        refused = [*refused, *applied.refused, *outcome.refused]
        briefs = (*extracted.briefs, *revisions())
        return replace(outcome, refused=tuple(refused), briefs=briefs)
