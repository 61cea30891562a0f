"""Gates in a fast model of the whole optimizer: the real gates, everything else simulated.

    python benchmarks/gate_model.py --again      # every row, a quarter of an hour of CPU
    python benchmarks/gate_model.py --rows leaking --gates trial --seeds 20

The task has kinds of questions; of each question the program knows the answer with a chance of
its own. A right lesson raises it for its whole kind, a wrong one lowers it, a leaking one helps on
the question that it was drawn from and harms on the rest of the kind; a right and a wrong one
together stand between. Reflection on a group writes a lesson about its kind with chance .6; each
kind has one right and one wrong text, each question one that leaks. A group whose first two
rollouts are right is not continued, unless something is on trial in it. Calls are counted as: one a
rollout (of groups and of trials), G + 2 a group that is reflected on, one an update.

A seed reaches the target when the exported library's exact held-out accuracy (the mean over kinds)
is at least .9; it stays there if it is so from some update to the end. Everything here is
simulated: no LM is asked. Writes `benchmarks/results/gate_model.json`.
"""

import argparse
import functools
import itertools
import json
import math
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tfgrpo_dspy.experience import Add, Evidence, Experience, ExperienceLibrary, Keep, Operation  # noqa: E402
from tfgrpo_dspy.gate import (  # noqa: E402
    Decision,
    GroupEvidence,
    GroupPlan,
    NoGate,
    PairedGate,
    ProbeThenTrial,
    Trial,
    TrialEvidence,
)

RESULTS = ROOT / "benchmarks" / "results" / "gate_model.json"
EMPTY = ExperienceLibrary()
CONCERN = ROOT / "benchmarks" / "results" / "concern.json"
MEASURED = {
    "measured": ("agent", "gsm8k_test", "bbh"),
    "agent": ("agent",),
    "gsm8k": ("gsm8k_test",),
    "bbh": ("bbh",),
}
LIMITS = replace(TrialEvidence(ExperienceLibrary(), (), 0, 0).limits, max_experiences=1000)


@dataclass(frozen=True)
class World:
    """What there is to learn, and how costly it is to find out.

    `up` and `down` are added to a question's chance by a right and a wrong lesson; where they are
    None, a right lesson makes it .97, a wrong one .05 and both .6. `signal` is what is known of
    the questions that a lesson concerns: "known"; "80/10", a recall of .8 and false alarms on .1
    of the others; "none"; or a name of `MEASURED`: each lesson has recall and false alarms, or no
    signal at all, as one of the lessons measured by `benchmarks/concern.py`.
    """

    n_kinds: int = 10
    per_kind: int = 8
    wrong: float = 0.0
    leaking: float = 0.0
    base: tuple[float, float] = (0.1, 0.6)
    up: float | None = None
    down: float | None = None
    signal: str = "known"
    group_size: int = 5
    batch_size: int = 10
    max_calls: int = 2500
    target: float = 0.9
    n_validation: int = 40


Rates = list[tuple[float, float] | None]


@functools.cache
def rates_of(signal: str) -> list[Rates]:
    """By kind of lesson: recall and false alarms, one of which each of its sources gives."""
    named: dict[str, list[Rates]] = {"known": [[(1.0, 0.0)]], "80/10": [[(0.8, 0.1)]]}
    if signal in named:
        return named[signal]
    rows = json.loads(CONCERN.read_text("utf-8"))["rows"]
    plain = {
        row["data"]: row["rates"]
        for row in rows
        if (row["n_examples"], row["n_sources"], row["has_domains"]) == (100, 1, False)
    }
    n_each = max(len(plain[name]) for name in MEASURED[signal])
    return [plain[name][i % len(plain[name])] for name in MEASURED[signal] for i in range(n_each)]


class Lessons:
    """What lessons do, by their texts."""

    def __init__(self, world: World, seed: int) -> None:
        self.world = world
        self.seed = seed
        draw = random.Random(f"world/{seed}")
        n = world.n_kinds * world.per_kind
        self.kind = [i % world.n_kinds for i in range(n)]
        self.base = [draw.uniform(*world.base) for _ in range(n)]
        self._chances: dict[tuple[Any, int], float] = {}
        self._held_out: dict[frozenset[str], float] = {}

    def chance(self, library: ExperienceLibrary, question: int) -> float:
        """Of a right answer to the question with this library."""
        texts = frozenset(own.text for own in library)
        key = (texts, question)
        if key not in self._chances:
            self._chances[key] = self._chance_of(texts, question)
        return self._chances[key]

    def _chance_of(self, texts: frozenset[str], question: int) -> float:
        kind = self.kind[question]
        leaks = [text for text in texts if text.startswith(f"leak {kind} ")]
        right = f"right {kind}" in texts or f"leak {kind} {question}" in leaks
        wrong = f"wrong {kind}" in texts or any(text != f"leak {kind} {question}" for text in leaks)
        world, base = self.world, self.base[question]
        if world.up is not None and world.down is not None:
            shifted = base + world.up * right - world.down * wrong
            return min(max(shifted, 0.02), 0.98)
        return {(0, 0): base, (1, 0): 0.97, (0, 1): 0.05, (1, 1): 0.6}[int(right), int(wrong)]

    def held_out(self, library: ExperienceLibrary) -> float:
        """The exact accuracy on questions like these, that no lesson was drawn from."""
        texts = [own for own in library if not own.text.startswith("leak")]
        leaked = {own.text.split()[1] for own in library if own.text.startswith("leak")}
        both = {own.text for own in texts} | {f"wrong {kind}" for kind in leaked}
        key = frozenset(both)
        if key not in self._held_out:
            chances = [self._chance_of(key, question) for question in range(len(self.kind))]
            self._held_out[key] = statistics.fmean(chances)
        return self._held_out[key]

    @functools.cached_property
    def target(self) -> float:
        """The accuracy to be reached: .9, or as much of the way to the best as that is."""
        if self.world.up is None:
            return self.world.target
        right = ExperienceLibrary().apply(
            [Add(f"right {kind}") for kind in range(self.world.n_kinds)], LIMITS
        )
        start = self.held_out(ExperienceLibrary())
        return start + (self.held_out(right) - start) * (0.9 - 0.35) / (0.97 - 0.35)

    def is_harmful(self, text: str) -> bool:
        return not text.startswith("right")

    def concerned(self, experience: Experience) -> frozenset[int]:
        """The questions that it is thought to be about; none: nobody knows."""
        sources = {group.example for group in experience.evidence}
        return frozenset().union(*(self._likely(experience.text, source) for source in sources))

    @functools.cache  # noqa: B019 - it lives as long as its course
    def _likely(self, text: str, source: int) -> frozenset[int]:
        """The questions that are thought to be like this source in what the lesson is about."""
        name = f"concern/{self.seed}/{text}"
        kind_of_lesson = random.Random(name).choice(rates_of(self.world.signal))
        draw = random.Random(f"{name}/{source}")
        rates = draw.choice(kind_of_lesson)
        if rates is None:
            return frozenset()
        recall, false_alarms = rates
        own = int(text.split()[1])
        return frozenset(
            question
            for question, kind in enumerate(self.kind)
            if draw.random() < (recall if kind == own else false_alarms)
        )


@dataclass
class Course:
    """One run: the state of the optimizer, and what it has cost."""

    world: World
    gate: Any
    seed: int
    calls: int = 0
    n_trials: int = 0
    n_reflected: int = 0
    update: int = 0
    memory: Any = None
    library: ExperienceLibrary = EMPTY
    exported: ExperienceLibrary = EMPTY
    scores: dict[Trial, float | None] = field(default_factory=dict)
    curve: list[tuple[int, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lessons = Lessons(self.world, self.seed)
        self.draw = random.Random(f"course/{self.seed}")

    def run(self) -> "Course":
        """Updates until the calls are spent."""
        n = len(self.lessons.kind)
        waiting: list[int] = []
        while self.calls < self.world.max_calls:
            if len(waiting) < self.world.batch_size:
                waiting += self.draw.sample(range(n), n)
            batch = waiting[: self.world.batch_size]
            del waiting[: self.world.batch_size]
            groups = [self._group(question) for question in batch]
            operations = self._proposed(groups)
            self._decide(groups, operations)
            self.curve.append((self.calls, self.lessons.held_out(self.exported)))
            self.update += 1
        return self

    def _group(self, question: int) -> GroupEvidence:
        world = self.world
        libraries = (self.library,) * world.group_size
        if hasattr(self.gate, "assign") and world.signal != "none":
            concerned = tuple(
                own
                for own in self.library
                if own.is_on_trial and question in self.lessons.concerned(own)
            )
            libraries = self.gate.assign(
                GroupPlan(self.library, question, self.update, world.group_size, concerned)
            )
        scores = tuple(
            float(self.draw.random() < self.lessons.chance(library, question))
            for library in libraries
        )
        self.calls += world.group_size
        return GroupEvidence(question, libraries, scores)

    def _proposed(self, groups: Sequence[GroupEvidence]) -> tuple[Operation, ...]:
        """The operations that reflection proposes; a text that is there already is not repeated."""
        sources: dict[str, list[Evidence]] = {}
        for group in groups:
            mean = statistics.fmean(score for score in group.scores if score is not None)
            if mean in (0.0, 1.0) or self._skips(group):
                continue
            self.calls += self.world.group_size + 2
            self.n_reflected += 1
            if self.draw.random() < 0.6:
                text = self._written(group.example)
                evidence = Evidence(self.update, group.example, (), group.scores)
                sources.setdefault(text, []).append(evidence)
        self.calls += 1
        known = {own.text: own.id for own in self.library}
        return tuple(
            Keep(known[text], evidence=tuple(evidence))
            if text in known
            else Add(text, evidence=tuple(evidence))
            for text, evidence in sources.items()
        )

    def _skips(self, group: GroupEvidence) -> bool:
        return hasattr(self.gate, "skips") and bool(self.gate.skips(group, self.memory))

    def _written(self, question: int) -> str:
        kind = self.lessons.kind[question]
        luck = self.draw.random()
        if luck < self.world.wrong:
            return f"wrong {kind}"
        if luck < self.world.wrong + self.world.leaking:
            return f"leak {kind} {question}"
        return f"right {kind}"

    def _decide(self, groups: Sequence[GroupEvidence], operations: tuple[Operation, ...]) -> None:
        evidence = TrialEvidence(
            self.library,
            operations,
            self.world.n_validation,
            self.update,
            limits=LIMITS,
            scores=self.scores,
            n_updates=25,
            n_training=len(self.lessons.kind),
            groups=tuple(groups),
            memory=self.memory,
        )
        if self.world.signal != "none":
            concerns = {own.id: self.lessons.concerned(own) for own in evidence.proposed}
            evidence = replace(evidence, concerns=concerns)
        while not isinstance(answer := self.gate.next(evidence), Decision):
            for trial in answer.trials:
                self._try(trial)
        self.memory = answer.memory
        self.library = answer.library
        self.exported = answer.library if answer.exported is None else answer.exported

    def _try(self, trial: Trial) -> None:
        if trial in self.scores:
            return
        luck = random.Random(f"{self.seed}/{trial.on}/{trial.example}/{trial.index}").random()
        self.scores[trial] = float(luck < self.lessons.chance(trial.library, trial.example))
        self.calls += 1
        self.n_trials += 1

    # ------------------------------------------------------------------ what came of it

    @property
    def hit(self) -> float:
        """Calls until the target was first reached; infinite if never."""
        return next((calls for calls, mean in self.curve if mean >= self.lessons.target), math.inf)

    @property
    def stays(self) -> bool:
        """Whether the target holds at the end."""
        return self.curve[-1][1] >= self.lessons.target

    @property
    def n_harmful(self) -> int:
        """Harmful lessons in the exported library at the end."""
        return sum(self.lessons.is_harmful(own.text) for own in self.exported)


GATES: dict[str, Callable[[], Any]] = {
    "none": NoGate,
    "paired": PairedGate,
    "trial": ProbeThenTrial,
}
SIGNALS = ("known", "agent", "gsm8k", "bbh", "80/10", "none")


BARS = {
    **{f"wrong {wrong}": World(wrong=wrong) for wrong in (0.0, 0.25, 0.5)},
    "leaking 0.25": World(leaking=0.25),
}
Row = tuple[str, str, World, int]


def row(gate: str, name: str, world: World, size: int, signal: str, n: int) -> Row:
    """Its name, the gate, the world, and the number of seeds."""
    told = "" if gate in ("none", "paired") else f", signal {signal}"
    label = f"{gate}: G {size}, {name}{told}"
    return label, gate, replace(world, group_size=size, signal=signal), n


def rows() -> list[Row]:
    """All rows, those of the bars first."""
    found = []
    for size, (name, world) in itertools.product((4, 5), BARS.items()):
        found.append(row("none", name, world, size, "none", 200))
        found.append(row("trial", name, world, size, "measured", 200))
    for name, world in BARS.items():
        found.append(row("paired", name, world, 5, "none", 60))
    for size, (name, world) in itertools.product((0.3, 0.2), BARS.items()):
        smaller = replace(world, up=size, down=size)
        found.append(row("none", f"{name}, effects +-{size}", smaller, 4, "none", 60))
        found.append(row("trial", f"{name}, effects +-{size}", smaller, 4, "measured", 60))
    for signal, (name, world) in itertools.product(SIGNALS, BARS.items()):
        found.append(row("trial", name, world, 4, signal, 60))
    return found


def summary(world: World, gate: Callable[[], Any], seeds: Iterable[int]) -> dict[str, Any]:
    """The row of one gate in one world."""
    began = time.process_time()
    runs = [Course(world, gate(), seed).run() for seed in seeds]
    hits = sorted(run.hit for run in runs)
    quartiles = [hits[round(share * (len(hits) - 1))] for share in (0.25, 0.5, 0.75)]
    return {
        "hit_median": _finite(statistics.median_low(hits)),
        "hit_quartiles": [_finite(hit) for hit in quartiles],
        "reach": round(statistics.fmean(run.hit < math.inf for run in runs), 3),
        "stay": round(statistics.fmean(run.stays for run in runs), 3),
        "harmful_left": round(statistics.fmean(run.n_harmful for run in runs), 3),
        "final": round(statistics.fmean(run.curve[-1][1] for run in runs), 3),
        "trials": round(statistics.fmean(run.n_trials for run in runs), 1),
        "reflected": round(statistics.fmean(run.n_reflected for run in runs), 1),
        "n_seeds": len(runs),
        "cpu_s": round(time.process_time() - began, 1),
    }


def _finite(calls: float) -> float | None:
    return None if math.isinf(calls) else calls


def main() -> None:
    """Measure what is not in the results yet; each row is written when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    parser.add_argument("--gates", nargs="*", default=list(GATES))
    parser.add_argument("--seeds", type=int, help="instead of each row's own number; not written")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after these")
    parser.add_argument("--again", action="store_true", help="measure these rows anew")
    args = parser.parse_args()
    known = json.loads(RESULTS.read_text("utf-8"))["rows"] if RESULTS.exists() else {}
    done = {name: row for name, row in known.items() if not (args.again and args.rows in name)}
    began = time.monotonic()
    for name, gate, world, n in rows():
        if args.rows not in name or gate not in args.gates or (name in done and not args.seeds):
            continue
        if time.monotonic() - began > 60 * args.minutes:
            break
        found = summary(world, GATES[gate], range(1001, 1001 + (args.seeds or n)))
        print(name, found, flush=True)
        if not args.seeds:
            done[name] = {**found, "world": asdict(world)}
            text = json.dumps({"simulated": True, "rows": done}, indent=1)
            RESULTS.write_text(text + "\n", "utf-8")


if __name__ == "__main__":
    main()
