"""Function calling: the student writes calls, whose syntax trees are compared with the right ones.

In the manner of the Berkeley Function-Calling Leaderboard: names, arguments and types must agree,
of every argument one of several values is accepted, optional ones may be missing, the order of
calls is free, and some requests need no call. The score is 1 or 0 for a whole request.
"""

import ast
import json
import random
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from tasks import Task, plain, split
from tasks.functions_catalogue import (
    FUNCTIONS,
    LEFT_OUT,
    TODAY,
    Ask,
    Request,
    no_call,
    one_call,
    several_calls,
)
from tfgrpo_dspy.metrics import normalize_text

N_TRAIN, N_VALIDATION, N_TEST = 40, 40, 100
KINDS = (one_call, one_call, one_call, several_calls, several_calls, no_call)
"""Of six requests three need one call, two need several, one needs none."""
FENCE = re.compile(r"```(?:python|json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)
MAX_CHARACTERS = 4_000


class CallFunctions(dspy.Signature):
    """Write the function calls that the request asks for."""

    functions: str = dspy.InputField(desc="the functions on offer, as JSON")
    request: str = dspy.InputField()
    calls: str = dspy.OutputField(
        desc="a Python list of calls with named arguments, such as [f(a=1), g(b='x')]; "
        "[] when the request cannot be carried out with these functions"
    )


def student() -> dspy.Predict:
    return dspy.Predict(CallFunctions)


# -------------------------------------------------------------------------- reading the calls


@dataclass(frozen=True)
class Call:
    name: str
    arguments: dict[str, Any]


class UnreadableCallsError(ValueError):
    """The text is no list of calls; the message is feedback."""


def read_calls(text: str) -> list[Call]:
    """The calls of a text such as `[f(a=1), g(b='x')]`; nothing is executed.

    Raises:
        UnreadableCallsError: it is not a list of calls with named, literal arguments.
    """
    fenced = FENCE.search(text)
    code = (fenced[1] if fenced else text).strip()
    try:
        tree = ast.parse(code[: MAX_CHARACTERS + 1], mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UnreadableCallsError(f"This is not a Python list of calls: {code[:80]!r}.") from error
    nodes = tree.elts if isinstance(tree, ast.List | ast.Tuple) else [tree]
    return [_read_call(node) for node in nodes]


def _read_call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise UnreadableCallsError(f"{ast.unparse(node)[:80]} is not a function call.")
    name = ast.unparse(node.func)
    if node.args or any(keyword.arg is None for keyword in node.keywords):
        raise UnreadableCallsError(f"In {name}: name every argument, as in {name}(argument=value).")
    arguments: dict[str, Any] = {}
    for keyword in node.keywords:
        try:
            arguments[str(keyword.arg)] = ast.literal_eval(keyword.value)
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise UnreadableCallsError(
                f"In {name}: {keyword.arg} is no plain value: {ast.unparse(keyword.value)[:80]}."
            ) from error
    return Call(name, arguments)


# ----------------------------------------------------------------------------- comparing them

PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list, tuple),
}


def faults_of(given: list[Call], wanted: list[dict[str, Any]], offered: Iterable[str]) -> list[str]:
    """What is wrong with the calls, in words; nothing when they are right, in any order."""
    left = list(given)
    faults: list[str] = []
    unmatched: list[dict[str, Any]] = []
    for gold in wanted:
        match = next((call for call in left if not _call_faults(call, gold)), None)
        if match is None:
            unmatched.append(gold)
        else:
            left.remove(match)
    for gold in unmatched:
        nearest = _nearest(left, gold)
        if nearest is None:
            faults.append(f"A call of {gold['name']} is missing.")
        else:
            left.remove(nearest)
            faults += _call_faults(nearest, gold)
    return faults + [_of_extra_call(call, set(offered), bool(wanted)) for call in left]


def _nearest(calls: list[Call], gold: dict[str, Any]) -> Call | None:
    """The call of the same function with the fewest faults."""
    same = (call for call in calls if call.name == gold["name"])
    return min(same, key=lambda call: len(_call_faults(call, gold)), default=None)


def _of_extra_call(call: Call, offered: set[str], is_any_wanted: bool) -> str:
    if call.name not in offered:
        return f"There is no function {call.name} on offer."
    if is_any_wanted:
        return f"{call.name} was called once too often."
    return f"{call.name} was called, but with these functions nothing can be done: answer []."


def _call_faults(call: Call, gold: dict[str, Any]) -> list[str]:
    if call.name != gold["name"]:
        return [f"{call.name} was called in place of {gold['name']}."]
    types = FUNCTIONS[call.name].parameters
    unknown = [name for name in call.arguments if name not in types]
    faults = [f"{call.name} has no argument {name}." for name in unknown]
    for name, accepted in gold["arguments"].items():
        fault = _argument_fault(call.arguments.get(name, LEFT_OUT), accepted, types[name].type)
        faults += [f"In {call.name}: {name} {fault}."] if fault else []
    return faults


def _argument_fault(value: Any, accepted: list[Any], json_type: str) -> str:
    values = [one for one in accepted if one != LEFT_OUT]
    if value == LEFT_OUT:
        return "" if LEFT_OUT in accepted else f"is missing, it should be {values[0]!r}"
    if not values:
        return f"is {value!r}, it was not asked for"
    is_bool_as_number = isinstance(value, bool) and json_type != "boolean"
    if is_bool_as_number or not isinstance(value, PYTHON_TYPES[json_type]):
        return f"is {value!r}, it should be of type {json_type}, as {values[0]!r}"
    if _comparable(value) in [_comparable(one) for one in values]:
        return ""
    return f"is {value!r}, it should be {values[0]!r}"


def _comparable(value: Any) -> Any:
    """Text without regard to case and punctuation; lists element by element."""
    if isinstance(value, str):
        return normalize_text(value)
    if isinstance(value, list | tuple):
        return [_comparable(one) for one in value]
    return value


def metric(
    gold: dspy.Example,
    pred: dspy.Prediction,
    trace: object = None,  # noqa: ARG001 - DSPy and GEPA pass these three
    pred_name: str | None = None,  # noqa: ARG001
    pred_trace: object = None,  # noqa: ARG001
) -> dspy.Prediction:
    """1 when every call is right and none is too many, else 0; each fault in words."""
    text = str(pred.get("calls") or "")
    try:
        faults = faults_of(read_calls(text), gold.expected, gold.offered)
    except UnreadableCallsError as error:
        faults = [str(error)]
    if not faults:
        return dspy.Prediction(score=1.0, feedback="The calls are right.")
    return dspy.Prediction(score=0.0, feedback=f"{' '.join(faults)} Right is {gold.calls}")


# ----------------------------------------------------------------------------------- the task


def load(seed: int, data: Path | None = None) -> Task:  # noqa: ARG001 - it reads no file
    n_wanted = N_TRAIN + N_VALIDATION + N_TEST
    draw = random.Random(f"functions/{seed}")
    by_text: dict[str, dspy.Example] = {}
    while len(by_text) < n_wanted:
        request = KINDS[len(by_text) % len(KINDS)](draw)
        by_text.setdefault(request.text, _example(request))
    train, val, test = split(list(by_text.values()), (N_TRAIN, N_VALIDATION, N_TEST), seed)
    return Task(
        name="functions",
        student=student,
        train=train,
        val=val,
        test=test,
        metric=metric,
        plain_metric=plain(metric),
        notes="The descriptions of the functions leave out units and forms (cents, minutes, "
        "YYYY-MM-DD), so a bare program cannot know them.",
    )


def _example(request: Request) -> dspy.Example:
    return dspy.Example(
        functions=json.dumps([FUNCTIONS[name].schema() for name in request.offered]),
        request=f"Today is {TODAY:%A}, {TODAY.day} {TODAY:%B} {TODAY.year}. {request.text}",
        calls=written(request),
        expected=[{"name": ask.function, "arguments": ask.accepted} for ask in request.calls],
        offered=list(request.offered),
    ).with_inputs("functions", "request")


def written(request: Request) -> str:
    """The right calls in the student's form: the first accepted value of each argument."""
    return f"[{', '.join(map(_written, request.calls))}]"


def _written(ask: Ask) -> str:
    values = {name: accepted[0] for name, accepted in ask.accepted.items()}
    given = [f"{name}={value!r}" for name, value in values.items() if value != LEFT_OUT]
    return f"{ask.function}({', '.join(given)})"
