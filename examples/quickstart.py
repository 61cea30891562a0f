"""Learn the house style of a shop's replies to complaints, on a real LM inside this process.

Needs no key and no network: policy and reflection LM are SmolLM2-135M, run by llama.cpp. Prints
the held-out score before and after, what was learned from which complaints, and two replies.

    python examples/quickstart.py [--seed 0] [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]
"""

import argparse
import json
import logging
import math
import random
import statistics
import time
from pathlib import Path
from typing import Any

import dspy
from support_replies import house_style, load, program

from tfgrpo_dspy import (
    AddLessons,
    ExperienceLibrary,
    ExtractAdvantage,
    Reflection,
    TrainingFreeGRPO,
)
from tfgrpo_dspy.local import PlainAdapter, local_lm

N_TRAIN, N_VALIDATION, N_TEST = 12, 40, 60
MAX_LM_CALLS = 160
SMALL_MODEL = PlainAdapter()

# DSPy would say of every long reply that it was cut, and of every evaluation its mean.
for _name in ("dspy.clients.lm", "dspy.evaluate.evaluate"):
    logging.getLogger(_name).setLevel(logging.ERROR)


class LessonsFromFeedback(dspy.Signature):
    """Write short lessons for the next attempt, one per line. Start each with a verb."""

    feedback: str = dspy.InputField()
    lessons: list[str] = dspy.OutputField()


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn a house style, and measure what it gains.")
    parser.add_argument("--lm", help="policy LM, such as openai/gpt-5-mini; default: embedded")
    parser.add_argument("--reflection-lm", help="default: embedded, or the --lm that is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    return parser.parse_args()


def simple_questions() -> Reflection:
    """For a reflection LM of 135M parameters, which cannot compare attempts or edit a library.

    It is asked for lessons from the feedback alone, all of them are proposed, and the gate finds
    out which are worth anything.
    """
    return Reflection(
        extract=ExtractAdvantage(LessonsFromFeedback, SMALL_MODEL),
        update=AddLessons(),
        groups_per_call=1,
        max_experience_words=12,
    )


def optimizer_for(given: argparse.Namespace) -> TrainingFreeGRPO:
    """The default optimizer; for the embedded reflection LM, with simpler questions."""
    if given.reflection_lm or given.lm:
        reflection_lm = dspy.LM(given.reflection_lm or given.lm)
        return TrainingFreeGRPO(house_style, reflection_lm=reflection_lm, seed=given.seed)
    return TrainingFreeGRPO(
        house_style,
        reflection_lm=local_lm(temperature=0.7, max_tokens=60),
        max_lm_calls=MAX_LM_CALLS,
        max_experiences=5,
        reflection=simple_questions(),
        seed=given.seed,
    )


def replies(candidate: Any, testset: list[dspy.Example]) -> list[str]:
    """The reply to every test complaint; "" where the program failed."""
    evaluate = dspy.Evaluate(
        devset=testset, metric=house_style, num_threads=4, display_progress=False
    )
    return [getattr(prediction, "reply", "") for _, prediction, _ in evaluate(candidate).results]


def scores_of(testset: list[dspy.Example], texts: list[str]) -> list[float]:
    pairs = zip(testset, texts, strict=True)
    return [house_style(example, dspy.Prediction(reply=text)).score for example, text in pairs]


def with_interval(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval (normal approximation)."""
    mean = statistics.fmean(values)
    half = 1.96 * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def show_library(optimized: Any, trainset: list[dspy.Example]) -> None:
    """Each experience with its evidence: the complaints whose replies it was learned from."""
    results = optimized.detailed_results
    experiences = results.library["experiences"]
    for experience in experiences:
        print(f"  {experience['id']}: {experience['text']}")
        for evidence in experience["evidence"]:
            scores = ", ".join(f"{score:.1f}" for score in evidence["scores"])
            complaint = trainset[evidence["example"]].complaint
            print(f"      from replies that scored {scores} to: {complaint[:60]}...")
    if results.n_demos:
        print(f"  and {results.n_demos} of the best replies, shown to the LM as demos")
    if not experiences and not results.n_demos:
        print(f"  nothing: {results.nothing_learned}")


def show_side_by_side(testset: list[dspy.Example], before: list[str], after: list[str]) -> None:
    for index in (0, 1):
        print(f"\nComplaint: {testset[index].complaint}")
        print(f"  before: {' '.join(before[index].split())}")
        print(f"  after:  {' '.join(after[index].split())}")


def main() -> None:
    """Measure, learn, measure again."""
    given = arguments()
    started = time.monotonic()
    if given.lm:
        dspy.configure(lm=dspy.LM(given.lm))
    else:
        dspy.configure(lm=local_lm(temperature=0.0, max_tokens=90), adapter=SMALL_MODEL)
    trainset, valset, testset = load()
    rng = random.Random(given.seed)
    trainset, valset = rng.sample(trainset, N_TRAIN), rng.sample(valset, N_VALIDATION)
    testset = testset[:N_TEST]

    student = program()
    before = replies(student, testset)
    optimized = optimizer_for(given).compile(student, trainset=trainset, valset=valset)
    after = replies(optimized, testset)

    scores_before, scores_after = scores_of(testset, before), scores_of(testset, after)
    gain = with_interval([b - a for a, b in zip(scores_before, scores_after, strict=True)])
    print(f"\nHeld-out score on {len(testset)} complaints (mean, 95 % interval)")
    print("  before: {:.3f} [{:.3f}, {:.3f}]".format(*with_interval(scores_before)))
    print("  after:  {:.3f} [{:.3f}, {:.3f}]".format(*with_interval(scores_after)))
    print("  gain:   {:+.3f} [{:+.3f}, {:+.3f}], paired by complaint".format(*gain))
    print("\nLearned")
    show_library(optimized, trainset)
    show_side_by_side(testset, before, after)
    seconds = time.monotonic() - started
    results = optimized.detailed_results
    n_policy, n_reflection = (
        usage.n_lm_calls for usage in (results.policy_usage, results.reflection_usage)
    )
    print(f"\n{n_policy} policy and {n_reflection} reflection calls while learning; ", end="")
    print(f"{seconds:.0f} s in all, with both measurements.")
    if given.json:
        record = {
            "seed": given.seed,
            "before": scores_before,
            "after": scores_after,
            "seconds": round(seconds, 1),
            "library": ExperienceLibrary.from_program(optimized).render().splitlines(),
            "demos": results.n_demos,
            "policy_calls": results.policy_usage.n_lm_calls,
            "reflection_calls": results.reflection_usage.n_lm_calls,
        }
        given.json.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
