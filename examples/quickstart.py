"""Teach a small LM to answer with one word: the plural of a noun. A real LM inside this process.

Needs no key and no network: policy and reflection LM are SmolLM2-135M, run by llama.cpp. Prints
what the LM answers before and after, the held-out score of both, and what was learned.

    python examples/quickstart.py [--seed 0] [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]
"""

import argparse
import json
import logging
import random
import time
from pathlib import Path
from typing import Any

import dspy

from tfgrpo_dspy import (
    AddLessons,
    ExperienceLibrary,
    ExtractAdvantage,
    Reflection,
    TrainingFreeGRPO,
)
from tfgrpo_dspy.local import PlainAdapter, local_lm
from tfgrpo_dspy.results import Gain

N_TRAIN, N_VALIDATION, N_SHOWN = 24, 24, 10
MAX_LM_CALLS = 200
PLURALS = """
apple apples, army armies, baby babies, bench benches, berry berries, boat boats, body bodies,
book books, bottle bottles, box boxes, brush brushes, bus buses, button buttons, calf calves,
car cars, cat cats, cherry cherries, child children, church churches, city cities, class classes,
cloud clouds, company companies, country countries, cow cows, cross crosses, cup cups,
daughter daughters, diary diaries, dish dishes, doctor doctors, dog dogs, door doors, dress dresses,
duty duties, engine engines, factory factories, family families, farmer farmers, flower flowers,
fly flies, foot feet, fox foxes, garden gardens, glass glasses, goose geese, half halves,
hero heroes, hill hills, horse horses, house houses, island islands, judge judges, kitchen kitchens,
knife knives, lady ladies, lake lakes, lamp lamps, leaf leaves, letter letters, library libraries,
loaf loaves, lunch lunches, man men, match matches, memory memories, mountain mountains,
mouse mice, party parties, pencil pencils, picture pictures, pony ponies, potato potatoes,
river rivers, road roads, shelf shelves, ship ships, shoe shoes, sister sisters, spoon spoons,
story stories, street streets, student students, table tables, tax taxes, teacher teachers,
thief thieves, ticket tickets, tomato tomatoes, tooth teeth, train trains, tree trees,
village villages, watch watches, wife wives, window windows, winter winters, witch witches,
wolf wolves, woman women
"""

# DSPy would say of every long answer that it was cut, and of every evaluation its mean; what a
# reflection LM of this size writes in vain is counted in the last line.
_QUIET = ("dspy.clients.lm", "dspy.clients.model_metadata", "dspy.evaluate.evaluate", "tfgrpo_dspy")
for _name in _QUIET:
    logging.getLogger(_name).setLevel(logging.ERROR)


class LessonsFromFeedback(dspy.Signature):
    """Write short lessons for the next attempt, one per line. Start each with a verb."""

    feedback: str = dspy.InputField()
    lessons: list[str] = dspy.OutputField()


WRITTEN = [
    dspy.Example(feedback=f"{said}{told}", lessons=[told])
    for said, told in (
        ("", "Name the city, not the country."),
        ("Right.\n\n", "Give the date as year-month-day."),
    )
]


def program() -> dspy.Module:
    """The student: one predictor."""
    return dspy.Predict(dspy.Signature("noun -> plural", "Write the plural of the noun."))


def load(seed: int) -> tuple[list[dspy.Example], list[dspy.Example], list[dspy.Example]]:
    """Training, validation and test set, which share no noun."""
    pairs = [pair.split() for pair in PLURALS.split(",")]
    examples = [dspy.Example(noun=one, plural=many).with_inputs("noun") for one, many in pairs]
    random.Random(seed).shuffle(examples)
    n = N_TRAIN + N_VALIDATION
    return examples[:N_TRAIN], examples[N_TRAIN:n], examples[n:]


def right_word(example: Any, pred: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """1 for the right plural and nothing else; half of it where that word stands in a sentence."""
    words = pred.plural.lower().replace('"', " ").replace(".", " ").split()
    if words == [example.plural]:
        return dspy.Prediction(score=1.0, feedback="Right.")
    if example.plural in words:
        return dspy.Prediction(score=0.5, feedback="Write the plural alone, without a sentence.")
    return dspy.Prediction(score=0.0, feedback="Write one word: the plural of the noun.")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Learn to answer with one word.")
    parser.add_argument("--lm", help="policy LM, such as openai/gpt-5-mini; default: embedded")
    parser.add_argument("--reflection-lm", help="default: embedded, or the --lm that is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write what was measured to this file")
    return parser.parse_args()


def optimizer_for(given: argparse.Namespace) -> TrainingFreeGRPO:
    """The default optimizer; an embedded reflection LM is asked for lessons from feedback alone."""
    if given.reflection_lm or given.lm:
        reflection_lm = dspy.LM(given.reflection_lm or given.lm)
        return TrainingFreeGRPO(right_word, reflection_lm=reflection_lm, seed=given.seed)
    extract = ExtractAdvantage(LessonsFromFeedback, PlainAdapter())
    extract.ask.demos = WRITTEN  # without these, it writes what has nothing to do with the feedback
    simple = Reflection(
        extract=extract,
        update=AddLessons(),
        groups_per_call=1,
        drafts=0,
        brief=None,
        max_experience_words=12,
    )
    return TrainingFreeGRPO(
        right_word,
        reflection_lm=local_lm(temperature=0.2, max_tokens=60),
        max_lm_calls=MAX_LM_CALLS,
        max_experiences=5,
        max_demos=4,  # an LM of this size is confused by more
        reflection=simple,
        seed=given.seed,
    )


def answers(candidate: Any, examples: list[dspy.Example]) -> list[str]:
    """What the program answers to each example."""
    evaluate = dspy.Evaluate(
        devset=examples, metric=right_word, num_threads=4, display_progress=False
    )
    return [getattr(pred, "plural", "") for _, pred, _ in evaluate(candidate).results]


def scores_of(examples: list[dspy.Example], texts: list[str]) -> list[float]:
    pairs = zip(examples, texts, strict=True)
    return [right_word(example, dspy.Prediction(plural=text)).score for example, text in pairs]


def main() -> None:
    """Measure, learn, measure again."""
    given = arguments()
    started = time.monotonic()
    if given.lm:
        dspy.configure(lm=dspy.LM(given.lm))
    else:
        dspy.configure(lm=local_lm(temperature=0.0, max_tokens=16), adapter=PlainAdapter())
    trainset, valset, testset = load(given.seed)
    student = program()
    print(f"Before (the first {N_SHOWN} of {len(testset)} test nouns)", flush=True)
    before = []
    for example in testset:
        before += answers(student, [example])
        if len(before) <= N_SHOWN:
            print(f"  {example.noun:<9} -> {' '.join(before[-1].split())}", flush=True)
    optimized = optimizer_for(given).compile(student, trainset=trainset, valset=valset)
    after = answers(optimized, testset)
    print("\nAfter")
    for example, text in list(zip(testset, after, strict=True))[:N_SHOWN]:
        print(f"  {example.noun:<9} -> {' '.join(text.split())}")

    scores = scores_of(testset, before), scores_of(testset, after)
    gain, results = Gain.between(*scores), optimized.detailed_results
    print(f"\nHeld-out score on {len(testset)} nouns")
    for name, of_one in zip(("before", "after"), scores, strict=True):
        print(f"  {name:<7}{sum(of_one) / len(of_one):.3f}")
    interval = "" if gain.low is None else f" [{gain.low:+.3f}, {gain.high:+.3f}] (95 % interval)"
    print(f"  gain   {gain.mean:+.3f}{interval}")
    print("\nLearned")
    print(f"  {results.n_demos} training examples that the prompt now shows")
    for experience in results.experiences:
        print(f"  {experience.text}")
    n_policy, n_reflection = (
        usage.n_lm_calls for usage in (results.policy_usage, results.reflection_usage)
    )
    seconds, n_cached = time.monotonic() - started, results.spent.n_cached_calls
    print(f"\n{n_policy} calls of the program and {n_reflection} of the reflection LM; ", end="")
    if n_cached:
        print(f"{n_cached} more answers came from the cache of an earlier run; ", end="")
    print(f"{sum(results.failures.values())} answers were of no use; ", end="")
    print(f"{seconds:.0f} s in all, with both measurements.")
    if given.json:
        record = {
            "seed": given.seed,
            "before": scores[0],
            "after": scores[1],
            "seconds": round(seconds, 1),
            "library": ExperienceLibrary.from_program(optimized).render().splitlines(),
            "demos": results.n_demos,
            "policy_calls": n_policy,
            "reflection_calls": n_reflection,
        }
        given.json.write_text(json.dumps(record) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
