"""How long advice should be tried where groups are small: `TrialInUse` by training groups alone.

    python benchmarks/small_groups.py [--runs 12] [--jobs 2]

Simulated: there is no LM. Lessons have a known worth on every example (`gate_world`), scores are
graded: their mean plus normal noise, cut to [0, 1]. A run has 32 updates of 5 groups of 2 rollouts
on 36 training examples, about what 400 LM calls reach for. As a reflection LM repeats itself, each
lesson that the library has not is proposed again in an update with a chance of 0.8; useless ones
are always new. Shown is what the returned library is truly worth, and how many useless lessons are
in it. Written into `results/small_groups.json`.
"""

import argparse
import itertools
import json
import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from gate_world import LIMITS, World, decide
from gates import show

from tfgrpo_dspy.experience import Add, ExperienceLibrary
from tfgrpo_dspy.gate import GroupEvidence, GroupPlan, TrialEvidence, TrialInUse

RESULTS = Path(__file__).parent / "results" / "small_groups.json"
N_UPDATES, N_GROUPS, GROUP_SIZE, N_TRAINING = 32, 5, 2, 36
NOISE = 0.17
"""Standard deviation of a rollout's score; about that of the quickstart's replies."""
SAID_AGAIN = 0.8
EPOCHS = (1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Setting:
    """What is proposed: lessons of these worths, and so many new useless ones in each update."""

    worths: tuple[float, ...]
    n_useless: int


SETTINGS = {
    "five good ones": Setting((0.12, 0.08, 0.06, 0.03, 0.0), 0),
    "five, and useless ones": Setting((0.12, 0.08, 0.06, 0.03, 0.0), 1),
    "one, and useless ones": Setting((0.15,), 2),
    "good, bad and useless": Setting((-0.05, 0.0, 0.1, -0.1, 0.05), 1),
}


class GradedWorld(World):
    """A world whose scores are graded, with the noise of `NOISE`."""

    def _score(self, mean: float, rng: np.random.Generator) -> float:
        return float(np.clip(mean + NOISE * rng.standard_normal(), 0.0, 1.0))


def run(max_epochs: float, setting: Setting, number: int) -> tuple[float, int]:
    """What the returned library is worth, and how many useless lessons it holds."""
    world = GradedWorld(20, np.random.default_rng([7, number]), n_training=N_TRAINING)
    said = np.random.default_rng([9, number])
    world.worth |= {f"lesson {k}": worth for k, worth in enumerate(setting.worths)}
    gate = TrialInUse(max_trials=0, max_epochs=max_epochs)
    library = exported = ExperienceLibrary()
    memory = None
    for update in range(N_UPDATES):
        groups = tuple(group_of(gate, world, library, update, memory) for _ in range(N_GROUPS))
        known = {own.text for own in library}
        texts = [f"lesson {k}" for k in range(len(setting.worths))]
        texts = [text for text in texts if text not in known and said.random() < SAID_AGAIN]
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


def row(max_epochs: float, name: str, runs: list[tuple[float, int]]) -> dict[str, Any]:
    """What is shown of the runs of a cell."""
    gains, n_useless = zip(*runs, strict=True)
    return {
        "setting": name,
        "max_epochs": max_epochs,
        "runs": len(runs),
        "worth": round(statistics.fmean(gains), 3),
        "error": round(statistics.stdev(gains) / len(gains) ** 0.5, 3),
        "most there is": round(sum(w for w in SETTINGS[name].worths if w > 0), 3),
        "useless ones": round(statistics.fmean(n_useless), 2),
    }


def main() -> None:
    """Measure all cells, print and write them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=12)
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    arguments = parser.parse_args()
    rows = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for (name, setting), epochs in itertools.product(SETTINGS.items(), EPOCHS):
            n = arguments.runs
            runs = pool.map(run, [epochs] * n, [setting] * n, range(n))
            rows.append(row(epochs, name, list(runs)))
    print("simulated\n")
    show(rows)
    RESULTS.write_text(json.dumps({"simulated": True, "rows": rows}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
