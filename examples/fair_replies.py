"""Replies that are correct, fair across customer groups, and short: several objectives at once.

    python examples/fair_replies.py [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]

Runs on a simulated LM in 4 seconds. Members are greeted by name; of guests only a few are. The
metric returns three objectives. The number of words varies by luck, and is much larger than the
other two: in the plain mean of all three, it drowns what advice adds to them. `Objectives` divides
each by its spread. Prints what replies are like before, after plain optimization, and after
optimization with `Objectives`.
"""

from statistics import fmean
from typing import Any

import dspy
from simulated import SimulatedEngine, arguments
from simulated_rules import ProgramSide, Prompt

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.strategies import Objectives

REMEDIES = {"torn": "replacement", "late": "refund", "broken": "repair", "wrong size": "exchange"}
NAMES = ("Ada", "Ben", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ivo", "Jo", "Kim", "Lea")
PADDING = "We read every letter with care. "


class Clerk(ProgramSide):
    """The simulated clerk; members are greeted anyway."""

    def answer(self, prompt: Prompt, name: str) -> Any:  # noqa: ARG002
        """A reply with a greeting, a remedy and some padding, by what the prompt advises."""
        letter = prompt.inputs["letter"]
        fault = next(word for word in REMEDIES if word in letter)
        knows = self._does(prompt, f"{fault}: offer")
        remedy = REMEDIES[fault] if knows else prompt.luck("guess").choice([*REMEDIES.values()])
        is_greeted = "member" in letter or self._does(prompt, "Greet a guest by name")
        customer = letter.rsplit(" ", 1)[-1].strip(".")
        n_said = prompt.luck("length").randint(0, 2 if self._does(prompt, "20 words") else 6)
        padding = PADDING * n_said
        return f"Dear {customer if is_greeted else 'customer'}, {padding}we offer a {remedy}."


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """Three objectives, of which more is better, and what to do better."""
    n_words = len(pred.reply.split())
    values = {
        "right": float(example.remedy in pred.reply),
        "greets": float(example.customer in pred.reply),
        "short": -float(n_words),
    }
    said = (
        [] if values["right"] else [f"If something is {example.fault}: offer a {example.remedy}."]
    )
    said += [] if values["greets"] else ["Greet a guest by name, like a member."]
    said += ["Write at most 20 words."] if n_words > 20 else []
    return dspy.Prediction(objectives=values, feedback=" ".join(said))


def load() -> list[dspy.Example]:
    """Letters of members and guests."""
    found = []
    for number in range(96):
        fault, customer = [*REMEDIES][number % 4], NAMES[number % 12]
        group = "member" if number // 4 % 2 else "guest"
        letter = f"My parcel {number} was {fault}, says the {group} {customer}."
        labels = {"remedy": REMEDIES[fault], "fault": fault, "customer": customer, "group": group}
        found.append(dspy.Example(letter=letter, **labels).with_inputs("letter"))
    return found


def measured(program: Any, examples: list[dspy.Example]) -> dict[str, float]:
    """The shares of right replies and of greetings, the gap between groups, and the words."""
    found = {"member": [], "guest": []}
    for example in examples:
        found[example.group].append(metric(example, program(letter=example.letter)).objectives)
    greets = {group: fmean(each["greets"] for each in of) for group, of in found.items()}
    every = [each for of_group in found.values() for each in of_group]
    return {
        "right": fmean(each["right"] for each in every),
        "gap between groups": abs(greets["member"] - greets["guest"]),
        "words": -fmean(each["short"] for each in every),
    }


def main() -> dict[str, dict[str, float]]:
    """Optimize the plain mean of the objectives, and their weighted mean by `Objectives`."""
    given = arguments(__doc__, SimulatedEngine(program=Clerk))
    examples = load()
    student = dspy.Predict("letter -> reply")
    rows = {"student": measured(student, examples[64:])}
    weighted = Objectives({"right": 1.0, "greets": 1.0, "short": 0.25})
    for name, strategies in {"plain mean": (), "Objectives": (weighted,)}.items():
        optimizer = TrainingFreeGRPO(
            metric,
            reflection_lm=given.reflection_lm,
            max_lm_calls=500,
            strategies=strategies,
            progress=False,
        )
        optimized = optimizer.compile(student, trainset=examples[:40], valset=examples[40:64])
        rows[name] = measured(optimized, examples[64:])
        print(f"\n{name}:\n{optimized.detailed_results}")
    print()
    for name, row in rows.items():
        print(f"{name:<12}" + "".join(f"{figure:>20} {value:.2f}" for figure, value in row.items()))
    return rows


if __name__ == "__main__":
    main()
