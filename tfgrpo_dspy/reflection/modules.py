"""The reflection modules: ordinary `dspy.Module`s, each replaceable and compilable.

Each asks one predictor. Where the answer does not parse, it asks once more and shows the error;
when that fails too, the answer is empty and `parse_failures` says so. What is done with the
answers, and when a module is asked, is `pipeline`'s business.
"""

from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError

from tfgrpo_dspy.reflection.signatures import (
    CompareAttempts,
    CritiqueAttempts,
    ProposeOperations,
    ReadExamples,
    SummarizeAttempt,
)

SHOWN_ERROR_CHARACTERS = 1000


class _ReflectionModule(dspy.Module):
    """Asks one predictor, which is given those of the inputs that its signature has.

    Args:
        signature: what to ask; inputs of other names than the default's are not filled.
        adapter: with which DSPy adapter; by default `dspy.settings.adapter`, or the ChatAdapter.
    """

    default_signature: Any

    def __init__(self, signature: Any = None, adapter: dspy.Adapter | None = None) -> None:
        super().__init__()
        self.ask = dspy.Predict(signature or self.default_signature)
        self.adapter = adapter

    def _predictor_for(self, inputs: dict[str, Any]) -> Any:  # noqa: ARG002 - for sub-classes
        return self.ask

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The predictor's answer, with `parse_failures` (0 to 2; 2: all outputs are absent)."""
        ask = self._predictor_for(inputs)
        signature = ask.signature
        known = {name: value for name, value in inputs.items() if name in signature.input_fields}
        with dspy.context(adapter=self.adapter or dspy.settings.adapter):
            try:
                return dspy.Prediction(**ask(**known), parse_failures=0)
            except AdapterParseError as error:
                correction = str(error)[:SHOWN_ERROR_CHARACTERS]
            field = dspy.InputField(desc="why your previous answer was refused; answer in full")
            corrected = signature.append("correction", field, type_=str)
            try:
                answer = ask(signature=corrected, **known, correction=correction)
                return dspy.Prediction(**answer, parse_failures=1)
            except AdapterParseError:
                return dspy.Prediction(parse_failures=2)


class SummarizeTrajectory(_ReflectionModule):
    """(program, example, expected, attempt) -> summary: a trajectory too long to be shown whole."""

    default_signature = SummarizeAttempt


class ExtractAdvantage(_ReflectionModule):
    """A group -> why its good rollouts beat the bad ones, and lessons: the semantic advantage.

    A group without scores (`is_scored=False`) is criticised instead, by another prompt.

    Args:
        signature: another prompt, for both; it needs an output `lessons: list[str]`.
        adapter: see `dspy.Adapter`; small models are helped by `tfgrpo_dspy.local.PlainAdapter`.
        attempts_tokens: how many tokens (estimated) the attempts of a group may have together;
            the trajectories of longer ones are summarised.
    """

    default_signature = CompareAttempts

    def __init__(
        self,
        signature: Any = None,
        adapter: dspy.Adapter | None = None,
        attempts_tokens: int = 12_000,
    ) -> None:
        super().__init__(signature, adapter)
        self.ask_unscored = dspy.Predict(signature or CritiqueAttempts)
        self.attempts_tokens = attempts_tokens

    def _predictor_for(self, inputs: dict[str, Any]) -> Any:
        return self.ask if inputs.get("is_scored", True) else self.ask_unscored


class DraftLessons(_ReflectionModule):
    """(program, labelled examples) -> lessons, before the first rollout.

    Args:
        signature: another prompt; it needs an output `lessons: list[str]`.
        adapter: see `dspy.Adapter`.
        n_examples: how many examples one prompt shows.
        examples_tokens: how many tokens (estimated) they may have together; longer ones are cut.

    Raises:
        ValueError: `n_examples` is below 1.
    """

    default_signature = ReadExamples

    def __init__(
        self,
        signature: Any = None,
        adapter: dspy.Adapter | None = None,
        n_examples: int = 10,
        examples_tokens: int = 12_000,
    ) -> None:
        if n_examples < 1:
            raise ValueError(f"n_examples={n_examples}: a draft is shown at least one example.")
        super().__init__(signature, adapter)
        self.n_examples = n_examples
        self.examples_tokens = examples_tokens


class UpdateLibrary(_ReflectionModule):
    """(library, lessons) -> operations.

    Args:
        signature: another prompt; it needs an output `operations: list[ProposedOperation]`.
        adapter: see `dspy.Adapter`.
        lessons_tokens: how many tokens (estimated) the lessons of one prompt may have; more of
            them are consolidated in a tree.
    """

    default_signature = ProposeOperations

    def __init__(
        self,
        signature: Any = None,
        adapter: dspy.Adapter | None = None,
        lessons_tokens: int = 4_000,
    ) -> None:
        super().__init__(signature, adapter)
        self.lessons_tokens = lessons_tokens


class AddLessons(dspy.Module):
    """Takes every lesson as an ADD, without an LM call.

    For reflection LMs too small to edit a library, with a gate that sorts the lessons out.
    """

    lessons_tokens = 10**9

    def forward(self, **_: Any) -> dspy.Prediction:
        """No `operations`: the pipeline then adds the lessons as they are."""
        return dspy.Prediction(operations=None, parse_failures=0)
