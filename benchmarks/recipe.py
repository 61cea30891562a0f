"""Which batch size, group size and number of lessons; when to stop. SIMULATED; NOTHING IS REAL.

    python benchmarks/recipe.py --jobs 2 [--first-seed 100] [--seeds 6]

The worlds are those of `worlds.py`. A figure is the share of the attainable gain of a run, exact:
(score - student) / (score with all right lessons - student); its mean over cells and seeds.

**Sizes.** Group size and batch size are set; all else is derived. `derived` sets nothing.
**Lessons.** UpdateLibrary is shown only so many lessons of each update, the best supported ones.
**Phases.** The kinds of the cases come in two halves, one after the other; `derived` stacks all.
**Stop.** After how many groups in a row, all of the best score, a run ends that has no budget: in a
world whose student is perfect, and in three where .97 is the best chance.
**Indicators.** What is known after a quarter of the LM calls, and its rank correlation (Spearman)
with the share of the gain at the end; over all derived runs.
"""

import contextlib
import os
import random
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dspy
from running import RESULTS, command, parser_of, results, show, silence, stored, versions, write
from scipy.stats import spearmanr
from worlds import cells, compiled
from worlds_engine import WorldEngine
from worlds_model import World

from tfgrpo_dspy.results import ScoreSummary
from tfgrpo_dspy.run import planning
from tfgrpo_dspy.strategies.base import Ask, BatchPlan, Proposed, Strategy, UpdateContext

CELLS = ("kinds/words/named/.25", "kinds/codes/unnamed/.5", "kinds/chinese/named/0", "broad/5/1",
         "leaks")  # fmt: skip
BUDGETS = (200, 800)
GROUP_SIZES, BATCH_SIZES, LESSONS, STOPS = (2, 3, 5), (4, 8, 20), (1, 2, 4), (10, 20, 40, None)
STOP_CELLS = ("perfect", "kinds/words/named/0", "kinds/codes/named/.25", "leaks")


@dataclass(frozen=True)
class BestLessons(Strategy):
    """UpdateLibrary is shown the `n` lessons that most groups support."""

    n: int

    def propose(self, context: UpdateContext, ask: Ask) -> Proposed:  # noqa: ARG002
        return Proposed(context.lessons[: self.n])


@dataclass(frozen=True)
class Phased(Strategy):
    """Trains on one half of the kinds first, and then on the other, as long as on the first."""

    world: World

    def choose(self, plan: BatchPlan) -> Mapping[int, int]:
        times = Counter([s.group.example for s in plan.past] + [*plan.under_way])
        phase = times.total() // len(plan.training) % 2
        of_phase = [e for e in plan.training if self._kind(plan.trainset[e]) % 2 == phase]
        chance = random.Random(f"{plan.seed}/{plan.update}")
        order = sorted(of_phase, key=lambda example: (times[example], chance.random()))
        return dict(zip(order, plan.sizes.values(), strict=False))

    def _kind(self, example: Any) -> int:
        return self.world.kind(self.world.cases_in(example.request)[0])


Arm = tuple[str, Any]


def run(cell: str, budget: int | None, arm: Arm, seed: int) -> dict[str, Any]:
    """One run: its share of the gain, its calls, and what was known after a quarter of them."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    kind, value = arm
    world = World(cells()[cell], seed)
    engine = WorldEngine(world)
    arguments: dict[str, Any] = {}
    if kind == "sizes":
        arguments = dict(zip(("group_size", "batch_size"), value, strict=True))
    strategies: tuple[Strategy, ...] = (BestLessons(value),) if kind == "lessons" else ()
    strategies = (Phased(world),) if kind == "phased" else strategies
    with silence(), _stopping_after(value) if kind == "stop" else contextlib.nullcontext():
        program = compiled(world, engine, strategies, budget, seed, **arguments)
    score, student = world.score(world.held(program)), world.score(world.held(world.student()))
    best = world.best()
    share = (score - student) / (best - student) if best > student else score
    return {
        **{"cell": cell, "budget": budget, "arm": [kind, value], "seed": seed},
        **{"share": share, "calls": engine.calls.total(), "score": score},
        **{"early": _early(program.detailed_results)},
    }


@contextlib.contextmanager
def _stopping_after(n_groups: int | None) -> Iterator[None]:
    usual, planning.SATURATED_GROUPS = planning.SATURATED_GROUPS, n_groups or sys.maxsize
    try:
        yield
    finally:
        planning.SATURATED_GROUPS = usual


def _early(results: Any) -> dict[str, float]:
    """What is known after a quarter of the LM calls of training."""
    updates = [update for update in results.updates if update.groups]
    most = updates[-1].n_lm_calls / 4 if updates else 0
    early = [update for update in updates if update.n_lm_calls <= most] or updates[:1]
    groups = [group for update in early for group in update.groups]
    changes = [change for update in early for change in update.changes]
    scores = [score for update in early for score in update.scores]
    return {
        "groups with contrast": fmean(g.used_as == "contrast" for g in groups) if groups else 0.0,
        "lessons for each group": sum(len(u.lessons) for u in early) / max(1, len(groups)),
        "experiences that proved useful": sum(change.kind == "settled" for change in changes),
        "experiences dropped": sum(change.kind == "dropped" for change in changes),
        "mean training score": fmean(scores) if scores else 0.0,
    }


def tables(runs: Sequence[Mapping[str, Any]]) -> None:
    """Print shares for sizes and lessons, then the stop, then the indicators."""
    of_arm = defaultdict(list)
    for each in runs:
        of_arm[each["arm"][0], str(each["arm"][1]), each["budget"]].append(each)
    settings = dict.fromkeys(key[:2] for key in of_arm if key[0] != "stop")
    shares = [
        (
            f"{kind} {value}",
            *(_summary([e["share"] for e in of_arm[kind, value, b]]) for b in BUDGETS),
        )
        for kind, value in settings
    ]
    show(("setting", *map(str, BUDGETS)), shares, "Share of the attainable gain (SIMULATED)")
    stop: list[tuple[str, ...]] = []
    for kind, value, budget in of_arm:
        for cell in STOP_CELLS if kind == "stop" else ():
            own = [each for each in of_arm[kind, value, budget] if each["cell"] == cell]
            scores, calls = [e["score"] for e in own], [e["calls"] for e in own]
            stop.append((value, cell, f"{fmean(scores):.3f}", f"{fmean(calls):.0f}"))
    show(("groups in a row", "cell", "score", "LM calls"), stop, "Stop (SIMULATED)")
    early: list[tuple[str, ...]] = []
    derived = {b: of_arm["derived", "None", b] for b in BUDGETS}
    for name in derived[BUDGETS[0]][0]["early"]:
        row = [spearmanr([e["early"][name] for e in d], [e["share"] for e in d]).statistic
               for d in derived.values()]  # fmt: skip
        early.append((name, *(f"{each:+.2f}" for each in row)))
    show(("after a quarter", *map(str, BUDGETS)), early, "Indicators: rank correlation")


def _summary(values: Sequence[float]) -> str:
    summary = ScoreSummary.of(values)
    return "" if summary is None else str(summary).partition(" on")[0]


def main() -> None:
    """Run all arms, print the tables, write JSON."""
    parser = parser_of(__doc__, RESULTS / "recipe.json", seeds=6, first=100)
    parser.add_argument("--only", nargs="+", help="arms, such as derived phased")
    given = parser.parse_args()
    if given.show:
        tables(stored(given.show))
        return
    sizes = [("sizes", (group, batch)) for group in GROUP_SIZES for batch in BATCH_SIZES]
    arms: list[Arm] = [("derived", None), *sizes, *(("lessons", n) for n in LESSONS)]
    arms = [arm for arm in [*arms, ("phased", 2)] if not given.only or arm[0] in given.only]
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    tasks = [(c, b, arm, s) for c in CELLS for b in BUDGETS for arm in arms for s in seeds]
    if not given.only:
        tasks += [(c, None, ("stop", n), s) for c in STOP_CELLS for n in STOPS for s in seeds]
    runs = [*results(run, tasks, given.jobs)]
    head = {"command": command("recipe.py", None), "versions": versions(), "seeds": list(seeds)}
    write(given.out, head, runs)
    tables(stored(given.out))


if __name__ == "__main__":
    main()
