"""An adapter for models too small for the field markers of DSPy's own adapters."""

import re
from typing import Any

import dspy
import pydantic
from dspy.adapters.utils import format_field_value
from dspy.utils.exceptions import AdapterParseError

from tfgrpo_dspy.experience.block import plain_instructions
from tfgrpo_dspy.local.engine import LlamaEngine


class PlainAdapter(dspy.Adapter):
    """Instructions as system message, inputs as user message, the answer's text as output.

    Small models cannot follow the field markers of DSPy's own adapters. If a signature has one
    output field of type `str`, the field is the whole text; if its type is `list[str]`, each line
    is an item, without bullet or number, and lines that repeat a label of the prompt are left out.
    `dspy.JSONAdapter` handles all other signatures. Baked experiences are shown as plain lines,
    which a small model follows better than a block.

    Args:
        one_message: Instructions, each input behind its name, and the output's name at the end,
            all in one user message. SmolLM2-135M follows this best: told to "Ask for the order
            number.", 53 % of its replies do; with a system message 19 %.
        callbacks: DSPy callbacks.
    """

    BULLET = re.compile(r"^\s*(?:[-*+•]|\(?\d{1,2}[.)])\s+")

    def __init__(self, one_message: bool = False, callbacks: list[Any] | None = None) -> None:
        super().__init__(callbacks=callbacks)
        self.one_message = one_message
        self._json = _SchemaAdapter(callbacks=callbacks)

    def __call__(
        self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
    ) -> list[dict[str, Any]]:
        """The output fields of each completion.

        Raises:
            dspy.utils.exceptions.AdapterParseError: A completion is empty.
        """
        call = super().__call__ if _is_plain(signature) else self._json
        outputs: list[dict[str, Any]] = call(lm, lm_kwargs, signature, demos, inputs)
        return outputs

    async def acall(
        self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
    ) -> list[dict[str, Any]]:
        """See `__call__`."""
        acall = super().acall if _is_plain(signature) else self._json.acall
        outputs: list[dict[str, Any]] = await acall(lm, lm_kwargs, signature, demos, inputs)
        return outputs

    def format(self, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        """The messages: instructions, then demos and earlier turns in pairs, then the inputs."""
        if not _is_plain(signature):
            structured: list[dict[str, Any]] = self._json.format(signature, demos, inputs)
            return structured
        system, *turns = super().format(signature, demos, inputs)
        if not self.one_message:
            return [system, *turns]
        first, *rest = turns
        return [{**first, "content": f"{system['content']}\n\n{first['content']}"}, *rest]

    def format_system_message(self, signature: type[dspy.Signature]) -> str:
        """The instructions; for a list, with the sentence that each line holds one item."""
        instructions = plain_instructions(signature.instructions)
        if _is_text(signature) or self.one_message:  # one message ends with the name of the list
            return instructions
        return f"{instructions}\nWrite one item per line."

    def format_user_message_content(
        self,
        signature: type[dspy.Signature],
        inputs: dict[str, Any],
        prefix: str = "",
        suffix: str = "",
        main_request: bool = False,
    ) -> str:
        """The value of the only input field, or a paragraph `Name: value` for each field."""
        values = {
            name: str(format_field_value(field, inputs[name]))
            for name, field in signature.input_fields.items()
            if name in inputs
        }
        paragraphs = list(values.values())
        if self.one_message or len(signature.input_fields) > 1:
            paragraphs = [f"{_label(name)} {value}" for name, value in values.items()]
        if self.one_message and main_request:
            paragraphs.append(_label(*signature.output_fields))
        return "\n\n".join(part for part in (prefix, *paragraphs, suffix) if part)

    def format_assistant_message_content(
        self,
        signature: type[dspy.Signature],
        outputs: dict[str, Any],
        missing_field_message: str | None = None,
    ) -> str:
        """The answer of a demo or of an earlier turn, in the form in which the model answers."""
        (name,) = signature.output_fields
        value = outputs.get(name, missing_field_message)
        return "\n".join(map(str, value)) if isinstance(value, list) else str(value or "")

    def parse(self, signature: type[dspy.Signature], completion: str) -> dict[str, Any]:
        """The output fields that the text of an answer contains."""
        if not _is_plain(signature):
            parsed: dict[str, Any] = self._json.parse(signature, completion)
            return parsed
        (name,) = signature.output_fields
        lines = (self.BULLET.sub("", line).strip() for line in completion.splitlines())
        labels = tuple(_label(name) for name in signature.fields)
        items = [line for line in lines if line and not line.startswith(labels)]
        value = completion.strip() if _is_text(signature) else items
        if not value:
            raise AdapterParseError(
                adapter_name=type(self).__name__,
                signature=signature,
                lm_response=completion,
                message=f"The LM returned no text for the field {name}.",
            )
        return {name: value}


class _SchemaAdapter(dspy.JSONAdapter):
    """A JSONAdapter that sends llama.cpp a schema for open dicts too, such as ReAct's arguments."""

    def _prepare_response_format(
        self, lm: dspy.BaseLM, lm_kwargs: dict[str, Any], signature: type[dspy.Signature]
    ) -> None:
        super()._prepare_response_format(lm, lm_kwargs, signature)
        is_local = isinstance(getattr(lm, "engine", None), LlamaEngine)
        if is_local and lm_kwargs.get("response_format") == {"type": "json_object"}:
            fields: dict[str, Any] = {
                name: (field.annotation, ...) for name, field in signature.output_fields.items()
            }
            schema = pydantic.create_model("Outputs", **fields).model_json_schema()
            lm_kwargs["response_format"] = {
                "type": "json_schema",
                "json_schema": {"schema": schema},
            }


def _label(name: str) -> str:
    return f"{name.replace('_', ' ').capitalize()}:"


def _is_text(signature: type[dspy.Signature]) -> bool:
    return [field.annotation for field in signature.output_fields.values()] == [str]


def _is_plain(signature: type[dspy.Signature]) -> bool:
    outputs = [field.annotation for field in signature.output_fields.values()]
    return outputs in ([str], [list[str]])
