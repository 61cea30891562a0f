"""What a run reports: plain values that reduce to builtins when they are pickled.

So a saved program that carries them loads where this package is not installed (they are then
dicts and lists). `run` collects their content.
"""

import functools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import TypeAdapter

from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.results import page
from tfgrpo_dspy.results.curve import curve
from tfgrpo_dspy.results.records import (
    DemoRecord,
    Finalist,
    Gain,
    HeldOut,
    ScoreSummary,
    TriedAdvice,
    UpdateRecord,
)
from tfgrpo_dspy.results.rows import ExampleRow
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.wording import counted

REFLECTIONS = ("draft", "summary", "lesson", "update", "strategy")
"""What the reflection LM is asked for."""
NOT_FINISHED = "not finished"  # the `ended_because` of a run that was killed, or still goes on


@dataclass(frozen=True)
class Candidate:
    """A program of the final choice, ready to use, and what it scored."""

    program: Any
    finalist: Finalist


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
    `n_demos` is how many more demos the result has than the student, `demos`
    shows them.
    `instructions` are those of each predictor, by name: of the student, then of the result; `lms`
    are the names of the policy and the reflection LM. `examples` are those of validation and test
    set, the worst of the result first. `program` is the student's class. `origin`, which `to_dict`
    leaves out, holds of a run with a `log_dir` this, its id ("run"), and when it was "begun".
    `taken_because` says why the result was chosen. Where the metric gives objectives, `front` has
    the candidates that no other beats in every objective; it is not saved. `switched` says what
    strategies have switched on or off by themselves, and by what they saw.

    `print(results)` gives a page of at most 40 lines; a notebook shows the same as tables.
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
    instructions: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    lms: tuple[str, str] = ("", "")
    demos: tuple[DemoRecord, ...] = ()
    examples: tuple[ExampleRow, ...] = ()
    program: str = ""
    origin: Mapping[str, str] = field(default_factory=dict, compare=False)
    taken_because: str = ""
    switched: tuple[str, ...] = ()
    front: tuple[Candidate, ...] = field(default=(), compare=False, repr=False)

    @property
    def is_finished(self) -> bool:
        """Whether the run came to its end; `saved_runs` reads others too."""
        return self.ended_because != NOT_FINISHED

    @property
    def n_lm_calls(self) -> int:
        """The LM calls of the whole run."""
        return page.total(self.usage, self.usage).n_lm_calls

    @property
    def cost_usd(self) -> float:
        """The dollars that the whole run has cost, as far as prices are known."""
        return page.total(self.usage, self.usage).cost_usd

    @property
    def policy_usage(self) -> Usage:
        """What the program's rollouts have cost, in training, on validation and on the test set."""
        return page.total(self.usage, page.OF_PROGRAM)

    @property
    def reflection_usage(self) -> Usage:
        """What the reflection LM has cost."""
        return page.total(self.usage, REFLECTIONS)

    @property
    def experiences(self) -> ExperienceLibrary:
        """The library of the result, with effects and lengths."""
        return ExperienceLibrary.from_dict(dict(self.library))

    def _sections(self) -> list[page.Section]:
        return [
            page.scores(self.student, self.best, self.gain, self.test),
            page.objectives(self.finalists),
            page.experiences(self.experiences, self.n_demos, self.nothing_learned),
            page.dropped(self.updates, self.experiences, self.finalists, self.is_finished),
            page.costs(self.usage, REFLECTIONS, self.metric_calls),
            page.failures(self.failures, self.is_finished),
            page.Section(page.one_line("; ".join(self.switched))),
            page.Section(self.taken_because and f"Taken: {page.one_line(self.taken_because)}"),
            page.Section(self.ended),
        ]

    @property
    def ended(self) -> str:
        """When and why the run ended, as a sentence."""
        if not self.is_finished:
            return "The run is not finished."
        return f"Ended after {self.wall_time_s:,.0f} s: {self.ended_because}"

    def __str__(self) -> str:
        return page.as_text(self._sections())

    @property
    def in_a_line(self) -> str:
        """The validation scores of student and result, the experiences and the LM calls."""
        before, after = self.student or "not measured", self.best or "not measured"
        return (
            f"validation score {before} before, {after} after; "
            f"{counted(len(self.experiences), 'experience')} and {counted(self.n_demos, 'demo')}; "
            f"{counted(self.n_lm_calls, 'LM call')}"
        )

    def __repr__(self) -> str:
        return f"<RunResults: {self.in_a_line}>"

    def _repr_html_(self) -> str:
        picture = curve(self.updates, self.student, self.best, self.test)
        return page.as_html(self._sections(), picture)

    def to_dict(self) -> dict[str, Any]:
        """The results as dicts, lists, strings and numbers, ready for JSON."""
        values = asdict(replace(self, front=()))
        del values["origin"], values["front"]
        return dict(json.loads(json.dumps(values)))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "RunResults":
        """What `to_dict` gave, such as the `detailed_results` of a program read from a file.

        Raises:
            ValueError: the values are not those of a run.
        """
        return _adapter().validate_python(values)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (list(self.to_dict().items()),)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> "RunResults":
        return self

    __copy__ = __deepcopy__


@functools.cache
def _adapter() -> TypeAdapter[RunResults]:
    return TypeAdapter(RunResults)
