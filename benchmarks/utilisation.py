"""How busy many threads are, and what that costs in learning. SIMULATED: worlds of `worlds.py`.

    python benchmarks/utilisation.py                    # the published tables, about half an hour
    python benchmarks/utilisation.py --quick            # two timed seeds and four others, from 0
    python benchmarks/utilisation.py --show benchmarks/results/utilisation.json

`TrainingFreeGRPO(metric, reflection_lm=..., max_lm_calls=N, num_threads=T)`, nothing else set, on
80 cases of ten kinds; N also None, the default: no budget. Every LM call sleeps for a time with a
heavy tail: lognormal, sigma 1, median .25 s (mean .41 s; one call in a hundred takes 2.6 s or
more), drawn from seed, prompt and rollout id, so it is the same in every run. What engine and
optimizer compute comes on top, as it would.

**Utilisation** is the time that calls slept, over threads x wall time: of the *training*, which
ends when the last update is decided (*least*: the lowest of all runs), and of the *whole* run, with
the race on the validation set. *Work* is the time that all calls slept. Timed runs sleep beside
each other (`--jobs`); then runs without sleep are made for scores, as latencies change no library:
*same* says in how many timed runs the library is the one of the run without sleep.

**Score** is the exact held-out score of the result (see `worlds.py`), beside that of the same seed
and budget *without overlap* (one thread, `max_staleness=0`) and *with one thread* (its own
schedule).

**Beside others**: the time to the end of a run of 400 LM calls with 16 threads and the same sleeps,
in worlds of `random_worlds.py`: this optimizer, GEPA, SIMBA and MIPROv2, each with the settings of
`compare_optimizers.py`. `--only others` makes these runs alone, and leaves the rest of the file.

**Seeds**: 0 to 99 are for choosing, 100 and up for showing.
"""

import hashlib
import json
import math
import os
import random
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

import dspy
import random_worlds
import running
from compare_budget import Account
from compare_cells import Options, optimized, setup_of
from compare_optimizers import OPTIMIZERS
from random_world_engine import RandomEngine
from running import command, results, versions, write
from worlds import cells
from worlds_engine import WorldEngine, lms_of
from worlds_model import World

from tfgrpo_dspy import Execution, TrainingFreeGRPO
from tfgrpo_dspy.events import Event, UpdateDecided

OUT = running.RESULTS / "utilisation.json"
CELLS = ("kinds/words/named/.25", "kinds/codes/unnamed/.25", "kinds/words/unnamed/.5", "broad/5/1")
BUDGETS, THREADS, TIMED = (400, 800, None), (4, 8, 16), CELLS[:2]
USUAL_THREADS = 8
"""Up to so many threads, the schedule is that of one."""
MEDIAN_S, SIGMA = 0.25, 1.0
JOBS = 6
BAR, LOSS, BAR_THREADS = 0.6, 0.01, 16
"""What is asked of 16 threads: utilisation at least, and loss of score at most."""
Case = tuple[str, int | None, int, int, int | None, float]
"""Cell, budget (None: none), seed, threads, staleness (None: derived), median sleep in seconds."""


OTHERS, BUDGET_OF_OTHERS = ("tfgrpo", "gepa", "gepa-mb8", "simba", "mipro"), 400


class Sleeping(WorldEngine):
    """Sleeps before it answers, and notes when it slept."""

    def __init__(self, world: Any, median_s: float) -> None:
        super().__init__(world)
        self.slept: list[tuple[float, float]] = []
        self.median_s = median_s
        self._never = threading.Event()

    def complete(self, request: Any) -> Any:
        if self.median_s:
            asked = f"{self.world.seed}/{request.config.seed}/{request.system}/{request.messages}"
            drawn = random.Random(hashlib.sha256(asked.encode()).digest())
            began = time.perf_counter()
            self._never.wait(self.median_s * math.exp(drawn.gauss(0.0, SIGMA)))
            self.slept.append((began, time.perf_counter()))
        return super().complete(request)


class SleepingEngine(Sleeping):
    """Of a world of `worlds.py`."""


class SleepingRandomEngine(Sleeping, RandomEngine):
    """Of a random world."""


def beside(row: str, seed: int) -> dict[str, Any]:
    """One run of an optimizer in a random world, with 16 threads, measured."""
    with running.silence():
        dspy.configure_cache(enable_disk_cache=False)
        world = random_worlds.World(random_worlds.drawn_traits(seed, ""), seed)
        task, engine = random_worlds.task_of(world), SleepingRandomEngine(world, 0.0)
        account, options = Account(BUDGET_OF_OTHERS), Options(n_threads=BAR_THREADS)
        setup = setup_of(
            task, random_worlds.lms_of(engine), account, BUDGET_OF_OTHERS, seed, options
        )
        engine.slept, engine.median_s = [], MEDIAN_S  # not while the student's calls are counted
        began = time.perf_counter()
        program, ended = optimized(OPTIMIZERS[row], setup)
        ended_at = time.perf_counter()
    gained = world.score(world.told(program)) - world.score(world.told(task.student()))
    return {
        "row": row,
        "seed": seed,
        "calls": account.n_calls,
        "wall_s": ended_at - began,
        "work_s": sum(end - start for start, end in engine.slept),
        "whole": used(engine.slept, began, ended_at, BAR_THREADS),
        "gained": gained,
        "ended": ended,
    }


def run(*case: Any) -> dict[str, Any]:
    """One compile of a `Case`, measured."""
    cell, budget, seed, threads, staleness, median_s = case
    dspy.configure_cache(enable_disk_cache=False)  # a new one: no run profits from another
    world = World(cells()[cell], seed)
    engine = SleepingEngine(world, median_s)
    policy, reflection = lms_of(engine)
    trained_s = [0.0]

    def note(event: Event) -> None:
        if isinstance(event, UpdateDecided):
            trained_s.append(time.perf_counter())

    optimizer = TrainingFreeGRPO(
        world.metric,
        reflection_lm=reflection,
        max_lm_calls=budget,
        num_threads=threads,
        seed=seed,
        progress=False,
        on_event=note,
        execution=None if staleness is None else Execution(max_staleness=staleness),
    )
    began = time.perf_counter()
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
        program = optimizer.compile(world.student(), trainset=world.examples())
    ended = time.perf_counter()
    results = program.detailed_results
    return {
        **dict(zip(("cell", "budget", "seed", "threads", "asked", "median_s"), case, strict=True)),
        "batch": results.schedule["batch_size"],
        "staleness": results.schedule["max_staleness"],
        "score": world.score(world.held(program)),
        "library": hashlib.sha256(json.dumps(results.library).encode()).hexdigest()[:16],
        "calls": engine.calls.total(),
        "updates": len(results.updates),
        "wall_s": ended - began,
        "work_s": sum(end - start for start, end in engine.slept),
        "training": used(engine.slept, began, trained_s[-1], threads),
        "whole": used(engine.slept, began, ended, threads),
    }


def used(slept: Sequence[tuple[float, float]], began: float, ended: float, threads: int) -> float:
    """The share of the threads' time that was slept."""
    busy = sum(max(0.0, min(end, ended) - start) for start, end in slept)
    return busy / (threads * (ended - began))


# ---------------------------------------------------------------- tables
def rows(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row for each budget and number of threads."""
    awake = {_key(r, r["threads"], r["asked"]): r for r in runs if not r["median_s"]}
    found = []
    for budget in sorted({r["budget"] for r in runs}, key=lambda n: n or math.inf):
        for threads in (1, *THREADS):
            planned = 1 if threads <= USUAL_THREADS else threads
            timed = [r for r in runs if r["median_s"] and r["budget"] == budget]
            timed = [r for r in timed if r["threads"] == threads]
            own = [r for r in awake.values() if (r["budget"], r["threads"]) == (budget, planned)]
            own = [r for r in own if planned > 1 or r["asked"] is None]
            row = {name: own[0][name] for name in ("budget", "batch", "staleness")}
            row |= {"threads": threads, "score": fmean(r["score"] for r in own)}
            if timed:
                names = ("training", "whole", "wall_s", "work_s")
                row |= {name: fmean(r[name] for r in timed) for name in names}
                row["least"] = min(r["training"] for r in timed)
                twins = [awake[_key(r, planned, r["asked"])] for r in timed]
                same = sum(r["library"] == t["library"] for r, t in zip(timed, twins, strict=True))
                row["same"] = f"{same} of {len(timed)}"
            for name, asked in (("no overlap", 0), ("one thread", None)):
                gains = [r["score"] - awake[_key(r, 1, asked)]["score"] for r in own]
                error = stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
                row[name] = (fmean(gains), error)
            found.append(row)
    return found


def _key(run: Mapping[str, Any], threads: int, asked: int | None) -> tuple[Any, ...]:
    return (run["cell"], run["budget"], run["seed"], threads, asked)


def show(shown: Mapping[str, Any]) -> None:
    """Prints a result file, and whether the bar is reached."""
    heads = ("budget", "threads", "batch", "staleness", "training", "least", "whole")
    heads += ("wall s", "work s", "same", "score", "- no overlap", "- one thread")
    table, lines = [], rows(shown["runs"])
    for row in lines:
        timed = [f"{row[n]:.2f}" if n in row else "" for n in ("training", "least", "whole")]
        timed += [f"{row[n]:.0f}" if n in row else "" for n in ("wall_s", "work_s")]
        beside = [f"{row[n][0]:+.3f} ± {row[n][1]:.3f}" for n in ("no overlap", "one thread")]
        first = [_named(row["budget"]), *(str(row[n]) for n in ("threads", "batch", "staleness"))]
        last = [row.get("same", ""), f"{row['score']:.3f}", *beside]
        table.append([*first, *timed, *last])
    seeds = f"seeds {shown['timed_seeds']} timed, {shown['seeds']} for scores"
    running.show(heads, table, f"{seeds}; simulated; ± one standard error")
    for row in lines:
        if row["threads"] == BAR_THREADS and "training" in row:
            lost = min(row["no overlap"][0], row["one thread"][0])
            told = "reached" if row["training"] >= BAR and lost >= -LOSS else "NOT reached"
            print(
                f"{_named(row['budget'])}, {BAR_THREADS} threads: utilisation at least {BAR}, "
                f"at a loss of score of at most {LOSS}: {told}"
            )


def show_others(runs: Sequence[Mapping[str, Any]]) -> None:
    """Prints the table of the time to the end, beside other optimizers."""
    table = []
    for row in OTHERS:
        own = [r for r in runs if r["row"] == row]
        means = [fmean(r[name] for r in own) for name in ("calls", "wall_s", "work_s")]
        shares = [f"{fmean(r[name] for r in own):.2f}" for name in ("whole", "gained")]
        table.append([row, *(f"{mean:.0f}" for mean in means), *shares])
    heads = ("optimizer", "calls", "wall s", "work s", "whole", "gained")
    seeds = sorted({r["seed"] for r in runs})
    running.show(heads, table, f"{BAR_THREADS} threads; seeds {seeds}; simulated")


def _named(budget: int | None) -> str:
    return "no budget" if budget is None else f"{budget} LM calls"


# ---------------------------------------------------------------- the command
def main() -> None:
    """Runs everything, writes it, shows it."""
    parser = running.parser_of(__doc__, OUT, seeds=12, first=100)
    parser.set_defaults(jobs=JOBS)
    parser.add_argument("--timed", type=int, default=5, help="how many of them also with sleep")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", choices=["others"])
    asked = parser.parse_args()
    shown = json.loads((asked.show or asked.out).read_text()) if asked.show or asked.only else {}
    if asked.show:
        show(shown)
        show_others(shown["others"])
        return
    if asked.quick:
        asked.first_seed, asked.seeds, asked.timed = 0, 4, 2
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    timed_seeds = seeds[: asked.timed]
    others = [*results(beside, [(row, n) for n in timed_seeds for row in OTHERS], asked.jobs)]
    show_others(others)
    if asked.only:
        write(
            asked.out,
            {k: v for k, v in shown.items() if k != "runs"} | {"others": others},
            shown["runs"],
        )
        return
    done = [*results(run, _cases(TIMED, timed_seeds, THREADS, MEDIAN_S, None), asked.jobs)]
    awake = _cases(CELLS, seeds, (1, BAR_THREADS), 0.0, None) + _cases(CELLS, seeds, (1,), 0.0, 0)
    done += results(run, awake, os.cpu_count() or 1)
    head = {
        "command": command("utilisation.py", None),
        "versions": versions(),
        "python": sys.version.split()[0],
        "timed_seeds": [*timed_seeds],
        "seeds": [*seeds],
        "others": others,
    }
    write(asked.out, head, done)
    show({**head, "runs": done})


def _cases(
    names: Sequence[str],
    seeds: Sequence[int],
    threads: Sequence[int],
    median_s: float,
    staleness: int | None,
) -> list[Case]:
    return [
        (name, budget, seed, n, staleness, median_s)
        for name in names
        for budget in BUDGETS
        for seed in seeds
        for n in threads
    ]


if __name__ == "__main__":
    main()
