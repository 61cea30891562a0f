"""Rollouts, groups and scores as values; whose a failure is; every form of metric as one.

Forms: `metric(example, pred)`, `metric(example, pred, trace=None)`, GEPA's
`metric(gold, pred, trace, pred_name, pred_trace)` and the same with `program_trace`; sync or
async; returning a finite number or something with `score`, `feedback` and `objectives`.
"""

import hashlib
import inspect
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Annotated, Any, Literal, SupportsFloat

from pydantic import Field, FiniteFloat, TypeAdapter

from tfgrpo_dspy.errors import MetricError, RunStopped, SettingsError, described, written
from tfgrpo_dspy.text import rest_after, shortened
from tfgrpo_dspy.user_code import language_models, reached, settled, without_partials

EXPECTED = "expected score"
SEED_RANGE = 2**31  # seeds are below this, which every sampler takes
OWN = "own"  # the `temperature` of training rollouts that leaves each LM and predictor at its own
WAYS_TO_AN_ANSWER = frozenset({"reasoning", "trajectory", "history", "termination_reason"})
"""Outputs that DSPy's ChainOfThought and ReAct add to those of the signature."""
REASONING = WAYS_TO_AN_ANSWER | {"next_thought"}  # what an agent of DSPy thinks before each tool
DECIMALS = 12
"""Decimal places of sums of dollars, which are rounded so that the order does not change them."""
MIN_CONTRAST = 1e-9
"""Scores that differ by no more than this are the same: 0.6 - 0.5 is not quite 0.4 - 0.3."""
CONTRAST_SHARE = 0.01
"""Nor do scores count as unlike that differ by less than this share of all scores of the run. The
noise of an embedding or of a judge's logits is smaller; one of 100 points, or of 40, is larger."""
DECISIVE = 0.2
"""A step decided a rollout if it changed the expected score by this share of the group's spread."""
MOST = 1e150  # the largest size of a score: of larger ones no variance can be computed
MOST_DIGITS = 17  # of a score: no two floats look alike then
MOST_WHOLE = 1e9  # scores below are shown without an exponent
Count = Annotated[int, Field(ge=0, le=10**15)]


class FailureKind(StrEnum):
    """Whose failure it was, and what follows from that."""

    PROGRAM = "program"  # the program raised
    PARSE = "parse"  # an answer did not parse
    PROVIDER = "provider"  # the provider of an LM failed, after its retries
    METRIC = "metric"  # the metric raised, or gave no score
    TIMEOUT = "timeout"  # the rollout took longer than it may
    WORKER = "worker"  # its worker was lost
    STRATEGY = "strategy"  # a strategy gave no reward
    REPLAY = "replay"  # the program did not repeat its steps when they were replayed
    STOPPED = "stopped"  # a rollout that goes on from a step of another one was ended
    BUDGET = "budget"  # a limit ended the training in the middle of the rollout

    @property
    def is_programs_own(self) -> bool:
        """True if the rollout may stand in a group, and counts as the lowest score there."""
        return self in (self.PROGRAM, self.PARSE)

    @property
    def is_recorded(self) -> bool:
        """True if the record is a result; otherwise a later start makes the rollout again."""
        return not (self.is_cut_short or self is self.METRIC)

    @property
    def is_cut_short(self) -> bool:
        """True if the rollout ended before its end: what it took says nothing of others."""
        return self in (self.PROVIDER, self.TIMEOUT, self.WORKER, self.BUDGET)

    @property
    def is_counted(self) -> bool:
        """True if the results count it; the others end a rollout on purpose, or for a strategy."""
        return self not in (self.REPLAY, self.STOPPED, self.BUDGET)

    @property
    def is_error(self) -> bool:
        """True if it counts for `max_errors`."""
        return self.is_counted and self is not self.PARSE


@dataclass(frozen=True, slots=True)
class Failure:
    """The reason that a rollout has no outputs, or no score.

    `refuses_prompt`: the provider did not fail, but refused what it was sent.
    """

    kind: FailureKind
    message: str
    refuses_prompt: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", FailureKind(self.kind))


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of LM calls: `cost_usd` is what DSPy knows of it (0.0 where no price is known).

    `n_cached_calls` answers came from DSPy's cache and were free; they are not in `n_lm_calls`.
    `n_failed_calls` ended in a provider's error; those that it refused are no calls.
    """

    n_lm_calls: Count = 0
    n_cached_calls: Count = 0
    n_failed_calls: Count = 0
    prompt_tokens: Count = 0
    completion_tokens: Count = 0
    cost_usd: FiniteFloat = 0.0

    def __add__(self, other: "Usage") -> "Usage":
        pairs = [(getattr(self, name), getattr(other, name)) for name in self.__slots__]
        return Usage(*[round(one + more, DECIMALS) for one, more in pairs])

    @property
    def n_answers(self) -> int:
        """LM calls, answers from a cache included."""
        return self.n_lm_calls + self.n_cached_calls

    @property
    def n_tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Step:
    """One predictor call or tool call of a rollout; values in their text form."""

    kind: Literal["predictor", "tool"]
    name: str
    inputs: Mapping[str, str]
    outputs: Mapping[str, str]
    error: str = ""
    feedback: str = ""  # of the metric on this predictor, after its last call
    value: FiniteFloat | None = None  # the score that is expected after the step; None: unknown
    entropy: FiniteFloat | None = None  # of a predictor's answer, as in `Rollout`
    form: Literal["text", "json", "other"] = "text"  # as which a tool's result is read back


@dataclass(frozen=True, slots=True)
class Rollout:
    """One execution of the program on one example.

    `entropy` is the mean negative log-probability, in nats, of the tokens that the program's LMs
    wrote: how unsure they were. None: they do not say (`dspy.LM(..., logprobs=True)` asks for it).
    """

    example: int  # its position in its set, from 0
    rollout_id: int  # sets this sample apart in caches
    outputs: Mapping[str, str] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()
    score: FiniteFloat | None = None  # None: the metric gave none (`failure` says why), or is none
    feedback: str = ""
    objectives: Mapping[str, FiniteFloat] = field(default_factory=dict)  # further figures, by name
    failure: Failure | None = None
    usage: Usage = Usage()  # the program's own
    metric_usage: Usage = Usage()  # of an LM judge in the metric
    n_metric_calls: Count = 0
    entropy: FiniteFloat | None = None
    n_replayed: Count | None = None  # the steps that are another rollout's; None: it is a whole one
    start_value: FiniteFloat | None = None  # the score that is expected before its first step
    measure: str = ""  # what its values are instead, from 0 to 1; "": they are expected scores
    shows_advice: bool | None = None  # whether experiences stood in a prompt; None: nobody knows

    def to_dict(self) -> dict[str, Any]:
        """Everything as dicts, sequences, strings and numbers, ready for JSON."""
        return dict(ROLLOUTS.dump_python(self, warnings=False))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Rollout":
        """The rollout whose `to_dict` gave this, from JSON too. Raises ValueError: none did."""
        return ROLLOUTS.validate_python(values)

    @property
    def counts(self) -> bool:
        """True if it may stand in a group: it ran, or its failure was the program's own."""
        return self.failure is None or self.failure.kind.is_programs_own

    @property
    def values(self) -> list[float | None]:
        """The score that is expected before its first step, and after each step."""
        return [self.start_value, *(step.value for step in self.steps)]

    def valued(self, values: Sequence[float | None], measure: str = "") -> "Rollout":
        """The rollout with these `values`; where one is None, what was known stays."""
        pairs = zip(values, self.values, strict=True)
        start, *rest = [old if new is None else float(new) for new, old in pairs]
        steps = (replace(s, value=value) for s, value in zip(self.steps, rest, strict=True))
        return replace(self, start_value=start, steps=tuple(steps), measure=measure)

    @property
    def changes(self) -> dict[int, tuple[float, float]]:
        """By step, from 0, the latest known value before it and that after it, where both are."""
        values = [(k, value) for k, value in enumerate(self.values, -1) if value is not None]
        return {k: (before, value) for (_, before), (k, value) in itertools.pairwise(values)}

    def decisive_step(self, least: float) -> int | None:
        """The step, from 0, with the largest change of the value; None: all are below `least`."""
        sizes = {index: abs(after - before) for index, (before, after) in self.changes.items()}
        step = max(sizes, key=lambda index: sizes[index], default=None)
        return None if step is None or sizes[step] < least else step

    @property
    def is_unreadable(self) -> bool:
        """True if the program gave no answer: it did not parse, or all that it holds is empty."""
        if self.failure is not None:
            return self.failure.kind is FailureKind.PARSE
        return bool(self.outputs) and not any(map(str.strip, self.outputs.values()))

    @property
    def words(self) -> str:
        """The metric's feedback on the whole and on the predictors, several with their names."""
        has_several = len({step.name for step in self.steps if step.kind == "predictor"}) > 1
        with_words = [step for step in self.steps if step.feedback]
        of_steps = (f"{s.name}: {s.feedback}" if has_several else s.feedback for s in with_words)
        return "\n".join(filter(None, dict.fromkeys([self.feedback, *of_steps])))

    def agrees_with(self, labels: Mapping[str, str]) -> bool:
        """True if it gives the labels, in those of its outputs that have one.

        In their words or as JSON; of a label that is a list of answers, one of them.
        """
        pairs = [(value, labels[name]) for name, value in self.outputs.items() if name in labels]
        for value, label in pairs:
            accepted = [label]
            with suppress(ValueError, RecursionError):
                read = json.loads(label)
                accepted += map(str, read) if isinstance(read, list) else []
                accepted += [value] if read == json.loads(value) else []
            if value.casefold().split() not in [each.casefold().split() for each in accepted]:
                return False
        return bool(pairs)

    @property
    def answer(self) -> str:
        """The outputs as one text, without the reasoning, to find out which rollouts agree."""
        values = [value for name, value in self.outputs.items() if name not in WAYS_TO_AN_ANSWER]
        return " ".join("\n".join(values or self.outputs.values()).casefold().split())


ROLLOUTS = TypeAdapter(Rollout)


def rollout_id_for(seed: int, epoch: int, example: int, index: int, purpose: str) -> int:
    """A number below 2**63 that sets one sample apart in caches; equal arguments give it again."""
    name = f"{seed}/{epoch}/{example}/{index}/{purpose}".encode()
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest()) >> 1


def fields_text(fields: Mapping[str, str]) -> str:
    """`name: value` lines, the form in which fields are shown to the reflection LM."""
    return "\n".join(f"{name}: {value}" for name, value in fields.items())


def trajectory_text(rollout: Rollout) -> str:
    """The whole trajectory as text: every step with inputs, outputs and error, in order.

    Of an input that begins with the lines of the same input of an earlier step of this name (an
    agent's growing history), only the rest is shown. Steps that were replayed are left out.
    """
    parts: list[str] = []
    last_inputs: dict[tuple[str, str], str] = {}
    changes, measure = rollout.changes, rollout.measure or EXPECTED
    for index, step in enumerate(rollout.steps):
        lines = [f"Step {index + 1}, {step.kind} {step.name}"]
        for name, value in step.inputs.items():
            earlier = last_inputs.get((step.name, name))
            last_inputs[step.name, name] = value
            rest = rest_after(earlier, value) if earlier else None
            if rest is not None:
                value = f"(as before, and) {rest}" if rest else "(as before)"
            lines.append(f"  in {name}: {value}")
        lines += [f"  out {name}: {value}" for name, value in step.outputs.items()]
        lines += [f"  error: {step.error}"] if step.error else []
        lines += [f"  feedback on {step.name}: {step.feedback}"] if step.feedback else []
        if step.value is not None:
            before, after = (f"{value:.2f}" for value in changes.get(index, (step.value,) * 2))
            verb = "fell" if float(after) < float(before) else "rose"
            change = f"  after this step the {measure} {verb} from {before} to {after}"
            lines += [f"  {measure} after this step: {after}" if before == after else change]
        parts += lines if index >= (rollout.n_replayed or 0) else []
    if rollout.failure is not None:
        parts.append(f"The program failed: {rollout.failure.message}")
    return "\n".join(parts)


@dataclass(frozen=True, slots=True)
class ScoreRange:
    """The lowest and the highest score that a run has seen. Scores have no other zero."""

    lowest: float = math.inf
    highest: float = -math.inf

    def including(self, scores: Iterable[float | None]) -> "ScoreRange":
        """The range with these scores, too; None is no score."""
        finite = [score for score in scores if score is not None]
        return ScoreRange(min([self.lowest, *finite]), max([self.highest, *finite]))

    @property
    def least_contrast(self) -> float:
        """Two scores that differ by no more than this count as equal."""
        rounding = MIN_CONTRAST * max(1.0, abs(self.lowest), abs(self.highest))
        spread = self.highest - self.lowest
        return max(rounding, CONTRAST_SHARE * spread) if spread > 0 else MIN_CONTRAST

    @property
    def is_flat(self) -> bool:
        """True if the run has seen one score only, or none: nobody knows whether that is good."""
        return self.highest - self.lowest <= self.least_contrast

    @property
    def failure_score(self) -> float:
        """The score of a program's failure: the lowest score, or less if that is the only one.

        `0.2 and 0.9 -> 0.2`; `1.0 alone -> 0.0`; `-3.0 alone -> -6.0`; 0.0 where there is none.
        """
        if not self.is_flat:
            return self.lowest
        if self.lowest > self.least_contrast:
            return 0.0
        return self.lowest - max(1.0, abs(self.lowest))

    def texts(self, scores: Sequence[float]) -> tuple[str, ...]:
        """The scores with at least three digits; those that do not count as equal look unlike."""
        largest = max(map(abs, scores), default=0.0)
        digits_of_whole = len(f"{largest:.0f}") if largest < MOST_WHOLE else 0
        for digits in range(max(3, digits_of_whole), MOST_DIGITS + 1):
            texts = tuple(f"{score:z.{digits}g}" for score in scores)
            by_text: dict[str, list[float]] = {}
            for text, score in zip(texts, scores, strict=True):
                by_text.setdefault(text, []).append(score)
            if all(max(s) - min(s) <= self.least_contrast for s in by_text.values()):
                break
        return texts


NO_SCORES = ScoreRange()


def number_of(value: Any) -> float | None:
    """The number that a value is, of Python's kinds or NumPy's; None: it is none below `MOST`."""
    is_single = not getattr(value, "shape", ())  # NumPy makes a number of an array of one
    if not is_single or isinstance(value, str) or not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except Exception:  # noqa: BLE001 - a huge integer, a torch tensor, a type of the user's
        return None
    return number if abs(number) < MOST else None


def mean_of(numbers: Sequence[float]) -> float | None:
    """Their mean; None: there are none."""
    return statistics.fmean(numbers) if numbers else None


def floored(
    rollouts: Sequence[Rollout], score_range: ScoreRange, for_advice: bool = False
) -> list[float | None]:
    """The score that each rollout counts with; None: it has none.

    The program's own failures have the `failure_score` of all scores, these and the known ones;
    `for_advice`: so have all failures for which advice may be to blame. The score of a failed
    rollout that was made elsewhere stands.
    """
    floor = score_range.including(rollout.score for rollout in rollouts).failure_score
    kinds = {kind for kind in FailureKind if kind.is_programs_own}
    if for_advice:
        kinds = {*FailureKind} - {"provider", "worker", "strategy", "budget"}
    scores = []
    for score, failure in ((rollout.score, rollout.failure) for rollout in rollouts):
        is_low = failure and (failure.kind in kinds or (for_advice and failure.refuses_prompt))
        scores.append(floor if score is None and is_low else score)
    return scores


@dataclass(frozen=True, slots=True)
class Group:
    """The rollouts of one example: which may be compared, whether they differ, their advantages."""

    example: int
    rollouts: tuple[Rollout, ...]  # to compare: all have finite scores, or none has a score
    all_rollouts: tuple[Rollout, ...]  # that were made
    score_range: ScoreRange = NO_SCORES  # of the scores that the run had seen before

    @classmethod
    def of(
        cls,
        example: int,
        rollouts: Sequence[Rollout],
        has_metric: bool,
        score_range: ScoreRange = NO_SCORES,
    ) -> "Group":
        """The group of these, with `floored` scores; failures of provider and metric stay out."""
        scores = floored(rollouts, score_range) if has_metric else [r.score for r in rollouts]
        pairs = zip(rollouts, scores, strict=True)
        counted = tuple(replace(each, score=score) for each, score in pairs if each.counts)
        return cls(example, counted, tuple(rollouts), score_range)

    @property
    def scores(self) -> tuple[float, ...]:
        """The scores of its rollouts; empty where there is no metric."""
        return tuple(rollout.score for rollout in self.rollouts if rollout.score is not None)

    @property
    def advantages(self) -> tuple[float, ...]:
        """The distance of each score from the mean, in population standard deviations.

        `(0.0, 1.0) -> (-1.0, 1.0)`; all 0.0 without contrast; empty where there is no metric.
        Scores that look alike in `score_texts` have the same advantage.
        Source: GRPO, arXiv 2402.03300.
        """
        scores = [float(text) for text in self.score_texts]
        if not self.has_contrast:
            return (0.0,) * len(scores)
        mean, deviation = statistics.mean(scores), statistics.pstdev(scores)
        return tuple((score - mean) / deviation for score in scores)

    @property
    def decisive_predictor(self) -> str:
        """The predictor whose step changed the expected score most in any rollout; "": no such."""
        largest, predictor = 0.0, ""
        for rollout in self.rollouts:
            index = rollout.decisive_step(self.least_decisive)
            if index is not None:
                before, after = rollout.changes[index]
                names = [s.name for s in rollout.steps[: index + 1] if s.kind == "predictor"]
                if abs(after - before) > largest:
                    largest, predictor = abs(after - before), names[-1] if names else ""
        return predictor

    @property
    def least_decisive(self) -> float:
        """The least change of the values that decides a rollout."""
        are_scores = self.scores and not any(rollout.measure for rollout in self.rollouts)
        return DECISIVE * (max(self.scores) - min(self.scores) if are_scores else 1.0)

    @property
    def majority_answer(self) -> str:
        """The answer that most rollouts give, as first given; the earliest of several."""
        answered = [rollout for rollout in self.rollouts if rollout.failure is None]
        n_by_answer = Counter(rollout.answer for rollout in answered)
        most = max(answered, key=lambda rollout: n_by_answer[rollout.answer], default=None)
        return fields_text(most.outputs) if most else ""

    @property
    def has_feedback(self) -> bool:
        """True if the metric, an error of the program, or values of steps say what was wrong."""
        return any(r.words or r.failure or r.changes for r in self.rollouts)

    @property
    def has_contrast(self) -> bool:
        """True if its scores differ, by more than a hundredth of all scores that are known."""
        return bool(self.scores) and max(self.scores) - min(self.scores) > self.least_contrast

    @property
    def least_contrast(self) -> float:
        """Two of its scores that differ by no more than this count as equal."""
        return self.score_range.including(self.scores).least_contrast

    @property
    def score_texts(self) -> tuple[str, ...]:
        """The scores as people and the reflection LM read them, by `ScoreRange.texts`."""
        return self.score_range.including(self.scores).texts(self.scores)

    def is_at_best(self, labels: Mapping[str, str]) -> bool:
        """True if all have the best score that is known or, if only one is, the labels' answer."""
        scores = self.score_range.including(self.scores)
        if not self.scores or scores.is_flat:
            return bool(self.scores) and all(one.agrees_with(labels) for one in self.rollouts)
        return min(self.scores) >= scores.highest - scores.least_contrast


SHOWN_BYTES = 120  # how much of an example or a value an error message quotes
OF_PREDICTORS = ["pred_name", "pred_trace"]  # arguments of GEPA's metrics
VERDICT = {"score", "objectives", "objective_scores"}  # the last is GEPA's name of the second


@dataclass(frozen=True, slots=True)
class Score:
    """The verdict of a metric: a finite number, more is better, and why in words."""

    value: float
    feedback: str = ""
    objectives: Mapping[str, float] = field(default_factory=dict)  # by name; more is better


@dataclass(frozen=True, slots=True)
class ScoringFunction:
    """A metric as a function of example, prediction and program trace."""

    metric: Callable[..., Any]
    asks_predictors: bool  # it also says what one predictor did well or badly, as GEPA's metrics do
    n_extra: int  # arguments behind the first two
    wants_program_trace: bool

    def __call__(self, example: Any, prediction: Any, program_trace: Any) -> Score:
        """The score. Raises MetricError: the metric raised, or gave no finite score."""
        return self.as_score(self.ask(example, prediction, program_trace), example)

    def feedback_on(
        self, predictor: str, calls: list[Any], example: Any, prediction: Any, trace: Any
    ) -> str:
        """The metric's words on this predictor and its calls. Raises MetricError: it raised."""
        verdict = self.ask(example, prediction, trace, predictor, calls)
        if _has_fields(verdict):
            verdict = written(verdict.get("feedback") or "")
        return verdict if isinstance(verdict, str) else ""

    def ask(self, example: Any, prediction: Any, program_trace: Any, *predictor: Any) -> Any:
        """The value that the metric itself returns. Raises MetricError: it raised."""
        kwargs = {"program_trace": program_trace} if self.wants_program_trace else {}
        behind = (program_trace, *predictor) if predictor else (None,) * self.n_extra
        try:
            return settled(self.metric(example, prediction, *behind, **kwargs))
        except (RunStopped, KeyboardInterrupt, MetricError):
            raise
        except BaseException as error:
            fault = f"raised {shortened(described(error), SHOWN_BYTES)}"
            raise self._error(fault, example) from error

    def _error(self, fault: str, example: Any, hint: str = "") -> MetricError:
        name = metric_name(self.metric)
        return MetricError(f"metric {name} {fault} on the example {_shown(example)}{hint}")

    def as_score(self, verdict: Any, example: Any) -> Score:
        """The score that the metric returned. Raises MetricError: it is none."""
        if not (_has_fields(verdict) and VERDICT & {*verdict.keys()}):
            return Score(self._finite(verdict, example))
        by_name = verdict.get("objectives", verdict.get("objective_scores")) or {}
        if not isinstance(by_name, Mapping):
            hint = "; return a dict of finite numbers by name."
            raise self._error(f"returned objectives={_shown(by_name)}", example, hint)
        objectives = {
            str(name): self._finite(each, example, f" as objective {str(name)!r}")
            for name, each in by_name.items()
            if each is not None  # it applies to the example
        }
        mean = statistics.fmean(objectives.values()) if objectives else None
        value, feedback = verdict.get("score", mean), written(verdict.get("feedback") or "")
        if _has_fields(value) and "score" in value:  # a judge's verdict, passed on
            judged = self.as_score(value, example)
            return Score(judged.value, feedback or judged.feedback, objectives or judged.objectives)
        return Score(self._finite(value, example, " as the score"), feedback, objectives)

    def _finite(self, value: Any, example: Any, part: str = "") -> float:
        if (number := number_of(value)) is not None:
            return number
        fault = f"returned {_shown(value)} ({type(value).__name__}){part}"
        hint = f"; return a finite number (below {MOST:g}), or "
        raise self._error(fault, example, f"{hint}dspy.Prediction(score=..., feedback=...).")


def adapt_metric(metric: Any) -> ScoringFunction:
    """The metric in the one form that rollouts call.

    Arguments behind the first two keep their defaults; those without one are passed as None (in
    DSPy's metrics a trace that is not None asks for a strict yes or no instead of a score). Raises
    SettingsError: the metric is not callable, or cannot be called in any of those forms.
    """
    if not callable(metric) or inspect.isclass(metric):
        fault = "is a class; pass an instance, or" if callable(metric) else "is not callable; pass"
        form = "a function metric(example, pred, trace=None)"
        raise SettingsError(f"{metric!r} {fault} {form}.")
    try:
        signature = inspect.signature(metric)
    except (TypeError, ValueError):  # a callable of C code does not tell; the plainest form then
        return ScoringFunction(metric, False, 0, False)
    wants_trace = "program_trace" in signature.parameters
    kwargs = {"program_trace": None} if wants_trace else {}
    for extra in (0, 1, 3):  # two arguments, DSPy's three, or GEPA's five
        with suppress(TypeError):
            signature.bind(*(None,) * (2 + extra), **kwargs)
            asks_predictors = [*signature.parameters][3:5] == OF_PREDICTORS
            return ScoringFunction(metric, asks_predictors, extra, wants_trace)
    fault = f"metric {metric_name(metric)}{signature} cannot be called with example and prediction"
    raise SettingsError(f"{fault}; write it as metric(example, pred, trace=None).")


def held_lms(metric: Any) -> list[Any]:
    """The LMs, and those of modules, that a metric, or a function that it names, refers to."""
    lms: list[Any] = []
    for _, held in reached([("", metric)]):
        if callable(held) and inspect.getattr_static(held, "num_retries", None) is not None:
            lms.append(held)
        elif hasattr(type(held), "named_sub_modules"):
            lms += language_models(held)
    return lms


def _has_fields(verdict: Any) -> bool:
    return isinstance(verdict, Mapping) or hasattr(type(verdict), "from_completions")  # of DSPy


def metric_name(metric: Any) -> str:
    """The name under which errors speak of the metric."""
    metric = without_partials(metric)
    return str(getattr(metric, "__qualname__", None) or type(metric).__qualname__)


def _shown(value: object) -> str:
    unseen = f"a {type(value).__name__} that cannot be shown"
    return shortened(written(value, repr, unseen), SHOWN_BYTES)
