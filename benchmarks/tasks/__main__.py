"""Prints each task's sizes, its student's predictors, and one example.

    PYTHONPATH=benchmarks python -m tasks [names ...] [--seed 0] [--data DIR]

Without names: every task that can be loaded with what was given.
"""

import argparse
from pathlib import Path

import dspy

from tasks import NAMES, Task, load

SHOWN_CHARACTERS = 600


def row(task: Task) -> str:
    predictors = ", ".join(name for name, _ in task.student().named_predictors())
    sizes = " | ".join(str(len(part)) for part in (task.train, task.val, task.test))
    return f"| {task.name} | {sizes} | {predictors} |"


def shown(example: dspy.Example) -> str:
    lines = [f"  {name}: {value}"[:SHOWN_CHARACTERS] for name, value in example.items()]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the tasks hold.")
    parser.add_argument("names", nargs="*", help="default: all that need no more than is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path)
    given = parser.parse_args()
    names = given.names or (NAMES if given.data else ("support", "style"))
    tasks = [load(name, given.seed, given.data) for name in names]
    print("| task | train | val | test | predictors |\n| --- | --- | --- | --- | --- |")
    for task in tasks:
        print(row(task))
    for task in tasks:
        print(f"\n{task.name}: {task.notes}\n{shown(task.train[0])}")


if __name__ == "__main__":
    main()
