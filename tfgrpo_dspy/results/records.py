"""The parts of a run's results, as frozen values of text and numbers."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from scipy.special import stdtrit

from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.experience import Effect
from tfgrpo_dspy.rollout import MIN_CONTRAST, mean_of
from tfgrpo_dspy.text import counted

CONFIDENCE = 0.95
ExampleScores = Sequence[float | None]  # of a set, in its order; None where there is none
Scale = tuple[float, float]  # the lowest and the highest score, as far as a run has seen them
UNBOUNDED: Scale = (-math.inf, math.inf)
Row = dict[str, Any]  # of a table, by the names of its columns


def interval(values: Sequence[float], scale: Scale = UNBOUNDED) -> tuple[float, float] | None:
    """The bounds of the mean with 95 % confidence (Student's t), within the scale.

    Where all of two or more values stand at one end of the scale, Clopper and Pearson's bound for a
    share of one (1934) bounds the mean. None where the values say nothing of their spread: fewer
    than two, or all the same elsewhere.
    """
    n, (lowest, highest) = len(values), scale
    if n < 2:
        return None
    mean = statistics.fmean(values)
    if max(values) - min(values) > MIN_CONTRAST:
        half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * statistics.stdev(values) / math.sqrt(n)
        return max(lowest, mean - half), min(highest, mean + half)
    most = (highest - lowest) * (1 - ((1 - CONFIDENCE) / 2) ** (1 / n))
    if highest - lowest <= MIN_CONTRAST or lowest + MIN_CONTRAST < mean < highest - MIN_CONTRAST:
        return None
    return (mean, lowest + most) if mean <= lowest + MIN_CONTRAST else (highest - most, mean)


def bounds_text(low: float | None, high: float | None, form: str = "z.3f") -> str:
    """` [low, high]` in this format, or "" where there is no interval."""
    return "" if low is None or high is None else f" [{low:{form}}, {high:{form}}]"


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The mean score of `n` examples, and its 95 % interval (`interval` says when there is one)."""

    mean: float | None
    n: int
    n_failed: int = 0  # others, which have no score
    low: float | None = None
    high: float | None = None

    @classmethod
    def of(cls, scores: ExampleScores, scale: Scale = UNBOUNDED) -> "ScoreSummary | None":
        """The mean of the scores; None where no example was measured."""
        if not scores:
            return None
        finite = [score for score in scores if score is not None]
        low, high = interval(finite, scale) or (None, None)
        return cls(mean_of(finite), len(finite), len(scores) - len(finite), low, high)

    def __str__(self) -> str:
        mean = "no score" if self.mean is None else f"{self.mean:z.3f}"
        failed = f", {self.n_failed} more without a score" if self.n_failed else ""
        return f"{mean}{bounds_text(self.low, self.high)} on {counted(self.n, 'example')}{failed}"


@dataclass(frozen=True, slots=True)
class Gain:
    """The mean of result minus student, over the `n` examples on which both have a score.

    `low` and `high` bound it with 95 % confidence (Student's t, paired), if the differences differ.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def between(
        cls, before: ExampleScores, after: ExampleScores, scale: Scale = UNBOUNDED
    ) -> "Gain | None":
        """The mean of after minus before over examples that have both scores; None: no such."""
        pairs = zip(before, after, strict=False)
        gains = [new - old for old, new in pairs if new is not None and old is not None]
        if not gains:
            return None
        widest = scale[1] - scale[0]
        is_spread = max(gains) - min(gains) > MIN_CONTRAST
        low, high = (is_spread and interval(gains, (-widest, widest))) or (None, None)
        return cls(statistics.fmean(gains), low, high, len(gains))

    def __str__(self) -> str:
        examples = counted(self.n, "example")
        bounds = bounds_text(self.low, self.high, "+z.3f")
        end = "" if bounds else "; the gains differ too little for an interval"
        return f"{self.mean:+z.3f}{bounds} on {examples}{end}"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores of student and result on the test set, which had no part in the choice."""

    student: ScoreSummary
    best: ScoreSummary
    gain: Gain | None


@dataclass(frozen=True, slots=True)
class DemoRecord:
    """A demo of the result: its predictor, and the fields that the predictor is shown."""

    predictor: str
    fields: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BriefRecord:
    """A brief that was tried: its text for each predictor, and whether it is in the result."""

    texts: Mapping[str, str]
    effect: Effect | None  # None: no rollout had it
    chance: float  # as in `TriedAdvice`
    is_best: bool


@dataclass(frozen=True, slots=True)
class TriedAdvice:
    """The text and scope of an experience that rollouts were given, whether it was kept or not."""

    text: str
    scope: str
    effect: Effect
    chance: float  # the probability that it is worth its tokens


@dataclass(frozen=True, slots=True)
class Added:
    """Prompt tokens that lines, briefs and demos add to each call of a program, estimated.

    A program of several predictors calls each of them once.
    """

    lines: int = 0
    briefs: int = 0
    demos: int = 0
    dollars: float | None = None  # for a thousand calls, if the price of the policy LM is known

    @property
    def n_tokens(self) -> int:
        """All of these tokens."""
        return self.lines + self.briefs + self.demos

    def __str__(self) -> str:
        sizes = {"lines": self.lines, "brief": self.briefs, "demos": self.demos}
        parts = [f"{name} {n:,}" for name, n in sizes.items() if n]
        of = f" ({', '.join(parts)})" if len(parts) > 1 else ""
        dollars = "" if self.dollars is None else f", ${self.dollars:,.4f} for 1,000 calls"
        return f"{counted(self.n_tokens, 'token')} a call{of}{dollars}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A candidate of the final choice, measured on validation examples."""

    name: str  # "student" (the first, also where it is the result), "result", "candidate 1", ...
    ids: tuple[str, ...]  # of its experiences
    demo_set: int  # the number of its set of demos among those of the run, from 1; 0: none
    score: ScoreSummary | None
    chance: float  # that it is better than the student, by training and validation rollouts
    is_best: bool  # it was returned
    objectives: Mapping[str, float] = field(default_factory=dict)  # their means, by name
    added: Added = field(default_factory=Added)
    brief: int = 0  # the number of its brief, as of its demos
    bake: Callable[[], Any] | None = field(default=None, compare=False, repr=False)

    def program(self) -> Any:
        """This program, ready to use. Raises SettingsError: the results were read from a file."""
        if self.bake is None:
            way = "take those of the same compile, run again with its log_dir (without a call)"
            raise SettingsError(f"{self.name}: results that were saved hold no programs; {way}.")
        return self.bake()

    @property
    def has_demos(self) -> bool:
        """True if it shows demos."""
        return self.demo_set > 0

    @property
    def n_measured(self) -> int:
        """On how many examples it was measured, those without a score included."""
        return self.score.n + self.score.n_failed if self.score else 0

    def dominates(self, other: "Candidate") -> bool:
        """True if it is as good in all objectives, and better in one."""
        pairs = [(self.objectives.get(n, -math.inf), v) for n, v in other.objectives.items()]
        return all(value >= v for value, v in pairs) and any(value > v for value, v in pairs)


def compared(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with objectives that were measured on the most examples."""
    most = max((each.n_measured for each in candidates), default=0)
    return [each for each in candidates if each.objectives and each.n_measured == most]


def front_of(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates of those `compared` that no other dominates: the Pareto front."""
    rivals = compared(candidates)
    return [each for each in rivals if not any(other.dominates(each) for other in rivals)]


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """Scores and outputs of student and result on an example of the validation or test set."""

    set: str
    example: int  # the position in its set
    inputs: str  # this and other texts are shortened
    student: float | None
    result: float | None
    student_outputs: str
    result_outputs: str
    feedback: str = ""


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """One group: its example (position in the training set), its rollouts' scores, its use."""

    example: int
    scores: tuple[float | None, ...]
    failures: tuple[str, ...]
    used_as: str
    """"contrast", "failure analysis", "no ground truth", or why it taught nothing: "no contrast",
    "too few rollouts", "enough on trial" (no more lessons could be tested), "no lesson of late" (so
    many groups before it gave nothing new)."""
    aided_scores: tuple[float | None, ...] = ()  # of rollouts with a hint, a teacher, or a start


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """One proposed operation; `refused` says why the library did not take it ("": it did)."""

    op: str
    id: str
    text: str
    scope: str
    reason: str
    refused: str = ""


@dataclass(frozen=True, slots=True)
class RolloutSummary:
    """A rollout as people are shown it: its outputs, shortened, its score, what the metric said."""

    outputs: str
    score: float | None
    feedback: str
    values: tuple[tuple[str, float], ...] = ()  # expected scores after steps, with their names
    measure: str = ""  # as in `Rollout`


@dataclass(frozen=True, slots=True)
class Comparison:
    """A group that an experience was learned from: its best and its worst rollout, and why."""

    example: int
    inputs: str  # how they begin
    good: RolloutSummary
    bad: RolloutSummary
    advantage: str  # the semantic one: why, says the reflection LM, one is better


ChangeKind = Literal["born", "changed", "settled", "dropped"]
CHANGES_IN_WORDS: dict[ChangeKind, str] = {
    "born": "added", "changed": "changed", "settled": "proved useful", "dropped": "dropped"
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """A change that an update made to one experience."""

    kind: ChangeKind  # it is new; has another text; its effect is established; it left
    id: str
    text: str
    scope: str
    reason: str = ""  # why it left
    effect: Effect | None = None
    comparisons: tuple[Comparison, ...] = ()  # groups that the text was learned from


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """One update: a batch of groups, its lessons, and what became of them."""

    update: int
    epoch: int
    groups: tuple[GroupRecord, ...]
    lessons: tuple[str, ...]
    refused_lessons: tuple[str, ...]
    operations: tuple[OperationRecord, ...]
    reason: str
    library_size: int
    changes: tuple[Change, ...] = ()
    n_lm_calls: int = 0  # this and the next: of training so far; answers from a cache count
    cost_usd: float = 0.0

    @property
    def accepted(self) -> bool:
        """True if the library has other texts after it."""
        return any(change.kind != "settled" for change in self.changes)

    @property
    def scores(self) -> list[float]:
        """The scores of its rollouts, those of failed rollouts included."""
        return [score for group in self.groups for score in group.scores if score is not None]

    @property
    def mean_score(self) -> float | None:
        """The mean of these scores; None: there are none."""
        return mean_of(self.scores)
