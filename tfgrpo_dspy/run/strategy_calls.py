"""Asks the strategies of a run, in their order; what one of them gives is checked.

A mistake of a strategy is counted, and costs that one answer only: the run goes on with what the
strategy was given; where rewards are missing, the rollouts have no score. Choices that fail in the
first three batches, and rewards that fail in the first, end the run. Without strategies nothing
here does anything.
"""

import contextlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

import dspy
from pydantic import TypeAdapter

from tfgrpo_dspy import errors
from tfgrpo_dspy.calls.paid import Calls
from tfgrpo_dspy.calls.reflections import ReflectionClient
from tfgrpo_dspy.experience import Add, Delete, Keep, Modify
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.rollout import MOST, Failure, FailureKind, Rollout, number_of
from tfgrpo_dspy.run.updates import Batch
from tfgrpo_dspy.settings.schedule import MIN_GROUP_SIZE
from tfgrpo_dspy.strategies import base
from tfgrpo_dspy.user_code import check_wanted

MOST_FAILURES = 3  # of a choice that has never worked
PROPOSED = TypeAdapter(base.Proposed)


def check(is_usable: bool, answer: object, wanted: str) -> None:
    """Raise StrategyError, which says what is wanted, unless the answer is usable."""
    if not is_usable:
        raise errors.StrategyError(f"it gave {answer!r:.200}; return {wanted}.")


def are_scores(values: Sequence[Any], n: int) -> bool:
    """True if these are `n` numbers or None."""
    return len(values) == n and all(v is None or number_of(v) is not None for v in values)


class Strategies:
    """The strategies of one run."""

    def __init__(
        self, strategies: Sequence[base.Strategy], client: ReflectionClient, calls: Calls
    ) -> None:
        self._strategies, self._client, self._calls = strategies, client, calls
        self._questions: dict[str, Callable[[], Answer]] = {}
        self._charged: dict[str, int] = {}  # the update that an answer is charged to
        self._hanging: set[tuple[int, str]] = set()  # or asked now
        self.switched_off: dict[tuple[int, str], str] = {}  # with why, in words
        self._outcomes: defaultdict[tuple[int, str], list[bool]] = defaultdict(list)  # did it work?

    def overriding(self, method: str) -> list[base.Strategy]:
        """The strategies that have this method of their own."""
        return [strategy for strategy in self._strategies if base.overrides(strategy, method)]

    def asked(self, method: str, why_in_vain: str) -> list[base.Strategy]:
        """The strategies `overriding` this; none if it is in vain, and the results say why."""
        strategies = self.overriding(method)
        if not why_in_vain:
            return strategies
        names = " and ".join(type(strategy).__name__ for strategy in strategies)
        self._switch_off((0, method), f"{names}.{method} is asked no more: {why_in_vain}")
        return []

    def _switch_off(self, key: tuple[int, str], message: str) -> None:
        """Say once that a strategy, or all (0), is not asked for this."""
        if key not in self.switched_off:
            self.switched_off[key] = message
            self._calls.report.count_failure("strategy switched off", message)

    def sizes(self, plan: base.BatchPlan) -> dict[int, int]:
        """How many rollouts each example of the batch gets."""
        for strategy in self.overriding("choose"):
            plan = replace(plan, sizes=MappingProxyType(dict(plan.sizes)))
            with self.counting(strategy, "choose", ends=MOST_FAILURES):
                sizes: Any = self._calls.pool.call(partial(strategy.choose, plan))
                are_sizes = isinstance(sizes, Mapping) and {*map(type, sizes.values())} == {int}
                check(are_sizes, sizes, "a mapping of examples to whole numbers")
                check({*sizes} <= {*plan.training}, dict(sizes), "examples of plan.training")
                least, most = min(MIN_GROUP_SIZE, *plan.sizes.values()), sum(plan.sizes.values())
                is_right = min(sizes.values()) >= least and sum(sizes.values()) <= most
                wanted = f"at least {least} rollouts for each example, {most} in all"
                check(is_right, dict(sizes), wanted)
                plan = replace(plan, sizes=sizes)
        return dict(plan.sizes)

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
            with self.counting(strategy, "reward", ends=int(is_first)):
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

    def proposed(self, context: base.UpdateContext, batch: Batch) -> base.Proposed:
        """The lessons that UpdateLibrary is shown, and the operations beside its own."""
        operations: list[Any] = []
        for strategy in () if batch.is_draft else self.overriding("propose"):
            with self.counting(strategy, "propose"):
                work = partial(strategy.propose, context, self.ask(batch))
                proposed = self._calls.pool.call(work)
                check(isinstance(proposed, base.Proposed), proposed, "a Proposed")
                parts = (
                    (proposed.lessons, Lesson),
                    (proposed.operations, Add | Modify | Delete | Keep),
                )
                for values, kind in parts:
                    are_right = all(isinstance(value, kind) for value in values)
                    check(are_right, values, "lessons, and operations")
                proposed = self._calls.journal.cleaned(proposed, PROPOSED)
                context = replace(context, lessons=tuple(proposed.lessons))
                operations += proposed.operations
        return base.Proposed(context.lessons, tuple(operations))

    def ask(self, batch: Batch) -> base.Ask:
        """Asks the reflection LM; the same question is asked once in the run."""

        def ask(signature: Any, **inputs: Any) -> Mapping[str, Any]:
            asked = dspy.ensure_signature(signature)
            is_signature = isinstance(asked, type) and issubclass(asked, dspy.Signature)
            check(is_signature, signature, "a signature to ask")
            key = json.dumps([repr(signature), inputs], sort_keys=True, default=repr)
            with self._calls.pool.lock:
                if key not in self._questions:
                    begun = self._client.begin_for_strategy(batch, signature, inputs)
                    self._questions[key] = self._client.beside(begun)
                    self._charged[key] = batch.update
            answer = self._questions[key]()
            with self._calls.pool.lock:
                if batch.update < self._charged[key]:  # the first update that needs the answer pays
                    self._client.charge(answer.usage, self._charged[key], batch.update)
                    self._charged[key] = batch.update
            return answer.output if isinstance(answer.output, Mapping) else {}

        return ask

    @contextlib.contextmanager
    def counting(self, strategy: base.Strategy, method: str, ends: int = 0) -> Iterator[None]:
        """Count what a strategy raises when it is asked, and go on.

        With `ends`, for methods that are asked in a fixed order, so many failures from the first on
        end the run.
        """
        key, outcomes = (id(strategy), method), self._outcomes[id(strategy), method]
        ledger, count_failure = self._calls.ledger, self._calls.report.count_failure
        self._hanging.add(key)
        try:
            yield
            outcomes.append(True)
        except (errors.StoreError, errors.RunStopped, KeyboardInterrupt):  # not the strategy's
            raise
        except errors.UnpaidError as error:  # nor is this
            count_failure("budget", str(error))
        except errors.NotReplayedError as error:
            count_failure("replay", str(error))
        except BaseException as error:  # noqa: BLE001 - whatever a user's method raises is counted
            check_wanted()
            ledger.raised.append(error)
            outcomes.append(False)
            message = f"{type(strategy).__name__}.{method}: {errors.described(error)}"
            count_failure("strategy", message)
            if 0 < ends <= len(outcomes) and not any(outcomes):
                when = "in the first batch" if ends == 1 else f"in the first {ends} batches"
                why = f"a strategy failed {when}; correct or leave out {message.rstrip('.')}"
                ledger.stop(why, is_failure=True)
        finally:
            self._hanging.discard(key)
