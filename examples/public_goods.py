"""Agents on a lattice share a library: does a global term make them cooperate?

    python examples/public_goods.py [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]

Runs on a simulated LM in 4 seconds. A spatial public goods game: each agent contributes 1 or keeps
it; what an agent and its four neighbours give is multiplied and shared by the five. Keeping pays
more for an agent, contributing for all. Prints the share of agents that contribute after five
rounds, with and without `GlobalConstraint`.
"""

import random
from statistics import fmean
from typing import Any

import dspy
from simulated import SimulatedEngine, arguments
from simulated_rules import ProgramSide, Prompt

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies import GlobalConstraint

SIDE, FACTOR = 8, 4.0
Lattice = dict[tuple[int, int], bool]
"""Whether the agent at each place contributes."""


class Agent(ProgramSide):
    """The simulated agent does what its advice says, mostly."""

    def answer(self, prompt: Prompt, name: str) -> Any:  # noqa: ARG002
        """Contribute or keep."""
        gives, keeps = ("Contribute" in prompt.told, "Keep your share" in prompt.told)
        chance = {(True, False): 0.95, (False, True): 0.05}.get((gives, keeps), 0.5)
        return "contribute" if prompt.luck("decide").random() < chance else "keep"


def neighbours(place: tuple[int, int]) -> list[tuple[int, int]]:
    """The four places around, on a torus."""
    row, column = place
    steps = ((1, 0), (-1, 0), (0, 1), (0, -1))
    return [((row + down) % SIDE, (column + right) % SIDE) for down, right in steps]


def seen(lattice: Lattice, place: tuple[int, int]) -> str:
    """What an agent sees."""
    n = sum(lattice[other] for other in neighbours(place))
    return f"Agent {place}: {n} of your 4 neighbours contributed in the last round."


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """The payoff of the agent."""
    gives = pred.decision == "contribute"
    payoff = FACTOR * (example.n_giving + gives) / 5 - gives
    return dspy.Prediction(
        score=payoff, feedback="Keep your share for yourself. Contribute to the common good."
    )


def contributes(rollout: Rollout) -> float:
    """The quantity of the whole: 1.0 where the agent contributed."""
    return float(rollout.outputs.get("decision") == "contribute")


def examples_of(lattice: Lattice) -> list[dspy.Example]:
    """A decision for each agent."""
    return [
        dspy.Example(
            situation=seen(lattice, place),
            n_giving=sum(lattice[other] for other in neighbours(place)),
        ).with_inputs("situation")
        for place in lattice
    ]


def cooperation(program: Any, lattice: Lattice) -> float:
    """The share of agents that contribute after five rounds."""
    for _ in range(5):
        lattice = {
            place: program(situation=seen(lattice, place)).decision == "contribute"
            for place in lattice
        }
    return fmean(lattice.values())


def main() -> dict[str, float]:
    """Optimize agents with and without the term, from the same lattice."""
    given = arguments(__doc__, SimulatedEngine(program=Agent))
    luck = random.Random(0)
    lattice = {(row, column): luck.random() < 0.5 for row in range(SIDE) for column in range(SIDE)}
    examples = examples_of(lattice)
    student = dspy.Predict("situation -> decision")
    shares = {"student": cooperation(student, lattice)}
    term = GlobalConstraint(contributes, weight=2.0)
    for name, strategies in {"without the term": (), "with the term": (term,)}.items():
        optimizer = TrainingFreeGRPO(
            metric,
            reflection_lm=given.reflection_lm,
            max_lm_calls=400,
            strategies=strategies,
            max_demos=0,
            progress=False,
        )
        optimized = optimizer.compile(student, trainset=examples[:40], valset=examples[40:])
        shares[name] = cooperation(optimized, lattice)
        texts = [each.text for each in optimized.detailed_results.experiences]
        print(f"{name}: learned {texts}")
    for name, share in shares.items():
        print(f"{name:<18}{share:.2f} of the agents contribute")
    return shares


if __name__ == "__main__":
    main()
