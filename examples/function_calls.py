"""Function calls under a strict, silent metric: exploration finds the way that nobody takes.

    python examples/function_calls.py [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]

Runs on a simulated LM in 5 seconds. A call is right if Python's `ast` finds the same function and
the same arguments by name; else it scores 0, without a word. Nearly all attempts agree, and are
wrong in the same way: `ClippedDiversity` has a further one take another way, and there is something
to compare. This LM is made for it: in another silent task the strategy gained less than
`TieredHints`, and in a third nothing sure (docs/strategies.md), so take it only to try. Prints the
share of right calls on a test set, with and without it.
"""

import ast
import re
from typing import Any

import dspy
from simulated import SimulatedEngine, arguments
from simulated_rules import ProgramSide, Prompt

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.strategies import ClippedDiversity

CITIES = ("Leeds", "Porto", "Turin", "Bergen", "Lyon", "Graz", "Cork", "Malmo")
TOOLS = "weather(city, unit='C' or 'F'); flight(origin, destination, seats)"


class Caller(ProgramSide):
    """The simulated caller: it forgets the unit, and numbers are strings to it.

    It reads the signatures of the tools, and then makes neither mistake, once in 200 attempts, or
    if it is told to take another way, or advised to read them.
    """

    def answer(self, prompt: Prompt, name: str) -> Any:
        """A reasoning, or a call."""
        request = prompt.inputs["request"]
        first, *rest = [city for city in CITIES if city in request]
        chance = 0.9 if re.search("Take another way|read the signature", prompt.told) else 0.005
        reads = prompt.luck("way").random() < chance
        if name == "reasoning":
            way = "I read the signature of each tool." if reads else "I copy the words."
            return f"{way} The request is about {first}."
        if rest:
            origin, destination = sorted((first, *rest), key=request.index)
            seats = request.split(" seats")[0].split()[-1]
            seats = seats if reads else repr(seats)
            return f"flight(origin={origin!r}, destination={destination!r}, seats={seats})"
        unit = "F" if "Fahrenheit" in request else "C"
        return f"weather(city={first!r}{f', unit={unit!r}' if reads else ''})"


def tree(call: str) -> tuple[str, dict[str, Any]]:
    """The name of the function, and its arguments by name. Raises SyntaxError, ValueError."""
    parsed = ast.parse(call.strip(), mode="eval").body
    if not isinstance(parsed, ast.Call) or not isinstance(parsed.func, ast.Name) or parsed.args:
        raise ValueError(f"{call!r} is not a call with arguments by name.")
    return parsed.func.id, {str(k.arg): ast.literal_eval(k.value) for k in parsed.keywords}


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> float:  # noqa: ARG001
    """1 for the right function with the right arguments, else 0."""
    try:
        return float(tree(pred.call) == tree(example.call))
    except (SyntaxError, ValueError):
        return 0.0


def load() -> list[dspy.Example]:
    """Requests with their calls."""
    found = []
    for number in range(60):
        city, other = CITIES[number % 8], CITIES[(number + 1 + number // 8 % 7) % 8]
        unit, seats = ("Celsius", "Fahrenheit")[number // 2 % 2], 1 + number % 5
        if number % 2:
            request = f"Book {seats} seats from {city} to {other}, order {number}."
            call = f"flight(origin={city!r}, destination={other!r}, seats={seats})"
        else:
            request = f"How warm is it in {city}, in {unit}, in {number + 1} hours?"
            call = f"weather(city={city!r}, unit={unit[0]!r})"
        found.append(dspy.Example(request=request, tools=TOOLS, call=call))
    return [example.with_inputs("request", "tools") for example in found]


def main() -> dict[str, float]:
    """Optimize with and without the strategy; the mean scores on the test set."""
    given = arguments(__doc__, SimulatedEngine(program=Caller))
    examples = load()
    student = dspy.ChainOfThought("request, tools -> call")
    rows = {}
    for name, strategies in {"without": (), "with": (ClippedDiversity(),)}.items():
        optimizer = TrainingFreeGRPO(
            metric,
            reflection_lm=given.reflection_lm,
            max_lm_calls=300,
            strategies=strategies,
            progress=False,
        )
        optimized = optimizer.compile(
            student, trainset=examples[:24], valset=examples[24:40], testset=examples[40:]
        )
        results = optimized.detailed_results
        rows |= {"student": results.test.student.mean, name: results.test.best.mean}
        print(f"\n{name} ClippedDiversity:\n{results}")
    print()
    for name, mean in rows.items():
        print(f"{name:<8} {mean:.2f} of the calls are right")
    return rows


if __name__ == "__main__":
    main()
