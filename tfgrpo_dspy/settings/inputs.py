"""What is known without a call: which inputs a program takes, and what its adapter leaves out."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import dspy

from tfgrpo_dspy.dspy_seam import BY_MODULE, BY_SIGNATURE, input_names, stored_in
from tfgrpo_dspy.errors import described
from tfgrpo_dspy.experience.programs import named_predictors, with_instructions
from tfgrpo_dspy.rollout import Rollout

OF_PREDICT = frozenset({"config", "demos", "lm", "new_signature", "self", "signature"})
"""Arguments of `dspy.Predict` itself; an input of such a name never reaches the LM."""
MARK = "(instructions of tfgrpo_dspy)"


def input_faults(student: Any, sets: Mapping[str, Sequence[Any]]) -> Iterator[str]:
    """A sentence for each set with examples that lack inputs of the program, or have too many."""
    entry = _entry(student)
    if entry is None:
        yield (
            f"student={type(student).__name__} has no method `forward` (or `aforward`): define "
            "there, and not in `__call__`, what the program does."
        )
        return
    if inspect.isgeneratorfunction(entry) or inspect.isasyncgenfunction(entry):
        yield (
            f"student={type(student).__name__}: its `{entry.__name__}` yields, so that it returns "
            f"no prediction to score: return one, and stream with dspy.streamify(program)."
        )
        return
    for name, predictor in named_predictors(student):
        fields = predictor.signature.input_fields
        if reserved := sorted(n for n in OF_PREDICT & fields.keys() if fields[n].is_required()):
            yield (
                f"predictor {name!r} has the input {reserved[0]!r}, which DSPy takes for an "
                f"argument of the predictor itself: the LM would never read it; rename the field."
            )
            return
    needed, taken = _inputs_of(student)
    for name, examples in sets.items():
        for position, example in enumerate(examples):
            inputs = set(example.inputs().keys())
            if not needed <= inputs or (taken is not None and not inputs <= taken):
                yield (
                    f"{name}: {type(student).__name__} takes the inputs {sorted(taken or needed)}, "
                    f"and the example at position {position} has {sorted(inputs)}; rename its "
                    f"fields, or choose them with example.with_inputs(...)."
                )
                break


def output_faults(student: Any, recorded: Sequence[Sequence[Rollout]]) -> Iterator[str]:
    """A sentence on the first trace without outputs of the program, if that is one of DSPy's."""
    if not type(student).__module__.startswith("dspy."):
        return
    fields = [predictor.signature.output_fields for _, predictor in named_predictors(student)]
    names = {name for of_one in fields for name in of_one}
    for rollout in (rollout for group in recorded for rollout in group):
        if rollout.outputs and not names & rollout.outputs.keys():
            yield (
                f"traces: {type(student).__name__} gives the outputs {sorted(names)}, and trace "
                f"{rollout.rollout_id} has {sorted(rollout.outputs)}; rename its fields."
            )
            return


def _entry(module: Any) -> Any:
    """The method that runs the module, bound. DSPy warns where `module.forward` is read."""
    for name in ("forward", "aforward"):
        with suppress(AttributeError):
            return object.__getattribute__(module, name)
    return None


def _inputs_of(module: Any) -> tuple[set[str], set[str] | None]:
    """The inputs that a module needs (DSPy's only warn), and all that it takes; None: unknown."""
    kind = type(module)
    name = kind.__name__ if kind.__module__.startswith("dspy.") else ""
    if isinstance(module, dspy.Predict) or (name in BY_SIGNATURE and hasattr(module, "signature")):
        return {f for f, info in module.signature.input_fields.items() if info.is_required()}, None
    if name in BY_MODULE and hasattr(module, BY_MODULE[name]):
        return _inputs_of(getattr(module, BY_MODULE[name]))
    try:
        parameters = [*inspect.signature(_entry(module)).parameters.values()]
    except (TypeError, ValueError):  # it does not tell
        return set(), None
    is_open = any(each.kind is each.VAR_KEYWORD for each in parameters)
    named = [p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    needed = {each.name for each in named if each.default is each.empty}
    return needed, None if is_open else {each.name for each in named}


def adapter_faults() -> Iterator[str]:
    """A sentence if the configured adapter is none, such as its class in place of an instance."""
    adapter = dspy.settings.adapter
    if isinstance(adapter, type):
        yield f"adapter={adapter!r} is a class; pass an instance, {adapter.__name__}(...)."
    elif adapter is not None and not callable(adapter):
        yield f"adapter={adapter!r:.80} is no adapter; pass one, such as dspy.JSONAdapter()."


def adapter_cautions(student: Any) -> Iterator[str]:
    """A sentence if the user's adapter writes prompts without instructions, as far as it tells."""
    adapter = dspy.settings.adapter
    if adapter is None or type(adapter).__module__.startswith("dspy."):
        return
    for name, predictor in named_predictors(student):
        signature = with_instructions(predictor.signature, MARK)
        try:
            messages = str(adapter.format(signature, [], dict.fromkeys(signature.input_fields, "")))
        except Exception:  # noqa: BLE001 - code of the user's, which may need real inputs
            continue
        if MARK not in messages:
            yield (
                f"the prompts of {type(adapter).__name__} do not hold the instructions of the "
                f"predictor {name!r}, so that no experience can reach its LM; write "
                f"signature.instructions into them."
            )
            return


def why_no_inputs(example: Any) -> str | None:
    """Why an example has no inputs, where more than that is to be said; None: it has some."""
    try:
        if len(example.inputs()):
            return None
    except (ValueError, AttributeError):
        return ""
    except Exception as error:  # noqa: BLE001 - a class of the user's own may raise anything
        return f": its class, {type(example).__name__}, raised {described(error)} in inputs()"
    names = sorted(map(str, input_names(example)))
    return f": with_inputs names {names}, its fields are {list(stored_in(example))}"
