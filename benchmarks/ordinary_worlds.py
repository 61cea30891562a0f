"""What a strategy costs where it is not needed. SIMULATED; NOTHING IS REAL.

    nice -n 19 python benchmarks/ordinary_worlds.py --only LearningFrontier --seeds 10
    python benchmarks/ordinary_worlds.py --show benchmarks/results/ordinary_worlds.json

It goes on where it was stopped: the file is written after each run.

The worlds are those of `random_worlds.py`, which were not made for strategies, with fixed traits:
80 cases of ten kinds, 53 of them for training; the student succeeds in 35 %; a quarter of the
lessons is wrong, a fifth of them useless; one predictor; no labels, and no demo helps.

**silent**: the metric gives a bare score. **feedback**: it says which code was expected.
**noise**: cases of four kinds of ten succeed by chance (.5), whatever is advised. **hard**: cases
of four kinds of ten nearly always fail (.02), whatever is advised. **agent**: a ReAct agent of
four turns, none of which is critical (with half of the cases, as each costs five calls).

**wrong .1**, **wrong .4**: feedback, with that share of wrong lessons (`--only --worlds "wrong .1"
"wrong .4" --budgets 300 600 --out benchmarks/results/wrong_worlds.json`): how many results hold a
wrong line, and one that another line contradicts.

What strategies ask the reflection LM is answered by one that has nothing to say and says it: hints
that help nobody, rules of which half are wrong and the others useless, marks and preferences by
chance. The teacher is the policy LM itself. So this is what a strategy costs at worst.

Rewards have nothing to reward: the order of the agent's first two looks is luck, and so is the
quantity of `GlobalConstraint`. (In `GlobalConstraint, moved` advice moves it: half of the right
codes are even, so right advice may lower what is rewarded.) `Objectives` weighs two objectives of
like scales, of which one is luck; the arm `mean` has the same two in its metric, whose plain mean
is the score, and no strategy.

All arms of a world have the same seeds, and the same number of LM calls. Scores are exact: of the
right answers alone.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dspy
import running
from random_world_engine import RandomEngine, examples_of, lms_of, metric_of, student_of
from random_world_model import N_WRONG, USELESS, Line, World, traits_of
from running import RESULTS, parser_of, results, silence, stored, versions, write
from simlm import OutputFields, Prompt, draw, pick, sections

from tfgrpo_dspy import TrainingFreeGRPO
from tfgrpo_dspy import strategies as known
from tfgrpo_dspy.results import Gain
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.strategies import Strategy

WORLDS = ("silent", "feedback", "noise", "hard", "agent")
WRONG = {"wrong .1": 0.1, "wrong .4": 0.4}
BUDGETS = (150, 500)
ALLOWED = -0.03
BESIDE = {"Objectives": "mean"}
"""What an arm is compared with, where that is not "without"."""


class Ordinary(World):
    """A world of fixed traits; in some, what four of its kinds score is fixed, too."""

    def __init__(self, name: str, seed: int, **traits_of_it: Any) -> None:
        self.fixed = {"noise": 0.5, "hard": 0.02}.get(name)
        traits = traits_of(0, "agent" if name == "agent" else None)
        is_agent = name == "agent"
        traits = replace(
            traits,
            n_predictors=2 if is_agent else 1,
            n_kinds=6 if is_agent else 10,
            n_train=80,
            wording="words",
            n_paraphrases=1,
            n_slots=1,
            graded=False,
            noise=0.0,
            wrong_labels=0.0,
            has_labels=False,
            has_feedback=name in ("feedback", *WRONG),
            student=0.35,
            wrong=WRONG.get(name, 0.25),
            leaking=0.0,
            overreaching=0.0,
            useless=0.2,
            agreeing=False,
            n_broad_right=0,
            n_broad_harmful=0,
            combine="add",
            demos="nothing",
            names_sources=True,
            overwrites=0.0,
            deletes=0.0,
            writes=0.6,
            attention=5,
            n_turns=4,
            nothing=False,
        )
        super().__init__(replace(traits, **traits_of_it), seed)

    def two_objectives(self, gold: Any, pred: Any, trace: Any = None) -> dspy.Prediction:
        """Whether the answer is right, and luck; the score is their mean."""
        del trace
        code, _, luck = str(pred.answer).partition(" /")
        right = self.right[self.kinds(self.cases_in(gold.request)[0])[0]]
        is_right = code.strip() == right
        said = f"Wrong: {right} expected." if not is_right else "Right."
        return dspy.Prediction(
            objectives={
                "right": float(is_right),
                "luck": int(luck) / 10 if luck.strip().isdigit() else 0.0,
            },
            feedback=said if self.traits.has_feedback else None,
        )

    def chance(self, case: int, slot: int, lines: Any, demos: Any = ()) -> float:
        """The exact chance of a right answer."""
        if self.fixed is not None and self.kinds(case)[slot] < 4:
            return self.fixed
        return super().chance(case, slot, lines, demos)

    def domain(self, example: Any) -> int:
        """The kind of an example, as a user may know it."""
        return self.kinds(self.cases_in(example.request)[0])[0]


class IdleEngine(RandomEngine):
    """Answers what strategies ask, and knows nothing."""

    def _written_out(
        self,
        fields: OutputFields,
        shown: Mapping[str, str],
        codes: Sequence[str],
        is_right: bool,
        key: tuple[Any, ...],
    ) -> dict[str, str]:
        answer = super()._written_out(fields, shown, codes, is_right, key)
        if draw("order of looks", *key) < 0.5:
            turned = {'{"page": "0"}': '{"page": "1"}', '{"page": "1"}': '{"page": "0"}'}
            return {name: turned.get(text, text) for name, text in answer.items()}
        return answer

    def _value(self, name: str, type_: str, prompt: Prompt) -> Any:
        key = (name, self.world.seed, prompt.sample, len(prompt.user))
        if name in ("concept", "plan", "step"):
            return f"Look twice at the {name}."
        if name in ("candidates", "further"):
            kind, place = pick(self.world.traits.n_kinds, *key), pick(N_WRONG, "place", *key)
            idle = Line("useless", place=pick(len(USELESS), "useless", *key))
            line = Line("wrong", kind, place) if draw("wrong", *key) < 0.5 else idle
            return str(self.world.text(line, 0))
        if name == "matters":
            return "The length of the request decides."
        if name == "others":
            return f"{pick(4, *key)}"
        if name == "better":
            return f"{pick(3, *key)}"
        if name == "marks":
            n = sections(prompt.user).get("attempts", "").count("Attempt ")
            marks = [[f"{pick(11, row, k, *key)}" for k in range(12)] for row in range(n)]
            return "\n".join(f"{row}: {', '.join(own)}" for row, own in enumerate(marks, 1))
        return super()._value(name, type_, prompt)


def made(name: str, world: Ordinary, lms: Sequence[Any]) -> Literal["auto"] | tuple[Strategy, ...]:
    """The strategies of an arm: one with its defaults; "without" has none."""
    if name in ("without", "mean", "auto"):
        return "auto" if name == "auto" else ()
    arguments: Mapping[str, Callable[[], tuple[Any, ...]]] = {
        "DomainBandit": lambda: (world.domain,),
        "HardSampleWeights": lambda: (world.domain,),
        "TeacherRollouts": lambda: (lms[0],),
        "Objectives": lambda: ({"right": 1.0, "luck": 1.0},),
        "StepOrder": lambda: (lambda _: ["0", "1"], pages),
        "GlobalConstraint": lambda: (luck,),
        "GlobalConstraint, moved": lambda: (is_even,),
    }
    return (getattr(known, name.partition(",")[0])(*arguments.get(name, tuple)()),)


def luck(rollout: Rollout) -> float:
    """A quantity that no advice moves."""
    return float(rollout.rollout_id % 2)


def is_even(rollout: Rollout) -> float:
    """A quantity that has nothing to do with what is right: whether the code is an even number."""
    return float(rollout.outputs.get("answer", "")[-1:] in set("02468"))


def pages(rollout: Rollout) -> list[str]:
    """What an agent looked up, in its order."""
    return [step.inputs.get("page", "") for step in rollout.steps if step.name == "look_up"]


def compiled(
    world: World,
    lms: Sequence[Any],
    strategies: Literal["auto"] | Sequence[Strategy],
    budget: int,
    seed: int,
    metric: Any = None,
) -> Any:
    """The program that the optimizer returns."""
    with dspy.context(lm=lms[0], adapter=dspy.ChatAdapter()):
        optimizer = TrainingFreeGRPO(
            metric or metric_of(world),
            reflection_lm=lms[1],
            max_lm_calls=budget,
            num_threads=1,
            seed=seed,
            progress=False,
            strategies=strategies,
        )
        return optimizer.compile(student_of(world), trainset=[*examples_of(world, range(80))])


def run(name: str, arm: str, budget: int, seed: int) -> dict[str, Any]:
    """The exact score of the program that a run returns."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    has_two = arm in (*BESIDE, *BESIDE.values())
    world, began = Ordinary(name, seed, graded=has_two), time.monotonic()
    lms = lms_of(IdleEngine(world))
    metric = world.two_objectives if has_two else None
    with silence():
        program = compiled(world, lms, made(arm, world, lms), budget, seed, metric)
    results, told = program.detailed_results, world.told(program)
    lines = [line for of_one, _ in told for line in of_one]
    wrong = [line for line in lines if line.what == "wrong"]
    return {
        "world": name,
        "arm": arm,
        "budget": budget,
        "seed": seed,
        "score": round(world.score(told), 4),
        "wrong": bool(wrong),
        "contradicting": any(o.kind == w.kind and o != w for w in wrong for o in lines),
        "tokens": results.added.n_tokens,
        "failures": {k: n for k, n in results.failures.items() if "strategy" in k or k == "replay"},
        "seconds": round(time.monotonic() - began, 1),
    }


def harms(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each arm and budget: the mean difference by world, and over all pairs, 95 %."""
    scores = {(r["world"], r["arm"], r["budget"], r["seed"]): r["score"] for r in runs}
    found = []
    arms = dict.fromkeys(r["arm"] for r in runs if r["arm"] not in ("without", *BESIDE.values()))
    for arm in arms:
        for budget in sorted({r["budget"] for r in runs if r["arm"] == arm}):
            keys = [k for k in scores if k[1:3] == (arm, budget)]
            usual = [scores.get((k[0], BESIDE.get(arm, "without"), *k[2:])) for k in keys]
            pairs = [
                (w, scores[k], k[0]) for w, k in zip(usual, keys, strict=True) if w is not None
            ]
            if not pairs:
                continue
            gain = Gain.between([w for w, _, _ in pairs], [own for _, own, _ in pairs])
            worlds = dict.fromkeys(world for *_, world in pairs)
            by_world = {}
            for world in worlds:
                of_world = [own - w for w, own, where in pairs if where == world]
                by_world[world] = round(sum(of_world) / len(of_world), 3)
            row = {"arm": arm, "budget": budget, "n": len(pairs), "mean": round(gain.mean, 3)}
            found.append({**row, "interval": [gain.low, gain.high], "by_world": by_world})
    return found


def show(runs: Sequence[Mapping[str, Any]]) -> None:
    """A line for each arm and budget."""
    lines = []
    for row in harms(runs):
        low, high = row["interval"]
        worlds = "  ".join(f"{world} {mean:+.3f}" for world, mean in row["by_world"].items())
        mean = f"{row['mean']:+.3f} [{low or 0:+.3f}, {high or 0:+.3f}]"
        verdict = "" if row["mean"] >= ALLOWED else "ABOVE THE BAR"
        lines.append((row["arm"], row["budget"], mean, row["n"], worlds, verdict))
    if lines:
        running.show(("strategy", "calls", "difference", "pairs", "by world", ""), lines)
    cells = dict.fromkeys((r["world"], r["budget"]) for r in runs if r["world"] in WRONG)
    of_cells = []
    for cell in cells:
        of_one = [r for r in runs if (r["world"], r["budget"]) == cell and r["arm"] == "without"]
        names = ("score", "wrong", "contradicting", "tokens")
        of_cells.append((*cell, *(f"{sum(r[n] for r in of_one) / len(of_one):.3f}" for n in names)))
    if of_cells:
        running.show(
            ("world", "calls", "score", "a wrong line", "contradicting", "tokens"), of_cells
        )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the result file lacks, write it, show it."""
    parser = parser_of(__doc__, RESULTS / "ordinary_worlds.json", seeds=10, first=810)
    parser.add_argument("--only", nargs="*", default=["LearningFrontier"], help="strategies")
    parser.add_argument("--worlds", nargs="+", default=list(WORLDS), choices=(*WORLDS, *WRONG))
    parser.add_argument("--budgets", nargs="+", type=int, default=list(BUDGETS))
    parser.add_argument("--again", action="store_true", help="measure what the file has anew")
    asked = parser.parse_args(arguments)
    if asked.show:
        show(stored(asked.show))
        return
    runs = [r for r in stored(asked.out) if not (asked.again and r["arm"] in asked.only)]
    done = {(r["world"], r["arm"], r["budget"], r["seed"]) for r in runs}
    arms = dict.fromkeys(["without", *(BESIDE[a] for a in asked.only if a in BESIDE), *asked.only])
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    tasks = [
        (world, arm, budget, seed)
        for seed in seeds
        for world in asked.worlds
        for budget in asked.budgets
        for arm in arms
        if (world, arm, budget, seed) not in done
    ]
    for one in results(run, tasks, asked.jobs):
        runs.append(one)
        write(asked.out, {"versions": versions(), "harms": harms(runs)}, runs)
    show(runs)


if __name__ == "__main__":
    main()
