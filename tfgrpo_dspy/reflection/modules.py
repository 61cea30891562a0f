"""The reflection modules: ordinary `dspy.Module`s, each replaceable and compilable.

Each asks one predictor and reads its answer in whatever form it comes. Where nothing can be read,
it asks once more and says which form is wanted; when that fails too, the answer is empty and
`parse_failures` says so.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import dspy
import pydantic

from tfgrpo_dspy.budget.meter import more_room, raw_answers
from tfgrpo_dspy.dspy_seam import Call
from tfgrpo_dspy.errors import SettingsError
from tfgrpo_dspy.reflection import reading, signatures
from tfgrpo_dspy.rollout import Usage

READERS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "lessons": (reading.read_lessons, "one lesson a line, or the word None"),
    "operations": (
        reading.read_operations,
        'a JSON list such as [{"op": "ADD", "text": "...", "lessons": [1]}], or []',
    ),
    "brief": (reading.read_instructions, "the text of the new instructions"),
}
"""By the name of an output: what reads its value, or raises ValueError; the form that is wanted."""
SHOWN_UNREAD = 300  # characters of an answer that could not be read
FILTERED = "a content filter of the provider held the answer back"


@dataclass(frozen=True, slots=True)
class Answer:
    """A module's answer, and what went wrong, as the run keeps and records it."""

    output: Any  # None if no part of it can be used
    usage: Usage = field(default_factory=Usage)
    parse_failures: int = 0
    error: str = ""
    is_too_long: bool = False  # the prompt was, for the model
    is_lost: bool = False  # the provider or the clock failed
    explanation: str = ""  # what an extraction gives beside its lessons
    unread: str = ""  # how an answer begins that could not be read

    @property
    def is_useless(self) -> bool:
        """True if the call failed, or nothing in the answer could be read."""
        return self.output is None and bool(self.error or self.parse_failures)


def read_output(name: str, value: Any) -> Any:
    """The value of an output as JSON; a module of the user's own may answer anything.

    None: lessons or operations that cannot be read.
    """
    plain = pydantic.TypeAdapter(Any).dump_python(value, mode="json")
    if name not in ("lessons", "operations") or plain is None:
        return plain
    try:
        return READERS[name][0](plain)
    except ValueError:
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
        outputs = [*self.ask.signature.output_fields]
        for name in self.default_signature.output_fields if self.default_signature else ():
            if name in (*READERS, "summary") and name not in outputs:
                raise SettingsError(
                    f"{type(self).__name__}: the signature has the outputs {outputs}; add "
                    f"{name!r}, which is what the run reads."
                )
        if self.unscored_signature:
            self.ask_unscored = dspy.Predict(signature or self.unscored_signature)
        self.adapter = adapter
        self.shown_tokens = shown_tokens or self.default_tokens

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """The predictor's answer, with `parse_failures` (0 to 2; 2: all outputs are absent).

        `unread` is how the first answer, or refusal, begins that could not be read. After one that
        was cut, or only thought, the LM has more room.
        """
        ask = self.ask if inputs.get("is_scored", True) else self.ask_unscored
        signature = ask.signature
        accepted = {name: value for name, value in inputs.items() if name in signature.input_fields}
        with dspy.context(adapter=self.adapter or dspy.settings.adapter):
            answer, first = _asked(ask, signature, accepted)
            if answer:
                return dspy.Prediction(**answer, parse_failures=0)
            if first.is_filtered:  # asked again, it would be again
                return dspy.Prediction(parse_failures=1, unread=FILTERED)
            names = [*signature.output_fields]
            form = "; ".join(f"{name}: {READERS[name][1]}" for name in names if name in READERS)
            fault = "was cut off before its end; be brief" if first.is_cut else "could not be read"
            correction = (  # in the prompt's words; the unread answer would only be noise
                f"Your previous answer {fault}. Answer again with the output fields "
                f"{', '.join(names)}{form and f' ({form})'}, each under its own marker, and "
                "nothing else."
            )
            again = accepted | {"correction": correction}
            if first.is_cut and (room := more_room(ask.lm or dspy.settings.lm)):
                again["config"] = room
            why = dspy.InputField(desc="why your previous answer could not be used")
            answer, _ = _asked(ask, signature.append("correction", why, type_=str), again)
        unread = (first.text or first.refusal)[:SHOWN_UNREAD]
        return dspy.Prediction(**answer, parse_failures=1 if answer else 2, unread=unread)


def _asked(ask: Any, signature: Any, inputs: dict[str, Any]) -> tuple[dict[str, Any], Call]:
    """The outputs of one call, none where they cannot be read; and the answer as it came.

    An answer that is a thought without an end counts as cut, too. Texts that a small LM has only
    copied from the correction are left out.
    """
    text = ""
    with raw_answers() as seen:
        try:
            answer: dict[str, Any] = dict(ask(signature=signature, **inputs))
        except dspy.AdapterParseError as error:
            answer, text = {}, str(error.lm_response or "")
    raw = seen[-1] if seen else Call(text=text)
    text, only_thinks = reading.without_thoughts(raw.text)
    raw = replace(raw, is_cut=raw.is_cut or only_thinks)
    text = reading.finished(text) if raw.is_cut else text
    if text != raw.text or not answer:
        answer = reading.fields_in(signature, text) or ({} if raw.is_cut else answer)
    for name, value in answer.items():  # what follows a marker is no more of the text
        answer[name] = value.partition("[[ ##")[0] if isinstance(value, str) else value
    try:
        read = {name: READERS[name][0](answer[name]) for name in READERS.keys() & answer}
    except ValueError:
        return {}, raw
    if raw.is_cut and text != raw.text and not all(read.values()):
        return {}, raw
    correction = str(inputs.get("correction", "")).casefold()
    for name, value in read.items():
        if isinstance(value, list):
            value = [x for x in value if str(x).strip().casefold() not in correction]
        answer[name] = value
    return answer, raw


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
