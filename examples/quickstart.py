"""Learn the house style of a shop's replies to complaints, on a real LM inside this process.

Needs no key and no network: policy and reflection LM are SmolLM2-135M, run by llama.cpp.

    python examples/quickstart.py [--seed 0] [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]
"""

import argparse
import contextlib
import json
import logging
import math
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dspy
from support_replies import house_style, load, program

from tfgrpo_dspy import AddLessons, ExperienceLibrary, ExtractAdvantage, PairedGate, TrainingFreeGRPO
from tfgrpo_dspy.local import PlainAdapter, local_lm

logging.getLogger("dspy.clients.lm").setLevel(logging.ERROR)  # long replies are cut: that is fine


class RulesFromFeedback(dspy.Signature):
    """Write short rules for the next attempt, one per line. Start each with a verb."""

    feedback: str = dspy.InputField()
    lessons: list[str] = dspy.OutputField(prefix="Rules:")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn a house style, and measure what it gains.")
    parser.add_argument("--lm", help="policy LM, such as openai/gpt-5-mini; default: embedded")
    parser.add_argument("--reflection-lm", help="default: the policy LM")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="write the measured scores to this file too")
    return parser.parse_args()


def optimizer_for(given: argparse.Namespace) -> TrainingFreeGRPO:
    """A model of 135M parameters is asked a question it can answer, and edits no library."""
    reflection_lm = dspy.LM(given.reflection_lm) if given.reflection_lm else None
    small: dict[str, Any] = {
        "extract_advantage": ExtractAdvantage(RulesFromFeedback, PlainAdapter(one_message=True)),
        "update_library": AddLessons(),
    }
    return TrainingFreeGRPO(
        house_style,
        reflection_lm=reflection_lm,
        group_size=4,
        epochs=1,
        batch_size=5,
        max_experiences=4,
        gate=PairedGate(screen=8),
        seed=given.seed,
        **({} if given.lm or given.reflection_lm else small),
    )


def held_out(candidate: Any, testset: list[dspy.Example]) -> list[dspy.Prediction]:
    """The reply to every test complaint, with its score; as deployed."""
    def one(example: dspy.Example) -> dspy.Prediction:
        with context():
            reply = candidate(**example.inputs()).reply
        return dspy.Prediction(reply=reply, score=house_style(example, dspy.Prediction(reply=reply)).score)

    lm, adapter = dspy.settings.lm, dspy.settings.adapter

    def context() -> Any:
        return dspy.context(lm=lm, adapter=adapter)

    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(one, testset))


def main() -> None:
    """Compile, and say what came of it."""
    given = arguments()
    print(given)


if __name__ == "__main__":
    main()
