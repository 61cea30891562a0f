"""A probe: attempts on a few examples of the first batch, bare, with demos, with drafted advice.

They have the keys of a run's first rollouts, so a compile with the same `log_dir` uses them again.
"""

import asyncio
import functools
import itertools
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tfgrpo_dspy.budget.ledger import Budget, Ledger
from tfgrpo_dspy.budget.meter import Meter
from tfgrpo_dspy.budget.unseen import judging
from tfgrpo_dspy.calls.paid import Calls
from tfgrpo_dspy.calls.reflections import ReflectionClient
from tfgrpo_dspy.calls.rollouts import Rollouts, Sample
from tfgrpo_dspy.errors import MetricError, RunFailedError, RunStopped
from tfgrpo_dspy.experience.programs import copy_to_change
from tfgrpo_dspy.experience.values import Add
from tfgrpo_dspy.group import Group, floored
from tfgrpo_dspy.metric import Score, ScoringFunction
from tfgrpo_dspy.results.page import FAILURES_IN_WORDS
from tfgrpo_dspy.results.probe import FEWEST, Probe, predicted
from tfgrpo_dspy.results.records import Gain, Scale, ScoreSummary
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.run.endings import N_FIRST, why_unscored
from tfgrpo_dspy.run.groups import training_sample
from tfgrpo_dspy.run.history import History
from tfgrpo_dspy.run.proposing import Guards
from tfgrpo_dspy.run.reflecting import Reflector
from tfgrpo_dspy.run.strategy_calls import Strategies
from tfgrpo_dspy.run.updates import Batch
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.scores import NO_SCORES, mean_of
from tfgrpo_dspy.settings.plan import plan_of
from tfgrpo_dspy.settings.run_inputs import RunInputs
from tfgrpo_dspy.store.run_records import RunRecords
from tfgrpo_dspy.wording import counted

MOST_CALLS, N_DRAFTS, N_PAIRS, N_TWICE, PRIORITY = 40, 3, 5, 4, (3,)
BARE, DEMOS, ADVICE = "bare", "demos", "advice"
UNSEEN = ("advice not shown", "no LM call")  # failures of a program that advice cannot help
Heard = tuple[Any, Any, Any, Score]  # what a metric was given, and what it gave
Key = tuple[str, int, int]  # what an attempt has, its example, its place among these


class _Ledger(Ledger):
    """A ledger that keeps nothing for the end: a probe measures no result."""

    def set_reserve(self, reserve: Budget, n_lessons: int = 0) -> None:
        """Nothing is kept."""


@dataclass(frozen=True, slots=True)
class _Heard(ScoringFunction):
    """The metric, with what it was asked, so that it can be asked again."""

    heard: list[Heard] = field(default_factory=list)

    def __call__(self, example: Any, prediction: Any, program_trace: Any) -> Score:
        score = ScoringFunction.__call__(self, example, prediction, program_trace)
        self.heard.append((example, prediction, program_trace, score))
        return score


class Prober:
    """Makes the attempts of one probe."""

    def __init__(self, inputs: RunInputs) -> None:
        settings, student = inputs.settings, inputs.student
        most = min(MOST_CALLS, settings.max_lm_calls or MOST_CALLS)
        ledger = _Ledger(replace(settings.budget, max_lm_calls=most))
        self._plan = plan_of(settings).total.likely
        drafts = min(N_DRAFTS, settings.drafts)
        settings = replace(settings, strategies=(), progress=False, drafts=drafts)
        self._settings = settings
        records = RunRecords(settings, student, inputs.trainset)
        self._calls = calls = Calls(settings, records, ledger)
        inputs = replace(inputs, settings=settings, student=copy_to_change(student))
        self._examples = inputs.examples
        client = ReflectionClient(inputs, calls)
        self._reflector = Reflector(inputs, client, Guards(inputs, calls.report))
        self._history = History(inputs, calls, client, Strategies((), client, calls))
        self._heard: _Heard | None = None
        self._sampler = Rollouts(inputs, calls, "rollout", inputs.examples)
        if metric := self._sampler.score:
            asked = {each.name: getattr(metric, each.name) for each in fields(metric)}
            self._sampler.score = self._heard = _Heard(**asked)
        self._advice: Additions | None = None
        self._rollouts: dict[Key, Rollout] = {}
        self._twice: list[tuple[float, float]] = []

    def probe(self) -> Probe:
        """What the probe found; what a limit cut short is left out. Raises RunFailedError."""
        calls = self._calls
        try:
            with suppress(RunStopped):
                calls.loop.run(self._all())
            if calls.ledger.is_failure:
                why, ledger = calls.ledger.stopped_because, calls.ledger
                raise RunFailedError(why) from ledger.raised.cause_of(why, ledger.clean)
        finally:
            calls.ledger.stop("the probe is over")
            calls.records.close()
            calls.report.close()
        return self._summary()

    async def _all(self) -> None:
        history, settings = self._history, self._settings
        examples = tuple(history.plan.order(0)[: MOST_CALLS // 2])
        batch = Batch(
            history.plan.n_drafts,
            history.latest,
            examples=examples,
            sizes=(settings.group_size,) * len(examples),
            visits=(0,) * len(examples),
            asks_predictors=history.plan.asks_predictors(history.latest),
        )
        first = [next(self._samples(batch, each, N_PAIRS, None)) for each in examples[:N_FIRST]]
        await self._make(dict(first[:1]))  # alone: what it takes says how many may begin at once
        await self._try_metric(dict(first))
        self._advice = advice = await self._drafted()
        n_pairs = N_PAIRS if advice or self._has_demos else MOST_CALLS
        samples = {
            key: sample
            for place, example in enumerate(batch.examples)
            for key, sample in self._samples(batch, example, n_pairs - place, advice)
            if key not in self._rollouts
        }
        usages = (r.usage + r.metric_usage for r in self._rollouts.values())
        dearest = max([1, *(used.n_answers for used in usages)])
        is_judged = any(rollout.metric_usage.n_answers for rollout in self._rollouts.values())
        fitting = int(self._calls.ledger.left("max_lm_calls") - N_TWICE * is_judged) // dearest
        await self._make(dict(itertools.islice(samples.items(), max(0, fitting))))
        await self._score_again(N_TWICE if is_judged else MOST_CALLS)

    @property
    def _has_demos(self) -> bool:
        return bool(self._history.demos.choose(1, (), frozenset()))

    async def _try_metric(self, first: Mapping[Key, Sample]) -> None:
        """Make the other first attempts if the metric failed so far. Raises RunStopped: on all."""
        if len(first) == N_FIRST and why_unscored([*self._rollouts.values()]):
            await self._make({k: v for k, v in first.items() if k not in self._rollouts})
            if why := why_unscored([*self._rollouts.values()]):
                self._calls.ledger.fail(why)

    async def _drafted(self) -> Additions | None:
        """The library of all drafted lessons; None: there are none."""
        n_drafts, limits = self._settings.drafts, self._settings.limits
        if not n_drafts or self._calls.ledger.left("max_lm_calls") < n_drafts:
            return None
        drafts = Batch(0, self._history.latest, is_draft=True)
        extracted = await self._reflector.draft(drafts, takes_all=True)
        added = [Add(text=each.text, scope=each.scope) for each in extracted.lessons]
        return Additions(self._history.start.apply(added, limits)) if added else None

    def _samples(
        self, batch: Batch, example: int, n_pairs: int, advice: Additions | None
    ) -> Iterator[tuple[Key, Sample]]:
        """An attempt without demos, one with, one with advice; for some, a second one without."""
        size, _ = batch.size_and_visit(example)
        assigned = self._history.assigned(batch, example, size)
        with_demos = [k for k in range(size) if assigned[k].demos]
        bare = [*[k for k in range(size) if not assigned[k].demos], *with_demos]
        start = Additions(self._history.start)
        wanted = [(BARE, k, start) for k in bare[: 1 + (n_pairs > 0)]]
        k = (with_demos or bare)[0]
        set_ = max(1, assigned[k].demo_set)  # as the run will show it
        hidden = {self._examples[example].identity}
        if demos := self._history.demos.choose(set_, (), hidden):
            wanted.append((DEMOS, k, replace(start, demos=demos, demo_set=set_)))
        if advice:
            wanted.append((ADVICE, bare[0], advice))
        for n, (kind, k, additions) in enumerate(wanted):
            sample = training_sample(self._settings, batch, example, k, additions)
            yield (kind, example, n), sample

    async def _make(self, samples: Mapping[Key, Sample]) -> None:
        """Make these; what is finished when a limit is reached counts."""

        async def make(key: Key, sample: Sample) -> None:
            (self._rollouts[key],) = await self._sampler.make([sample], PRIORITY)

        pairs = samples.items()
        await asyncio.gather(*(self._calls.loop.spawn(make(key, one)) for key, one in pairs))

    async def _score_again(self, n: int) -> None:
        """Score `n` outputs a second time; an answer from a cache would say nothing."""
        if (metric := self._heard) is None:
            return

        async def again(heard: Heard) -> None:
            self._calls.ledger.take_metric_call()
            with suppress(MetricError):
                await self._calls.loop.in_thread(functools.partial(self._again, metric, heard))

        outputs = sorted(metric.heard, key=str)[:n]
        await asyncio.gather(*(self._calls.loop.spawn(again(heard)) for heard in outputs))

    def _again(self, metric: _Heard, heard: Heard) -> None:
        example, prediction, program_trace, before = heard
        meter = Meter(self._calls.ledger, self._settings.execution.prices or {})
        with judging(meter, cache=False):
            after = metric(example, prediction, program_trace)
        if not meter.usage.n_cached_calls:
            self._twice.append((before.value, after.value))

    # ---- what was found
    def _summary(self) -> Probe:
        has_metric, ledger = self._settings.metric is not None, self._calls.ledger
        bare: dict[int, list[Rollout]] = {}
        for (kind, example, _), rollout in self._rollouts.items():
            if kind == BARE:
                bare.setdefault(example, []).append(rollout)
        scale = NO_SCORES.including(rollout.score for rollout in self._rollouts.values())
        if scale.lowest == scale.highest == 0:  # of 1, as most metrics are: a failure is a 0, too
            scale = scale.including([1.0])
        groups = [Group.of(example, each, has_metric, scale) for example, each in bare.items()]
        pairs = [group for group in groups if len(group.rollouts) > 1]
        scores = [score for group in groups for score in group.scores]
        means = [mean_of(group.scores) for group in groups] if scores else []
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        failed = [r for r in rollouts if r.score is not None and r.score < max(scores)]
        differ = [g.has_contrast if has_metric else _differ(g.rollouts) for g in pairs]
        bounds = (scale.lowest, scale.highest)
        counted_as = floored([*self._rollouts.values()], scale) if has_metric else []
        score_of = dict(zip(self._rollouts, counted_as, strict=has_metric))
        demos, advice = (_effect(kind, score_of, bounds) for kind in (DEMOS, ADVICE))
        noise = self._noise(scores)
        chance, gain = predicted(scores, noise, demos, advice)
        return Probe(
            n_lm_calls=ledger.n_lm_calls,
            n_examples=len(groups),
            n_attempts=len(rollouts),
            student=ScoreSummary.of(means, bounds),
            differing=mean_of(differ),
            best_of_two=mean_of([max(group.scores) for group in pairs if group.scores]),
            noise=noise,
            with_words=mean_of([bool(r.words or r.failure) for r in failed]),
            demos=demos,
            advice=advice,
            chance=chance,
            gain=gain,
            run_calls=self._plan.n_lm_calls,
            run_cost=self._plan.cost,
            unknown=(*self._why_unforetold(scores, chance), *self._why_unshown()),
        )

    def _noise(self, scores: Sequence[float]) -> float | None:
        if not self._twice or len(set(scores)) < 2:
            return None
        noise = statistics.fmean((a - b) ** 2 / 2 for a, b in self._twice)
        return min(1.0, noise / statistics.pvariance(scores))

    def _why_unforetold(self, scores: Sequence[float], chance: float | None) -> Iterator[str]:
        """What the scores do not say, beside what there is to learn."""
        every = {r.score for r in self._rollouts.values() if r.score is not None}
        failures = [r.failure.message for r in self._rollouts.values() if r.failure]
        if self._settings.metric is None:
            yield "there is no metric, and so no score"
        elif not scores:
            why = next(iter(failures), self._calls.ledger.stopped_because)
            yield f"no attempt has a score: {why}"
        elif len(scores) < FEWEST:
            yield f"only {counted(len(scores), 'attempt')} without additions have a score"
        elif len(every) == len(set(scores)) == 1:
            yield "all attempts have the same score: nobody knows whether there is a better one"
        elif min(scores) < 0 or max(scores) > 1:
            yield "scores are not between 0 and 1: nobody knows how much is left to gain"
        elif not self._twice:
            yield "no output was scored twice: a limit, a cache, a replay or a process prevented it"
        elif chance is None:
            yield "most of what scores differ by is noise, and says nothing"

    def _why_unshown(self) -> Iterator[str]:
        """What of demos and advice was not tried, and why."""
        is_labelled = any(example.labels for example in self._examples)
        if not is_labelled:
            yield "no example has labels that could be shown"
        if is_labelled and not self._has_demos:
            yield f"no labels could be shown as demos (max_demos={self._settings.max_demos})"
        if is_labelled and self._advice is None:
            yield f"no advice was drafted from labels ({counted(self._settings.drafts, 'call')})"
        unseen = [kind for kind in UNSEEN if self._calls.report.failures[kind]]
        yield from (f"what advice does is not seen: {FAILURES_IN_WORDS[kind]}" for kind in unseen)


def _differ(rollouts: Sequence[Rollout]) -> bool:
    return len({rollout.answer for rollout in rollouts}) > 1


def _effect(kind: str, score_of: Mapping[Key, float | None], scale: Scale) -> Gain | None:
    """The mean change of the score by demos or advice, against one bare attempt each."""
    examples = [example for has, example, _ in score_of if has == kind]
    after = [score for (has, _, _), score in score_of.items() if has == kind]
    return Gain.between([score_of.get((BARE, example, 0)) for example in examples], after, scale)
