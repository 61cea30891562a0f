"""The results of a run: plain values that reduce to builtins when they are pickled, and a page.

So a saved program that carries them loads where this package is not installed (they are then
dicts and lists). `run` collects their content; the page is computed from them.
"""

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from html import escape
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined, Template
from pydantic import TypeAdapter

from tfgrpo_dspy.errors import LibraryFormatError
from tfgrpo_dspy.experience import ALL, Effect, Experience, ExperienceLibrary, library_of
from tfgrpo_dspy.results import records
from tfgrpo_dspy.results.records import Candidate, Change, ScoreSummary, UpdateRecord
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.text import aligned, counted, printable, shortened

REFLECTIONS = ("brief", "draft", "summary", "lesson", "update", "strategy")
"""The purposes for which the reflection LM is asked."""
NOT_FINISHED = "not finished"  # the `ended_because` of a run that was killed, or still goes on
MOST_EXPERIENCES, MOST_DROPPED, MOST_FAILURES = 6, 3, 3  # so that a page has 40 lines at most
MOST_CANDIDATES = 3
LONGEST_CELL = 300  # bytes of a cell
DOUBTFUL = 0.5  # a line that is worth its tokens with a smaller probability
N_TICKS = 4  # about as many on an axis of the curve
LEAST_RANGE = 0.1  # of the scores on its vertical axis
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
    "lesson refused": "a lesson was a copy of an example, too long, or asked for something unsafe",
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
    "strategy switched off": "a method of a strategy hangs, or was of no use (.switched)",
    "strategy": "a method of a strategy failed, or gave something that cannot be used",
    "replay": "a program or a tool did not repeat what it had done, so steps have no value",
    "parameter left out": "a provider refused a sampling parameter, so it was not sent again",
    "unseen call": "an LM call was counted after it was made, so no limit could refuse it",
}


@dataclass(frozen=True)
class RunResults:
    """The whole run.

    `student` and `best` are the validation scores of the student and of what was returned, `gain`
    their difference: optimistic, as these scores chose the result. `test` is what counts: scores on
    a `testset`, whose examples chose nothing. `candidates` took part in the final choice, each with
    its `program()`, score and price. `added` says what the result adds to each call. `tried` is, if
    the gate states effects, all advice in the order of its first use.
    `usage` has the roles "rollout" (training), "validation", "test", those of `REFLECTIONS`,
    "metric" (LM judges), and "unfinished" for calls without a result; `usage` and `metric_calls`
    hold what was replayed too, at its original cost. `replayed` counts, by role, what was read
    from the run store. `nothing_learned` says why the result is the student ("": it is not).
    `n_demos` is how many more demos the result has than the student, `demos` shows them.
    `briefs` are all that were tried, in the order of their numbers.
    `instructions` are those of each predictor, by name: of the student, then of the result; `lms`
    are the names of the policy and the reflection LM. `examples` are those of validation and test
    set, the worst of the result first. `program` is the student's class. `origin`, which `to_dict`
    leaves out, holds of a run with a `log_dir` this, its id ("run"), and when it was "begun".
    `taken_because` says why the result was chosen. `switched` says what strategies have switched on
    or off by themselves, and by what they saw.

    `print(results)` gives a page of at most 40 lines; a notebook shows it with a chart.
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
    gain: records.Gain | None = None
    test: records.HeldOut | None = None
    replayed: Mapping[str, int] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    n_demos: int = 0
    candidates: tuple[Candidate, ...] = ()
    added: records.Added = field(default_factory=records.Added)
    tried: tuple[records.TriedAdvice, ...] = ()
    schedule: Mapping[str, Any] = field(default_factory=dict)
    instructions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    lms: tuple[str, str] = ("", "")
    demos: tuple[records.DemoRecord, ...] = ()
    examples: tuple[records.ExampleRow, ...] = ()
    program: str = ""
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    taken_because: str = ""
    switched: tuple[str, ...] = ()
    briefs: tuple[records.BriefRecord, ...] = ()

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
    def strongest(self) -> list[Experience]:
        """The experiences of the result, those with the largest effect first."""
        return strongest_first(self.experiences)

    @property
    def finalists(self) -> tuple[Candidate, ...]:
        """The candidates that the race measured, the student among them."""
        return tuple(each for each in self.candidates if each.n_measured)

    @property
    def front(self) -> list[Candidate]:
        """The candidates that no other beats in every objective (Pareto)."""
        return records.front_of(self.candidates)

    @property
    def ended(self) -> str:
        """When and why the run ended, as a sentence."""
        if not self.is_finished:
            return "The run is not finished."
        return f"Ended after {self.wall_time_s:,.0f} s: {self.ended_because}"

    @property
    def next_step(self) -> str:
        """The best thing to do with this result, in a sentence."""
        if not self.is_finished:
            return "start the same compile with its log_dir again: it goes on where it was"
        chances = {(one.text, one.scope): one.chance for one in self.tried}
        weak = [e.id for e in self.strongest if chances.get(e.advice, 1.0) < DOUBTFUL][-2:]
        steps = [f"strike {' and '.join(weak)} (more likely not worth their tokens)"] * bool(weak)
        if self.nothing_learned:
            steps = ["keep the student"]
        elif self.gain and not self.test:
            steps += ["pass a testset (these examples chose the result)"]
        steps += ['save it (program.save("program.json"))'] * (not self.nothing_learned)
        changed = [n for n, update in enumerate(self.updates, 1) if update.accepted]
        seen = [score for update in self.updates for score in update.scores]
        n, n_last = len(self.updates), changed[-1] if changed else 0
        worth, why = "not worth it", f"nothing changed after update {n_last} of {n}"
        if self.best and self.best.mean is not None and self.best.mean >= max(seen, default=9e9):
            why = f"no attempt scored more than {self.best.mean:z.3f}"
        elif self.ended_because.startswith("max_"):
            worth, why = "worth it", f"the run was cut off ({one_line(self.ended_because)})"
        elif n_last > 2 * n / 3:
            worth, why = "worth it", f"the library still changed in update {n_last} of {n}"
        return f"{', '.join(steps)}; more budget is {worth}: {why}"

    def __str__(self) -> str:
        parts = (scores, candidates, experiences, dropped, costs, failures)
        lines = []
        for section in (part(self) for part in parts):
            rows = [section.header, *section.rows] if section.header else section.rows
            lines += [section.title, *(f"  {line}" for line in aligned(rows))]
        taken = self.taken_because and f"Taken: {one_line(self.taken_because)}"
        lines += [one_line("; ".join(self.switched)), taken, f"Next: {self.next_step}", self.ended]
        return printable("\n".join(filter(None, lines)))

    @property
    def in_a_line(self) -> str:
        """The validation scores of student and result, the experiences and the LM calls."""
        before, after = self.student or "not measured", self.best or "not measured"
        return (
            f"validation score {before} before, {after} after; "
            f"{counted(len(self.experiences), 'experience')} and {counted(self.n_demos, 'demo')}; "
            f"{counted(self.spent.n_lm_calls, 'LM call')}"
        )

    def __repr__(self) -> str:
        return f"<RunResults: {self.in_a_line}>"

    def _repr_html_(self) -> str:
        return f"<pre>{escape(str(self))}</pre>{curve(self)}"

    def to_dict(self) -> dict[str, Any]:
        """The results as dicts, lists, strings and numbers, ready for JSON."""
        plain = tuple(replace(each, bake=None) for each in self.candidates)
        values = asdict(replace(self, candidates=plain))
        del values["origin"]
        return dict(json.loads(json.dumps(values)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunResults":
        """The results from `to_dict`, such as the `detailed_results` of a program read from a file.

        Raises:
            ValueError: the values are not those of a run.
        """
        return _adapter().validate_python(values)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (list(self.to_dict().items()),)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "RunResults":
        return self

    __copy__ = __deepcopy__


_adapter = functools.cache(lambda: TypeAdapter(RunResults))


# ------------------------------------------------------------------------------ the page


class Section(NamedTuple):
    """A part of the page: a title and rows of cells, with a header or not; "": it is left out."""

    title: str
    rows: Sequence[Sequence[str]] = ()
    header: Sequence[str] = ()


def one_line(text: str) -> str:
    """The text on one line, shortened to about 300 characters."""
    return shortened(text, LONGEST_CELL)


def effect_text(effect: Effect | None) -> str:
    """`+0.49 [+0.14, +0.84]`: the effect on the score with its 95 % interval."""
    if effect is None:
        return "not measured"
    low, high = effect.bounds
    return f"{effect.estimate:+z.2f}{records.bounds_text(low, high, '+z.2f')}"


def scope_text(scope: str) -> str:
    """The predictors that are given an experience of this scope."""
    return "every predictor" if scope == ALL else scope


def strongest_first(library: Iterable[Experience]) -> list[Experience]:
    """The experiences by their effects; those without one stand last."""
    return sorted(library, key=lambda e: -e.effect.estimate if e.effect else math.inf)


def scores(run: RunResults) -> Section:
    """The mean scores of student and result, first on the test examples, which count most."""
    sets: dict[str, Sequence[Any]] = {}
    if run.test:
        sets["held-out test"] = run.test.student, run.test.best, run.test.gain
    if run.student or run.best:
        sets["validation"] = run.student, run.best, run.gain
    rows = [
        [name, what, str(value or "not measured")]
        for name, of_set in sets.items()
        for what, value in zip(("student", "result", "gain"), of_set, strict=True)
    ]
    optimistic = "" if run.test else "; optimistic: these scores chose the result"
    return Section(
        f"Mean score{f' [95 % interval]{optimistic}' if rows else ': not measured'}", rows
    )


def candidates(run: RunResults, most: int = MOST_CANDIDATES) -> Section:
    """The candidates of the final choice: scores, objectives, and what each adds to a call.

    Pareto-optimal is one that no other beats in every objective; only those are compared that were
    measured on the most examples, as the student is.
    """
    if len(run.candidates) < 2:
        return Section("")
    names = dict.fromkeys(name for each in run.candidates for name in each.objectives)
    optimal = {id(each): "no" for each in records.compared(run.candidates)}
    optimal |= {id(each): "yes" for each in run.front}
    first, *others = run.candidates
    others.sort(key=lambda other: (not other.is_best, optimal.get(id(other)) != "yes"))
    header = ["", "mean score", *names, *["Pareto-optimal"] * bool(names), "tokens a call"]
    header += ["$ for 1,000 calls"] * (first.added.dollars is not None) + ["consists of"]
    rows = []
    for each in [first, *others][:most]:
        score, added = each.score, each.added
        row = [each.name + " (returned)" * (each.is_best and each is first)]
        row += [
            f"{score.mean:z.3f} on {score.n}" if score and score.mean is not None else "no score"
        ]
        row += [f"{each.objectives[n]:z.3f}" if n in each.objectives else "" for n in names]
        row += [optimal.get(id(each), "")] * bool(names) + [f"{added.n_tokens:,}"]
        row += [f"{added.dollars or 0.0:,.4f}"] * (first.added.dollars is not None)
        parts = [*each.ids, *[f"demos {each.demo_set}"] * (each.demo_set > 0)]
        rows.append([*row, one_line(", ".join([*parts, *["brief"] * bool(added.briefs)]))])
    n_more = len(run.candidates) - len(rows)
    more = f"; {n_more} more: see .candidates" if n_more else ""
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
    for one in run.strongest[:MOST_EXPERIENCES]:
        adds = f"{one.n_tokens} tokens" if one.n_tokens is not None else ""
        of_scope = scope_text(one.scope)
        rows.append([one.id, effect_text(one.effect), adds, of_scope, one_line(one.text)])
    n = len(run.experiences)
    if n > MOST_EXPERIENCES:
        rows.append(["...", f"{n - MOST_EXPERIENCES} more", "", "", "see .experiences"])
    title = learned_text(run)
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
        before = library_of({name: before for name, (before, _) in run.instructions.items()})
        last = {e.id: Change("born", e.id, e.text, e.scope) for e in before}
    for change in (change for update in run.updates for change in update.changes):
        last.pop(change.id, None)
        last[change.id] = change
    measured = {id_ for candidate in run.candidates for id_ in candidate.ids}
    library, by_id = run.experiences, {}
    for change in (each for each in reversed(last.values()) if each.id not in library):
        why = "no final choice was made yet"
        if change.kind == "dropped":
            why = change.reason
        elif run.is_finished:
            why = "it was not measured in the final choice"
            why = "it did not win the final choice" if change.id in measured else why
        by_id[change.id] = change, why
    return by_id


def dropped(run: RunResults) -> Section:
    """The experiences that were tried and are not in the result, the latest first, with reasons."""
    missing = [*gone(run).values()]
    rows = [[c.id, f"{one_line(c.text)} ({one_line(why)})"] for c, why in missing[:MOST_DROPPED]]
    if n_more := len(missing) - len(rows):
        rows.append(["...", f"{n_more:,} more; see .updates"])
    title = f"Not in the result: {counted(len(missing), 'experience')}, and why"
    return Section(title if missing else "", rows)


def costs(run: RunResults) -> Section:
    """LM calls, tokens and dollars of the program, of the reflection LM, and of LM judges."""
    if set(run.usage) == {"rollout"}:  # of a run that is not finished only the sum is known
        so_far = run.usage["rollout"]
        row = ["so far, in all", f"{so_far.n_lm_calls:,}", _dollars(so_far)]
        title = "Costs: tokens and calls of the metric are recorded at the end of a run"
        return Section(title, [row], ["", "LM calls", "dollars"])
    others = {"LMs in the metric": ("metric",), "calls without a result": ("unfinished",)}
    spent = {"program": run.policy_usage, "reflection LM": run.reflection_usage}
    spent |= {name: used for name, of in others.items() if (used := run.total(of)).n_answers}
    rows = [
        [name, f"{one.n_lm_calls:,}", f"{one.n_tokens:,}", _dollars(one)]
        for name, one in spent.items()
    ]
    title = f"Costs, and {counted(run.metric_calls, 'call')} of the metric"
    if n := run.spent.n_failed_calls:
        title += f"; {counted(n, 'request')} failed or were refused"
    if n := run.spent.n_cached_calls:
        title += f"; {counted(n, 'more answer')} came from a cache, and cost nothing"
    return Section(title, rows, ["", "LM calls", "tokens", "dollars"])


def _dollars(spent: Usage) -> str:
    return f"{spent.cost_usd:.4f}" if spent.cost_usd else "0 or unknown"


def failures(run: RunResults) -> Section:
    """The number of failures of each kind, the most frequent first."""
    kinds = sorted(run.failures.items(), key=lambda item: (-item[1], item[0]))
    rows = [[f"{n:,}", kind, FAILURES_IN_WORDS.get(kind, "")] for kind, n in kinds[:MOST_FAILURES]]
    if n_more := sum(n for _, n in kinds[MOST_FAILURES:]):
        rows.append([f"{n_more:,}", "others", "see .failures"])
    none = "No failures" if run.is_finished else "Failures are recorded at the end of a run"
    return Section("Failures, by kind" if rows else none, rows)


# ------------------------------------------------------------------------------ the picture


class Point(NamedTuple):
    """A mean score after so many LM calls, with the bounds of its 95 % interval."""

    n_lm_calls: int
    score: float
    low: float
    high: float

    @classmethod
    def of(cls, score: ScoreSummary | None, n_lm_calls: int = 0) -> "Point | None":
        """The point of a score; None: it has no mean."""
        if score is None or score.mean is None:
            return None
        low, high = (score.mean if end is None else end for end in (score.low, score.high))
        return cls(n_lm_calls, score.mean, low, high)


def scale_of(updates: Sequence[UpdateRecord]) -> records.Scale:
    """The lowest and the highest training score of the run."""
    every = [score for update in updates for score in update.scores]
    return (min(every), max(every)) if every else records.UNBOUNDED


def points(updates: Sequence[UpdateRecord]) -> list[Point]:
    """The mean training score of each update that has scores."""
    scale = scale_of(updates)
    every = (Point.of(ScoreSummary.of(each.scores, scale), each.n_lm_calls) for each in updates)
    return [point for point in every if point]


def curve(run: RunResults) -> str:
    """The training scores, and those of student and result, with intervals; "": there are none.

    It is SVG that needs no style sheet and no network.
    """
    training, sets = points(run.updates), {"validation": (run.student, run.best)}
    sets |= {"test": (run.test.student, run.test.best)} if run.test else {}
    pairs = {name: [*map(Point.of, pair)] for name, pair in sets.items() if any(pair)}
    drawn = [*training, *(point for pair in pairs.values() for point in pair if point)]
    if not drawn:
        return ""
    low, high = min(point.low for point in drawn), max(point.high for point in drawn)
    middle, half = (low + high) / 2, max(high - low, LEAST_RANGE) / 2
    calls = ticks(0, max(1, *(point.n_lm_calls for point in drawn)))
    macros: Any = template_in("tfgrpo_dspy.results", "curve.svg.jinja").module
    return str(macros.curve(training, pairs, ticks(middle - half, middle + half), calls)).strip()


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, at equal distances of 1, 2 or 5.

    `(0.13, 0.48) -> [0.1, 0.2, 0.3, 0.4, 0.5]`
    """
    rough = (high - low) / N_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


@functools.cache
def template_in(package: str, file: str, **settings: Any) -> Template:
    """The template in a file of this package; `settings` are those of its environment."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **settings
    )
    return environment.from_string(resources.files(package).joinpath(file).read_text("utf-8"))
