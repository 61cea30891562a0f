"""The results of a run: plain values that reduce to builtins when they are pickled, and a page.

So a saved program that carries them loads where this package is not installed.
"""

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from html import escape
from typing import Any, NamedTuple

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
MOST_EXPERIENCES, MOST_DROPPED, MOST_FAILURES, MOST_CANDIDATES = 6, 3, 3, 3  # a page has 40 lines
LONGEST_CELL = 300  # bytes of a cell
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
    gain: records.Gain | None = None
    test: records.HeldOut | None = None
    replayed: Mapping[str, int] = field(default_factory=dict)  # from the run store, by role
    settings: Mapping[str, Any] = field(default_factory=dict)
    n_demos: int = 0  # how many more than the student has
    candidates: tuple[Candidate, ...] = ()  # of the final choice
    added: records.Added = field(default_factory=records.Added)  # by the result, to each call
    tried: tuple[records.TriedAdvice, ...] = ()  # if the gate states effects; in order of first use
    schedule: Mapping[str, Any] = field(default_factory=dict)
    instructions: Mapping[str, tuple[str, str]] = field(default_factory=dict)  # before and after
    lms: tuple[str, str] = ("", "")  # the names of the policy and the reflection LM
    demos: tuple[records.DemoRecord, ...] = ()
    examples: tuple[records.ExampleRow, ...] = ()  # of validation and test set, the worst first
    program: str = ""  # the student's class
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    """Of a run with a `log_dir` this, its id ("run"), and when it was "begun"; not in `to_dict`."""
    taken_because: str = ""  # why the result was chosen
    switched: tuple[str, ...] = ()  # on or off by strategies themselves, and by what they saw
    briefs: tuple[records.BriefRecord, ...] = ()  # all that were tried

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
        lines, demos = len(self.experiences), counted(self.n_demos, "demo")
        learned = f"{counted(lines, 'experience')} and {demos}"
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
        del values["origin"]
        return dict(json.loads(json.dumps(values)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunResults":
        """The results from `to_dict`, as a program read from a file holds. Raises ValueError."""
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
    return f"{effect.estimate:+z.2f}{records.bounds_text(*effect.bounds, '+z.2f')}"


def scope_text(scope: str) -> str:
    """The predictors that are given an experience of this scope."""
    return "every predictor" if scope == ALL else scope


def strongest_first(library: Iterable[Experience]) -> list[Experience]:
    """The experiences by their effects; those without one stand last."""
    return sorted(library, key=lambda e: -e.effect.estimate if e.effect else math.inf)


def scores(run: RunResults) -> Section:
    """The mean scores of student and result, first on the test examples, which count most."""
    test, names = run.test, ("student", "result", "gain")
    of_test = [("held-out test", test.student, test.best, test.gain)] if test else []
    of_valset = [("validation", run.student, run.best, run.gain)] if run.student or run.best else []
    rows = [
        [name, what, str(value or "not measured")]
        for name, *values in (*of_test, *of_valset)
        for what, value in zip(names, values, strict=True)
    ]
    optimistic = "" if test else "; optimistic: these scores chose the result"
    what = f" [95 % interval]{optimistic}" if rows else ": not measured"
    return Section(f"Mean score{what}", rows)


def candidates(run: RunResults, most: int = MOST_CANDIDATES) -> Section:
    """The candidates of the final choice: scores, objectives, and what each adds to a call.

    Pareto-optimal is one that no other beats in every objective, of those that were measured on the
    most examples, as the student is.
    """
    if len(run.candidates) < 2:
        return Section("")
    names = dict.fromkeys(name for each in run.candidates for name in each.objectives)
    optimal = {id(each): "no" for each in records.compared(run.candidates)}
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
    for one in strongest_first(run.experiences)[:MOST_EXPERIENCES]:
        adds = f"{one.n_tokens} tokens" if one.n_tokens is not None else ""
        text = one_line(one.text)
        rows.append([one.id, effect_text(one.effect), adds, scope_text(one.scope), text])
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
        before = library_of({name: before for name, (before, _) in run.instructions.items()})
        last = {e.id: Change("born", e.id, e.text, e.scope) for e in before}
    for change in (change for update in run.updates for change in update.changes):
        last.pop(change.id, None)
        last[change.id] = change
    measured = {id_ for candidate in run.candidates for id_ in candidate.ids}
    unmeasured = "it was not measured in the final choice"
    if not run.is_finished:
        unmeasured, measured = "no final choice was made yet", set()

    def why(change: Change) -> str:
        if change.kind == "dropped":
            return change.reason
        return "it did not win the final choice" if change.id in measured else unmeasured

    library = run.experiences
    return {c.id: (c, why(c)) for c in reversed(last.values()) if c.id not in library}


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
