"""Any data set of reasoning_gym, by name, with its own scoring function.

`rg:chain_sum` is its data set `chain_sum` with default settings; the seed is the data set's. Its
scoring functions read the answer: some of them parse it as code or mathematics, so use LMs that
you trust, or a sandbox. Data sets that repeat their questions give fewer examples.
"""

import difflib
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import reasoning_gym
from reasoning_gym.factory import DATASETS

from tasks import Task, plain, split

N_TRAIN, N_VALIDATION, N_TEST = 40, 40, 100
N_WANTED = N_TRAIN + N_VALIDATION + N_TEST
N_TRIED = 3 * N_WANTED
"""How many entries are made at most in search of `N_WANTED` different questions."""
SHOWN_CHARACTERS = 300


class SolvePuzzle(dspy.Signature):
    """Solve the problem. Give the final answer alone, in the form that is asked for."""

    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


def student() -> dspy.ChainOfThought:
    return dspy.ChainOfThought(SolvePuzzle)


@functools.cache
def _dataset(name: str, seed: int) -> Any:
    return reasoning_gym.create_dataset(name, seed=seed, size=N_TRIED)


@functools.cache
def _entries(name: str, seed: int) -> dict[str, dict[str, Any]]:
    """The first different questions, each with its entry."""
    entries: dict[str, dict[str, Any]] = {}
    dataset = _dataset(name, seed)
    for index in range(N_TRIED):
        entry = dataset[index]
        entries.setdefault(str(entry["question"]), entry)
        if len(entries) == N_WANTED:
            break
    return entries


@dataclass(frozen=True)
class ScoredByReasoningGym:
    """What the data set's own function says of the answer, and the expected one in words."""

    name: str
    seed: int

    def __call__(
        self,
        gold: dspy.Example,
        pred: dspy.Prediction,
        trace: object = None,  # noqa: ARG002 - DSPy and GEPA pass these three
        pred_name: str | None = None,  # noqa: ARG002
        pred_trace: object = None,  # noqa: ARG002
    ) -> dspy.Prediction:
        given = str(pred.get("answer") or "").strip()
        entry = _entries(self.name, self.seed)[gold.question]
        score, verdict = self._judged(given, entry)
        expected = entry["answer"]
        is_told = score < 1.0 and expected is not None
        hint = f" One right answer is '{_shown(str(expected))}'." if is_told else ""
        return dspy.Prediction(score=score, feedback=verdict + hint)

    def _judged(self, given: str, entry: dict[str, Any]) -> tuple[float, str]:
        if not given:
            return 0.0, "There is no answer."
        try:
            raw = float(_dataset(self.name, self.seed).score_answer(given, entry))
        except Exception as error:  # noqa: BLE001 - some functions raise on what they cannot read
            return 0.0, f"'{_shown(given)}' cannot be read ({type(error).__name__})."
        if raw >= 1.0:
            return 1.0, f"'{_shown(given)}' is right."
        return max(0.0, raw), f"'{_shown(given)}' is worth {max(0.0, raw):.2f} of 1."


def load(seed: int, data: Path | None = None, name: str = "chain_sum") -> Task:  # noqa: ARG001
    """40 examples to train, 40 to validate, 100 to test; in proportion, where there are fewer.

    Raises:
        ValueError: reasoning_gym has no data set of that name.
    """
    if name not in DATASETS:
        near = " or ".join(difflib.get_close_matches(name, DATASETS)) or "chain_sum"
        raise ValueError(f"task 'rg:{name}': reasoning_gym has no data set {name!r}; pass {near}.")
    examples = [_example(entry) for entry in _entries(name, seed).values()]
    n_train, n_val = (len(examples) * part // N_WANTED for part in (N_TRAIN, N_VALIDATION))
    sizes = (n_train, n_val, len(examples) - n_train - n_val)
    train, val, test = split(examples, sizes, seed)
    metric = ScoredByReasoningGym(name, seed)
    return Task(
        name=f"rg:{name}",
        student=student,
        train=train,
        val=val,
        test=test,
        metric=metric,
        plain_metric=plain(metric),
        notes="Scored by reasoning_gym's own function, at its default difficulty.",
    )


def _example(entry: dict[str, Any]) -> dspy.Example:
    """Question and answer; the question alone where there is no single right answer."""
    label = {} if entry["answer"] is None else {"answer": str(entry["answer"])}
    return dspy.Example(question=str(entry["question"]), **label).with_inputs("question")


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return f"{line[:SHOWN_CHARACTERS]}…" if len(line) > SHOWN_CHARACTERS else line
