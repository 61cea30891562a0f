"""Optimize a program on multiple-choice questions in Chinese, split 80/10/10.

    python examples/multiple_choice_zh.py --data questions.csv --lm openai/gpt-5-mini
    python examples/multiple_choice_zh.py

Each row of the file (CSV, JSON or JSON lines) has `question`, the options `A` to `D` (`E`
may be there, too) and `answer`, as in the single-choice questions of TCM-Ladder (arXiv 2505.24063).
Without --data, it writes questions of its own about syndromes of Chinese medicine, and runs on a
simulated LM in 4 seconds. Instructions, inputs, feedback, lessons and library are in Chinese. The
simulated LM can do no other questions.
"""

import csv
import io
import json
import random
import tempfile
import unicodedata
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import dspy
from simulated import SimulatedEngine, arguments
from simulated_rules import ProgramSide, Prompt

from tfgrpo_dspy import TrainingFreeGRPO

OPTIONS = ("A", "B", "C", "D", "E")
FEWEST = 10  # of which a tenth is one
NEEDED = ("question", *OPTIONS[:4], "answer")
SYNDROMES = {  # signs in the stem, and the syndrome that they show
    "畏寒肢冷": "阳虚证",
    "潮热盗汗": "阴虚证",
    "神疲乏力": "气虚证",
    "面色萎黄": "血虚证",
    "胀痛走窜": "气滞证",
    "刺痛不移": "血瘀证",
    "胸闷痰多": "痰湿证",
    "口苦尿黄": "湿热证",
}
READERS: dict[str, Callable[[str], list[dict[str, Any]]]] = {
    ".csv": lambda text: list(csv.DictReader(io.StringIO(text, newline=""))),
    ".json": json.loads,
    ".jsonl": lambda text: [json.loads(line) for line in text.splitlines()],
}


class Choose(dspy.Signature):
    """阅读中医单项选择题，选出唯一正确的选项，只回答选项的字母。"""

    question: str = dspy.InputField()
    options: str = dspy.InputField()
    answer: str = dspy.OutputField()


def decoded(path: Path) -> str:
    """The text of a file in UTF-8, or in GB 18030, which Chinese editions of Excel write."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        return path.read_text(encoding="gb18030")


def clean(value: object) -> str:
    """A cell as one line; empty where there is nothing."""
    return "" if value is None or value != value else " ".join(str(value).split())


def read(path: Path) -> list[dspy.Example]:
    """The questions of a file.

    Raises:
        SystemExit: the file cannot be read, a column is missing, or a question cannot be used.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise SystemExit(f"--data {path}: the name must end with one of {', '.join(READERS)}.")
    try:
        rows = [{clean(k): v for k, v in row.items()} for row in reader(decoded(path))]
    except Exception as error:
        raise SystemExit(f"--data {path}: {type(error).__name__}: {error}") from error
    names = dict.fromkeys(name for row in rows for name in row)
    if missing := [name for name in NEEDED if name not in names]:
        there = ", ".join(names) or "none"
        raise SystemExit(f"--data {path}: no column {', '.join(missing)}; there are: {there}.")
    if len(rows) < FEWEST:
        raise SystemExit(f"--data {path}: {len(rows)} questions; at least {FEWEST} are needed.")
    try:
        return [example_of(row, number) for number, row in enumerate(rows, 1)]
    except ValueError as error:
        raise SystemExit(f"--data {path}, {error}") from error


def example_of(row: Mapping[Any, Any], number: int) -> dspy.Example:
    """The question as an example. Raises ValueError: it cannot be used."""
    question = clean(row["question"])
    options = {name: option for name in OPTIONS if (option := clean(row.get(name)))}
    answer = unicodedata.normalize("NFKC", clean(row["answer"])).upper().rstrip(".")
    if not question or answer not in options:
        raise ValueError(
            f"question {number}: the question is {question!r}, the answer is {row['answer']!r}, "
            f"the options are {', '.join(options) or 'empty'}."
        )
    text = "\n".join(f"{name}. {option}" for name, option in options.items())
    example = dspy.Example(question=question, options=text, answer=answer)
    return example.with_inputs("question", "options")


def split(examples: list[dspy.Example], seed: int = 0) -> tuple[list[dspy.Example], ...]:
    """Training, validation and test examples: 80 %, 10 % and 10 %, drawn by the seed."""
    drawn = random.Random(seed).sample(examples, len(examples))
    n_tenth = len(examples) // 10
    return drawn[2 * n_tenth :], drawn[:n_tenth], drawn[n_tenth : 2 * n_tenth]


def written(path: Path, n: int = 240) -> Path:
    """Writes a file of invented patients: which syndrome do their signs show?"""
    luck, rows = random.Random(0), []
    for number in range(n):
        sign, syndrome = [*SYNDROMES.items()][number % len(SYNDROMES)]
        others = luck.sample([each for each in SYNDROMES.values() if each != syndrome], 3)
        offered = luck.sample([syndrome, *others], 4)
        sex, age, weeks = luck.choice("男女"), luck.randint(18, 80), luck.randint(2, 30)
        stem = f"患者{sex}，{age}岁，就诊前{weeks}周出现{sign}。最可能的证型是什么？"
        options = dict(zip(OPTIONS, offered, strict=False))
        rows.append({"question": stem, **options, "answer": OPTIONS[offered.index(syndrome)]})
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """1 for the right letter; else the feedback says, in Chinese, what was right and why."""
    if str(pred.answer).strip().upper()[:1] == example.answer:
        return dspy.Prediction(score=1.0, feedback="回答正确。")
    right = next(line[3:] for line in example.options.split("\n") if line[0] == example.answer)
    why = [f"见{s}者，辨为{z}。" for s, z in SYNDROMES.items() if s in example.question]
    return dspy.Prediction(score=0.0, feedback=f"应选{right}。{''.join(why)}")


class Student(ProgramSide):
    """The simulated student guesses, unless the advice is about the sign in the question."""

    def answer(self, prompt: Prompt, name: str) -> Any:  # noqa: ARG002
        """A letter."""
        options = dict(line.split(". ") for line in prompt.inputs["options"].split("\n"))
        sign = next(sign for sign in SYNDROMES if sign in prompt.inputs["question"])
        if not self._does(prompt, f"见{sign}者"):
            return prompt.luck("guess").choice([*options])
        return next(letter for letter, text in options.items() if text == SYNDROMES[sign])


def main() -> Any:
    """Optimize on 80 %, choose on 10 %, test on 10 %."""
    engine = SimulatedEngine(unaided=0.1, program=Student)
    given = arguments(__doc__, engine, data="a file of questions; needs --lm")
    if given.data and given.is_simulated:
        raise SystemExit(f"--data {given.data}: the simulated LM cannot solve it; pass --lm, too.")
    path = Path(given.data) if given.data else written(Path(tempfile.mkdtemp()) / "questions.csv")
    training, validation, test = split(read(path))
    print(f"{len(training)} training, {len(validation)} validation, {len(test)} test questions")
    optimizer = TrainingFreeGRPO(metric, reflection_lm=given.reflection_lm, max_lm_calls=600)
    program = dspy.Predict(Choose)
    optimized = optimizer.compile(program, trainset=training, valset=validation, testset=test)
    print(optimized.detailed_results)
    return optimized


if __name__ == "__main__":
    main()
