"""The decided updates of a run, the latest library and demos; the gate decides the next one."""

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property, partial

from tfgrpo_dspy.budget import Amount
from tfgrpo_dspy.calls import Calls
from tfgrpo_dspy.calls.reflections import ReflectionClient
from tfgrpo_dspy.errors import RunStopped
from tfgrpo_dspy.events import UpdateDecided
from tfgrpo_dspy.experience import Add, Applied, ExperienceLibrary, Keep, Modify, supported
from tfgrpo_dspy.gate.model import score_sd
from tfgrpo_dspy.gate.protocol import Decision, Measured, RunEvidence
from tfgrpo_dspy.listeners import Changes, training_rows
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.modules import LEAST_SHOWN
from tfgrpo_dspy.rollout import fields_text, floored
from tfgrpo_dspy.run.briefing import leading
from tfgrpo_dspy.run.groups import Groups
from tfgrpo_dspy.run.planning import Planner
from tfgrpo_dspy.run.updates import TEACHING, Batch, Brief, Extracted, Update, record_of
from tfgrpo_dspy.sampling.examples import Additions, best_rollouts
from tfgrpo_dspy.settings import RunInputs
from tfgrpo_dspy.strategies.attempts import Auto, needs_hints, unlike_spreads


class History:
    """The updates of one run: its start, from the library `start`, and then each decided one."""

    def __init__(
        self, inputs: RunInputs, calls: Calls, client: ReflectionClient, groups: Groups
    ) -> None:
        start = ExperienceLibrary.from_program(inputs.student)
        decision = Decision(start, "the library of the student")
        self.start = start
        self.updates = [Update(0, decision, calls.so_far)]
        self.plan = Planner(inputs, groups.sizes, calls.ledger, self.updates)
        calls.lessons = self._lessons_to_come
        self._inputs, self._settings, self._calls = inputs, inputs.settings, calls
        self._client, self.groups = client, groups
        self.changes = Changes(self._texts)
        self._measured: list[Measured] = []

    def _lessons_to_come(self) -> Amount:
        """The amount that the answers on the batches under way still need: lessons and updates."""
        settings, n = self._settings, 0
        for batch in self.plan.batches[self.latest.number :]:
            n_lessons = math.ceil(len(batch.examples) / settings.groups_per_call)
            n_lessons += sum(batch.sizes.values()) * settings.reflection.summarize_always
            n_first = settings.drafts + settings.n_briefs * len(self._inputs.predictors)
            planned = 1 + (n_first if batch.is_draft else n_lessons)
            n += max(0, planned - self._client.n_asked[batch.update])
        return self.latest.account.per_answer * n

    @property
    def latest(self) -> Update:
        """The latest decided update, or the start."""
        return self.updates[-1]

    @property
    def decision(self) -> Decision:
        """The latest decision."""
        return self.latest.decision

    @cached_property
    def _texts(self) -> tuple[str, ...]:
        """The inputs of each example, and its labels where the reflection LM may see them."""
        examples, shows = self._inputs.examples, self._settings.shows_labels
        return tuple(fields_text({**e.inputs, **e.labels}) if shows else e.text for e in examples)

    def decide(self, batch: Batch, extracted: Extracted, proposed: Applied) -> None:
        """The gate decides on the next update. Raises GateError: it gave no decision."""
        calls, before, new = self._calls, self.latest, extracted.groups
        groups = (*before.groups, *new)
        scores = before.score_range.including(
            r.score for sampled in new for r in sampled.unaided.all_rollouts
        )
        by_metric = before.by_metric.including(
            r.score for sampled in new for r in sampled.by_metric.all_rollouts
        )
        # failures of all groups count as the lowest score so far
        is_other = scores.failure_score != before.score_range.failure_score
        self._measured = [] if is_other else self._measured
        for sampled in groups if is_other else new:  # those that had aid are no evidence
            pairs = zip(sampled.additions, sampled.aids, strict=True)
            counted = floored(sampled.unaided.all_rollouts, scores, for_advice=True)
            for one, score in zip([a for a, aid in pairs if not aid], counted, strict=True):
                example, demo_set, brief = sampled.group.example, one.demo_set, one.brief
                self._measured.append(Measured(one.library, example, score, demo_set, brief))
        rollouts = [r for sampled in new for r in (*sampled.group.all_rollouts, *sampled.probes)]
        rollouts = [] if self._settings.data.is_recorded else rollouts
        n_examples = self.plan.n_usual(batch, [sampled.group.example for sampled in new])
        reflections = self._client.usage[batch.update]
        taken = {brief.texts for brief in before.briefs} | {()}
        written = {brief.texts: brief for brief in proposed.briefs if brief.texts not in taken}
        briefs = (*before.briefs, *written.values())
        n_asked = sum(use in TEACHING for use in extracted.uses)
        is_new = any(isinstance(operation, Add | Modify) for operation in proposed.operations)
        update = Update(
            number=before.number + 1,
            decision=calls.pool.call(lambda: self._decision(proposed, briefs)),
            account=before.account.after_update(rollouts, reflections, n_examples),
            batch=batch,
            extracted=extracted,
            best=best_rollouts(sampled.unaided for sampled in groups),
            score_range=scores,
            by_metric=by_metric,
            n_in_vain=0 if is_new else before.n_in_vain + n_asked,
            groups=groups,
            briefs=briefs,
            n_unwritten=before.n_unwritten + len(proposed.briefs) - len(written),
        )
        self.updates.append(update)
        calls.renew()
        library, decision = before.decision.library, update.decision
        changes = self.changes.of_update(library, proposed, new, extracted.lessons, decision)
        rows, record = training_rows(batch.update, new), record_of(update, proposed, changes)
        calls.report.add_update(UpdateDecided(record, decision.library, rows))
        calls.journal.note_update(Additions(self.result()), record, rows, calls.ledger)

    @property
    def switched(self) -> tuple[str, ...]:
        """What strategies have switched on and off by themselves, by the decided updates."""
        is_auto = any(isinstance(one, Auto) for one in self._settings.strategies)
        has_hints = needs_hints(self.latest.groups) and self._settings.shows_labels
        on = {"TieredHints": has_hints, "Objectives": unlike_spreads(self.groups.first or ())}
        messages = [f"auto: {name} is on" for name, why in on.items() if is_auto and why]
        return (*messages, *sorted(self.groups.switched_off.values()))

    def _decision(self, proposed: Applied, briefs: Sequence[Brief]) -> Decision:
        """The gate's decision, with the evidence of all KEEPs."""
        evidence = RunEvidence(
            previous=self.decision,
            operations=proposed.operations,
            rollouts=tuple(self._measured),
            texts=self._texts,
            training=self._inputs.training,
            limits=self._settings.limits,
            n_demo_sets=self.groups.demos.n_sets,
            parents=tuple(brief.parent for brief in briefs),
        )
        decision: Decision = self.groups.ask_gate(
            "decide", evidence, "return a Decision on a library"
        )
        keeps = {op.id: op for op in proposed.operations if isinstance(op, Keep)}

        def kept(library: ExperienceLibrary) -> ExperienceLibrary:
            return library.holding(supported(e, keeps.get(e.id, e)) for e in library)

        deployable = decision.deployable and kept(decision.deployable)
        return replace(decision, library=kept(decision.library), deployable=deployable)

    def result(self) -> ExperienceLibrary:
        """The library that a program would get if the run ended here."""
        library = self.latest.briefed(self.decision.result, leading(self.decision))
        return self._like_start(library)

    def finalists(self) -> list[ExperienceLibrary]:
        """The libraries that are compared with the student at the end. Raises GateError."""
        proposed: Sequence[ExperienceLibrary] = (self.decision.result,)
        wanted = "return a sequence of libraries"
        with suppress(RunStopped):  # it hangs
            ask = partial(self.groups.ask_gate, "finalists", self.decision, wanted)
            proposed = self._calls.pool.call(ask)
        if not self.latest.account.n_rollouts:  # of rollouts made elsewhere none has tried it
            proposed = (*proposed, self.decision.consistent)
        return [self._like_start(library) for library in proposed]

    def _like_start(self, library: ExperienceLibrary) -> ExperienceLibrary:
        """The library; if it has the student's experiences, also with the student's next free id.

        Then nothing appears changed: ids retired since were never in a program.
        """
        is_like = list(library) == list(self.start) and library.briefs == self.start.briefs
        return self.start.holding(library) if is_like else library

    @property
    def score_sd(self) -> float:
        """The standard deviation of the training scores."""
        return score_sd([one.score for one in self._measured if one.score is not None])

    def dropped(self) -> list[Lesson]:
        """The advice that was tried and is in the library no more, the most tried first."""
        library = self.decision.library
        held = {experience.advice for experience in library}
        beliefs = sorted(self.decision.beliefs.items(), key=lambda item: -item[1].n_rollouts)
        id_of = {e.advice: e.id for update in self.updates for e in update.decision.library}
        lessons = []
        for advice, belief in beliefs:
            if belief.n_rollouts and advice not in held:
                did = "did harm" if belief.mean + belief.sd < 0 else "did not help enough"
                reason = f"{did}: {belief.in_words()}"
                if (id_ := id_of.get(advice)) in library:
                    reason = f"replaced by {id_}"
                elif belief.n_rollouts < LEAST_SHOWN:
                    reason = "hardly tried"
                lessons.append(Lesson(advice[0], advice[1], reason=reason))
        return lessons
