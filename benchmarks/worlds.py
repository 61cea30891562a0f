"""Does it learn whatever the wording? Simulated worlds with an exact score. NOTHING IS REAL.

    python benchmarks/worlds.py --quick                 # ten cells, seeds 0 to 3, 400 LM calls
    python benchmarks/worlds.py --jobs 2                # everything, 200, 400 and 800 calls
    python benchmarks/worlds.py --cells 'kinds/chinese/*' --rows tfgrpo --seeds 20
    python benchmarks/worlds.py --show benchmarks/results/worlds.json

**The world.** 80 training cases of 10 kinds. A case is answered right with a chance of .15 to .55,
mean .35; with the right lesson of its kind in the prompt .97; with a wrong one .05; with both the
mean. The reflection side writes a lesson about a kind with chance .6 where its prompt holds a case
of it together with its right code (feedback, label or success); a share of these is wrong, and now
and then it adds a useless line. When it changes a library or an instruction and finds a right and
a wrong text about one kind, it notices in half of the cases, and then errs with the same share.
It answers every optimizer in the same way. Demos teach the policy nothing. Scores are exact: mean
chances over 200 other cases, without luck.

**Cells.** `kinds/<wording>/<sources>/<share of wrong lessons>`: kinds named by words, by codes (K1
to K10), in Chinese; lessons without 'When'; lessons that share no word with the cases (`unlike`).
`unnamed`: operations do not say on which lessons they rest. `.25 agree`: wrong lessons about a kind
are always the same one. `broad/r/h`: ten lines for every example, of which r add .07 and h cost .1.
`crowded/r/h`: the same, but r add .25 each, and what lines add is averaged, not added up.
`leaks`: a quarter of the lessons give the answer of their own case away: they help there and cost
.02 elsewhere. `nothing/...`: nothing to learn. `graded`: 0 to 40 points. `two`: two predictors,
lessons with scopes. `perfect`: the student has 1.0 already.

**Rows.** `tfgrpo`: TrainingFreeGRPO(metric, reflection_lm=..., max_lm_calls=N), nothing else set.
`no gate`: the same with NoGate(). `gepa-8`: dspy.GEPA with minibatches of 8, 60 cases for training
and 20 for validation; the engine ends it at the same number of LM calls, and its best candidate so
far counts.

**Effects.** A stated effect is compared with the exact mean effect of the text on the training
cases, over 16 random halves (8, and their complements) of the other texts that the run states
effects for (Spearman's correlation; in a world of kinds all right lessons are worth about .062, so
it tells much only where results also state the effects of wrong and dropped texts). What is found
among results is whatever has a text and an effect.

**Seeds.** 0 to 99 are for tuning (`--quick` begins at 0), 100 and up for showing. Until all are
made, runs stand in `worlds.jsonl`, and the same command goes on from there.
"""

import fnmatch
import json
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dspy
from compare_optimizers import Observer
from running import RESULTS, append, command, parser_of, results, silence, stored, versions, write
from running import show as print_table
from scipy.stats import spearmanr
from worlds_engine import BudgetSpentError, WorldEngine, lms_of
from worlds_model import N_TRAIN, STAGES, WORDINGS, Cell, Lesson, World

from tfgrpo_dspy import NoGate, TrainingFreeGRPO
from tfgrpo_dspy.strategies import Strategy

ROWS = ("tfgrpo", "no gate", "gepa-8")
BUDGETS = (200, 400, 800)
N_VAL, MINIBATCH = 20, 8
WRONG = {"0": (0.0, False), ".25": (0.25, False), ".5": (0.5, False), ".25 agree": (0.25, True)}
QUICK = (
    *("kinds/codes/named/0", "kinds/codes/unnamed/.25", "kinds/words/unnamed/.5"),
    *("kinds/chinese/named/.25", "kinds/no when/unnamed/.25", "kinds/unlike/named/.25"),
    *("kinds/codes/named/.25 agree", "broad/5/1", "leaks", "nothing/kinds ignored"),
)
Runs = Sequence[Mapping[str, Any]]
Held = tuple[Lesson, str]
"""A lesson and its scope."""
Z_90 = 1.6449


def cells() -> dict[str, Cell]:
    """All cells by name."""
    kinds = [
        Cell(f"kinds/{wording}/{sources}/{share}", wording, sources == "named", wrong, agree)
        for wording in WORDINGS
        for sources in ("named", "unnamed")
        for share, (wrong, agree) in WRONG.items()
    ]
    others = [
        *(Cell(f"broad/{r}/{h}", n_right=r, n_harmful=h) for r, h in ((9, 0), (5, 1), (1, 5))),
        *(
            Cell(f"crowded/{r}/{h}", n_right=r, n_harmful=h, crowded=True)
            for r, h in ((2, 0), (3, 3))
        ),
        Cell("leaks", leaking=0.25),
        Cell("leaks/words", "words", leaking=0.25),
        Cell("nothing/kinds ignored", wrong=0.25, ignores=True),
        Cell("nothing/all useless", n_right=0),
        Cell("nothing/some harmful", n_right=0, n_harmful=3),
        Cell("graded", wrong=0.25, graded=True),
        Cell("two", wrong=0.25, two=True),
        Cell("perfect", wrong=0.25, perfect=True),
    ]
    return {cell.name: cell for cell in (*kinds, *others)}


def run(cell: Cell, row: str, budget: int, seed: int) -> dict[str, Any]:
    """One optimizer in one world: what it returned, measured exactly."""
    dspy.configure_cache(enable_disk_cache=False)  # no run profits from what another paid
    world = World(cell, seed)
    engine = WorldEngine(world, budget if row == "gepa-8" else None)
    student = world.student()
    began = time.process_time()
    with silence():
        if row == "gepa-8":
            program, ended = _gepa(world, engine, budget, seed)
        else:
            gate = NoGate() if row == "no gate" else None
            program = compiled(world, engine, (), budget, seed, gate=gate)
            ended = str(program.detailed_results.ended_because)
    seconds = time.process_time() - began
    held = world.held(program)
    left = Counter(own.verdict for own in set().union(*held))
    return {
        "cell": cell.name,
        "row": row,
        "budget": budget,
        "seed": seed,
        "score": world.score(held),
        "student": world.score(world.held(student)),
        "best": world.best(),
        "left": {verdict: left[verdict] for verdict in ("right", "harmful", "useless")},
        "calls": dict(engine.calls),
        "unchanged": _texts(program) == _texts(student),
        "ended": ended,
        "seconds": round(seconds, 2),
        "effects": _effects(world, getattr(program, "detailed_results", None)),
    }


def _texts(program: Any) -> list[str]:
    return [f"{own.signature.instructions} {own.demos}" for own in program.predictors()]


def compiled(
    world: World,
    engine: WorldEngine,
    strategies: Sequence[Strategy],
    budget: int | None,
    seed: int,
    **arguments: Any,
) -> Any:
    """What the optimizer returns, with these strategies; `arguments` are further ones of it.

    `engine` plays both LMs.
    """
    policy, reflection = lms_of(engine)
    optimizer = TrainingFreeGRPO(
        world.metric,
        reflection_lm=reflection,
        max_lm_calls=budget,
        strategies=tuple(strategies),
        num_threads=1,
        seed=seed,
        progress=False,
        **arguments,
    )
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
        return optimizer.compile(world.student(), trainset=world.examples())


def _gepa(world: World, engine: WorldEngine, budget: int, seed: int) -> tuple[Any, str]:
    policy, reflection = lms_of(engine)
    student, examples = world.student(), world.examples()
    observer = Observer(student)
    random.Random(seed).shuffle(examples)
    optimizer = dspy.GEPA(
        world.metric,
        max_metric_calls=4 * budget,  # the engine ends it
        reflection_lm=reflection,
        reflection_minibatch_size=MINIBATCH,
        perfect_score=40.0 if world.cell.graded else 1.0,
        num_threads=1,
        seed=seed,
        gepa_kwargs={"callbacks": [observer]},
    )
    train, val = examples[N_VAL:], examples[:N_VAL]
    try:
        with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
            return optimizer.compile(student, trainset=train, valset=val), "gepa-8"
    except BudgetSpentError:
        return observer.best or student, "budget"


# ---------------------------------------------------------------- effects, stated and true
def _stated(value: Any) -> Iterator[Mapping[str, Any]]:
    """Whatever the results hold that has a text and an effect with its standard error."""
    if isinstance(value, Mapping):
        effect = value.get("effect")
        if "text" in value and isinstance(effect, Mapping) and effect.get("standard_error"):
            yield value
        for inner in value.values():
            yield from _stated(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _stated(inner)


def _effects(world: World, results: Any) -> list[dict[str, Any]]:
    """Each stated effect beside the true one; 1 is what a right answer adds to the score."""
    stated: dict[Held, Mapping[str, Any]] = {}
    for own in _stated(results.to_dict()) if results is not None else ():
        for lesson in world.found(own["text"])[:1]:
            stated[lesson, own.get("scope", "*")] = own
    return [
        {
            "estimate": round(own["effect"]["estimate"] / world.cell.points, 4),
            "standard_error": round(own["effect"]["standard_error"] / world.cell.points, 4),
            "true": round(true_effect(world, key, list(stated)), 3),
        }
        for key, own in stated.items()
    ]


def true_effect(world: World, key: Held, held: Sequence[Held]) -> float:
    """What a lesson adds to the exact score on the training cases, besides halves of the others."""

    def score(given: Sequence[Held]) -> float:
        by_stage = [{own for own, scope in given if scope in ("*", stage)} for stage in STAGES]
        return world.score(by_stage, range(N_TRAIN))

    others = [other for other in held if other != key]
    draw = random.Random(f"halves/{world.seed}/{key}")
    total = 0.0
    for _ in range(8):
        chosen = draw.sample(others, len(others) // 2)
        for half in (chosen, [other for other in others if other not in chosen]):
            total += score([*half, key]) - score(half)
    return total / 16


# ---------------------------------------------------------------- the command
def _key(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["cell"], record["row"], record["budget"], record["seed"]


def show(results: Mapping[str, Any]) -> None:
    """Prints a result file."""
    runs, seeds = results["runs"], results["seeds"]
    rows = list(dict.fromkeys(run["row"] for run in runs))
    print(f"{results['command']}  (seeds {seeds[0]} to {seeds[-1]}; simulated)")
    for budget in sorted({run["budget"] for run in runs}):
        of_budget = [run for run in runs if run["budget"] == budget]
        lines = [
            _line(cell, [run for run in of_budget if run["cell"] == cell], rows)
            for cell in dict.fromkeys(run["cell"] for run in of_budget)
        ]
        title = f"{budget} LM calls: held-out score (harmful left)"
        print_table(("cell", "student", "best", *rows, "unchanged"), lines, title)
    title = "Stated effects: 90 % intervals that hold the true one, rank correlation"
    print_table(("cells", "effects", "covered", "rank"), list(_covered(runs)), title)
    print(f"{len(runs)} runs in {results['seconds']} s")


def _line(cell: str, runs: Runs, rows: Sequence[str]) -> list[str]:
    by_row = {row: [run for run in runs if run["row"] == row] for row in rows}
    scores = [
        f"{mean(own, 'score'):.3f} ({fmean(r['left']['harmful'] for r in own):.1f})" if own else ""
        for own in by_row.values()
    ]
    first = next(own for own in by_row.values() if own)
    unchanged = f"{mean(first, 'unchanged'):.0%}"
    return [cell, f"{mean(runs, 'student'):.3f}", f"{mean(runs, 'best'):.3f}", *scores, unchanged]


def mean(runs: Runs, name: str) -> float:
    """The mean of a figure over runs."""
    return fmean(float(run[name]) for run in runs)


def _covered(runs: Runs) -> Iterator[Sequence[str]]:
    """All stated effects of this optimizer together, and those of each family of cells."""
    ours = [run for run in runs if run["row"] == "tfgrpo"]
    for family in ("all", *dict.fromkeys(run["cell"].split("/")[0] for run in ours)):
        effects = [
            effect
            for run in ours
            if family in ("all", run["cell"].split("/")[0])
            for effect in run["effects"]
        ]
        if len(effects) < 10:
            continue
        stated, true = ([own[name] for own in effects] for name in ("estimate", "true"))
        covered = fmean(
            abs(own["estimate"] - own["true"]) <= Z_90 * own["standard_error"] for own in effects
        )
        rank = spearmanr(stated, true).statistic
        yield family, str(len(effects)), f"{covered:.0%}", f"{rank:.2f}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what was asked for, writes it, shows it."""
    parser = parser_of(__doc__, RESULTS, seeds=0, first=None)
    parser.add_argument("--cells", nargs="+", default=["*"], help="names, or patterns with *")
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--budgets", nargs="+", type=int)
    parser.add_argument("--quick", action="store_true", help="ten cells, 4 seeds, 400 calls")
    asked = parser.parse_args(arguments)
    if asked.show:
        show(json.loads(asked.show.read_text()))
        return
    known = cells()
    patterns = QUICK if asked.quick and asked.cells == ["*"] else asked.cells
    names = [n for n in known if any(fnmatch.fnmatchcase(n, pattern) for pattern in patterns)]
    if not names:
        parser.error(f"--cells {' '.join(patterns)}: no such cell; there are {', '.join(known)}.")
    budgets = asked.budgets or ([400] if asked.quick else BUDGETS)
    first = (0 if asked.quick else 100) if asked.first_seed is None else asked.first_seed
    seeds = range(first, first + (asked.seeds or (4 if asked.quick else 10)))
    tasks = [(known[n], r, b, s) for s in seeds for b in budgets for n in names for r in asked.rows]
    began, partial = time.monotonic(), asked.out / "worlds.jsonl"
    found = {_key(record): record for record in stored(partial)}
    missing = [task for task in tasks if (task[0].name, *task[1:]) not in found]
    for record in results(run, missing, asked.jobs):
        append(partial, record)
        found[_key(record)] = record
    runs = [found[cell.name, *others] for cell, *others in tasks]
    head = {
        "command": command("worlds.py", arguments),
        "versions": versions("gepa", "numpy"),
        "python": sys.version.split()[0],
        "seeds": list(seeds),
        "seconds": round(time.monotonic() - began),
    }
    write(asked.out / "worlds.json", head, runs)
    partial.unlink(missing_ok=True)
    show({**head, "runs": runs})


if __name__ == "__main__":
    main()
