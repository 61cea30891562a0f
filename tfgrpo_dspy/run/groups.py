"""Rollouts of a batch become groups: made or recorded, helped by strategies, rewarded, valued."""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace

from tfgrpo_dspy.calls.paid import NO_MORE, Calls, Rollouts, Sample
from tfgrpo_dspy.errors import NotReplayedError, StrategyError, UnpaidError
from tfgrpo_dspy.identity import digest
from tfgrpo_dspy.rollout import NO_SCORES, FailureKind, Group, Rollout, rollout_id_for
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.run.planning import FIRST_ROLLOUTS, N_FIRST, why_unreadable, why_unscored
from tfgrpo_dspy.run.strategy_calls import Strategies, are_scores, check
from tfgrpo_dspy.run.updates import Batch
from tfgrpo_dspy.sampling.additions import Additions, SampledGroup
from tfgrpo_dspy.sampling.one_rollout import Start
from tfgrpo_dspy.settings.checks import policy_lms
from tfgrpo_dspy.settings.schedule import RunInputs
from tfgrpo_dspy.strategies import auto, base
from tfgrpo_dspy.text import printable

TRAINING = 3  # training rollouts are begun last, those of the earlier update first
MOST_ATTEMPTS = 16  # extra rollouts of one group
Waited = Callable[[], SampledGroup]
"""A group that is begun; called, it waits for it."""


class Groups:
    """Makes the groups of one run; `recorded` as in `Run`."""

    def __init__(
        self,
        inputs: RunInputs,
        calls: Calls,
        history: History,
        strategies: Strategies,
        recorded: Sequence[Sequence[Rollout]] | None,
    ) -> None:
        self._inputs, self._settings, self._calls = inputs, inputs.settings, calls
        self._history, self._strategies, self._recorded = history, strategies, recorded
        self._sampler = Rollouts(inputs, calls, "rollout", inputs.examples)
        self._has_first = self._is_tried = self._is_readable = False

    def try_out(self, batch: Batch) -> None:
        """Make the first rollouts of the first batch, once, until one works. Raises RunStopped."""
        if self._is_tried or self._recorded is not None:
            return
        self._is_tried = True
        groups = self._calls.pool.call(lambda: self._samples(batch))
        by_turns = filter(None, itertools.chain(*itertools.zip_longest(*groups)))
        samples = list(itertools.islice(by_turns, FIRST_ROLLOUTS))
        rollouts: list[Rollout] = []
        for wave in filter(None, (samples[:N_FIRST], samples[N_FIRST:])):
            begun = [self._sampler.begin(sample, (TRAINING, batch.update)) for sample in wave]
            if self._calls.is_tight:  # what they take says what may begin besides
                self._calls.pool.until(lambda: all(job.is_done for job in begun))  # noqa: B023
            for rollout in self._calls.pool.as_done(begun):
                kind = rollout.failure and rollout.failure.kind
                if kind is not FailureKind.METRIC and not rollout.is_unreadable:
                    return
            rollouts += [job.result() for job in begun]
            if why := why_unscored(rollouts):
                self._calls.ledger.fail(why)
        self.check_readable(rollouts)

    def check_readable(self, rollouts: Sequence[Rollout]) -> None:
        """End the run where none of its rollouts so far could be read. Raises RunStopped."""
        is_known = self._recorded is not None or self._is_readable
        if not is_known and len(rollouts) >= FIRST_ROLLOUTS:
            if why := why_unreadable(rollouts, policy_lms(self._inputs.student)):
                self._calls.ledger.fail(why)
            self._calls.report.count_without_output(rollouts)
            self._is_readable = True

    def of(self, batch: Batch) -> Sequence[Waited]:
        """A group for each example of the batch, begun now; what is given waits for it.

        They are rewarded and credited, where strategies do that.
        """
        beside, overriding = self._calls.pool.beside, self._strategies.overriding
        groups: list[Waited]
        if self._recorded is None:
            samples = self._calls.pool.call(lambda: self._samples(batch))
            groups = [functools.cache(self._begun(batch, of_group)) for of_group in samples]
        else:
            groups = [functools.partial(self._recorded_group, batch, e) for e in batch.examples]
        rewards = bool(overriding("reward")) and self._settings.metric is not None
        if rewards or overriding("rescue") or overriding("credit"):
            groups = [beside(group) for group in groups]
        if rewards and groups:
            together = beside(functools.partial(self._rewarded, batch, groups))
            groups = [lambda k=k: together()[k] for k in range(len(groups))]  # type: ignore[misc]
        if overriding("credit"):
            groups = [beside(functools.partial(self._credited, batch, group)) for group in groups]
        return groups

    def _recorded_group(self, batch: Batch, example: int) -> SampledGroup:
        """Rollouts that were made elsewhere, and knew nothing of what this run has learned."""
        recorded = self._recorded or ()
        scores = NO_SCORES.including(r.score for of_example in recorded for r in of_example)
        group = Group.of(example, recorded[example], self._settings.metric is not None, scores)
        additions = (Additions(self._history.start),) * len(group.all_rollouts)
        return SampledGroup(group, additions, batch.update)

    def _samples(self, batch: Batch) -> list[list[Sample]]:
        """For each example, one `Sample` for each of its rollouts.

        The first is made as the result will be called, at the program's own temperature: what helps
        at the temperature of the others, which are to differ, may help less there. A gate that
        measures no result has no use for that.
        """
        usual = self._settings.temperature
        at_first = None if self._settings.measures else usual
        return [
            [
                self._sample(batch, example, k, additions, usual if k else at_first)
                for k, additions in enumerate(self._history.assigned(batch, example, size))
            ]
            for example, size in zip(batch.examples, batch.sizes, strict=True)
        ]

    def _sample(
        self,
        batch: Batch,
        example: int,
        k: int,
        additions: Additions,
        temperature: float | str | None,
    ) -> Sample:
        """The sample of rollout `k` of the example's group."""
        _, visit = batch.size_and_visit(example)
        rollout_id = rollout_id_for(self._settings.seed, visit, example, k, "training")
        asks = batch.asks_predictors
        return Sample(additions, example, rollout_id, temperature, asks_predictors=asks)

    def _begun(self, batch: Batch, samples: Sequence[Sample]) -> Waited:
        """Begin these rollouts; what is given waits for their group, with extra attempts.

        It is without rollouts where a limit has ended the training.
        """
        result, priority, example = (
            self._calls.pool.result,
            (TRAINING, batch.update),
            samples[0].example,
        )
        jobs = [self._sampler.begin(sample, priority) for sample in samples]

        def gathered() -> SampledGroup:
            every, latest = list(samples), [result(job) for job in jobs]
            sampled = SampledGroup(Group(example, (), ()), (), batch.update)
            rollouts: list[Rollout] = []
            while any(
                r.failure is None or r.failure.kind is not FailureKind.BUDGET for r in latest
            ):
                rollouts += latest
                has_metric = self._settings.metric is not None
                group = Group.of(example, rollouts, has_metric, batch.base.by_metric)
                additions = tuple(sample.additions for sample in every)
                sampled = SampledGroup(group, additions, batch.update)
                extra = [
                    self._extra(batch, example, k, attempt)
                    for k, attempt in enumerate(self._attempts(batch, sampled), len(every))
                ]
                more = self._sampler.begin_extra(extra, priority) if extra else None
                if more is None:
                    break
                every, latest = [*every, *extra], [result(job) for job in more]
            return sampled

        return gathered

    def _attempts(self, batch: Batch, sampled: SampledGroup) -> list[base.Attempt]:
        """The extra attempts that strategies give the group next."""
        if not self._strategies.overriding("rescue"):
            return []
        context, extra = self._context(batch, sampled), list[base.Attempt]()
        why = "no extra attempt of the latest rescued groups was better than the others"
        for strategy in self._strategies.asked("rescue", why * auto.rescued_in_vain(context.past)):
            with self._strategies.counting(strategy, "rescue"):
                attempts = list(strategy.rescue(context, self._strategies.ask(batch)))
                are_attempts = all(isinstance(one, base.Attempt) for one in attempts)
                check(are_attempts, attempts, "Attempts")
                extra += attempts
        n_extra = len(sampled.additions) - batch.size_and_visit(sampled.group.example)[0]
        return extra[: max(0, MOST_ATTEMPTS - n_extra)]

    def _extra(self, batch: Batch, example: int, k: int, attempt: base.Attempt) -> Sample:
        """The sample of an extra attempt at the example, with the library so far."""
        additions = Additions(batch.base.decision.result, (), attempt.hint, attempt.teacher)
        usual = self._settings.temperature
        warmer = usual if isinstance(usual, str) else max(usual, attempt.temperature)
        return self._sample(batch, example, k, additions, warmer)

    def _context(self, batch: Batch, sampled: SampledGroup) -> base.GroupContext:
        """What strategies know of the group."""
        return base.GroupContext(
            sampled=sampled,
            past=batch.base.groups,
            library=batch.base.decision.result,
            training=self._inputs.training,
            examples=self._inputs.examples,
            shows_labels=self._history.shows_labels,
            group_size=self._settings.group_size,
        )

    def _rewarded(self, batch: Batch, groups: Sequence[Waited]) -> list[SampledGroup]:
        """The groups with what their rollouts count with; those of the first batch come first."""
        sampled_groups = [group() for group in groups]
        rollouts = [rollout for sampled in sampled_groups for rollout in sampled.group.all_rollouts]
        is_first = batch.update == self._history.plan.n_drafts
        if is_first:
            self._history.first = tuple(r for r in rollouts if r.score is not None)
            self._has_first = True
            self._calls.pool.wake()
        self._calls.pool.until(lambda: self._has_first)
        aided = [bool(aid) for sampled in sampled_groups for aid in sampled.aids]
        rewarded = iter(self._strategies.rewarded(rollouts, self._history.first, aided, is_first))
        return [
            replace(
                sampled,
                group=Group.of(
                    sampled.group.example,
                    list(itertools.islice(rewarded, len(sampled.additions))),
                    True,
                    batch.base.score_range,
                ),
                measured=sampled.group,
            )
            for sampled in sampled_groups
        ]

    def _credited(self, batch: Batch, waited: Waited) -> SampledGroup:
        """The group with values of its steps, if these repeat, and rollouts made for it."""
        if not (sampled := waited()).additions:  # a limit has ended the training
            return sampled
        context, example = self._context(batch, sampled), sampled.group.example
        past, crediting = context.past, self._strategies.overriding("credit")
        in_place = any(base.overrides(one, "choose") for one in crediting)  # of whole rollouts
        is_in_vain = auto.credited_in_vain(past) and not in_place
        why = "hardly any group had a step that decided" * is_in_vain
        asked = self._strategies.asked("credit", why)
        if not (
            in_place or auto.may_be_credited(sampled.group, past, batch.examples.index(example))
        ):
            return sampled
        ids = [rollout.rollout_id for rollout in sampled.group.all_rollouts]
        additions, played = dict(zip(ids, sampled.additions, strict=True)), dict[int, Rollout]()
        play = functools.partial(self._played, batch, sampled.group, additions, played)
        for strategy in asked:
            with self._strategies.counting(strategy, "credit"):
                credit = strategy.credit(context, self._strategies.ask(batch), play)
                check(isinstance(credit, base.Credit), credit, "a Credit")
                are_played = all(rollout.rollout_id in played for rollout in credit.beside)
                check(are_played, credit.beside, "in Credit.beside only rollouts that `play` gave")
                ids = [rollout.rollout_id for rollout in sampled.group.all_rollouts]
                new = {r.rollout_id: r for r in credit.beside if r.rollout_id not in ids}
                joined = sampled.with_more([*new.values()], [additions[id_] for id_ in new])
                sampled = self._valued(joined, credit)
        ids = [rollout.rollout_id for rollout in sampled.group.all_rollouts]
        probes = (rollout for id_, rollout in sorted(played.items()) if id_ not in ids)
        return replace(sampled, probes=tuple(probes))

    def _valued(self, sampled: SampledGroup, credit: base.Credit) -> SampledGroup:
        """The group with the values of a strategy, and its note. Raises StrategyError."""
        values_of, rollouts = credit.values, sampled.group.rollouts
        n_values = {rollout.rollout_id: len(rollout.values) for rollout in rollouts}
        are_usable = isinstance(values_of, Mapping) and all(
            are_scores(values, n_values.get(id_, 0)) for id_, values in values_of.items()
        )
        wanted = "values by rollout id, each None or a number, one more than its steps"
        check(are_usable, values_of, wanted)
        measure = printable(credit.measure)
        valued = (r.valued(values_of.get(r.rollout_id, r.values), measure) for r in rollouts)
        note = self._calls.journal.redacted(str(credit.note)).strip()
        return replace(sampled, group=replace(sampled.group, rollouts=tuple(valued)), note=note)

    def _played(
        self,
        batch: Batch,
        group: Group,
        additions: dict[int, Additions],  # by rollout id; further ones are added
        played: dict[int, Rollout],  # the same
        rollout: Rollout,
        n_steps: int,
        n: int = 1,
        *,
        answers_now: bool = False,
    ) -> list[Rollout]:
        """`strategies.base.Play`: the first `n` rollouts that go on from there.

        Raises NotReplayedError, UnpaidError, StrategyError.
        """
        source_id, example = rollout.rollout_id, group.example
        most = len(rollout.steps) - (not answers_now)
        if source_id not in additions or not 0 <= n_steps <= most or n < 1:
            raise StrategyError(
                f"play(rollout {source_id}, n_steps={n_steps}, n={n}): pass a rollout of the "
                f"group, or one that play gave; from 0 to {most} steps; n from 1."
            )
        if self._recorded is not None:
            raise NotReplayedError(f"example {example}: rollouts were made elsewhere")
        steps = [asdict(replace(step, value=None)) for step in rollout.steps[:n_steps]]
        purpose = f"from/{source_id}/{answers_now:d}/{digest(steps)}"
        start, seed = Start(rollout, n_steps, answers_now), self._settings.seed
        _, visit = batch.size_and_visit(example)
        ids = [rollout_id_for(seed, visit, example, k, purpose) for k in range(n)]
        additions |= dict.fromkeys(ids, additions[source_id])
        usual = self._sample(batch, example, 0, additions[source_id], self._settings.temperature)
        samples = [replace(usual, rollout_id=id_, start=start) for id_ in ids]
        jobs = self._sampler.begin_extra(samples, (TRAINING, batch.update))
        if jobs is None:
            raise UnpaidError(f"example {example}: {NO_MORE.message}")
        rollouts = [self._calls.pool.result(job) for job in jobs]
        played |= {new.rollout_id: new for new in rollouts}
        for failure in [new.failure for new in rollouts if new.failure is not None]:
            if failure.kind is FailureKind.REPLAY:
                raise NotReplayedError(failure.message)
        if self._settings.metric is None:
            return [new for new in rollouts if new.counts]
        rewarded = self._strategies.rewarded(rollouts, self._history.first)
        score_range = group.score_range.including(group.scores)
        return list(Group.of(example, rewarded, True, score_range).rollouts)

    def shown(self, batch: Batch, sampled: SampledGroup) -> tuple[SampledGroup, str]:
        """The rollouts of the group that the reflection LM compares, and all notes on it."""
        context, notes = self._context(batch, sampled), [sampled.note]
        for strategy in self._strategies.overriding("show"):
            with self._strategies.counting(strategy, "show"):
                shown = strategy.show(context, self._strategies.ask(batch))
                check(isinstance(shown, base.Shown), shown, "a Shown")
                are_its = all(rollout in context.group.rollouts for rollout in shown.rollouts)
                check(are_its, shown.rollouts, "rollouts of context.group.rollouts")
                group = replace(context.group, rollouts=tuple(shown.rollouts))
                context = replace(context, sampled=replace(context.sampled, group=group))
                notes.append(self._calls.journal.redacted(str(shown.note)).strip())
        return context.sampled, "\n".join(filter(None, notes))
