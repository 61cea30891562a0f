"""The reflection modules: ordinary `dspy.Module`s, each replaceable and compilable.

Each asks one predictor and reads its answer in whatever form it comes. Where nothing can be read,
it asks once more and says which form is wanted; when that fails too, the answer is empty and
`parse_failures` says so.
"""

from collections.abc import Callable
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from tfgrpo_dspy.reflection import signatures
from tfgrpo_dspy.reflection.operations import read_operations
from tfgrpo_dspy.reflection.reading import read_lessons, repaired

WANTED = {
    "lessons": "one lesson a line, or the word None",
    "operations": 'a JSON list such as [{"op": "ADD", "text": "...", "lessons": [1]}], or []',
}
READERS: dict[str, Callable[[Any], Any]] = {"lessons": read_lessons, "operations": read_operations}
"""By the name of an output: what reads its value, and raises ValueError where it cannot."""


class _ReflectionModule(dspy.Module):
    """Asks one predictor, which is given those of the inputs that its signature has.

    Args:
        signature: another prompt, with the same outputs, each a `str` or a list.
        adapter: see `dspy.Adapter`; small models are helped by `tfgrpo_dspy.local.PlainAdapter`.
        shown_tokens: how many tokens (estimated) of attempts, examples or lessons one prompt has.
    """

    default_signature: Any
    unscored_signature: Any = None
    default_tokens = 12_000

    def __init__(
        self, signature: Any = None, adapter: dspy.Adapter | None = None, shown_tokens: int = 0
    ) -> None:
        super().__init__()
        self.ask = dspy.Predict(signature or self.default_signature)
        if self.unscored_signature:
            self.ask_unscored = dspy.Predict(signature or self.unscored_signature)
        self.adapter = adapter
        self.shown_tokens = shown_tokens or self.default_tokens

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The predictor's answer, with `parse_failures` (0 to 2; 2: all outputs are absent)."""
        ask = self.ask if inputs.get("is_scored", True) else self.ask_unscored
        signature = ask.signature
        known = {name: value for name, value in inputs.items() if name in signature.input_fields}
        with dspy.context(adapter=self.adapter or dspy.settings.adapter):
            if answer := self._read(ask, signature, known):
                return dspy.Prediction(**answer, parse_failures=0)
            field = dspy.InputField(desc="why your previous answer could not be used")
            corrected = signature.append("correction", field, type_=str)
            answer = self._read(ask, corrected, {**known, "correction": _correction(signature)})
        return dspy.Prediction(**answer, parse_failures=1 if answer else 2)

    def _read(self, ask: Any, signature: Any, inputs: dict[str, Any]) -> dict[str, Any]:
        """The outputs of one call; none where they cannot be read."""
        try:
            answer: dict[str, Any] = dict(ask(signature=signature, **inputs))
        except AdapterParseError as error:
            answer = repaired(signature, str(error.lm_response))
        try:
            return answer | {name: READERS[name](answer[name]) for name in READERS.keys() & answer}
        except ValueError:
            return {}


def _correction(signature: Any) -> str:
    """What is wanted, in the words of the prompt; the unread answer itself would only be noise."""
    names = list(signature.output_fields)
    form = "; ".join(f"{name}: {WANTED[name]}" for name in names if name in WANTED)
    return (
        f"Your previous answer could not be read. Answer again with the output fields "
        f"{', '.join(names)}{form and f' ({form})'}, each under its own marker, and nothing else."
    )


class SummarizeTrajectory(_ReflectionModule):
    """(program, example, expected, attempt) -> summary: a trajectory too long to be shown whole."""

    default_signature = signatures.SummarizeAttempt


class ExtractAdvantage(_ReflectionModule):
    """Groups -> why their good rollouts beat the bad ones, and lessons: the semantic advantage.

    Groups without scores (`is_scored=False`) are criticised instead, by another prompt. Where the
    attempts of a group have more than `shown_tokens`, the long trajectories are summarised.
    """

    default_signature = signatures.CompareAttempts
    unscored_signature = signatures.CritiqueAttempts


class DraftLessons(_ReflectionModule):
    """(program, labelled examples) -> lessons, beside the first batch.

    One prompt shows `n_examples`, which are cut where they have more than `shown_tokens`.
    """

    default_signature = signatures.ReadExamples
    n_examples = 10


class UpdateLibrary(_ReflectionModule):
    """(library, dropped texts, lessons) -> operations; several prompts above `shown_tokens`."""

    default_signature = signatures.ProposeOperations
    default_tokens = 4_000


class AnswerQuestion(_ReflectionModule):
    """The question of a strategy -> `answer`: the output fields of its signature, by name."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The answer, empty where it could not be read, with `parse_failures`."""
        found = dict(super().forward(**inputs))
        return dspy.Prediction(parse_failures=found.pop("parse_failures"), answer=found)


class AddLessons(dspy.Module):
    """Takes every lesson as an ADD, without an LM call: for LMs too small to edit a library."""

    shown_tokens = 10**9

    def forward(self, **_: Any) -> dspy.Prediction:
        """No `operations`: the run then adds the lessons as they are."""
        return dspy.Prediction(operations=None, parse_failures=0)
