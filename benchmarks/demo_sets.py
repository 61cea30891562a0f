"""How many sets of demos should a run compare? Sets differ as on a real LM. NOTHING IS REAL.

    python benchmarks/demo_sets.py --sets 1 5                          # seeds 0 to 31
    python benchmarks/demo_sets.py --sets 1 5 --student .5 --demos .45 # demos do harm on average

On a 0.5B model six sets of 16 demos differ by .16 (standard deviation) in what they score
(`real/draws.py`). Here each pair of neighbours among the demos adds a normal value, drawn by the
seed, and their sum has that standard deviation. No advice helps. The figure is the chance of a
right answer with the demos of the result, the mean over seeds with its standard error.
"""

import argparse
import itertools
import json
import math
import random
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dspy
from dspy import lm15
from running import silence
from simlm import Prompt, output_fields, response
from tasks import seeded

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy.sampling import demos

RESULTS = Path(__file__).parent / "results" / "demo_sets.json"
SPREAD, N_TRAIN, N_VALIDATION = 0.16, 40, 30


class Engine:
    """Answers a case rightly with the chance that the demos give; reflects without an idea."""

    supported_params = frozenset({"temperature", "max_tokens", "seed"})

    def __init__(self, world: int, student: float, shown: float, apart: float = 0.0) -> None:
        self.world, self.student, self.shown, self.apart = world, student, shown, apart
        self.fingerprint = f"demo sets {world} {student} {shown} {apart}"

    def chance(self, cases: Sequence[int], is_sampled: bool = False) -> float:
        """The chance of a right answer after the demos of these cases, in this order."""
        pairs = list(itertools.pairwise(cases))
        if not pairs:
            return self.student
        shared = self._value(pairs, "") * math.sqrt(1 - self.apart)
        own = 0.0 if is_sampled else self._value(pairs, "own ") * math.sqrt(self.apart)
        return min(0.98, max(0.02, self.shown + SPREAD * (shared + own)))

    def _value(self, pairs: Sequence[tuple[int, int]], kind: str) -> float:
        """Of a standard normal distribution; neighbours that two sets share count the same."""
        values = (random.Random(f"{self.world}/{kind}{pair}").gauss(0, 1) for pair in pairs)
        return sum(values) / math.sqrt(len(pairs))

    def complete(self, request: lm15.Request) -> lm15.Response:
        """The answer, in the format that the prompt asks for."""
        prompt = Prompt.of(request, f"{request.config.temperature and request.config.seed}")
        fields = output_fields(prompt.system)
        values = dict.fromkeys(fields.names, "None")
        if fields.names == ("answer",):
            case = cases_in(prompt.user)[-1]
            shown, is_sampled = cases_in(prompt.demos), bool(request.config.temperature)
            luck = random.Random(f"{self.world}/{case}/{shown}/{prompt.sample}").random()
            is_right = luck < self.chance(shown, is_sampled)
            values["answer"] = answer(case) if is_right else "unsure"
        text = fields.formatted(values)
        return response(request, prompt, text)


def cases_in(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"case (\d+)", text)]


def answer(case: int) -> str:
    return f"T{case % 7}"


def examples(first: int, n: int) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"case {i}", answer=answer(i)).with_inputs("question")
        for i in range(first, first + n)
    ]


def is_right(example: Any, prediction: Any, _trace: Any = None) -> float:
    return float(example.answer == prediction.answer)


def run(n_sets: int, world: int, asked: argparse.Namespace) -> float:
    """The chance of a right answer with the demos of the result."""
    engine = Engine(world, asked.student, asked.demos, asked.apart)
    lm = seeded(dspy.LM("demo-sets", engine=engine, temperature=0.0, cache=False))
    optimizer = TrainingFreeGRPO(
        is_right, max_lm_calls=asked.budget, seed=world, num_threads=1, progress=False
    )
    data = {"trainset": examples(0, N_TRAIN), "valset": examples(1000, N_VALIDATION)}
    usual, demos.N_SETS = demos.N_SETS, n_sets
    try:
        with silence(), dspy.context(lm=lm):
            optimized = optimizer.compile(dspy.Predict("question -> answer"), **data)
    finally:
        demos.N_SETS = usual
    return engine.chance([cases_in(demo.question)[0] for demo in optimized.demos])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run, print a line for each number of sets, and write all to `results/demo_sets.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", type=int, default=[1, 3, 5, 8])
    parser.add_argument("--seeds", type=int, default=32)
    parser.add_argument("--budget", type=int, default=200)
    parser.add_argument("--student", type=float, default=0.05)
    parser.add_argument("--demos", type=float, default=0.5)
    parser.add_argument("--apart", type=float, default=0.0)
    parser.add_argument("--publish", action="store_true")
    asked = parser.parse_args(arguments)
    published = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for n_sets in asked.sets:
        chances = [run(n_sets, world, asked) for world in range(asked.seeds)]
        mean, error = statistics.fmean(chances), statistics.stdev(chances) / len(chances) ** 0.5
        name = f"{n_sets} sets, {asked.budget} calls, student {asked.student}, demos {asked.demos}"
        name += f", apart {asked.apart}"
        print(f"{name:<64}{mean:.3f} +- {error:.3f}", flush=True)
        published[name] = {"chances": chances, "dspy": dspy.__version__}
    if asked.publish:
        RESULTS.write_text(json.dumps(published, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
