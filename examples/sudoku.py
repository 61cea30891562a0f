"""Sudoku (4 x 4), solved cell by cell: does a solver's order help to learn?

    python examples/sudoku.py [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]

Runs on a simulated LM in 6 seconds. The program writes its moves in their order, such as
"r1c2=3". A grid is right only if all moves are. A solver always fills the cells first that have one
possible digit; `StepOrder` mixes the rank correlation with that order into the score, so that
wrong attempts differ, too. Prints the mean share of solved test grids over three seeds, with and
without the order. A single seed says little.
"""

import random
import re
from statistics import fmean
from typing import Any

import dspy
from simulated import SimulatedEngine, arguments
from simulated_rules import ProgramSide, Prompt

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies import StepOrder

Grid = list[list[int]]
N_EMPTY = 11
SEEDS = range(3)
ADVICE = (  # each is about where to look next
    *("Look at full rows first.", "Look at full columns next.", "Look at full boxes after that."),
    *("Fill the corners first.", "Guess the middle first."),
)
USEFUL = ADVICE[:3]


def shown(grid: Grid) -> str:
    """The grid as text; a dot is an empty cell."""
    return "/".join("".join(str(digit or ".") for digit in row) for row in grid)


def read(text: str) -> Grid:
    """The grid that the text shows."""
    return [[0 if digit == "." else int(digit) for digit in row] for row in text.split("/")]


def possible(grid: Grid, row: int, column: int) -> set[int]:
    """The digits that row, column and box leave."""
    top, left = row // 2 * 2, column // 2 * 2
    box = {grid[r][c] for r in (top, top + 1) for c in (left, left + 1)}
    return {1, 2, 3, 4} - {*grid[row], *(each[column] for each in grid), *box}


def solved(grid: Grid, take: Any) -> list[str]:
    """The moves; `take` chooses among the empty cells, each with its possible digits."""
    grid, moves = [list(row) for row in grid], []
    while empty := [(r, c) for r in range(4) for c in range(4) if not grid[r][c]]:
        (row, column), digit = take({cell: possible(grid, *cell) for cell in empty})
        grid[row][column] = digit
        moves.append(f"r{row + 1}c{column + 1}={digit}")
    return moves


def solver(cells: dict[tuple[int, int], set[int]]) -> tuple[tuple[int, int], int]:
    """The cell with the fewest possible digits, the first of several."""
    cell = min(cells, key=lambda each: (len(cells[each]), each))
    return cell, min(cells[cell], default=1)


class Player(ProgramSide):
    """The simulated player looks for sure cells by chance, and always with all useful advice."""

    def answer(self, prompt: Prompt, name: str) -> Any:  # noqa: ARG002
        """The moves."""
        luck = prompt.luck("moves")
        careful = 0.25 * (1 + sum(line in prompt.told for line in USEFUL))
        careful -= 0.3 * sum(line in prompt.told for line in ADVICE[3:])

        def take(cells: dict[tuple[int, int], set[int]]) -> tuple[tuple[int, int], int]:
            if luck.random() < careful:
                return solver(cells)
            cell = luck.choice(sorted(cells))
            return cell, luck.choice(sorted(cells[cell]) or [1])

        return " ".join(solved(read(prompt.inputs["grid"]), take))


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """Whether all moves are right. The feedback is a guess at what to do better."""
    moves = set(pred.moves.split())
    score = float(moves == set(example.moves.split()))
    luck = random.Random(f"{example.grid} {pred.moves}")
    return dspy.Prediction(score=score, feedback="" if score else luck.choice(ADVICE))


def load(n: int) -> list[dspy.Example]:
    """Grids that a solver finishes without a guess, with the moves."""
    found, luck = [], random.Random(0)
    while len(found) < n:
        digits = luck.sample((1, 2, 3, 4), 4)
        rows = ((0, 1, 2, 3), (2, 3, 0, 1), (1, 0, 3, 2), (3, 2, 1, 0))
        whole = [[digits[k] for k in row] for row in rows]
        grid = [list(row) for row in whole]
        for cell in luck.sample(range(16), N_EMPTY):
            grid[cell // 4][cell % 4] = 0
        moves = solved(grid, solver)
        if all(whole[int(m[1]) - 1][int(m[3]) - 1] == int(m[5]) for m in moves):
            found.append(dspy.Example(grid=shown(grid), moves=" ".join(moves)).with_inputs("grid"))
    return found


def cells_of(moves: str) -> list[str]:
    """The cells that are filled, in their order."""
    return re.findall(r"(r\dc\d)=", moves)


def reference(rollout: Rollout) -> list[str]:
    """The order in which a solver fills the cells of the rollout's grid."""
    return cells_of(" ".join(solved(read(rollout.steps[0].inputs["grid"]), solver)))


def taken(rollout: Rollout) -> list[str]:
    """The order in which the rollout filled them."""
    return cells_of(rollout.outputs.get("moves", ""))


def main() -> dict[str, float]:
    """Optimize with and without the order; the mean shares of solved test grids."""
    given = arguments(__doc__, SimulatedEngine(program=Player))
    examples = load(90)
    test = examples[50:]
    student = dspy.Predict("grid -> moves")
    shares = {"student": [solved_share(student, test)]}
    for name, strategies in {"without": (), "with": (StepOrder(reference, taken),)}.items():
        shares[name] = []
        for seed in SEEDS:
            optimizer = TrainingFreeGRPO(
                metric,
                reflection_lm=given.reflection_lm,
                max_lm_calls=140,
                max_demos=0,
                seed=seed,
                strategies=strategies,
                progress=False,
            )
            optimized = optimizer.compile(student, trainset=examples[:30], valset=examples[30:50])
            texts = [each.text for each in optimized.detailed_results.experiences]
            print(f"{name} the order, seed {seed}: learned {texts}")
            shares[name].append(solved_share(optimized, test))
    means = {name: fmean(each) for name, each in shares.items()}
    for name, share in means.items():
        print(f"{name:<10}{share:.2f} of the test grids solved")
    return means


def solved_share(program: Any, examples: list[dspy.Example]) -> float:
    """The share of the grids that the program solves."""
    return fmean(metric(each, program(grid=each.grid)).score for each in examples)


if __name__ == "__main__":
    main()
