"""An adapter for models too small for the field markers of DSPy's own adapters."""

import re
from typing import Any

import dspy

from tfgrpo_dspy.dspy_seam import format_field_value
from tfgrpo_dspy.experience.programs import plain_instructions

BULLET = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,2}[.)])\s+")


class PlainAdapter(dspy.Adapter):
    """Instructions, each input behind its name, and the output's name; no system message.

    Small models cannot follow the field markers of DSPy's own adapters. If a signature has one
    output field of type `str`, the field is the whole text of the answer; if its type is
    `list[str]`, each line is an item, without bullet or number, and lines that repeat a label of
    the prompt are left out. `dspy.JSONAdapter` handles all other signatures. Baked experiences are
    shown as plain lines, which a small model follows better than a block.
    """

    def _for(self, signature: type[dspy.Signature]) -> Any:
        return super() if _is_plain(signature) else dspy.JSONAdapter(callbacks=self.callbacks)

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        """The output fields of each completion. Raises dspy.AdapterParseError: one is empty."""
        return self._for(signature).__call__(lm, lm_kwargs, signature, demos, inputs)

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        """See `__call__`."""
        return await self._for(signature).acall(lm, lm_kwargs, signature, demos, inputs)

    def format(self, signature: Any, demos: Any, inputs: Any) -> Any:
        """The instructions and first input, then demos and earlier turns, then the inputs."""
        messages = self._for(signature).format(signature, demos, inputs)
        if not _is_plain(signature):
            return messages
        system, first, *rest = messages
        return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """The instructions, with baked experiences as plain lines."""
        return plain_instructions(signature.instructions)

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """A paragraph `Name: value` for each input; in the last message also the output's name."""
        paragraphs = [
            f"{_label(name)} {format_field_value(field, inputs[name])}"
            for name, field in signature.input_fields.items()
            if name in inputs
        ]
        output_labels = map(_label, signature.output_fields if main_request else ())
        return "\n\n".join(part for part in (prefix, *paragraphs, *output_labels, suffix) if part)

    def format_assistant_message_content(
        self, signature: Any, outputs: Any, missing_field_message: str | None = None
    ) -> str:
        """The answer of a demo or of an earlier turn, in the form in which the model answers."""
        (name,) = signature.output_fields
        value = outputs.get(name, missing_field_message)
        return "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")

    def parse(self, signature: type[dspy.Signature], completion: str) -> Any:
        """The output fields that the text of an answer contains."""
        if not _is_plain(signature):
            return self._for(signature).parse(signature, completion)
        ((name, field),) = signature.output_fields.items()
        lines = (BULLET.sub("", line).strip() for line in completion.splitlines())
        labels = tuple(_label(name) for name in signature.fields)
        items = [line for line in lines if line and not line.startswith(labels)]
        value = completion.strip() if field.annotation is str else items
        if not value:
            message = f"The LM returned no text for the field {name}."
            raise dspy.AdapterParseError(type(self).__name__, signature, completion, message)
        return {name: value}


def _label(name: str) -> str:
    return f"{name.replace('_', ' ').capitalize()}:"


def _is_plain(signature: type[dspy.Signature]) -> bool:
    outputs = [field.annotation for field in signature.output_fields.values()]
    return outputs in ([str], [list[str]])
