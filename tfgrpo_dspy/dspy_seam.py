"""All of DSPy that its documentation does not promise: what a new release of DSPy may move.

Prices and abilities of LMs, callbacks, traces, raw responses, adapters that replay a rollout or
keep the messages of demos. Everything else of this package imports `dspy` alone; a test enforces
that. Another test asserts that each hook here still fires, and names the one that does not.
"""

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import dspy
import orjson
from dspy.adapters.types.base_type import Type
from dspy.adapters.utils import format_field_value, get_annotation_name, parse_value
from dspy.predict.predict import serialize_object
from dspy.teleprompt import Teleprompter
from dspy.utils import exceptions
from dspy.utils.callback import ACTIVE_CALL_ID, BaseCallback

__all__ = [
    "ACTIVE_CALL_ID", "BaseCallback", "Teleprompter", "exceptions", "format_field_value",
    "get_annotation_name", "parse_value",
]  # fmt: skip

OF_ONE_CALL = frozenset(
    "trace caller_modules caller_predict usage_tracker send_stream stream_listeners".split()  # noqa: SIM905
)
"""DSPy settings that belong to the call they were made for, not to the user's context."""
BY_SIGNATURE = ("ReAct", "ReActV2", "ProgramOfThought", "CodeAct", "RLM")
"""DSPy's modules whose `forward(**kwargs)` takes the input fields of their signature."""
BY_MODULE = {"ChainOfThought": "predict", "Refine": "module", "BestOfN": "module"}
"""DSPy's modules that pass their inputs on, and the attribute that holds the module."""
CHAT = "chat.completion"  # what OpenAI's servers, and others like them, call an answer
ANSWERS = frozenset({"choices", "output", "content", "candidates"})
"""What bodies of providers have that are answers."""
CUT = frozenset({"length", "max_tokens", "max_output_tokens", "model_length", "incomplete"})
"""The finish reasons of answers that were cut, as providers name them."""
FILTERED = frozenset({"content_filter", "safety", "refusal", "sensitive", "prohibited_content"})
FILTERED |= {"recitation", "blocklist", "spii"}
"""The finish reasons of answers that a content filter held back."""


def prices_of(lm: Any) -> Mapping[str, Any]:
    """DSPy's entry for the model that an LM calls; empty where it calls none that DSPy lists."""
    try:
        from dspy.clients.capabilities import resolve  # noqa: PLC0415 - may be gone

        route = resolve(lm)
        return _listed(route.provider, route.model)
    except Exception:  # noqa: BLE001 - an LM that DSPy has no route for
        return {}


def abilities_of(lm: Any) -> Mapping[str, Any]:
    """DSPy's entry for the name of an LM, such as "openai/gpt-5", whatever answers in its place."""
    provider, _, model = str(getattr(lm, "model", "")).partition("/")
    with suppress(ImportError):  # then images are shown if the user says so
        return _listed(provider, model)
    return {}


def _listed(provider: str, model: str) -> Mapping[str, Any]:
    from dspy.clients.model_metadata import model_info  # noqa: PLC0415 - may be gone

    return dict(model_info(provider, model))


def custom_types_in(annotation: Any) -> list[Any]:
    """The types of DSPy, such as `dspy.Image`, that an annotation holds."""
    return list(Type.extract_custom_type_from_annotation(annotation))


def stored_in(example: dspy.Example) -> dict[Any, Any]:
    """The fields of an Example, a Prediction too; DSPy's own way takes no names but texts."""
    return dict(vars(example)["_store"])


def can_be_saved(value: Any) -> bool:
    """True if the program of a demo with this value can be saved as JSON, by `save`."""
    try:
        orjson.dumps(serialize_object(value))
    except TypeError:
        return False
    return True


def caller() -> Any:
    """The module that makes the call of an LM that is under way; None: no module does."""
    return (dspy.settings.caller_modules or [None])[-1]


def watching(callback: BaseCallback) -> dict[str, Any]:
    """Arguments of `dspy.context`: the callback hears of all calls, and gets their entries."""
    return {
        "callbacks": [*(dspy.settings.callbacks or []), callback],
        "caller_modules": [*(dspy.settings.caller_modules or []), callback],
    }


class Unheard(list[Any]):
    """Callbacks of a module or an adapter; those of this package hear of LMs and tools alone."""

    def __radd__(self, others: list[Any]) -> list[Any]:
        return [x for x in others if not type(x).__module__.startswith("tfgrpo_dspy.")] + [*self]


def unstreamed() -> Any:
    """A `dspy.context` in which LMs send nothing to a stream: it is read in another event loop."""
    return dspy.context(send_stream=None, stream_listeners=[])


def recording(trace: list[Any]) -> dict[str, Any]:
    """Arguments of `dspy.context`: the trace holds every call, and callers get its entry."""
    return {
        "trace": trace,
        "max_trace_size": 10_000,
        "disable_history": False,
        "allow_tool_async_sync_conversion": True,
    }


def as_instance_of(value: Any, kind: type) -> Any:
    """The value, an LM of DSPy, made an instance of this subclass of its class."""
    value.__class__ = kind
    return value


def replaying_adapter(adapter: Any, replay: Any) -> Any:
    """A copy of the adapter that gives `replay.outputs(signature, inputs)` of a call, if any."""
    kind = type(adapter)

    def call(self: Any, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> Any:
        if (values := replay.outputs(signature, inputs)) is not None:
            return values
        return kind.__call__(self, lm, lm_kwargs, signature, demos, inputs)

    async def acall(
        self: Any, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any
    ) -> Any:
        if (values := replay.outputs(signature, inputs)) is not None:
            return values
        return await kind.acall(self, lm, lm_kwargs, signature, demos, inputs)

    changed = copy.copy(adapter)
    changed.__class__ = type(kind.__name__, (kind,), {"__call__": call, "acall": acall})
    return changed


def demo_keeping_adapter(adapter: Any, kept: dict[Any, Any]) -> Any:
    """A copy of an adapter of DSPy's own that keeps messages of demos; a user's as it is."""
    adapter = adapter or dspy.ChatAdapter()
    if not type(adapter).__module__.startswith("dspy."):
        return adapter

    def format_demos(signature: Any, demos: Any) -> Any:
        if not demos or not all(type(x) is str for demo in demos for _, x in demo.items()):
            return adapter.format_demos(signature, demos)
        fields, names, messages = repr(signature.fields), {*signature.fields}, list[Any]()
        for demo in sorted(demos, key=lambda demo: names <= {*demo.keys()}):  # as DSPy does
            key = fields, tuple(demo.items())
            if key not in kept:
                kept[key] = adapter.format_demos(signature, [demo])
            messages += map(dict, kept[key])
        return messages

    def format_field_structure(signature: Any) -> Any:
        fields = signature.model_fields  # which signatures that differ in instructions share
        if id(fields) not in kept:
            kept[id(fields)] = fields, adapter.format_field_structure(signature)
        return kept[id(fields)][1]

    changed = copy.copy(adapter)
    changed.format_demos, changed.format_field_structure = format_demos, format_field_structure
    changed.callbacks = Unheard(adapter.callbacks)
    return changed


@dataclass(frozen=True, slots=True)
class Call:
    """An LM call, by its entry in DSPy's history."""

    model: str = ""
    n_answers: int = 0  # how often the engine was called: once for each completion
    is_cached: bool = False  # the answer came from DSPy's cache
    is_empty: bool = False  # there is no completion, not even an empty text; or it broke off
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None  # in US dollars
    prompt: str = ""  # the last message that was sent
    text: str = ""  # the raw text of the first answer
    is_cut: bool = False  # the answer ends where the LM had no more room
    is_filtered: bool = False  # a content filter of the provider held it back, or a part of it
    refusal: str = ""  # what the LM says in place of an answer; "": it does not refuse one
    logprobs: tuple[float, ...] = ()  # of each token of all answers, where the LM gives it

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> "Call":
        """The call with this entry."""
        usage, response = entry["usage"] or {}, entry.get("response")
        responses = response if isinstance(response, tuple | list) else (response,)
        marks = (entry.get("cache_hit"), *_values(responses, "cache_hit"))
        messages, outputs = entry.get("messages"), entry["outputs"] or ()
        first = outputs[0] if outputs else ""
        text = first.get("text") if isinstance(first, Mapping) else first
        # of lm15 a refusal is a part of a message, of OpenAI a field of it
        data = _values(responses, "provider_data")
        raws = [raw for raw in data if _value(raw, "object") == CHAT]
        choices = [c for of in _values((*responses, *raws), "choices") for c in of or () if c]
        parts = [p for of in _values(_values(responses, "message"), "parts") for p in of or ()]
        refusals = [_value(part, "text") for part in parts if _value(part, "type") == "refusal"]
        refusals += _values(_values(choices, "message"), "refusal")
        names = ("finish_reason", "stop_reason")
        ends = [end for name in names for end in _values((*responses, *choices), name)]
        reasons = {str(end or "").rpartition(".")[2].lower() for end in ends}
        usages = [used or {} for used in _values(responses, "usage")]
        counts = [n for name in ("input_tokens", "prompt_tokens") for n in _values(usages, name)]
        tokens = [t for of in _values(_values(outputs, "logprobs"), "content") for t in of or ()]
        return cls(
            model=str(entry.get("model") or ""),
            n_answers=len(responses),
            # DSPy empties the usage of an answer from its cache
            is_cached=any(marks) or (not usage and any(n is not None for n in counts)),
            is_empty=not (outputs and (any(_values(choices, "message")) or not raws))
            or "error" in reasons
            or (not text and any(ANSWERS.isdisjoint(d) for d in data if d and hasattr(d, "keys"))),
            prompt_tokens=int(_amount(usage.get("prompt_tokens")) or 0),
            completion_tokens=int(_amount(usage.get("completion_tokens")) or 0),
            cost=_amount(entry.get("cost")),
            prompt=str(messages[-1]["content"] if messages else entry.get("prompt")),
            text=str(text or ""),
            is_cut=not CUT.isdisjoint(reasons),
            is_filtered=not FILTERED.isdisjoint(reasons),
            refusal=" ".join(map(str, dict.fromkeys(filter(None, refusals)))),
            logprobs=tuple(float(n) for n in _values(tokens, "logprob") if n is not None),
        )


def sent(entry: Mapping[str, Any]) -> Iterator[str]:
    """The text of each message of a call, by its entry in DSPy's history."""
    messages = entry.get("messages") or [{"content": entry.get("prompt")}]
    return (str(message["content"]) for message in messages)


def _amount(reported: Any) -> float | None:
    """The tokens or dollars that an LM reports; None if that is no amount, which DSPy lets pass."""
    try:
        amount = float(reported)
    except (TypeError, ValueError, OverflowError):
        return None
    return amount if 0 <= amount < math.inf else None


def _value(of: Any, name: str) -> Any:
    value = getattr(of, name, None)  # a mapping may have attributes beside its keys
    return of.get(name) if value is None and isinstance(of, Mapping) else value


def _values(of: Iterable[Any], name: str) -> list[Any]:
    return [_value(one, name) for one in of]
