"""Tasks on public data that packages hold: function calls of BFCL, generators of reasoning-gym.

The data are read, and nothing of these packages' code runs but reasoning-gym's generators.
"""

import ast
import importlib.metadata
import itertools
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import dspy

CALLS_ADVICE = """\
Answer with one Python call, such as get_user(name="Ann", limit=3), and nothing else.
Name every argument: key=value. Strings stand in double quotes, True and False are capitalised.
Give only arguments that the request states; leave out optional ones at their default.
Copy values as they stand in the request, in the form that the description asks for."""


MOST_CHARACTERS = 400  # of function and request: prompts with 16 demos are read at each call


class FunctionCalls:
    """BFCL v4, simple, Python: one call of one function, compared on its syntax tree (bfcl-eval).

    The function is shown as lines of text, which are much shorter than its JSON schema.
    """

    fields = "function, request -> call"
    instruction = "Call the function as the request asks."
    advice = CALLS_ADVICE

    def __init__(self) -> None:
        files = importlib.metadata.files("bfcl-eval") or ()
        paths = [Path(str(p.locate())) for p in files if p.name == "BFCL_v4_simple_python.json"]
        paths.sort(key=lambda path: path.parent.name == "possible_answer")
        rows, answers = (
            [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            for path in paths
        )
        if len(rows) != len(answers):
            raise ValueError(
                f"bfcl-eval holds {len(rows)} rows, {len(answers)} answers; use 2026.3.23"
            )
        self._rows = list(zip(rows, answers, strict=True))

    def examples(self, rng: random.Random) -> Iterator[dspy.Example]:
        """The requests whose text is short, in random order: about half of 400 rows."""
        for row, answer in rng.sample(self._rows, len(self._rows)):
            function = described(row["function"][0])
            request = row["question"][0][-1]["content"]
            ((name, arguments),) = answer["ground_truth"][0].items()
            has_dicts = any(isinstance(v, dict) for allowed in arguments.values() for v in allowed)
            if len(function) + len(request) < MOST_CHARACTERS and not has_dicts:
                yield dspy.Example(
                    function=function,
                    request=request,
                    call=_written(name, arguments),
                    allowed=json.dumps(answer["ground_truth"][0]),
                )

    def verdict(self, gold: dspy.Example, pred: dspy.Prediction) -> tuple[float, str]:
        """1.0 where name and every argument are among the allowed ones."""
        ((name, allowed),) = json.loads(gold.allowed).items()
        fault = _fault(str(pred.call or ""), name, allowed)
        return float(not fault), f"{fault} Right: {gold.call}" if fault else "Right."


def described(function: Mapping[str, Any]) -> str:
    """What the function does, then a line for each argument."""
    lines = [f"{function['name']}: {function['description']}"]
    required = function["parameters"].get("required", ())
    for name, argument in function["parameters"]["properties"].items():
        kind = argument["type"] if name in required else f"{argument['type']}, optional"
        choice = f" One of {', '.join(map(str, argument['enum']))}." if "enum" in argument else ""
        lines.append(f"{name} ({kind}): {argument.get('description', '')}{choice}")
    return "\n".join(lines)


def _written(name: str, allowed: Mapping[str, list[Any]]) -> str:
    chosen = {key: values[0] for key, values in allowed.items() if values[0] != ""}
    return f"{name}({', '.join(f'{key}={json_or_python(value)}' for key, value in chosen.items())})"


def json_or_python(value: Any) -> str:
    """A value as Python writes it, texts in double quotes."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _fault(text: str, name: str, allowed: Mapping[str, list[Any]]) -> str:
    """What is wrong with a call; "" if nothing is."""
    try:
        tree = ast.parse(text.strip().strip("`"), mode="eval").body
        if not isinstance(tree, ast.Call):
            return "This is no call."
        given = {each.arg: ast.literal_eval(each.value) for each in tree.keywords}
    except (SyntaxError, ValueError):
        return "This is no Python call with plain values."
    if ast.unparse(tree.func) != name:
        return f"The function is {name}."
    if tree.args:
        return "Arguments must be named."
    for key, values in allowed.items():
        if key not in given and "" not in values:
            return f"The argument {key} is missing."
        if key in given and not any(_same(given[key], value) for value in values):
            return f"The argument {key} has another value."
    unknown = [key for key in given if key not in allowed]
    return f"There is no argument {unknown[0]}." if unknown else ""


def _same(given: Any, allowed: Any) -> bool:
    """Equal, texts without case, blanks and punctuation as BFCL compares them."""
    if isinstance(given, str) and isinstance(allowed, str):
        return _bare(given) == _bare(allowed)
    return bool(given == allowed and isinstance(given, bool) == isinstance(allowed, bool))


def _bare(text: str) -> str:
    return "".join(c for c in text.lower() if c not in " ,./-_*^\"'")


class Reasoning:
    """A generator of reasoning-gym; the answer is compared as a text."""

    fields = "question -> answer"
    instruction = "Answer the question."

    def __init__(self, dataset: str, advice: str) -> None:
        self.advice, self._dataset = advice, dataset

    def examples(self, rng: random.Random) -> Iterator[dspy.Example]:
        """Questions, without end."""
        import reasoning_gym  # noqa: PLC0415 - not needed for the other tasks

        for n in itertools.count():
            seed = rng.randrange(10**6) + n
            row = reasoning_gym.create_dataset(self._dataset, seed=seed, size=1)[0]
            yield dspy.Example(question=row["question"], answer=str(row["answer"]))

    def verdict(self, gold: dspy.Example, pred: dspy.Prediction) -> tuple[float, str]:
        """1.0 for the right text."""
        given = str(pred.answer or "").strip()
        is_right = given.casefold() == gold.answer.casefold()
        said = "Right." if is_right else f"{given!r} given, {gold.answer!r} is right."
        return float(is_right), said
