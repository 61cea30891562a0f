"""What an attempt must have to differ from those that agree and fail, on a real LM.

    nice -n 19 python benchmarks/real/explore.py --tasks routing sql gcd

For each training example of a task three attempts of the student are made, with the 16 labelled
demos of the row `labelled`, or without any: one at temperature 0 and two at .7, as in a group of a
run. Where all three give the same answer and fail, two more are made in each of these ways:

- again: at .7, and nothing else;
- told: with the sentence of `ClippedDiversity`, at .7;
- warmer: at 1.0, the highest temperature that all providers take;
- told, warmer: both; this is what `ClippedDiversity` does;
- told, hot: at 1.5;
- other library: at .7 with the hand-written advice of the task, which is what a library can be.

A task has its lines in `results/real_explore.jsonl`, one a group, and is not measured again.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import dspy  # noqa: E402 - the folders come first
from compare_optimizers import N_LABELLED  # noqa: E402
from models import MODELS  # noqa: E402
from real_tasks import TASKS, advised, load  # noqa: E402
from run import ADAPTERS, RESULTS  # noqa: E402
from running import append, stored  # noqa: E402
from tasks import Task  # noqa: E402

from tfgrpo_dspy.strategies.clipped_diversity import DIFFER  # noqa: E402

OUT = RESULTS.with_name("real_explore.jsonl")
USUAL, WARMER, HOT, N_FURTHER = 0.7, 1.0, 1.5, 2
WAYS: Mapping[str, tuple[bool, float, bool]] = {
    "again": (False, USUAL, False),
    "told": (True, USUAL, False),
    "warmer": (False, WARMER, False),
    "told, warmer": (True, WARMER, False),
    "told, hot": (True, HOT, False),
    "other library": (False, USUAL, True),
}
"""Whether it is told the answer, its temperature, whether it has the advice."""


def attempt(
    task: Task, program: dspy.Module, example: Any, rollout_id: int, temperature: float
) -> tuple[str, float]:
    """Answer and score."""
    sample = rollout_id if temperature else None  # at temperature 0 there is one sample only
    lm = task.make_lm(0).copy(temperature=temperature, rollout_id=sample)
    with dspy.context(lm=lm):
        try:
            prediction = program(**example.inputs())
        except dspy.AdapterParseError as error:
            return f"unreadable: {error}"[:80], 0.0
    answer = "\n".join(f"{name}: {prediction[name]}" for name in prediction)
    return answer, float(task.plain_metric(example, prediction))


def told(program: dspy.Module, answer: str) -> dspy.Module:
    """The program with the sentence that asks for another answer."""
    copy = program.deepcopy()
    for predictor in copy.predictors():
        own = predictor.signature
        text = f"{own.instructions}\n\nA hint for this input: {DIFFER.format(answer=answer)}"
        predictor.signature = own.with_instructions(text)
    return copy


def groups(task: Task, n_demos: int) -> Iterator[dict[str, Any]]:
    """For each example whose first attempts agree and fail, how further ones end, by way."""
    programs = {False: task.student(), True: advised(task)}
    for program in programs.values():
        program.predictors()[0].demos = list(task.train[:n_demos])
    for place, example in enumerate(task.train):
        shown = [demo for demo in task.train[: n_demos + 1] if demo is not example][:n_demos]
        for program in programs.values():
            program.predictors()[0].demos = shown
        first = [attempt(task, programs[False], example, k, USUAL if k else 0.0) for k in range(3)]
        record = {"example": place, "scores": [score for _, score in first], "ways": {}}
        if len({answer for answer, _ in first}) == 1 and max(record["scores"]) < 1:
            for way, (is_told, temperature, is_advised) in WAYS.items():
                program = programs[is_advised]
                program = told(program, first[0][0]) if is_told else program
                made = [
                    attempt(task, program, example, 10 + k, temperature) for k in range(N_FURTHER)
                ]
                differ = [answer != first[0][0] for answer, _ in made]
                record["ways"][way] = {"scores": [s for _, s in made], "differ": differ}
        yield record


def show(records: Sequence[Mapping[str, Any]]) -> None:
    """For each task and way: how many groups, how often an attempt differs, and is better."""
    for task, n_demos in dict.fromkeys((r["task"], r["demos"]) for r in records):
        own = [r for r in records if (r["task"], r["demos"]) == (task, n_demos)]
        agreed = [r for r in own if r["ways"]]
        print(f"{task}, {n_demos} demos: {len(agreed)} of {len(own)} groups agree and fail")
        for way in WAYS if agreed else ():
            differ = fmean(fmean(r["ways"][way]["differ"]) for r in agreed)
            helped = [max(r["ways"][way]["scores"]) > r["scores"][0] for r in agreed]
            print(f"  {way:<14} differ {differ:.2f}, groups with a better one {sum(helped)}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is missing, and print all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=["routing"])
    parser.add_argument("--model", default="0.5B")
    parser.add_argument("--show", action="store_true")
    asked = parser.parse_args(arguments)
    done = {(r["task"], r["model"], r["demos"]) for r in stored(OUT)}
    dspy.configure(adapter=ADAPTERS[asked.model]())
    for name in () if asked.show else asked.tasks:
        for n_demos in (N_LABELLED, 0):
            if (name, asked.model, n_demos) not in done:
                task = load(name, asked.model, 0)
                named = {"task": name, "model": asked.model, "demos": n_demos}
                named |= {"sha256": MODELS[asked.model].sha256, "dspy": dspy.__version__}
                for record in list(groups(task, n_demos)):
                    append(OUT, named | record)
    show(stored(OUT))


if __name__ == "__main__":
    main()
