"""How advice should be tried where groups are small: `TrialInUse` by training groups alone.

    python benchmarks/small_groups.py [--runs 24] [--jobs 2]

Simulated: there is no LM. A run has 32 updates of 5 groups of 2 rollouts on 36 training examples,
about what 400 LM calls reach for; scores are graded: their mean plus normal noise, cut to [0, 1].
Lessons have a known worth on every example (`gate_world`), and worths add up; but for the settings
`spoiling`, where a library is worth what the embedded LM made of it: of the 32 subsets of five
lessons that `subsets.py` measured, the best holds one, and most others spoil it. There a score lies
around the middle of the measured one and its subset's mean.

As a reflection LM repeats itself, each lesson that the library has not is proposed again in an
update with a chance of 0.8, in random order; useless ones are always new, and worth nothing beside
any other. Varied are the epochs for which a lesson is tried, and how many are tried at a time.
Shown is what the returned library is truly worth, and how many useless lessons are in it. Written
into `results/small_groups.json`.
"""

import argparse
import functools
import itertools
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gate_world import LIMITS, World, decide
from gates import show

from tfgrpo_dspy.experience import Add, ExperienceLibrary
from tfgrpo_dspy.gate import GroupEvidence, GroupPlan, TrialEvidence, TrialInUse

RESULTS = Path(__file__).parent / "results" / "small_groups.json"
SUBSETS = Path(__file__).parent / "results" / "subsets.json"
N_UPDATES, N_GROUPS, GROUP_SIZE, N_TRAINING = 32, 5, 2, 36
NOISE = 0.17
"""Standard deviation of a rollout's score; about that of the quickstart's replies."""
SAID_AGAIN = 0.8
LESSON = "lesson {}"


@dataclass(frozen=True)
class Trying:
    """The arguments of the gate that are varied."""

    max_epochs: float
    max_on_trial: int


TRYING = (
    *(Trying(epochs, 30) for epochs in (1.0, 2.0, 4.0, 8.0)),
    *(Trying(4.0, n) for n in (1, 2, 3, 5)),
)


@dataclass(frozen=True)
class Setting:
    """What is proposed: lessons of these worths, and so many new useless ones in each update.

    Without worths, the lessons of `subsets.py`.
    """

    worths: tuple[float, ...]
    n_useless: int

    @property
    def n_lessons(self) -> int:
        return len(self.worths) or len(_lessons())


SETTINGS = {
    "five good ones": Setting((0.12, 0.08, 0.06, 0.03, 0.0), 0),
    "five, and useless ones": Setting((0.12, 0.08, 0.06, 0.03, 0.0), 1),
    "one, and useless ones": Setting((0.15,), 2),
    "good, bad and useless": Setting((-0.05, 0.0, 0.1, -0.1, 0.05), 1),
    "spoiling": Setting((), 0),
    "spoiling, and useless ones": Setting((), 1),
}


class GradedWorld(World):
    """A world whose scores are graded, with the noise of `NOISE`."""

    def _score(self, mean: float, rng: np.random.Generator) -> float:
        return float(np.clip(mean + NOISE * rng.standard_normal(), 0.0, 1.0))


class SpoilingWorld(GradedWorld):
    """A world of measured scores: of the same complaints with each subset of five lessons."""

    def __post_init__(self) -> None:
        super().__post_init__()
        n = len(_subsets()[frozenset()])
        order = self.rng.permutation(n)
        self._complaints = {
            "training": order[: self.n_training],
            "validation": order[self.n_training :],
        }

    def means(self, library: ExperienceLibrary, on: str = "validation") -> np.ndarray[Any, Any]:
        """Half the measured score of each complaint, half the mean of all."""
        scores = _subsets()[frozenset(own.text for own in library) & _lessons()]
        return ((scores + scores.mean()) / 2)[self._complaints[on]]


@functools.cache
def _subsets() -> dict[frozenset[str], np.ndarray[Any, Any]]:
    """The measured scores by the lessons that were given, which `subsets.py` numbers from 1."""
    measured = json.loads(SUBSETS.read_text(encoding="utf-8"))["scores"]
    return {
        frozenset(LESSON.format(number) for number in subset.split("+") if number != "none"): (
            np.array(scores)
        )
        for subset, scores in measured.items()
    }


@functools.cache
def _lessons() -> frozenset[str]:
    return frozenset().union(*_subsets())


def run(trying: Trying, setting: Setting, number: int) -> tuple[float, int]:
    """What the returned library is worth, and how many useless lessons it holds."""
    kind = GradedWorld if setting.worths else SpoilingWorld
    world = kind(20, np.random.default_rng([7, number]), n_training=N_TRAINING)
    said = np.random.default_rng([9, number])
    lessons = [LESSON.format(k + 1) for k in range(setting.n_lessons)]
    world.worth |= dict(zip(lessons, setting.worths, strict=False))
    gate = TrialInUse(max_trials=0, **asdict(trying))
    library = exported = ExperienceLibrary()
    memory = None
    for update in range(N_UPDATES):
        groups = tuple(group_of(gate, world, library, update, memory) for _ in range(N_GROUPS))
        known = {own.text for own in library}
        texts = [text for text in lessons if text not in known and said.random() < SAID_AGAIN]
        said.shuffle(texts)
        useless = [f"useless {update}/{k}" for k in range(setting.n_useless)]
        world.worth |= dict.fromkeys(useless, 0.0)
        evidence = TrialEvidence(
            library,
            tuple(map(Add, [*texts, *useless])),
            world.n_examples,
            update,
            LIMITS,
            world.scores,
            N_UPDATES,
            N_TRAINING,
            groups=groups,
            memory=memory,
            n_ahead=(N_UPDATES - 1 - update) * N_GROUPS * GROUP_SIZE,
        )
        decision = decide(gate, evidence, world)
        library, memory = decision.library, decision.memory
        exported = library if decision.exported is None else decision.exported
    gain = world.means(exported) - world.means(ExperienceLibrary())
    return float(gain.mean()), sum(own.text.startswith("useless") for own in exported)


def group_of(
    gate: TrialInUse, world: World, library: ExperienceLibrary, update: int, memory: Any
) -> GroupEvidence:
    """A training group with the libraries that the gate assigns."""
    (example,) = world.batch(1)
    libraries = (library,) * GROUP_SIZE
    if any(own.is_on_trial for own in library):
        libraries = gate.assign(GroupPlan(library, example, update, GROUP_SIZE, memory=memory))
    return world.group(example, libraries)


def most(setting: Setting) -> float:
    """What the best library is worth; of measured ones it is the best by luck too."""
    if setting.worths:
        return sum(worth for worth in setting.worths if worth > 0)
    means = {subset: scores.mean() for subset, scores in _subsets().items()}
    return float(max(means.values()) - means[frozenset()])


def row(trying: Trying, name: str, runs: list[tuple[float, int]]) -> dict[str, Any]:
    """What is shown of the runs of a cell."""
    gains, n_useless = zip(*runs, strict=True)
    return {
        "setting": name,
        **asdict(trying),
        "runs": len(runs),
        "worth": round(statistics.fmean(gains), 3),
        "error": round(statistics.stdev(gains) / len(gains) ** 0.5, 3),
        "most there is": round(most(SETTINGS[name]), 3),
        "useless ones": round(statistics.fmean(n_useless), 2),
    }


def main() -> None:
    """Measure all cells, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=24)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for (name, setting), trying in itertools.product(SETTINGS.items(), TRYING):
            n = arguments.runs
            runs = pool.map(run, [trying] * n, [setting] * n, range(n))
            rows.append(row(trying, name, list(runs)))
    print("simulated\n")
    show(rows)
    RESULTS.write_text(json.dumps({"simulated": True, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
