"""What other demos score on a real task: another order, another draw, another number of them.

    nice -n 19 python benchmarks/real/draws.py --task sql

The demos are labelled training examples, without advice; scores are those of the 60 held-out
examples at temperature 0. One JSON line a set in `results/real_draws.jsonl`; what is there is not
run again.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import dspy  # noqa: E402 - the folders come first
from models import MODELS  # noqa: E402
from real_tasks import TASKS, load  # noqa: E402
from run import ADAPTERS  # noqa: E402
from tasks import Task  # noqa: E402

RESULTS = HERE.parent / "results" / "real_draws.jsonl"


def sets_of(train: Sequence[Any]) -> Iterator[tuple[str, list[Any]]]:
    """The sets by name."""
    mixed = list(train)
    random.Random("0/demos").shuffle(mixed)
    yield "first 16", mixed[:16]
    yield "first 16, reversed", mixed[15::-1]
    for size, n_draws in ((16, 4), (8, 3), (4, 3)):
        for seed in range(n_draws):
            yield f"{size}, draw {seed}", random.Random(seed).sample(list(train), size)
    yield "all", list(train)


def score(task: Task, demos: Sequence[Any]) -> float:
    """The mean held-out score of the student with these demos."""
    program = task.student()
    program.predictors()[0].demos = list(demos)
    with dspy.context(lm=task.make_lm(0)):
        evaluate = dspy.Evaluate(devset=list(task.test), metric=task.plain_metric, num_threads=1)
        return float(evaluate(program).score) / 100


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", choices=list(TASKS), default="sql")
    parser.add_argument("--model", default="0.5B")
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args(arguments)
    text = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    done = {
        (r["task"], r["model"], r["set"]): r["mean"] for r in map(json.loads, text.splitlines())
    }
    if not asked.show:
        dspy.configure(adapter=ADAPTERS[asked.model]())
        task = load(asked.task, asked.model, 0)
        for name, demos in sets_of(task.train):
            key = asked.task, asked.model, name
            if key not in done:
                done[key] = score(task, demos)
                record = dict(zip(("task", "model", "set"), key, strict=True))
                record |= {"mean": done[key], "sha256": MODELS[asked.model].sha256}
                record |= {"dspy": dspy.__version__}
                with RESULTS.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
    for (task_name, model, name), mean in done.items():
        print(f"{task_name:<12}{model:<6}{name:<22}{mean:.3f}")


if __name__ == "__main__":
    main()
