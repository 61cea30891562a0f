"""Strategies that add attempts to groups that fail, or change what an attempt counts with."""

import itertools
import re
import statistics
import unicodedata
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import field, replace
from typing import Annotated, Any

import dspy
from pydantic import Field

from tfgrpo_dspy.errors import SettingsError, such_that
from tfgrpo_dspy.reflection.texts import UNKNOWN, as_input
from tfgrpo_dspy.rollout import MIN_CONTRAST, Rollout, fields_text
from tfgrpo_dspy.strategies import base
from tfgrpo_dspy.text import shortened

PENALTY = 10.0
"""Factor of the distance by which a rollout misses a bound, in standard deviations."""
MEAN_STRENGTH = 2 / 3  # of 4 * level * (1 - level), over all levels from 0 to 1
OfRollout = Annotated[Callable[[Rollout], float], base.NOT_ASYNC]
Steps = Annotated[Callable[[Rollout], Sequence[Hashable]], base.NOT_ASYNC]
LETTER = r"[^\W\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
"""A letter or digit of a script that sets spaces between words."""
SHOWN_BYTES = 400  # of the answer on which the attempts agree
DIFFER = "several attempts agree, and are not right: {answer}. Take another way to another answer."
SHORT = 3  # letters: "A", "no", "1" stand in many sentences that do not give them as the answer
STATED = (
    r"(?:\b(?:is|be|say|answer|choose|pick|write|output|option|label)\W*|[=:\"'(\u201c]\W*"
    r"|(?<=[\u0e00-\uffff]))"
)


class WriteHints(dspy.Signature):
    """A program fails on this input. Write three hints, each of which helps more than the last.

    None of them may contain the expected answer, a part of it, or another way to say it: the
    program has to find the answer itself. Each is one sentence.
    """

    program: str = dspy.InputField(desc="what the program does")
    example: str = dspy.InputField(desc="the input on which the program fails")
    expected: str = dspy.InputField(desc="the right answer, where it is known")
    attempt: str = dspy.InputField(desc="what the program answered, and the feedback on it")
    concept: str = dspy.OutputField(desc="the idea, rule or fact that is needed here")
    plan: str = dspy.OutputField(desc="the steps to take, in their order")
    step: str = dspy.OutputField(desc="the first step, carried out; still without the answer")


@base.strategy
class TieredHints(base.Strategy):
    """Tries a failing example with a concept, then a plan, then a concrete step, until it succeeds.

    The reflection LM writes the hints from the label and the feedback; a hint with the example's
    label in it is not given, and a lesson with it is dropped, unless other examples have the same
    label. No score with a hint counts for any experience. Source: Scaf-GRPO (arXiv 2510.19807).

    Args:
        after: how many of the latest groups of the example must have failed, at least 0.
    """

    after: base.Least0 = 1

    def rescue(self, context: base.GroupContext, ask: base.Ask) -> Sequence[base.Attempt]:
        earlier, failed = context.earlier, context.sampled.unaided.rollouts
        latest = earlier[len(earlier) - self.after :]
        is_stuck = len(earlier) >= self.after and all(map(context.has_failed, latest))
        if not (context.fails and is_stuck and failed):
            return ()
        every = context.example.labels
        outputs = {name for rollout in context.group.all_rollouts for name in rollout.outputs}
        labels = {name: text for name, text in every.items() if name in outputs} or every
        answer = ask(
            WriteHints,
            example=context.example.text,
            expected=(context.shows_labels and fields_text(labels)) or UNKNOWN,
            attempt=f"{fields_text(failed[0].outputs)}\n{failed[0].words}".strip() or "(no answer)",
        )
        tried = {"", *(additions.hint for additions in context.sampled.additions)}
        hints = (
            as_input(" ".join(str(answer.get(tier, "")).split()))
            for tier in ("concept", "plan", "step")
        )
        usable = (hint for hint in hints if hint not in tried and not gives_away(hint, labels))
        return [base.Attempt(hint=hint) for hint in usable][:1]

    def propose(self, context: base.UpdateContext, ask: base.Ask) -> base.Proposed:
        hinted = {e.group.example for e in context.groups if any(g.hint for g in e.additions)}
        every = [context.examples[i].labels.items() for i in context.training if hinted]
        n_having, kept = Counter(itertools.chain(*every)), []
        for lesson in context.lessons:
            sources = {evidence.example for evidence in lesson.evidence} & hinted
            labels = [label for i in sources for label in context.examples[i].labels.items()]
            telling = [{name: text} for name, text in labels if n_having[name, text] == 1]
            if not any(gives_away(lesson.text, label) for label in telling):
                tells = any(gives_away(lesson.reason, label) for label in telling)
                kept.append(replace(lesson, reason="") if tells else lesson)
        return base.Proposed(tuple(kept))


def gives_away(text: str, labels: Mapping[str, Any]) -> bool:
    """True if one of these labels stands in the text as whole words, in any case and spacing.

    A label of at most `SHORT` letters must stand there as an answer: behind a word such as "is" or
    "answer", a colon or a quotation mark.
    """
    plain, *of_labels = (
        " ".join(unicodedata.normalize("NFKC", str(each)).casefold().split())
        for each in (text, *labels.values())
    )
    for label in filter(None, of_labels):
        before = STATED if len(label) <= SHORT and label.isascii() else f"(?<!{LETTER})"
        if re.search(f"{before}{re.escape(label)}(?!{LETTER})", plain):
            return True
    return False


@base.strategy
class TeacherRollouts(base.Strategy):
    """Adds rollouts of a teacher to the groups in which the student fails throughout.

    The reflection LM compares them with the student's, and writes lessons for the student. No score
    of the teacher counts for any experience.

    Args:
        teacher: a program, which runs in place of the student, or an LM, on which the student runs.
        share: how many rollouts the teacher adds, as a share of the student's in the group, .01
            to 1; at least one.
    """

    teacher: Annotated[Any, base.IS_TEACHER]
    share: Annotated[float, Field(ge=0.01, le=1)] = 0.5

    def rescue(self, context: base.GroupContext, ask: base.Ask) -> Sequence[base.Attempt]:
        every = context.sampled.additions
        if not context.fails or any(additions.teacher is not None for additions in every):
            return ()
        n_student = sum(not additions.aid for additions in every)
        return [base.Attempt(teacher=self.teacher)] * max(1, int(self.share * n_student))


@base.strategy
class ClippedDiversity(base.Strategy):
    """Explores where attempts agree, and lets the unusual one of equal attempts count for more.

    Where all attempts of a group give the same answer and fail, further ones are told to find
    another. A rollout counts with its score, plus or minus its entropy compared with that of the
    group's rollouts with the same score, where all have one (`dspy.LM(..., logprobs=True)`), and
    never reaches a better one. Student and result are compared by the score.
    Source: EGPO (arXiv 2508.05118).

    Args:
        clip: the largest change, as a share of the distance to the nearest other score of the
            group; above 0 and below 0.5.
        explore: further attempts, as a share of the first ones, 0 (none) to 1; at least one.
        temperature: the least of these attempts, 0 to 2. With 1.5 more attempts of an LM differed.
    """

    clip: Annotated[float, Field(gt=0, lt=0.5)] = 0.25
    explore: base.Share = 0.5
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0

    def rescue(self, context: base.GroupContext, ask: base.Ask) -> Sequence[base.Attempt]:
        rollouts, additions = context.sampled.unaided.rollouts, context.sampled.additions
        agree = len({rollout.answer for rollout in rollouts}) == 1 and rollouts[0].answer
        is_done = any(one.aid for one in additions) or not self.explore
        if is_done or not (agree and len(rollouts) > 1 and context.fails):
            return ()
        shown = shortened(as_input(fields_text(rollouts[0].outputs)), SHOWN_BYTES)
        hint = DIFFER.format(answer=as_input(shown))
        n = max(1, int(self.explore * len(rollouts)))
        return [base.Attempt(hint=hint, temperature=self.temperature)] * n

    def reward(self, scored: base.Scored) -> Sequence[float]:
        scores = [rollout.score or 0.0 for rollout in scored.rollouts]
        rewards, groups = list(scores), dict[int, list[int]]()
        for place, rollout in enumerate(scored.rollouts if scored.is_training else ()):
            if not any(scored.aided[place : place + 1]):
                groups.setdefault(rollout.example, []).append(place)
        for places in groups.values():
            surprise = {place: scored.rollouts[place].entropy for place in places}
            entropies = {p: max(0.0, entropy) for p, entropy in surprise.items() if entropy}
            if None in surprise.values() or not (highest := max(entropies.values(), default=0.0)):
                continue
            for place in places:
                gaps = {other: abs(scores[place] - scores[other]) for other in places}
                mates = [entropies.get(p, 0.0) for p, gap in gaps.items() if gap <= MIN_CONTRAST]
                room = min((gap for gap in gaps.values() if gap > MIN_CONTRAST), default=0.0)
                unusual = entropies.get(place, 0.0) - statistics.fmean(mates)
                rewards[place] += self.clip * room * unusual / highest
        return rewards


def _spread(numbers: Sequence[float]) -> float:
    """Their standard deviation; 1 where they are the same throughout."""
    spread = statistics.pstdev(numbers or [0.0])
    return spread if spread > MIN_CONTRAST else 1.0


@base.strategy
class Objectives(base.Strategy):
    """Rewards the weighted mean of several objectives, each in its standard deviations.

    The metric returns `dspy.Prediction(objectives={name: value}, feedback=...)`. Each objective is
    divided by its standard deviation in the first batch (by 1 where it is the same throughout). A
    rollout that lacks an objective has no score; all scores of the results are these rewards.
    Sources: multi-reward GRPO (arXiv 2511.06023), mixed rewards (arXiv 2512.04277).

    Args:
        weights: by name, 0 or more; of each objective, more is better. "score" is the metric's.
        never_below: what some objectives should have at least in every rollout, by name: in the
            final choice, what a rollout lacks to that counts ten times.
        computed: further objectives, as functions of a rollout (such as `StepOrder(...).order`).
    """

    weights: Annotated[
        Mapping[str, Annotated[float, Field(ge=0, le=1e150)]],
        such_that(lambda weights: any(weights.values()), "pass a weight that is not 0"),
    ]
    never_below: Mapping[str, Annotated[float, Field(ge=-1e150, le=1e150)]] = field(
        default_factory=dict
    )
    computed: Mapping[str, OfRollout] = field(default_factory=dict)

    def reward(self, scored: base.Scored) -> Sequence[float | None]:
        names = dict.fromkeys([*self.weights, *self.never_below])
        scale: dict[str, float] = {}
        for name in names:
            values = [self._value(name, rollout) for rollout in scored.first]
            numbers = [value for value in values if value is not None]
            if values and not numbers:
                raise SettingsError(
                    f"objective {name!r}: the metric gave {sorted(scored.first[0].objectives)}; "
                    f"return dspy.Prediction(objectives={{{name!r}: ...}}), or leave the name out."
                )
            scale[name] = _spread(numbers)
        bounds = {} if scored.is_training else self.never_below

        def reward(rollout: Rollout) -> float | None:
            values = {n: x for n in names if (x := self._value(n, rollout)) is not None}
            if len(values) < len(names):
                return None
            mean = sum(w * values[name] / scale[name] for name, w in self.weights.items())
            lacking = (max(0.0, low - values[n]) / scale[n] for n, low in bounds.items())
            return mean / sum(self.weights.values()) - PENALTY * sum(lacking)

        return list(map(reward, scored.rollouts))

    def _value(self, name: str, rollout: Rollout) -> float | None:
        if name in self.computed:
            return float(self.computed[name](rollout))
        return (rollout.score or 0.0) if name == "score" else rollout.objectives.get(name)


@base.strategy
class StepOrder(base.Strategy):
    """Adds the rank correlation of a rollout's steps with a reference order to its score.

    `order(rollout)` is Kendall's tau (-1 to 1) of the steps that both have, by their first
    occurrence; 0.0 where they share fewer than two. `Objectives(..., computed={"order":
    StepOrder(reference).order})` mixes it with others. Source: arXiv 2512.04277.

    Args:
        reference: the right order of steps, as a function of the rollout.
        steps: the order that the rollout took; default: the names of its predictors and tools.
        weight: of the order, beside 1 for the score; 0 to 10.
    """

    reference: Steps
    steps: Steps = lambda rollout: [step.name for step in rollout.steps]
    weight: Annotated[float, Field(ge=0, le=10)] = 0.3

    def order(self, rollout: Rollout) -> float:
        taken = {step: place for place, step in reversed([*enumerate(self.steps(rollout))])}
        wanted = [step for step in dict.fromkeys(self.reference(rollout)) if step in taken]
        pairs = itertools.combinations([taken[step] for step in wanted], 2)
        signs = [1.0 if first < second else -1.0 for first, second in pairs]
        return statistics.fmean(signs or [0.0])

    def reward(self, scored: base.Scored) -> Sequence[float | None]:
        mixed = Objectives({"score": 1.0, "order": self.weight}, computed={"order": self.order})
        return mixed.reward(scored)


@base.strategy
class GlobalConstraint(base.Strategy):
    """Adds a reward for a quantity of the whole, such as how many agents cooperate.

    A rollout counts with `score + weight * spread * 4 * level * (1 - level) * quantity(rollout)`;
    the level is the mean quantity of its training batch, `spread` the standard deviation of the
    first batch's scores (1 where they are the same). At the end, `4 * level * (1 - level)` is 2/3,
    its mean over all levels. Source: GRPO-GCC (arXiv 2510.08607).

    Args:
        quantity: what a rollout contributes, from 0 to 1; a function of a rollout alone, such as
            `lambda rollout: rollout.outputs["decision"] == "cooperate"`.
        weight: how many standard deviations of the score it is worth at most; .01 to 100.
    """

    quantity: OfRollout
    weight: base.Magnitude = 1.0

    def reward(self, scored: base.Scored) -> Sequence[float]:
        contributed = [float(self.quantity(rollout)) for rollout in scored.rollouts]
        for quantity in contributed:
            if not 0 <= quantity <= 1:
                raise ValueError(f"quantity(rollout)={quantity!r}; return a number from 0 to 1")
        strength = MEAN_STRENGTH
        if scored.is_training and contributed:
            level = statistics.fmean(contributed)
            strength = 4 * level * (1 - level)
        spread = _spread([rollout.score or 0.0 for rollout in scored.first])
        worth = self.weight * strength * spread
        pairs = zip(scored.rollouts, contributed, strict=True)
        return [(rollout.score or 0.0) + worth * contribution for rollout, contribution in pairs]
