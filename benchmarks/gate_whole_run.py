"""One whole run of the optimizer on `gate_whole_lm.py`: what it learned, and in how many calls."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import dspy
from gate_model import World
from gate_whole_lm import (
    FIRST_VALIDATION,
    CaseWorld,
    LessonEngine,
    MeasuredConcern,
    is_exact,
    program,
)

from tfgrpo_dspy import (
    AutoGate,
    Decision,
    ExperienceLibrary,
    FactorialGate,
    NoGate,
    PairedGate,
    ProbeThenTrial,
    TrainingFreeGRPO,
    Trial,
    TrialInUse,
    Trials,
    TrialThenConfirm,
    WordConcern,
)

MAX_CALLS = 1500
EPOCHS = 4
BATCH_SIZE = 10
WORDS = "words"
"""The signal of the real `WordConcern`."""

GATES: dict[str, Callable[[Any], Any]] = {
    "none": lambda _: NoGate(),
    "auto": lambda concern: AutoGate(concern=concern),
    "trial": lambda concern: ProbeThenTrial(concern=concern),
    "paired": lambda _: PairedGate(),
    "factorial": lambda _: FactorialGate(),
    "confirm": lambda _: TrialThenConfirm(),
    "in use": lambda _: TrialInUse(),
}


@dataclass(frozen=True)
class Row:
    """One gate in one world."""

    gate: str
    lessons: str
    world: World
    staleness: int = 0
    n_calls: int = MAX_CALLS
    epochs: int = EPOCHS

    @property
    def name(self) -> str:
        """As it is called in the results."""
        signal = f", {self.world.signal}" if self.gate in ("auto", "trial") else ""
        size, staleness = self.world.group_size, f", staleness {self.staleness}"
        return f"{self.gate}: G {size}, {self.lessons}{signal}{staleness}"


@dataclass(frozen=True)
class Noted:
    """A decision: what had been called and tried until then, and what would be exported."""

    n_calls: int
    n_tried: int
    exported: ExperienceLibrary


class Watch:
    """Tells of a gate's decisions; the gate decides as it would.

    Args:
        n_calls: the LM calls so far.
    """

    def __init__(self, n_calls: Callable[[], int]) -> None:
        self.noted: dict[int, Noted] = {}
        self._n_calls = n_calls
        self._tried: set[Trial] = set()

    def watched(self, gate: Any) -> Any:
        """A copy of the gate, of a sub-class of its class, so that it is treated alike."""
        note = self._note

        class Watched(type(gate)):  # type: ignore[misc]
            def next(self, evidence: Any) -> Any:
                answer = super().next(evidence)
                note(evidence.update, answer)
                return answer

        copy = object.__new__(Watched)
        for own in fields(gate):
            object.__setattr__(copy, own.name, getattr(gate, own.name))
        return copy

    def _note(self, update: int, answer: Trials | Decision) -> None:
        if isinstance(answer, Trials):
            self._tried.update(answer.trials)
            return
        exported = answer.library if answer.exported is None else answer.exported
        self.noted[update] = Noted(self._n_calls(), len(self._tried), exported)


@dataclass(frozen=True)
class Point:
    """The run after an update: calls at the last decision, the model's count, the accuracy."""

    calls: int
    as_model: int
    held_out: float


@dataclass(frozen=True)
class WholeRun:
    """What came of one run; `returned` is the held-out accuracy of the program it returned.

    `calls` are those of the run's ledger by role, `answered` those that the LM counted.
    """

    curve: tuple[Point, ...]
    target: float
    returned: float
    n_harmful: int
    n_updates: int
    calls: Mapping[str, int]
    answered: Mapping[str, int]
    ended_because: str
    cpu_s: float

    @property
    def hit(self) -> Point | None:
        """Where the target was first reached."""
        return next((point for point in self.curve if point.held_out >= self.target), None)

    @property
    def stays(self) -> bool:
        """Whether the target holds at the last decision."""
        return bool(self.curve) and self.curve[-1].held_out >= self.target


def run(row: Row, seed: int) -> WholeRun:
    """One run of the real optimizer."""
    began = time.process_time()
    cases = CaseWorld(replace(row.world, signal=measured(row.world.signal)), seed)
    engine = LessonEngine(cases)
    watch = Watch(lambda: engine.n_calls)
    concern = WordConcern() if row.world.signal == WORDS else MeasuredConcern(cases)
    optimizer = TrainingFreeGRPO(
        is_exact,
        gate=watch.watched(GATES[row.gate](concern)),
        group_size=row.world.group_size,
        batch_size=BATCH_SIZE,
        epochs=row.epochs,
        max_staleness=row.staleness,
        max_experiences=1000,
        max_lm_calls=row.n_calls,
        num_threads=4,
        seed=seed,
        progress=False,
    )
    lm = dspy.LM("simulated/lessons", engine=engine, temperature=0.7, cache=False)
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        optimized = optimizer.compile(
            program(),
            trainset=cases.examples(row.world.n_kinds * row.world.per_kind),
            valset=cases.examples(row.world.n_validation, FIRST_VALIDATION),
        )
    library, results = ExperienceLibrary.from_program(optimized), optimized.detailed_results
    return WholeRun(
        curve=tuple(curve_of(results, watch.noted, cases)),
        target=row.world.target,
        returned=cases.held_out(library),
        n_harmful=cases.n_harmful(library),
        n_updates=len(results.updates),
        calls={role: usage.n_lm_calls for role, usage in results.usage.items()},
        answered=dict(engine.calls),
        ended_because=results.ended_because,
        cpu_s=time.process_time() - began,
    )


def curve_of(results: Any, noted: Mapping[int, Noted], cases: CaseWorld) -> Iterator[Point]:
    """A point for each update; one at which the gate was not asked has changed nothing."""
    n_rollouts = n_reflected = 0
    now = Noted(0, 0, ExperienceLibrary())
    for record in results.updates:
        n_rollouts += sum(len(group.scores) for group in record.groups)
        n_reflected += sum(group.used_as == "contrast" for group in record.groups)
        now = noted.get(record.update, now)
        reflections = (cases.world.group_size + 2) * n_reflected + record.update + 1
        as_model = n_rollouts + now.n_tried + reflections
        yield Point(now.n_calls, as_model, cases.held_out(now.exported))


def measured(signal: str) -> str:
    """The measured signal that is most like this one: the texts are requests to an agent."""
    return "agent" if signal == WORDS else signal
