"""Asks the strategies of a run, in their order; what one of them gives is checked.

A mistake of a strategy is counted, and costs that one answer only: the run goes on with what the
strategy was given; where rewards are missing, the rollouts have no score. Choices that fail in the
first three batches, and rewards that fail in the first, end the run. Without strategies nothing
here does anything.
"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import dspy
from pydantic import TypeAdapter

from tfgrpo_dspy import errors
from tfgrpo_dspy.calls.paid import NO_MORE, Calls, Rollouts, Sample
from tfgrpo_dspy.calls.reflections import ReflectionClient
from tfgrpo_dspy.experience import Add, Delete, Keep, Modify
from tfgrpo_dspy.identity import digest
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.rollout import (
    MOST,
    Failure,
    FailureKind,
    Group,
    Rollout,
    number_of,
    rollout_id_for,
)
from tfgrpo_dspy.run.updates import Batch
from tfgrpo_dspy.sampling.additions import SampledGroup
from tfgrpo_dspy.sampling.one_rollout import Start
from tfgrpo_dspy.settings.schedule import MIN_GROUP_SIZE, RunSettings
from tfgrpo_dspy.strategies import base
from tfgrpo_dspy.strategies.auto import credited_in_vain, may_be_credited, rescued_in_vain
from tfgrpo_dspy.tasks.pool import Pool, Priority
from tfgrpo_dspy.text import printable
from tfgrpo_dspy.user_code import check_wanted

MOST_ATTEMPTS = 16  # extra rollouts of one group
MOST_FAILURES = 3  # of a choice that has never worked
PROPOSED = TypeAdapter(base.Proposed)


@dataclass
class Player:
    """`strategies.base.Play` for one group; `played` are its rollouts, by their ids."""

    settings: RunSettings
    pool: Pool
    sampler: Rollouts | None  # None if the group comes from traces: it gets no more rollouts
    priority: Priority
    sampled: SampledGroup
    visit: int  # how many batches had its example before
    asks_predictors: bool
    reward: Callable[[Sequence[Rollout]], list[Rollout]]  # with what they count with
    played: dict[int, Rollout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = [rollout.rollout_id for rollout in self.sampled.group.all_rollouts]
        self._additions = dict(zip(ids, self.sampled.additions, strict=True))

    def __call__(
        self, rollout: Rollout, n_steps: int, n: int = 1, *, answers_now: bool = False
    ) -> list[Rollout]:
        """The first `n` rollouts that go on from there. Raises NotReplayedError, UnpaidError."""
        group, source_id = self.sampled.group, rollout.rollout_id
        most = len(rollout.steps) - (not answers_now)
        if source_id not in self._additions or not 0 <= n_steps <= most or n < 1:
            raise errors.StrategyError(
                f"play(rollout {source_id}, n_steps={n_steps}, n={n}): pass a rollout of the "
                f"group, or one that play gave; from 0 to {most} steps; n from 1."
            )
        if self.sampler is None:
            raise errors.NotReplayedError(f"example {group.example}: rollouts were made elsewhere")
        steps = [asdict(replace(s, value=None)) for s in rollout.steps[:n_steps]]
        purpose = f"from/{source_id}/{answers_now:d}/{digest(steps)}"
        usual = Sample(
            self._additions[source_id],
            group.example,
            source_id,
            self.settings.temperature,
            Start(rollout, n_steps, answers_now),
            self.asks_predictors,
        )
        ids = [
            rollout_id_for(self.settings.seed, self.visit, group.example, k, purpose)
            for k in range(n)
        ]
        self._additions |= dict.fromkeys(ids, usual.additions)
        jobs = self.sampler.begin_extra([replace(usual, rollout_id=i) for i in ids], self.priority)
        if jobs is None:
            raise errors.UnpaidError(f"example {group.example}: {NO_MORE.message}")
        rollouts = [self.pool.result(job) for job in jobs]
        self.played |= {each.rollout_id: each for each in rollouts}
        for each in rollouts:
            if each.failure is not None and each.failure.kind is FailureKind.REPLAY:
                raise errors.NotReplayedError(each.failure.message)
        if self.settings.metric is None:
            return [each for each in rollouts if each.counts]
        score_range = group.score_range.including(group.scores)
        return list(Group.of(group.example, self.reward(rollouts), True, score_range).rollouts)

    def with_beside(self, sampled: SampledGroup, beside: Iterable[Rollout]) -> SampledGroup:
        """The group with further rollouts. Raises StrategyError: one of them was not made here."""

        for rollout in beside:
            wanted = "in Credit.beside only rollouts that `play` gave"
            check(rollout.rollout_id in self.played, rollout, wanted)
        ids = {each.rollout_id for each in sampled.group.all_rollouts}
        more = {each.rollout_id: each for each in beside if each.rollout_id not in ids}

        def joined(group: Group) -> Group:
            every = (*group.all_rollouts, *more.values())
            return replace(group, rollouts=(*group.rollouts, *more.values()), all_rollouts=every)

        return replace(
            sampled,
            group=joined(sampled.group),
            additions=(*sampled.additions, *map(self._additions.__getitem__, more)),
            measured=sampled.measured and joined(sampled.measured),
        )


def check(is_usable: bool, answer: object, wanted: str) -> None:
    """Raise StrategyError, which says what is wanted, unless the answer is usable."""
    if not is_usable:
        raise errors.StrategyError(f"it gave {answer!r:.200}; return {wanted}.")


def check_sizes(sizes: Any, plan: base.BatchPlan) -> None:
    """Raise StrategyError unless a batch can be made of these numbers of rollouts by example."""
    are_numbers = isinstance(sizes, Mapping) and all(type(n) is int for n in sizes.values())
    check(are_numbers, sizes, "a mapping of examples to whole numbers")
    check(bool(sizes) and {*sizes} <= {*plan.training}, dict(sizes), "examples of plan.training")
    least, most = min(MIN_GROUP_SIZE, *plan.sizes.values()), sum(plan.sizes.values())
    is_usable = min(sizes.values()) >= least and sum(sizes.values()) <= most
    check(is_usable, dict(sizes), f"at least {least} rollouts for each example, {most} in all")


def are_scores(values: Sequence[Any], n: int) -> bool:
    """True if these are `n` numbers or None."""
    return len(values) == n and all(v is None or number_of(v) is not None for v in values)


class Strategies:
    """The strategies of one run."""

    def __init__(
        self, strategies: Sequence[base.Strategy], client: ReflectionClient, calls: Calls
    ) -> None:
        self._strategies, self._client = strategies, client
        self._report, self._ledger, self._journal = calls.report, calls.ledger, calls.journal
        self._lock, self._call = calls.pool.lock, calls.pool.call
        self._questions: dict[str, Callable[[], Answer]] = {}
        self._charged: dict[str, int] = {}  # the update that an answer is charged to
        self._hanging: set[tuple[int, str]] = set()  # or asked now
        self.switched_off: dict[tuple[int, str], str] = {}  # with why, in words
        self._outcomes: defaultdict[tuple[int, str], list[bool]] = defaultdict(list)  # did it work?

    def overriding(self, method: str) -> list[base.Strategy]:
        """The strategies that have this method of their own."""
        return [each for each in self._strategies if base.overrides(each, method)]

    def _asked(self, method: str, why_in_vain: str = "") -> list[base.Strategy]:
        """The strategies `overriding` this; none if it is in vain, and the results say why."""
        strategies = self.overriding(method)
        if why_in_vain and strategies:
            names = " and ".join(type(one).__name__ for one in strategies)
            self._switch_off((0, method), f"{names}.{method} is asked no more: {why_in_vain}")
        return [] if why_in_vain else strategies

    def _switch_off(self, key: tuple[int, str], message: str) -> None:
        """Say once that a strategy, or all (0), is not asked for this."""
        if key not in self.switched_off:
            self.switched_off[key] = message
            self._report.count_failure("strategy switched off", message)

    def sizes(self, plan: base.BatchPlan) -> Mapping[int, int]:
        """How many rollouts each example of the batch gets."""
        for strategy in self.overriding("choose"):
            plan = replace(plan, sizes=MappingProxyType(dict(plan.sizes)))
            with self._counting(strategy, "choose", ends=MOST_FAILURES):
                sizes = self._call(partial(strategy.choose, plan))
                check_sizes(sizes, plan)
                plan = replace(plan, sizes=sizes)
        return dict(plan.sizes)

    def attempts(self, context: base.GroupContext, batch: Batch) -> list[base.Attempt]:
        """The extra attempts that the group gets next."""
        why = "no extra attempt of the latest rescued groups was better than the others"
        extra: list[base.Attempt] = []
        for strategy in self._asked("rescue", why * rescued_in_vain(context.past)):
            with self._counting(strategy, "rescue"):
                attempts = list(strategy.rescue(context, self._ask(batch)))
                are_attempts = all(isinstance(one, base.Attempt) for one in attempts)
                check(are_attempts, attempts, "Attempts")
                extra += attempts
        n_extra = len(context.sampled.additions) - batch.size_and_visit(context.group.example)[0]
        return extra[: max(0, MOST_ATTEMPTS - n_extra)]

    def rewarded(
        self,
        rollouts: Sequence[Rollout],
        first: Sequence[Rollout],
        aided: Sequence[bool] | None = None,  # had a hint or a teacher; None: student and result
        is_first: bool = False,  # those of the first batch
    ) -> list[Rollout]:
        """The rollouts with what they count with; where a strategy fails, none has a score."""
        counting = list(rollouts)
        for strategy in self.overriding("reward"):
            key, name = (id(strategy), "reward"), type(strategy).__name__
            if key in self._hanging:
                self._switch_off(key, f"{name}.reward hangs, and is left out")
                continue
            counted = [k for k, rollout in enumerate(counting) if rollout.score is not None]
            rewards: list[float | None] = [None] * len(counted)
            kind = FailureKind.STRATEGY
            with self._counting(strategy, "reward", ends=int(is_first)):
                helped = tuple(bool(aided and aided[k]) for k in counted)
                of_metric = tuple(counting[k] for k in counted)
                scored = base.Scored(of_metric, tuple(first), aided is not None, helped)
                numbers = list(strategy.reward(scored))
                wanted = f"{len(counted)} numbers below {MOST:g}, or None for no score"
                check(are_scores(numbers, len(counted)), numbers, wanted)
                rewards, kind = [number_of(r) for r in numbers], FailureKind.METRIC
            without = Failure(kind, f"{name}.reward gave no score")
            for k, reward in zip(counted, rewards, strict=True):
                failure = without if reward is None else None
                counting[k] = replace(counting[k], score=reward, failure=failure)
        return counting

    def shown(self, context: base.GroupContext, batch: Batch) -> tuple[SampledGroup, str]:
        """The group that the reflection LM compares, and all notes on it."""
        notes = [context.sampled.note]
        for strategy in self.overriding("show"):
            with self._counting(strategy, "show"):
                shown = strategy.show(context, self._ask(batch))
                check(isinstance(shown, base.Shown), shown, "a Shown")
                are_its = all(rollout in context.group.rollouts for rollout in shown.rollouts)
                check(are_its, shown.rollouts, "rollouts of context.group.rollouts")
                group = replace(context.group, rollouts=tuple(shown.rollouts))
                context = replace(context, sampled=replace(context.sampled, group=group))
                notes.append(self._journal.redacted(str(shown.note)).strip())
        return context.sampled, "\n".join(filter(None, notes))

    def credited(self, context: base.GroupContext, batch: Batch, player: Player) -> SampledGroup:
        """The group with values of its steps, if these repeat, and rollouts made for it."""
        past, place = context.past, batch.examples.index(context.group.example)
        in_place = any(base.overrides(one, "choose") for one in self.overriding("credit"))
        is_in_vain = credited_in_vain(past) and not in_place  # of whole rollouts
        pays = may_be_credited(context.group, past, place)
        why, sampled = "hardly any group had a step that decided" * is_in_vain, context.sampled
        for strategy in self._asked("credit", why):
            if not (pays or in_place):
                continue
            with self._counting(strategy, "credit"):
                credit = strategy.credit(context, self._ask(batch), player)
                check(isinstance(credit, base.Credit), credit, "a Credit")
                joined = player.with_beside(sampled, credit.beside)
                n_values = {each.rollout_id: len(each.values) for each in joined.group.rollouts}
                wanted = "values by rollout id, each None or a number, one more than its steps"
                are_usable = isinstance(credit.values, Mapping) and all(
                    are_scores(values, n_values.get(id_, 0))
                    for id_, values in credit.values.items()
                )
                check(are_usable, credit.values, wanted)
                measure = printable(credit.measure)
                rollouts = tuple(
                    each.valued(credit.values.get(each.rollout_id, each.values), measure)
                    for each in joined.group.rollouts
                )
                note = self._journal.redacted(str(credit.note)).strip()
                sampled = replace(joined, group=replace(joined.group, rollouts=rollouts), note=note)
        ids = {rollout.rollout_id for rollout in sampled.group.all_rollouts}
        probes = (rollout for id_, rollout in sorted(player.played.items()) if id_ not in ids)
        return replace(sampled, probes=tuple(probes))

    def proposed(self, context: base.UpdateContext, batch: Batch) -> base.Proposed:
        """The lessons that UpdateLibrary is shown, and the operations beside its own."""
        operations: list[Any] = []
        for strategy in () if batch.is_draft else self.overriding("propose"):
            with self._counting(strategy, "propose"):
                proposed = self._call(partial(strategy.propose, context, self._ask(batch)))
                check(isinstance(proposed, base.Proposed), proposed, "a Proposed")
                are_lessons = all(isinstance(each, Lesson) for each in proposed.lessons)
                check(are_lessons, proposed.lessons, "lessons")
                kinds = Add | Modify | Delete | Keep
                are_operations = all(isinstance(each, kinds) for each in proposed.operations)
                check(are_operations, proposed.operations, "operations")
                proposed = self._journal.cleaned(proposed, PROPOSED)
                context = replace(context, lessons=tuple(proposed.lessons))
                operations += proposed.operations
        return base.Proposed(context.lessons, tuple(operations))

    def _ask(self, batch: Batch) -> base.Ask:
        """Asks the reflection LM; the same question is asked once in the run."""

        def ask(signature: Any, **inputs: Any) -> Mapping[str, Any]:
            asked = dspy.ensure_signature(signature)
            is_signature = isinstance(asked, type) and issubclass(asked, dspy.Signature)
            check(is_signature, signature, "a signature to ask")
            key = json.dumps([repr(signature), inputs], sort_keys=True, default=repr)
            with self._lock:
                if key not in self._questions:
                    begun = self._client.begin_for_strategy(batch, signature, inputs)
                    self._questions[key] = self._client.beside(begun)
                    self._charged[key] = batch.update
            answer = self._questions[key]()
            with self._lock:
                if batch.update < self._charged[key]:  # the first update that needs the answer pays
                    self._client.charge(answer.usage, self._charged[key], batch.update)
                    self._charged[key] = batch.update
            return answer.output if isinstance(answer.output, Mapping) else {}

        return ask

    @contextlib.contextmanager
    def _counting(self, strategy: base.Strategy, method: str, ends: int = 0) -> Iterator[None]:
        """Count what a strategy raises when it is asked, and go on.

        With `ends`, for methods that are asked in a fixed order, so many failures from the first on
        end the run.
        """
        key, outcomes = (id(strategy), method), self._outcomes[id(strategy), method]
        self._hanging.add(key)
        try:
            yield
            outcomes.append(True)
        except (errors.StoreError, errors.RunStopped, KeyboardInterrupt):  # not the strategy's
            raise
        except errors.UnpaidError as error:  # nor is this
            self._report.count_failure("budget", str(error))
        except errors.NotReplayedError as error:
            self._report.count_failure("replay", str(error))
        except BaseException as error:  # noqa: BLE001 - whatever a user's method raises is counted
            check_wanted()
            self._ledger.raised.note(error)
            outcomes.append(False)
            message = f"{type(strategy).__name__}.{method}: {errors.described(error)}"
            self._report.count_failure("strategy", message)
            if 0 < ends <= len(outcomes) and not any(outcomes):
                when = "in the first batch" if ends == 1 else f"in the first {ends} batches"
                why = f"a strategy failed {when}; correct or leave out {message.rstrip('.')}"
                self._ledger.stop(why, is_failure=True)
        finally:
            self._hanging.discard(key)
