"""Rollouts of a batch become groups, as gate and strategies decide: made, helped, rewarded, valued.

What a strategy gives is checked. A mistake of one is counted, and costs that one answer only: the
run goes on with what the strategy was given; where rewards are missing, the rollouts have no score.
Choices that fail in the first three batches, and rewards that fail in the first, end the run.
"""

import contextlib
import functools
import itertools
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import dspy
from pydantic import TypeAdapter

from tfgrpo_dspy import errors
from tfgrpo_dspy.calls import NO_MORE, Calls, Rollouts, Sample
from tfgrpo_dspy.calls.reflections import ReflectionClient
from tfgrpo_dspy.errors import GateError, NotReplayedError, StrategyError, UnpaidError
from tfgrpo_dspy.experience import ExperienceLibrary, Operation
from tfgrpo_dspy.gate.bayesian import Decision, GroupPlan
from tfgrpo_dspy.reflection.lessons import Lesson
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.rollout import NO_SCORES, Failure, FailureKind, Group, Rollout, rollout_id_for
from tfgrpo_dspy.run import planning
from tfgrpo_dspy.run.planning import Batch, Extracted, Update
from tfgrpo_dspy.sampling.examples import Additions, DemoPool, SampledGroup
from tfgrpo_dspy.sampling.one_rollout import Start
from tfgrpo_dspy.settings import MIN_GROUP_SIZE, RunInputs
from tfgrpo_dspy.settings.preparation import policy_lms
from tfgrpo_dspy.strategies import base
from tfgrpo_dspy.strategies.evidence import may_be_credited
from tfgrpo_dspy.text import printable
from tfgrpo_dspy.user_code import check_wanted, digest

TRAINING = 3  # training rollouts are begun last, those of the earlier update first
MOST_ATTEMPTS = 16  # extra rollouts of one group
Waited = Callable[[], SampledGroup]
"""A group that is begun; called, it waits for it."""
MOST_FAILURES = 3  # of a choice that has never worked
PROPOSED = TypeAdapter(base.Proposed)
VERBS = {
    "assign": "assigned", "demo_sets": "chose the demos", "briefs": "chose the briefs",
    "decide": "decided", "finalists": "gave as finalists",
}  # fmt: skip


def check(is_usable: bool, answer: object, wanted: str) -> None:
    """Raise StrategyError, which says what is wanted, unless the answer is usable."""
    if not is_usable:
        raise StrategyError(f"it gave {answer!r:.200}; return {wanted}.")


class Groups:
    """Makes the groups of one run; `recorded` as in `Run`."""

    def __init__(
        self,
        inputs: RunInputs,
        calls: Calls,
        client: ReflectionClient,
        recorded: Sequence[Sequence[Rollout]] | None,
    ) -> None:
        self._inputs, self._settings, self._calls = inputs, inputs.settings, calls
        self._client, self._recorded, self._is_readable = client, recorded, recorded is not None
        self._sampler = Rollouts(inputs, calls, "rollout", inputs.examples)
        labelled = inputs.training if self._settings.shows_labels else ()
        most, seed = self._settings.max_demos, self._settings.seed
        self.demos = DemoPool(inputs.student, inputs.examples, labelled, most, seed)
        self.first: tuple[Rollout, ...] | None = None  # of the first batch, for rewards
        self._common: dict[str, Any] = {  # to contexts of strategies
            "training": inputs.training, "examples": inputs.examples,
            "shows_labels": inputs.settings.shows_labels,
        }  # fmt: skip
        self._questions: dict[str, Callable[[], Answer]] = {}  # of strategies
        self._hanging: set[tuple[int, str]] = set()  # or asked now
        self._outcomes: defaultdict[tuple[int, str], list[bool]] = defaultdict(list)  # did it work?

    def try_out(self, batch: Batch) -> None:
        """Make the first rollouts of the first batch, until one works. Raises RunStopped."""
        if self._recorded is not None:
            return
        groups = self._calls.pool.call(lambda: self._samples(batch))
        by_turns = filter(None, itertools.chain(*itertools.zip_longest(*groups)))
        samples = list(itertools.islice(by_turns, planning.FIRST_ROLLOUTS))
        rollouts: list[Rollout] = []
        for wave in filter(None, (samples[: planning.N_FIRST], samples[planning.N_FIRST :])):
            begun = [self._sampler.begin(sample, (TRAINING, batch.update)) for sample in wave]
            if self._calls.is_tight:  # what they take says what may begin besides
                self._calls.pool.until(lambda: all(job.is_done for job in begun))  # noqa: B023
            for rollout in self._calls.pool.as_done(begun):
                kind = rollout.failure and rollout.failure.kind
                if kind is not FailureKind.METRIC and not rollout.is_unreadable:
                    return
            rollouts += [job.value for job in begun]
            if why := planning.why_unscored(rollouts):
                self._calls.ledger.fail(why)
        self.check_readable(rollouts)

    def check_readable(self, rollouts: Sequence[Rollout]) -> None:
        """End the run where none of its rollouts so far could be read. Raises RunStopped."""
        if not self._is_readable and len(rollouts) >= planning.FIRST_ROLLOUTS:
            if why := planning.why_unreadable(rollouts, policy_lms(self._inputs.student)):
                self._calls.ledger.fail(why)
            self._calls.report.count_without_output(rollouts)
            self._is_readable = True

    def of(self, batch: Batch) -> Sequence[Waited]:
        """A group for each example of the batch, begun now; what is given waits for it.

        They are rewarded and credited, where strategies do that.
        """
        beside, overriding = self._calls.pool.beside, self._overriding
        groups: list[Waited]
        if self._recorded is None:
            samples = self._calls.pool.call(lambda: self._samples(batch))
            groups = [functools.cache(self._begun(batch, of_group)) for of_group in samples]
        else:
            groups = [partial(self._recorded_group, batch, e) for e in batch.examples]
        rewards = bool(overriding("reward")) and self._settings.metric is not None
        if rewards or overriding("rescue") or overriding("credit"):
            groups = [beside(group) for group in groups]
        if rewards:
            together = beside(partial(self._rewarded, batch, groups))
            groups = [lambda k=k: together()[k] for k in range(len(groups))]  # type: ignore[misc]
        if overriding("credit"):
            groups = [beside(partial(self._credited, batch, group)) for group in groups]
        return groups

    def _recorded_group(self, batch: Batch, example: int) -> SampledGroup:
        recorded = self._recorded or ()
        scores = NO_SCORES.including(r.score for of_example in recorded for r in of_example)
        group = Group.of(example, recorded[example], self._settings.metric is not None, scores)
        start = Additions(ExperienceLibrary.from_program(self._inputs.student))
        return SampledGroup(group, (start,) * len(group.all_rollouts), batch.update)

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
                for k, additions in enumerate(self._assigned(batch, example, size))
            ]
            for example, size in batch.sizes.items()
        ]

    def _sample(
        self, batch: Batch, example: int, k: int, additions: Additions, temperature: Any
    ) -> Sample:
        visit, seed = batch.visits[example], self._settings.seed
        id_, asks = rollout_id_for(seed, visit, example, k, "training"), batch.asks_predictors
        return Sample(additions, example, id_, temperature, None, batch.update, asks)

    def _begun(self, batch: Batch, samples: Sequence[Sample]) -> Waited:
        """Begin these rollouts; what is given waits for their group, with extra attempts.

        It is without rollouts where a limit has ended the training.
        """
        example, priority = samples[0].example, (TRAINING, batch.update)
        result, begin = self._calls.pool.result, self._sampler.begin
        jobs = [begin(sample, priority) for sample in samples]

        def gathered() -> SampledGroup:
            every, latest = list(samples), [result(job) for job in jobs]
            sampled = SampledGroup(Group(example, (), ()), (), batch.update)
            rollouts: list[Rollout] = []
            while not all(r.failure and r.failure.kind is FailureKind.BUDGET for r in latest):
                rollouts += latest
                has_metric = self._settings.metric is not None
                group = Group.of(example, rollouts, has_metric, batch.base.by_metric)
                additions = tuple(sample.additions for sample in every)
                sampled = SampledGroup(group, additions, batch.update)
                extra = self._extra(batch, sampled)
                more = self._sampler.begin_extra(extra, priority) if extra else None
                if more is None:
                    break
                every, latest = [*every, *extra], [result(job) for job in more]
            return sampled

        return gathered

    def _extra(self, batch: Batch, sampled: SampledGroup) -> list[Sample]:
        context, extra = self._context(batch, sampled), list[base.Attempt]()
        for strategy in self._overriding("rescue"):
            with self._counting(strategy, "rescue"):
                attempts = list(strategy.rescue(context, self._ask(batch)))
                are_attempts = all(isinstance(one, base.Attempt) for one in attempts)
                check(are_attempts, attempts, "Attempts")
                extra += attempts
        samples, usual, example = [], self._settings.temperature, sampled.group.example
        n, n_whole = len(sampled.additions), batch.sizes[example]
        for k, attempt in enumerate(extra[: max(0, MOST_ATTEMPTS + n_whole - n)], n):
            additions = Additions(context.library, (), attempt.hint, attempt.teacher)
            warmer = usual if isinstance(usual, str) else max(usual, attempt.temperature)
            samples.append(self._sample(batch, example, k, additions, warmer))
        return samples

    def _context(self, batch: Batch, sampled: SampledGroup) -> base.GroupContext:
        return base.GroupContext(
            sampled=sampled,
            past=batch.base.groups,
            library=batch.base.decision.result,
            group_size=self._settings.group_size,
            **self._common,
        )

    def _rewarded(self, batch: Batch, groups: Sequence[Waited]) -> list[SampledGroup]:
        every = [group() for group in groups]
        rollouts = [rollout for sampled in every for rollout in sampled.group.all_rollouts]
        if is_first := batch.update == int(self._settings.drafts > 0):
            self.first = tuple(r for r in rollouts if r.score is not None)
            self._calls.pool.wake()
        self._calls.pool.until(lambda: self.first is not None)
        aided = [bool(aid) for sampled in every for aid in sampled.aids]
        rewarded = iter(self.rewarded(rollouts, aided, is_first))
        for place, sampled in enumerate(every):
            example, measured = sampled.group.example, sampled.group
            of_group = list(itertools.islice(rewarded, len(sampled.additions)))
            group = Group.of(example, of_group, True, batch.base.score_range)
            every[place] = replace(sampled, group=group, measured=measured)
        return every

    def _credited(self, batch: Batch, waited: Waited) -> SampledGroup:
        sampled, crediting = waited(), self._overriding("credit")
        context, place = self._context(batch, sampled), batch.examples.index(sampled.group.example)
        in_place = any(base.overrides(one, "choose") for one in crediting)  # of whole rollouts
        may_credit = in_place or may_be_credited(sampled.group, context.past, place)
        if not (sampled.additions and may_credit):  # without: a limit has ended the training
            return sampled
        pairs = zip(sampled.group.all_rollouts, sampled.additions, strict=True)
        additions, played = {r.rollout_id: one for r, one in pairs}, dict[int, Rollout]()
        ids, play = {*additions}, self._player(batch, sampled.group, additions, played)
        for strategy in crediting:
            with self._counting(strategy, "credit"):
                credit = strategy.credit(context, self._ask(batch), play)
                check(isinstance(credit, base.Credit), credit, "a Credit")
                are_played = all(rollout.rollout_id in played for rollout in credit.beside)
                check(are_played, credit.beside, "in Credit.beside only rollouts that `play` gave")
                new = {r.rollout_id: r for r in credit.beside if r.rollout_id not in ids}
                joined = sampled.with_more([*new.values()], [additions[id_] for id_ in new])
                values_of, rollouts = credit.values, joined.group.rollouts
                n_values = {rollout.rollout_id: len(rollout.values) for rollout in rollouts}
                are_usable = isinstance(values_of, Mapping) and all(
                    base.are_scores(values, n_values.get(id_, 0))
                    for id_, values in values_of.items()
                )
                wanted = "values by rollout id, each None or a number, one more than its steps"
                check(are_usable, values_of, wanted)
                measure, note = printable(credit.measure), str(credit.note)
                valued = [
                    r.valued(values_of.get(r.rollout_id, r.values), measure) for r in rollouts
                ]
                group = replace(joined.group, rollouts=tuple(valued))
                note = self._calls.journal.redacted(note).strip()
                sampled, ids = replace(joined, group=group, note=note), ids | {*new}
        probes = (rollout for id_, rollout in sorted(played.items()) if id_ not in ids)
        return replace(sampled, probes=tuple(probes))

    def _player(
        self,
        batch: Batch,
        group: Group,
        additions: dict[int, Additions],  # by rollout id; further ones are added
        played: dict[int, Rollout],  # the same
    ) -> base.Play:
        """Goes on from steps of the group's rollouts, and of those that it gave."""

        def play(
            rollout: Rollout, n_steps: int, n: int = 1, *, answers_now: bool = False
        ) -> list[Rollout]:
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
            settings, visit = self._settings, batch.visits[example]
            added, start = additions[source_id], Start(rollout, n_steps, answers_now)
            ids = [rollout_id_for(settings.seed, visit, example, k, purpose) for k in range(n)]
            of_all = (settings.temperature, start, batch.update, batch.asks_predictors)
            samples = [Sample(added, example, id_, *of_all) for id_ in ids]
            additions.update(dict.fromkeys(ids, added))
            jobs = self._sampler.begin_extra(samples, (TRAINING, batch.update))
            if jobs is None:
                raise UnpaidError(f"example {example}: {NO_MORE.message}")
            rollouts = [self._calls.pool.result(job) for job in jobs]
            played.update({new.rollout_id: new for new in rollouts})
            for failure in [new.failure for new in rollouts if new.failure is not None]:
                if failure.kind is FailureKind.REPLAY:
                    raise NotReplayedError(failure.message)
            if settings.metric is None:
                return [new for new in rollouts if new.counts]
            score_range = group.score_range.including(group.scores)
            return list(Group.of(example, self.rewarded(rollouts), True, score_range).rollouts)

        return play

    def shown(self, batch: Batch, sampled: SampledGroup) -> tuple[SampledGroup, str]:
        """The rollouts of the group that the reflection LM compares, and all notes on it."""
        context, notes = self._context(batch, sampled), [sampled.note]
        for strategy in self._overriding("show"):
            with self._counting(strategy, "show"):
                shown = strategy.show(context, self._ask(batch))
                check(isinstance(shown, base.Shown), shown, "a Shown")
                are_its = all(rollout in context.group.rollouts for rollout in shown.rollouts)
                check(are_its, shown.rollouts, "rollouts of context.group.rollouts")
                group = replace(context.group, rollouts=tuple(shown.rollouts))
                context = replace(context, sampled=replace(context.sampled, group=group))
                notes.append(self._calls.journal.redacted(str(shown.note)).strip())
        return context.sampled, "\n".join(filter(None, notes))

    # ------------------------------------------------------------------ what the gate decides

    def _assigned(self, batch: Batch, example: int, n: int) -> list[Additions]:
        texts = [(), *(brief.texts for brief in batch.base.briefs)]
        n_sets, n_briefs = self.demos.n_sets, len(batch.base.briefs)
        plan = GroupPlan(batch.base.decision, example, batch.update, n, n_sets, n_briefs)
        best = batch.base.best if n_sets and batch.epoch else ()  # at first there are few
        hidden = {self._inputs.examples[example].identity}
        sets = [(), *(self.demos.choose(k, best, hidden) for k in range(1, n_sets + 1))]
        libraries: Sequence[ExperienceLibrary] = (batch.library,) * n
        if any(experience.is_on_trial for experience in batch.library):
            wanted = f"return {n} libraries, one for each rollout of the group"
            libraries = self.ask_gate("assign", plan, wanted, n)

        def arms(method: str, n_arms: int) -> Sequence[int]:
            wanted = f"return {n} numbers from 0 to {n_arms}, one for each rollout of the group"
            chosen = self.ask_gate(method, plan, wanted, n, range(n_arms + 1)) if n_arms else ()
            return chosen or (0,) * n

        shown = arms("demo_sets", n_sets if any(sets) else 0)
        return [
            Additions(library.briefed(texts[b]), sets[k], demo_set=k, brief=b)
            for library, k, b in zip(libraries, shown, arms("briefs", n_briefs), strict=True)
        ]

    def ask_gate(
        self, method: str, question: Any, wanted: str, n: int = 0, numbers: range | None = None
    ) -> Any:
        """The gate's answer. Raises GateError: it raised, or gave something else.

        That is `n` libraries (0: any number), or numbers of these; or a decision on libraries.
        """
        gate = self._settings.gate
        try:
            answer = getattr(gate, method)(question)
        except BaseException as error:  # noqa: BLE001 - it is raised again, under a name
            what = f"{type(gate).__name__}.{method} raised {errors.described(error).rstrip('.')}"
            clean = self._calls.journal.redacted
            raise GateError(clean(f"{what}; correct the gate.")) from errors.shareable(error, clean)
        check_wanted()  # it may have taken too long
        is_decision = isinstance(answer, Decision)
        parts = (answer.library, answer.result) if is_decision else answer
        is_usable = isinstance(parts, Sequence) and is_decision == (method == "decide")
        if not is_usable or n not in (0, len(parts)) or not all(
            isinstance(each, ExperienceLibrary) if numbers is None else each in numbers
            for each in parts
        ):  # fmt: skip
            raise GateError(f"{type(gate).__name__} {VERBS[method]} {parts!r}; {wanted}.")
        return answer

    # ------------------------------------------------------------------ what strategies decide

    def _overriding(self, method: str) -> list[base.Strategy]:
        return [one for one in self._settings.strategies if base.overrides(one, method)]

    def sizes(self, plan: base.BatchPlan) -> dict[int, int]:
        """How many rollouts each example of the batch gets."""
        for strategy in self._overriding("choose"):
            plan = replace(plan, sizes=MappingProxyType(dict(plan.sizes)))
            with self._counting(strategy, "choose", ends=MOST_FAILURES):
                sizes: Any = self._calls.pool.call(partial(strategy.choose, plan))
                least, most = min(MIN_GROUP_SIZE, *plan.sizes.values()), sum(plan.sizes.values())
                are_sizes = isinstance(sizes, Mapping) and {*map(type, sizes.values())} == {int}
                are_right = (
                    are_sizes and min(sizes.values()) >= least and sum(sizes.values()) <= most
                )
                wanted = f"at least {least} rollouts of examples of plan.training, {most} in all"
                check(are_right and {*sizes} <= {*plan.training}, sizes, wanted)
                plan = replace(plan, sizes=sizes)
        return dict(plan.sizes)

    def rewarded(
        self,
        rollouts: Sequence[Rollout],
        aided: Sequence[bool] | None = None,  # had a hint or a teacher; None: student and result
        is_first: bool = False,  # those of the first batch
    ) -> list[Rollout]:
        """The rollouts with what they count with; where a strategy fails, none has a score."""
        counting, report = list(rollouts), self._calls.report
        for strategy in self._overriding("reward"):
            key, name = (id(strategy), "reward"), type(strategy).__name__
            if key in self._hanging:
                report.count_failure("strategy", f"{name}.reward hangs, and is left out")
                continue
            counted = [k for k, rollout in enumerate(counting) if rollout.score is not None]
            rewards: list[float | None] = [None] * len(counted)
            kind = FailureKind.STRATEGY
            with self._counting(strategy, "reward", ends=int(is_first)):
                helped = tuple(bool(aided and aided[k]) for k in counted)
                of_metric = tuple(counting[k] for k in counted)
                scored = base.Scored(of_metric, self.first or (), aided is not None, helped)
                numbers = list(strategy.reward(scored))
                wanted = f"{len(counted)} numbers below 1e+150, or None for no score"
                check(base.are_scores(numbers, len(counted)), numbers, wanted)
                rewards = [None if number is None else float(number) for number in numbers]
                kind = FailureKind.METRIC
            without = Failure(kind, f"{name}.reward gave no score")
            for k, reward in zip(counted, rewards, strict=True):
                failure = without if reward is None else None
                counting[k] = replace(counting[k], score=reward, failure=failure)
        return counting

    def proposed(
        self, batch: Batch, extracted: Extracted, updates: Sequence[Update]
    ) -> base.Proposed:
        """The lessons that UpdateLibrary is shown, and the operations beside its own."""
        libraries, operations = [update.decision.library for update in updates], list[Any]()
        context = base.UpdateContext(
            update=batch.update, library=libraries[-1], libraries=tuple(libraries),
            lessons=extracted.lessons, groups=extracted.groups, past=updates[-1].groups,
            predictors=tuple(self._inputs.predictors), **self._common,
        )  # fmt: skip
        for strategy in () if batch.is_draft else self._overriding("propose"):
            with self._counting(strategy, "propose"):
                work = partial(strategy.propose, context, self._ask(batch))
                proposed: Any = self._calls.pool.call(work)
                check(isinstance(proposed, base.Proposed), proposed, "a Proposed")
                are_lessons = all(isinstance(each, Lesson) for each in proposed.lessons)
                are_right = all(isinstance(each, Operation) for each in proposed.operations)
                check(are_lessons and are_right, proposed, "lessons, and operations")
                proposed = self._calls.journal.cleaned(proposed, PROPOSED)
                context = replace(context, lessons=tuple(proposed.lessons))
                operations += proposed.operations
        return base.Proposed(context.lessons, tuple(operations))

    def _ask(self, batch: Batch) -> base.Ask:
        def ask(signature: Any, **inputs: Any) -> Mapping[str, Any]:
            asked = dspy.ensure_signature(signature)
            is_signature = isinstance(asked, type) and issubclass(asked, dspy.Signature)
            check(is_signature, signature, "a signature to ask")
            key = json.dumps([repr(signature), inputs], sort_keys=True, default=repr)
            with self._calls.pool.lock:
                if key not in self._questions:
                    about = ("strategy", batch, batch.update, lambda _: inputs)
                    begun = self._client.begin(*about, signature=signature)
                    self._questions[key] = self._client.beside(begun)
            answer = self._questions[key]()
            with self._calls.pool.lock:
                self._calls.journal.charge(answer, batch.update)
            return answer.output if isinstance(answer.output, Mapping) else {}

        return ask

    @contextlib.contextmanager
    def _counting(self, strategy: base.Strategy, method: str, ends: int = 0) -> Iterator[None]:
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
        except UnpaidError as error:  # nor is this
            count_failure("budget", str(error))
        except NotReplayedError as error:
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
