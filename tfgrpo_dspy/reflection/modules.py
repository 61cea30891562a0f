"""The reflection modules: ordinary `dspy.Module`s, each replaceable and compilable.

Each asks one predictor and reads its answer in whatever form it comes. Where nothing can be read,
it asks once more and says which form is wanted; when that fails too, the answer is empty and
`parse_failures` says so.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dspy

from tfgrpo_dspy.budget.meter import RawAnswer, more_room, raw_answers
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.reflection import signatures
from tfgrpo_dspy.reflection.answer_forms import read_instructions, read_lessons, repaired
from tfgrpo_dspy.reflection.operations import read_operations
from tfgrpo_dspy.reflection.unfinished import finished, without_thoughts

WANTED = {
    "lessons": "one lesson a line, or the word None",
    "operations": 'a JSON list such as [{"op": "ADD", "text": "...", "lessons": [1]}], or []',
    "brief": "the text of the new instructions",
}
SHOWN_UNREAD = 300  # characters of an answer that could not be read
READERS: dict[str, Callable[[Any], Any]] = {
    "lessons": read_lessons,
    "operations": read_operations,
    "brief": read_instructions,
}
"""By the name of an output: what reads its value, and raises ValueError where it cannot."""


class Read(list[Any]):
    """Lessons or operations as they were read from an answer."""


def read_output(name: str, value: Any) -> Any:
    """The value of an output: lessons or operations as they are read; None: they cannot be."""
    if name not in ("lessons", "operations") or value is None:
        return value
    try:
        return READERS[name](value)
    except ValueError:  # a module of the user's own may answer anything
        return None


class _ReflectionModule(dspy.Module):
    """Asks one predictor, which is given those of the inputs that its signature has."""

    default_signature: Any = None
    unscored_signature: Any = None
    default_tokens = 12_000

    def __init__(
        self, signature: Any = None, adapter: dspy.Adapter | None = None, shown_tokens: int = 0
    ) -> None:
        super().__init__()
        self.ask = dspy.Predict(signature or self.default_signature)
        self._check_outputs()
        if self.unscored_signature:
            self.ask_unscored = dspy.Predict(signature or self.unscored_signature)
        self.adapter = adapter
        self.shown_tokens = shown_tokens or self.default_tokens

    def _check_outputs(self) -> None:
        """Raises SettingsError: the signature lacks an output that the run reads."""
        default, there = self.default_signature, list(self.ask.signature.output_fields)
        needed = {*READERS, "summary"}.intersection(default.output_fields if default else ())
        if lacking := sorted(needed.difference(there)):
            raise SettingsError(
                f"{type(self).__name__}: the signature has the outputs {there}; add "
                f"{lacking[0]!r}, which is what the run reads."
            )

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The predictor's answer, with `parse_failures` (0 to 2; 2: all outputs are absent).

        `unread` is how the first answer, or refusal, begins that could not be read. After one that
        was cut, or only thought, the LM has more room.
        """
        ask = self.ask if inputs.get("is_scored", True) else self.ask_unscored
        signature = ask.signature
        accepted = {name: value for name, value in inputs.items() if name in signature.input_fields}
        with dspy.context(adapter=self.adapter or dspy.settings.adapter):
            answer, first = _read(ask, signature, accepted)
            if answer:
                return dspy.Prediction(**answer, parse_failures=0)
            if first.is_filtered:  # asked again, it would be again
                return dspy.Prediction(parse_failures=1, unread=FILTERED)
            field = dspy.InputField(desc="why your previous answer could not be used")
            corrected = signature.append("correction", field, type_=str)
            accepted["correction"] = _correction(signature, first.is_cut)
            if first.is_cut and (room := more_room(ask.lm or dspy.settings.lm)):
                accepted["config"] = room
            answer, _ = _read(ask, corrected, accepted)
            answer = _without_echo(answer, accepted["correction"])
        n_failures = 1 if answer else 2
        unread = (first.text or first.refusal)[:SHOWN_UNREAD]
        return dspy.Prediction(**answer, parse_failures=n_failures, unread=unread)


FILTERED = "a content filter of the provider held the answer back"


def _read(ask: Any, signature: Any, inputs: dict[str, Any]) -> tuple[dict[str, Any], RawAnswer]:
    """The outputs of one call, none where they cannot be read; and the answer as it came.

    An answer that is a thought without an end counts as cut, too.
    """
    text = ""
    with raw_answers() as seen:
        try:
            answer: dict[str, Any] = dict(ask(signature=signature, **inputs))
        except dspy.AdapterParseError as error:
            answer, text = {}, str(error.lm_response or "")
    raw = seen[-1] if seen else RawAnswer(text, is_cut=False)
    text_of_answer, only_thinks = without_thoughts(raw.text)
    raw = replace(raw, is_cut=raw.is_cut or only_thinks)
    text_of_answer = finished(text_of_answer) if raw.is_cut else text_of_answer
    if text_of_answer != raw.text or not answer:
        answer = repaired(signature, text_of_answer) or ({} if raw.is_cut else answer)
    for name, text in answer.items():  # what follows a marker is no more of the text
        answer[name] = text.partition("[[ ##")[0] if isinstance(text, str) else text
    try:
        read = {name: READERS[name](answer[name]) for name in READERS.keys() & answer}
        read = {name: Read(v) if isinstance(v, list) else v for name, v in read.items()}
    except ValueError:
        return {}, raw
    is_empty = raw.is_cut and text_of_answer != raw.text and not all(read.values())
    return ({} if is_empty else answer | read), raw


def _without_echo(answer: dict[str, Any], correction: str) -> dict[str, Any]:
    """The answer without texts that a small LM has only copied from the correction."""
    asked = correction.casefold()

    def is_new(item: Any) -> bool:
        return not isinstance(item, str) or item.strip().casefold() not in asked

    return {
        name: Read(filter(is_new, value)) if isinstance(value, list) else value
        for name, value in answer.items()
    }


def _correction(signature: Any, is_cut: bool) -> str:
    """A note on the wanted form, in the prompt's words; the unread answer would only be noise."""
    names = list(signature.output_fields)
    form = "; ".join(f"{name}: {WANTED[name]}" for name in names if name in WANTED)
    fault = "was cut off before its end; be brief" if is_cut else "could not be read"
    return (
        f"Your previous answer {fault}. Answer again with the output fields "
        f"{', '.join(names)}{form and f' ({form})'}, each under its own marker, and nothing else."
    )


class SummarizeTrajectory(_ReflectionModule):
    """(program, example, expected, attempt) -> summary: a trajectory too long to be shown whole."""

    default_signature = signatures.SummarizeAttempt


class ExtractAdvantage(_ReflectionModule):
    """Groups -> why their good rollouts beat the bad ones, and lessons: the semantic advantage.

    Groups without scores (`is_scored=False`) are criticised instead, by another prompt. Where the
    attempts of a group have more than `shown_tokens`, the long trajectories are summarised. The
    other modules that ask the reflection LM take the same arguments.

    Args:
        signature: another prompt, with the same outputs; default: that of the module.
        adapter: a `dspy.Adapter`, such as `tfgrpo_dspy.local.PlainAdapter` for small models;
            default: `dspy.settings.adapter`.
        shown_tokens: how many tokens (estimated) of attempts, examples or lessons a prompt has;
            default: 12,000, of `UpdateLibrary` 4,000.

    Raises:
        SettingsError: the signature lacks the output that the run reads, such as `lessons`.
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


class WriteBrief(_ReflectionModule):
    """(examples with labels, or attempts) -> brief: a predictor's instructions, written anew."""

    default_signature = signatures.RewriteInstructions


class AnswerQuestion(_ReflectionModule):
    """The question of a strategy -> `answer`: the output fields of its signature, by name."""

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The answer, empty where it could not be read, with `parse_failures`."""
        answer = dict(super().forward(**inputs))
        notes = {name: answer.pop(name) for name in ("parse_failures", "unread") if name in answer}
        return dspy.Prediction(**notes, answer=answer)


class AddLessons(dspy.Module):
    """Takes every lesson as an ADD, without an LM call: for LMs too small to edit a library."""

    shown_tokens = 10**9

    def forward(self, **_: Any) -> dspy.Prediction:
        """No `operations`: the run then adds the lessons as they are."""
        return dspy.Prediction(operations=None, parse_failures=0)
