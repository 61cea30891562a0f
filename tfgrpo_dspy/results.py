"""The results of a run: plain values that reduce to builtins when they are pickled, and a page.

So a saved program that carries them loads where this package is not installed.
"""

import functools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter
from scipy.special import stdtrit

from tfgrpo_dspy.errors import LibraryFormatError, SettingsError
from tfgrpo_dspy.experience import ALL, Effect, Experience, ExperienceLibrary, library_of
from tfgrpo_dspy.rollout import MIN_CONTRAST, ScoreRange, Usage, mean_of
from tfgrpo_dspy.text import aligned, counted, printable, shortened

CONFIDENCE = 0.95
UNBOUNDED = ScoreRange(-math.inf, math.inf)
Scores = Sequence[float | None]  # of examples; None: there is none
Row = dict[str, Any]  # of a table, by the names of its columns
_adapter = functools.cache(lambda: TypeAdapter(RunResults))


def interval(values: Sequence[float], scale: ScoreRange = UNBOUNDED) -> tuple[float, float] | None:
    """The bounds of the mean with 95 % confidence (Student's t), within the scale.

    Where all of two or more values stand at one end of the scale, Clopper and Pearson's bound for a
    share of one (1934) bounds the mean. None where the values say nothing of their spread: fewer
    than two, or all the same elsewhere.
    """
    n, lowest, highest = len(values), scale.lowest, scale.highest
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
    def of(cls, scores: Scores, scale: ScoreRange = UNBOUNDED) -> "ScoreSummary | None":
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
    def between(cls, before: Scores, after: Scores, scale: ScoreRange = UNBOUNDED) -> "Gain | None":
        """The mean of after minus before over examples that have both scores; None: no such."""
        pairs = zip(before, after, strict=False)
        gains = [new - old for old, new in pairs if new is not None and old is not None]
        if not gains:
            return None
        widest = scale.highest - scale.lowest
        is_spread = max(gains) - min(gains) > MIN_CONTRAST
        low, high = (is_spread and interval(gains, ScoreRange(-widest, widest))) or (None, None)
        return cls(statistics.fmean(gains), low, high, len(gains))

    def __str__(self) -> str:
        bounds = bounds_text(self.low, self.high, "+z.3f")
        end = "" if bounds else "; the gains differ too little for an interval"
        return f"{self.mean:+z.3f}{bounds} on {counted(self.n, 'example')}{end}"


@dataclass(frozen=True, slots=True)
class HeldOut:
    """Scores of student and result on the test set, which chose nothing."""

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
        """True if it shows demos. Programs of users read it."""
        return self.demo_set > 0

    @property
    def n_measured(self) -> int:
        """On how many examples it was measured, those without a score included."""
        return self.score.n + self.score.n_failed if self.score else 0


def compared(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The candidates with objectives that were measured on the most examples."""
    most = max([each.n_measured for each in candidates], default=0)
    return [each for each in candidates if each.objectives and each.n_measured == most]


def front_of(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The Pareto front of those `compared`: no other is as good in all, and better in one."""
    rivals = compared(candidates)

    def beats(rival: Candidate, other: Candidate) -> bool:
        pairs = [(rival.objectives.get(n, -math.inf), v) for n, v in other.objectives.items()]
        return all(value >= v for value, v in pairs) and any(value > v for value, v in pairs)

    return [each for each in rivals if not any(beats(other, each) for other in rivals)]


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


REFLECTIONS = ("brief", "draft", "summary", "lesson", "update", "strategy")
"""The purposes for which the reflection LM is asked."""
NOT_FINISHED = "not finished"  # the `ended_because` of a run that was killed, or still goes on
MOST_EXPERIENCES, MOST_DROPPED, MOST_FAILURES, MOST_CANDIDATES = 6, 3, 3, 3  # a page has 40 lines
FEW_UPDATES = 4  # three times as many without a change, and more budget is not worth it
DOUBTFUL = 0.5  # a line that is worth its tokens with a smaller probability
FAILURES_IN_WORDS = {
    "program": "the program raised an error",
    "parse": "an answer of the policy LM did not have the form that the program asks for",
    "provider": "the provider of the LM failed",
    "metric": "the metric raised an error, or gave no score",
    "timeout": "a rollout took longer than it may",
    "worker": "the worker of a rollout was lost",
    "reflection error": "a call of the reflection LM failed",
    "reflection parse": "an answer of the reflection LM could not be read",
    "reflection filtered": "a content filter held an answer of the reflection LM back",
    "lesson refused": "a lesson was a copy, or too long: Reflection(guard=, max_experience_words=)",
    "brief refused": "a brief was too long",
    "lesson too many": "an answer had more lessons than are read",
    "advice let in": "Reflection(guard=) let in what copies an example",
    "guard": "the function of Reflection(guard=) raised an error, so the advice was refused",
    "advice not shown": "the program had experiences, and no prompt of it held them",
    "no LM call": "the program called no LM, or only where no call is seen, as in its own threads",
    "no output": "the program returned nothing (None, or no fields), and no score differed",
    "image not shown": "the reflection LM was told of an image, and not shown it",
    "approval": "what approve= answered could not be used",
    "listener": "what on_event= calls raised an error",
    "budget": "a strategy wanted further rollouts, for which the budget did not reach",
    "strategy": "a method of a strategy failed, hangs, or gave something that cannot be used",
    "replay": "a program or a tool did not repeat what it had done, so steps have no value",
    "usage not reported": "an LM reports no usage: its tokens and dollars are estimated from texts",
    "parameter left out": "a provider refused a sampling parameter, so it was not sent again",
}


@dataclass(frozen=True)
class RunResults:
    """The whole run.

    `test` is what counts: its examples chose nothing, and those of `student`, `best` and `gain`
    chose the result. `usage` has the roles "rollout" (training), "validation", "test", those of
    `REFLECTIONS`, "metric" (LM judges), and "unfinished" for calls without a result; `usage` and
    `metric_calls` hold what was replayed too, at its original cost.

    `print(results)` gives a page of at most 40 lines, and so does a notebook.
    """

    student: ScoreSummary | None  # on the validation set, as `best` and `gain` are
    best: ScoreSummary | None  # of what was returned
    updates: tuple[UpdateRecord, ...]
    usage: Mapping[str, Usage]
    failures: Mapping[str, int]
    ended_because: str
    nothing_learned: str  # why the result is the student; "": it is not
    wall_time_s: float
    library: Mapping[str, Any]
    metric_calls: int = 0
    gain: Gain | None = None
    test: HeldOut | None = None
    replayed: Mapping[str, int] = field(default_factory=dict)  # from the run store, by role
    settings: Mapping[str, Any] = field(default_factory=dict)
    n_demos: int = 0  # how many more than the student has
    candidates: tuple[Candidate, ...] = ()  # of the final choice
    added: Added = field(default_factory=Added)  # by the result, to each call
    tried: tuple[TriedAdvice, ...] = ()  # if the gate states effects; in order of first use
    schedule: Mapping[str, Any] = field(default_factory=dict)
    instructions: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # before and after
    lms: tuple[str, str] = ("", "")  # the names of the policy and the reflection LM
    demos: tuple[DemoRecord, ...] = ()
    examples: tuple[ExampleRow, ...] = ()  # of validation and test set, the worst first
    program: str = ""  # the student's class
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Of a run with a `log_dir` this, its id ("run"), and when it was "begun"; not in `to_dict`."""
    taken_because: str = ""  # why the result was chosen
    switched: tuple[str, ...] = ()  # what strategies have switched on, by what they saw
    briefs: tuple[BriefRecord, ...] = ()  # all that were tried

    @property
    def is_finished(self) -> bool:
        """True if the run came to its end; `saved_runs` reads others too."""
        return self.ended_because != NOT_FINISHED

    def total(self, roles: Iterable[str]) -> Usage:
        """The usage of all calls of these roles."""
        return sum((self.usage[role] for role in roles if role in self.usage), Usage())

    @property
    def spent(self) -> Usage:
        """The cost of the whole run; dollars as far as prices are known."""
        return self.total(self.usage)

    @property
    def policy_usage(self) -> Usage:
        """The cost of the program's rollouts, in training, on validation and on the test set."""
        return self.total(("rollout", "validation", "test"))

    @property
    def reflection_usage(self) -> Usage:
        """The cost of the reflection LM."""
        return self.total(REFLECTIONS)

    @property
    def experiences(self) -> ExperienceLibrary:
        """The library of the result, with effects and lengths."""
        return ExperienceLibrary.from_dict(dict(self.library))

    @property
    def finalists(self) -> tuple[Candidate, ...]:
        """The candidates that the race measured, the student among them."""
        return tuple(each for each in self.candidates if each.n_measured)

    @property
    def front(self) -> list[Candidate]:
        """The candidates that no other beats in every objective (Pareto)."""
        return front_of(self.candidates)

    @property
    def ended(self) -> str:
        """When and why the run ended, as a sentence."""
        ended = f"Ended after {self.wall_time_s:,.0f} s: {self.ended_because}"
        return ended if self.is_finished else "The run is not finished."

    @property
    def next_step(self) -> str:
        """The best thing to do with this result, in a sentence."""
        if not self.is_finished:
            return "start the same compile with its log_dir again: it goes on where it was"
        steps = ["keep the student"]
        if not self.nothing_learned:
            chances = {(one.text, one.scope): one.chance for one in self.tried}
            lines = strongest_first(self.experiences)
            weak = [e.id for e in lines if chances.get(e.advice, 1.0) < DOUBTFUL][-2:]
            strike = f"strike {' and '.join(weak)} (more likely not worth their tokens)"
            steps = [strike] if weak else []
            if self.gain and not self.test:
                steps.append("pass a testset (these examples chose the result)")
            steps.append('save it (program.save("program.json"))')
        n, seen = len(self.updates), [score for each in self.updates for score in each.scores]
        n_last = max([k for k, update in enumerate(self.updates, 1) if update.accepted], default=0)
        worth, why = "not worth it", f"nothing changed after update {n_last} of {n}"
        if self.best and self.best.mean is not None and self.best.mean >= max(seen, default=9e9):
            why = f"no attempt scored more than {self.best.mean:z.3f}"
        elif self.ended_because.startswith("max_") and n <= 3 * max(n_last, FEW_UPDATES):
            worth, why = "worth it", f"the run was cut off ({one_line(self.ended_because)})"
        elif n_last > 2 * n / 3:
            worth, why = "worth it", f"the library still changed in update {n_last} of {n}"
        return f"{', '.join(steps)}; more budget is {worth}: {why}"

    def __str__(self) -> str:
        lines = []
        for part in (scores, candidates, experiences, dropped, costs, failures):
            title, rows, header = part(self)
            cells = [*filter(None, (header, *rows))]
            lines += [title, *(f"  {line}" for line in aligned(cells))]
        taken = self.taken_because and f"Taken: {one_line(self.taken_because)}"
        lines += [one_line("; ".join(self.switched)), taken, f"Next: {self.next_step}", self.ended]
        return printable("\n".join(filter(None, lines)))

    @property
    def in_a_line(self) -> str:
        """The validation scores of student and result, the experiences and the LM calls."""
        before, after = self.student or "not measured", self.best or "not measured"
        lines = counted(len(self.experiences), "experience")
        learned = f"{lines} and {counted(self.n_demos, 'demo')}"
        calls = counted(self.spent.n_lm_calls, "LM call")
        return f"validation score {before} before, {after} after; {learned}; {calls}"

    def __repr__(self) -> str:
        return f"<RunResults: {self.in_a_line}>"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>"

    def to_dict(self) -> dict[str, Any]:
        """The results as dicts, lists, strings and numbers, ready for JSON."""
        plain = tuple(replace(each, bake=None) for each in self.candidates)
        values = asdict(replace(self, candidates=plain))
        return dict(json.loads(json.dumps({k: values[k] for k in values if k != "origin"})))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunResults":
        """The results from `to_dict`, as a program read from a file holds. Raises ValueError."""
        return _adapter().validate_python(values)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (list(self.to_dict().items()),)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "RunResults":
        return self

    __copy__ = __deepcopy__


class Section(NamedTuple):
    """A part of the page: a title and rows of cells, with a header or not; "": it is left out."""

    title: str
    rows: Sequence[Sequence[str]] = ()
    header: Sequence[str] = ()


def one_line(text: str) -> str:
    """The text on one line, shortened to 300 bytes."""
    return shortened(text, 300)


def effect_text(effect: Effect | None) -> str:
    """`+0.49 [+0.14, +0.84]`: the effect on the score with its 95 % interval."""
    if effect is None:
        return "not measured"
    return f"{effect.estimate:+z.2f}{bounds_text(*effect.bounds, '+z.2f')}"


def strongest_first(library: Iterable[Experience]) -> list[Experience]:
    """The experiences by their effects; those without one stand last."""
    return sorted(library, key=lambda e: -e.effect.estimate if e.effect else math.inf)


def scores(run: RunResults) -> Section:
    """The mean scores of student and result, first on the test examples, which count most."""
    test = run.test
    sets = {"held-out test": [test.student, test.best, test.gain]} if test else {}
    sets |= {"validation": [run.student, run.best, run.gain]} if run.student or run.best else {}
    rows = [
        [name, what, str(value or "not measured")]
        for name, values in sets.items()
        for what, value in zip(("student", "result", "gain"), values, strict=True)
    ]
    what = " [95 % interval]" if rows else ": not measured"
    optimistic = "; optimistic: these scores chose the result" * bool(rows and not test)
    return Section(f"Mean score{what}{optimistic}", rows)


def candidates(run: RunResults, most: int = MOST_CANDIDATES) -> Section:
    """The candidates of the final choice: scores, objectives, and what each adds to a call.

    Pareto-optimal is one that no other beats in every objective, of those that were measured on the
    most examples, as the student is.
    """
    if len(run.candidates) < 2:
        return Section("")
    names = dict.fromkeys(name for each in run.candidates for name in each.objectives)
    optimal = {id(each): "no" for each in compared(run.candidates)}
    optimal |= {id(each): "yes" for each in run.front}
    first, *others = run.candidates
    others.sort(key=lambda other: (not other.is_best, optimal.get(id(other)) != "yes"))
    is_priced, has_objectives = first.added.dollars is not None, bool(names)
    header = ["", "mean score", *names, *["Pareto-optimal"] * has_objectives, "tokens a call"]
    header += ["$ for 1,000 calls"] * is_priced + ["consists of"]
    rows = []
    for each in [first, *others][:most]:
        score, added = each.score, each.added
        mean = f"{score.mean:z.3f} on {score.n}" if score and score.mean is not None else "no score"
        parts = [*each.ids, *[f"demos {each.demo_set}"] * (each.demo_set > 0)]
        rows.append([
            each.name + " (returned)" * (each.is_best and each is first),
            mean,
            *(f"{each.objectives[n]:z.3f}" if n in each.objectives else "" for n in names),
            *[optimal.get(id(each), "")] * has_objectives,
            f"{added.n_tokens:,}",
            *[f"{added.dollars or 0.0:,.4f}"] * is_priced,
            one_line(", ".join([*parts, *["brief"] * bool(added.briefs)])),
        ])  # fmt: skip
    n = len(run.candidates) - len(rows)
    more = f"; {n} more: see .candidates" * bool(n)
    if any(each.is_best and optimal.get(id(each)) == "no" for each in run.candidates):
        more += "; the result has the best score, which counts the objectives as the metric does"
    return Section(f"Candidates, on validation examples, and what each adds{more}", rows, header)


def experiences(run: RunResults) -> Section:
    """The briefs and each experience of the result, the strongest first, with effect and length."""
    rows = [
        ["brief", effect_text(brief.effect), "", name, one_line(text)]
        for brief in run.briefs
        for name, text in brief.texts.items()
        if brief.is_best
    ]
    for one in strongest_first(run.experiences)[:MOST_EXPERIENCES]:
        adds = f"{one.n_tokens} tokens" if one.n_tokens is not None else ""
        by, text = "every predictor" if one.scope == ALL else one.scope, one_line(one.text)
        rows.append([one.id, effect_text(one.effect), adds, by, text])
    n, title = len(run.experiences), learned_text(run)
    if n > MOST_EXPERIENCES:
        rows.append(["...", f"{n - MOST_EXPERIENCES} more", "", "", "see .experiences"])
    if run.nothing_learned:
        title = f"Nothing was learned: {one_line(run.nothing_learned)}"
        title += f". What the student has: {counted(n, 'experience')}" if rows else ""
    header = ["", "effect on the score", "adds", "read by", "text"] if rows else []
    return Section(title, rows, header)


def learned_text(run: RunResults) -> str:
    """`The result has 2 experiences and 1 demo: 120 tokens a call`."""
    demos = f" and {counted(run.n_demos, 'demo')}" if run.n_demos else ""
    price = f": {run.added}" if run.added.n_tokens else ""
    brief = "a brief, " if any(each.is_best for each in run.briefs) else ""
    return f"The result has {brief}{counted(len(run.experiences), 'experience')}{demos}{price}"


def gone(run: RunResults) -> dict[str, tuple[Change, str]]:
    """By id, the last change of each experience that is not in the result, the latest first.

    Lines of the student that the result leaves out are there, too. The text says why it is gone.
    """
    last: dict[str, Change] = {}
    with suppress(LibraryFormatError):  # somebody's own text between our delimiters
        student = library_of({name: before for name, (before, _) in run.instructions.items()})
        last = {e.id: Change("born", e.id, e.text, e.scope) for e in student}
    for change in (change for update in run.updates for change in update.changes):
        last.pop(change.id, None)
        last[change.id] = change
    measured = {id_ for candidate in run.candidates for id_ in candidate.ids}

    def why(change: Change) -> str:
        if change.kind == "dropped" or not run.is_finished:
            return change.reason or "no final choice was made yet"
        is_beaten = change.id in measured
        return f"it {'did not win' if is_beaten else 'was not measured in'} the final choice"

    library = run.experiences
    return {c.id: (c, why(c)) for c in reversed(last.values()) if c.id not in library}


def dropped(run: RunResults) -> Section:
    """The texts that were tried and are not in the result, the latest first, with reasons."""
    missing = [*{c.text: (c, why) for c, why in reversed(gone(run).values())}.values()][::-1]
    rows = [[c.id, f"{one_line(c.text)} ({one_line(why)})"] for c, why in missing[:MOST_DROPPED]]
    if n_more := len(missing) - len(rows):
        rows.append(["...", f"{n_more:,} more; see .updates"])
    title = f"Not in the result: {counted(len(missing), 'experience')}, and why"
    return Section(title if missing else "", rows)


def costs(run: RunResults) -> Section:
    """LM calls, tokens and dollars of the program, of the reflection LM, and of LM judges."""

    def row(name: str, spent: Usage, *tokens: str) -> list[str]:
        dollars = f"{spent.cost_usd:.4f}" if spent.cost_usd else "0 or unknown"
        return [name, f"{spent.n_lm_calls:,}", *tokens, dollars]

    if set(run.usage) == {"rollout"}:  # of a run that is not finished only the sum is known
        title = "Costs: tokens and calls of the metric are recorded at the end of a run"
        return Section(title, [row("so far, in all", run.spent)], ["", "LM calls", "dollars"])
    others = {"LMs in the metric": ("metric",), "calls without a result": ("unfinished",)}
    spent = {"program": run.policy_usage, "reflection LM": run.reflection_usage}
    spent |= {name: used for name, of in others.items() if (used := run.total(of)).n_answers}
    title = f"Costs, and {counted(run.metric_calls, 'call')} of the metric"
    if n := run.spent.n_failed_calls:
        title += f"; {counted(n, 'request')} failed or were refused"
    if n := run.spent.n_cached_calls:
        title += f"; {counted(n, 'more answer')} came from a cache, and cost nothing"
    rows = [row(name, one, f"{one.n_tokens:,}") for name, one in spent.items()]
    return Section(title, rows, ["", "LM calls", "tokens", "dollars"])


def failures(run: RunResults) -> Section:
    """The number of failures of each kind, the most frequent first."""
    kinds = sorted(run.failures.items(), key=lambda item: (-item[1], item[0]))
    rows = [[f"{n:,}", kind, FAILURES_IN_WORDS.get(kind, "")] for kind, n in kinds[:MOST_FAILURES]]
    if n_more := sum(n for _, n in kinds[MOST_FAILURES:]):
        rows.append([f"{n_more:,}", "others", "see .failures"])
    none = "No failures" if run.is_finished else "Failures are recorded at the end of a run"
    return Section("Failures, by kind" if rows else none, rows)
