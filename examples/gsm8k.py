"""Optimize a program on word problems from a file in the format of GSM8K.

    python examples/gsm8k.py --data train.jsonl --lm openai/gpt-5-nano [--reflection-lm ...]
    python examples/gsm8k.py

Each line of the file is {"question": ..., "answer": "... #### 72"}; the first 300 lines are used.
Without --data, it writes problems of its own into such a file, and runs on a simulated LM in 2
seconds. The simulated LM can do no other problems. Needs the extra `math` (see docs/metrics.md).
"""

import json
import random
import tempfile
from pathlib import Path

import dspy
from simulated import arguments

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.metrics import math_equivalent

MOST_LINES, MAX_LM_CALLS = 300, 250
PROBLEMS = (
    "A baker fills {a} boxes with {b} rolls each and drops {c} rolls. How many are left?",
    "Mia reads {a} pages a day for {b} days, but {c} pages were pictures. How many had text?",
    "A bus makes {a} trips with {b} seats each, and {c} seats stay empty. How many are taken?",
    "Omar earns {a} dollars an hour for {b} hours and pays {c} dollars of tax. What is left?",
)


def sample_file() -> Path:
    """A file of 80 problems in the format of GSM8K."""
    rng, lines = random.Random(0), []
    for number in range(80):
        a, b, c = rng.randint(3, 12), rng.randint(4, 20), rng.randint(1, 9)
        question = PROBLEMS[number % len(PROBLEMS)].format(a=a, b=b, c=c)
        solution = f"First {a}*{b}=<<{a}*{b}={a * b}>>{a * b}.\n#### {a * b - c}"
        lines.append(json.dumps({"question": question, "answer": solution}) + "\n")
    path = Path(tempfile.mkdtemp()) / "train.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def read(path: Path) -> list[dspy.Example]:
    """The problems of a file; the number behind `####` is the answer."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        dspy.Example(
            question=row["question"], answer=row["answer"].rpartition("####")[2].strip()
        ).with_inputs("question")
        for row in rows[:MOST_LINES]
    ]


if __name__ == "__main__":
    given = arguments(__doc__, data="a file in the format of GSM8K; needs --lm")
    if given.data and given.is_simulated:
        raise SystemExit(f"--data {given.data}: the simulated LM cannot solve it; pass --lm, too.")
    examples = read(Path(given.data) if given.data else sample_file())
    optimizer = TrainingFreeGRPO(
        math_equivalent("answer"),  # 1,234 = 1234.0, 1/2 = 0.5, $5 = 5
        reflection_lm=given.reflection_lm,
        max_lm_calls=MAX_LM_CALLS,
    )
    n_test = len(examples) // 3
    optimized = optimizer.compile(
        dspy.ChainOfThought("question -> answer"),
        trainset=examples[n_test:],
        testset=examples[:n_test],
    )
    print(optimized.detailed_results)
