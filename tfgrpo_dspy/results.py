"""What a run reports: plain values that reduce to builtins when they are pickled.

So a saved program that carries them loads where this package is not installed (they are then
dicts and lists). `run` collects their content.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from scipy.special import stdtrit

from tfgrpo_dspy.experience.values import Effect
from tfgrpo_dspy.rollout import MIN_CONTRAST, Usage

REFLECTIONS = ("draft", "summary", "lesson", "update")  # what the reflection LM is asked for
CONFIDENCE = 0.95

ExampleScores = Sequence[float | None]
"""The scores of the examples of a set, in their order; None where there is none."""


@dataclass(frozen=True, slots=True)
class ScoreSummary:
    """The mean score of `n` examples; `n_failed` others have no score."""

    mean: float | None
    n: int
    n_failed: int = 0

    @classmethod
    def of(cls, scores: ExampleScores) -> "ScoreSummary | None":
        """The mean of the scores; None where no example was measured."""
        if not scores:
            return None
        known = [score for score in scores if score is not None]
        mean = statistics.fmean(known) if known else None
        return cls(mean, len(known), len(scores) - len(known))


@dataclass(frozen=True, slots=True)
class Gain:
    """The mean of result minus student, over the `n` examples on which both have a score.

    `low` and `high` bound it with 95 % confidence (Student's t, paired); None where the data say
    nothing of their spread: fewer than two pairs, or the same difference everywhere.
    """

    mean: float
    low: float | None
    high: float | None
    n: int

    @classmethod
    def between(cls, before: ExampleScores, after: ExampleScores) -> "Gain | None":
        """The mean of after minus before over examples that have both scores; None: no such."""
        pairs = zip(before, after, strict=False)
        gains = [new - old for old, new in pairs if new is not None and old is not None]
        if not gains:
            return None
        mean, n = statistics.fmean(gains), len(gains)
        if n < 2 or max(gains) - min(gains) <= MIN_CONTRAST:
            return cls(mean, None, None, n)
        error = statistics.stdev(gains) / math.sqrt(n)
        half = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2)) * error
        return cls(mean, mean - half, mean + half, n)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.3f} on {self.n} examples, which differ too little for an interval"
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}] on {self.n} examples"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores of student and result on the test set, which had no part in the choice."""

    student: ScoreSummary
    best: ScoreSummary
    gain: Gain | None


@dataclass(frozen=True, slots=True)
class TriedAdvice:
    """The text and scope of an experience that rollouts were given, whether it was kept or not.

    `effect` is what the text adds to the score on examples like the training examples;
    `chance` is the probability that it is worth its tokens.
    """

    text: str
    scope: str
    effect: Effect
    chance: float


@dataclass(frozen=True, slots=True)
class Finalist:
    """A candidate of the final choice; the first is the student.

    `ids` are the experiences that it has; `score` is its mean on the validation examples that it
    was measured on; `chance` is the probability that it is better than the student, by training
    and validation rollouts together; `is_best` says whether it was returned.
    """

    ids: tuple[str, ...]
    has_demos: bool
    score: ScoreSummary | None
    chance: float
    is_best: bool


@dataclass(frozen=True, slots=True)
class GroupRecord:
    """One group: its example (position in the training set), its rollouts' scores, its use.

    `used_as` is "contrast", "failure analysis", "no ground truth", or why it taught nothing:
    "no contrast", "too few rollouts".
    """

    example: int
    scores: tuple[float | None, ...]
    failures: tuple[str, ...]
    used_as: str


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
class UpdateRecord:
    """One update: a batch of groups, its lessons, what became of them; `dropped`: why, by id."""

    update: int
    epoch: int
    groups: tuple[GroupRecord, ...]
    lessons: tuple[str, ...]
    refused_lessons: tuple[str, ...]
    operations: tuple[OperationRecord, ...]
    accepted: bool
    reason: str
    library_size: int
    dropped: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RunResults:
    """The whole run.

    `student` and `best` are the validation scores of the student and of what was returned, `gain`
    their difference: too optimistic, as these scores chose the result. `test` is what counts:
    scores on a `testset`, whose examples chose nothing. `finalists` are the candidates of the
    choice; `tried` is, if the gate states effects, all advice in the order of its first use.
    `usage` has the roles "rollout" (training), "validation", "test", those of `REFLECTIONS`,
    "metric" (LM judges), and "unfinished" for calls without a result; `usage` and `metric_calls`
    hold what was replayed too, at its original cost. `replayed` counts, by role, what was read
    from the run store. `nothing_learned` says why the result is the student ("": it is not).
    `n_demos` is how many more demos the result has than the student.
    """

    student: ScoreSummary | None
    best: ScoreSummary | None
    updates: tuple[UpdateRecord, ...]
    usage: Mapping[str, Usage]
    failures: Mapping[str, int]
    ended_because: str
    nothing_learned: str
    wall_time_s: float
    library: Mapping[str, Any]
    metric_calls: int = 0
    gain: Gain | None = None
    test: HeldOut | None = None
    replayed: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    n_demos: int = 0
    finalists: tuple[Finalist, ...] = ()
    tried: tuple[TriedAdvice, ...] = ()
    schedule: Mapping[str, Any] = field(default_factory=dict)

    @property
    def policy_usage(self) -> Usage:
        """What the program's rollouts have cost, in training and on validation."""
        return self.usage["rollout"] + self.usage["validation"]

    @property
    def reflection_usage(self) -> Usage:
        """What the reflection LM has cost."""
        return sum((self.usage[role] for role in REFLECTIONS), Usage())

    def to_dict(self) -> dict[str, Any]:
        """The same as dicts, lists, strings and numbers, ready for JSON."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (list(self.to_dict().items()),)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "RunResults":
        return self

    __copy__ = __deepcopy__
