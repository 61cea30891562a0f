"""The rows of `speed.py`: which measurements each is made of, and how they compare with its bar.

A row gives lines: `what` was measured, figures by name, and where there is a bar, the bar in words
and whether it is `reached`.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from speed_graph import Shape, compile_graph, makespan, work_s
from speed_lm import Latency
from speed_others import OTHERS

Cell = dict[str, Any]
Line = dict[str, Any]
CELLS = Path(__file__).parent / "speed_cells.py"
JOBS, JOBS_THAT_WAIT = 2, 2
"""So many runs at once whose time does not count, or that mostly sleep."""
TOO_LONG_S = 900
N_DRAWS = 40
"""Of so many draws of latencies those are measured whose ideal is nearest to the median."""


def measured(cells: Sequence[Cell], jobs: int = 1) -> list[Cell]:
    """The result of each, in a process of its own."""

    def one(cell: Cell) -> Cell:
        command = [sys.executable, str(CELLS), json.dumps(cell)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TOO_LONG_S)
        if done.returncode:
            message = f"{cell} failed:\n{done.stderr[-2000:]}"
            raise RuntimeError(message)
        return json.loads(done.stdout.splitlines()[-1])

    with ThreadPoolExecutor(jobs) as pool:
        return list(pool.map(one, cells))


def line(what: str, figures: Cell, bar: str = "", reached: bool | None = None) -> Line:
    return {"what": what, **figures, "bar": bar, "reached": reached}


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


# ---------------------------------------------------------------------- overhead

OVERHEAD = ((50, 3, 9, 1), (500, 1, 7, 1), (5_000, 1, 1, 3))
"""Examples, epochs, rounds in a process, processes."""
ARMS = {"memory": "ours, store in memory", "disk": "ours, store on disk", "reference": "reference"}


def overhead() -> list[Line]:
    lines = []
    for n_examples, epochs, rounds, processes in OVERHEAD:
        common = {"n_examples": n_examples, "rounds": rounds}
        cell = {"kind": "overhead", "epochs": epochs, **common}
        parts = measured([cell] * processes)
        merged = {**parts[0], "rounds": [r for part in parts for r in part["rounds"]]}
        lines += [_overhead_line(n_examples, merged, arm) for arm in ARMS]
        rounds_of_others = 3 if n_examples <= 500 else 1
        cell = {"kind": "overhead_of_others", **common, "rounds": rounds_of_others}
        (theirs,) = measured([cell])
        names = [name for name in theirs["n_calls"] if name != "bare"]
        lines += [_overhead_line(n_examples, theirs, name) for name in names]
    return lines


def _overhead_line(n_examples: int, cell: Cell, arm: str) -> Line:
    n, n_bare = cell["n_calls"][arm], cell["n_calls"]["bare"]
    own = [(r[arm], r["bare"]) for r in cell["rounds"]]
    walls = [(a["wall_s"] / n * 1e3, b["wall_s"] / n_bare * 1e3) for a, b in own]
    cpus = [(a["cpu_s"] / n * 1e3, b["cpu_s"] / n_bare * 1e3) for a, b in own]
    ratio, added_ms = median(a / b for a, b in walls), median(a - b for a, b in walls)
    figures = {
        "examples": n_examples,
        "pairs": len(own),
        "calls": n,
        "ms_per_call": median(a for a, _ in walls),
        "bare_ms": median(b for _, b in walls),
        "ratio": ratio,
        "added_ms": added_ms,
        "cpu_ratio": median(a / b for a, b in cpus),
        "cpu_added_ms": median(a - b for a, b in cpus),
    }
    if arm == "memory":
        return line(ARMS[arm], figures, "ratio <= 1.25", ratio <= 1.25)
    if arm == "disk":
        return line(ARMS[arm], figures, "added_ms <= 0.4", added_ms <= 0.4)
    return line(ARMS.get(arm, arm), figures)


# ---------------------------------------------------------------------- latency

UTILISATION_BARS = {0: 0.55, 1: 0.85, 2: 0.92}
SHARE_BAR = 0.95


def typical_draws(n: int, shape: Cell, factor: float, threads: int) -> list[int]:
    """Of `N_DRAWS`, the n whose ideal utilisation is nearest to the median of all."""

    def ideal(draw: int) -> float:
        latency = Latency(reflection_factor=factor, draw=draw)
        graph = compile_graph(Shape(**shape, seed=draw), latency)
        return work_s(graph) / (threads * makespan(graph, threads))

    ideals = {draw: ideal(draw) for draw in range(N_DRAWS)}
    middle = median(ideals.values())
    return sorted(ideals, key=lambda draw: abs(ideals[draw] - middle))[:n]


def timed(
    schedule: str, draws: Sequence[int], threads: int, shape: Cell, factor: float = 1.0
) -> list[Cell]:
    """A cell for each draw, which is the seed of the run too."""
    return [
        {
            "kind": "timed",
            "schedule": schedule,
            "threads": threads,
            "shape": {**shape, "seed": draw},
            "latency": {"reflection_factor": factor, "draw": draw},
        }
        for draw in draws
    ]


@dataclass(frozen=True)
class Setting:
    """Under which circumstances utilisation is measured; `draws` each are a run."""

    name: str
    threads: int = 16
    n_trials: int = 0
    factor: float = 1.0
    staleness: tuple[int, ...] = (0, 1, 2)
    draws: int = 1
    jobs: int = JOBS_THAT_WAIT


SETTINGS = (
    Setting("16 threads", draws=3),
    Setting("16 threads, gate", n_trials=20),
    Setting("16 threads, reflection x 3", factor=3.0),
    Setting("64 threads", 64, jobs=1),
    Setting("64 threads, reflection x 3", 64, factor=3.0, staleness=(1,), jobs=1),
)


def utilisation() -> list[Line]:
    """Ours with every staleness; the reference's schedule, and bare calls, for an epoch."""
    lines = []
    for setting in SETTINGS:
        cells: list[tuple[str, Cell]] = []
        for staleness in setting.staleness:
            shape = {"staleness": staleness, "n_trials": setting.n_trials}
            draws = typical_draws(setting.draws, shape, setting.factor, setting.threads)
            own = timed("ours", draws, setting.threads, shape, setting.factor)
            cells += [(f"ours, max_staleness={staleness}", cell) for cell in own]
        schedules = ["reference"] * (not setting.n_trials) + ["bare calls"] * (setting.factor == 1)
        for schedule in schedules:
            (cell,) = timed(schedule, [0], setting.threads, {"epochs": 1}, setting.factor)
            cells.append((schedule, cell))
        done = measured([cell for _, cell in cells], setting.jobs)
        for what in dict.fromkeys(what for what, _ in cells):
            of_it = [d for d, (name, _) in zip(done, cells, strict=True) if name == what]
            lines.append(_utilisation_line(f"{setting.name}: {what}", of_it))
    return lines + _utilisation_of_others()


def _utilisation_line(what: str, cells: Sequence[Cell]) -> Line:
    share = median(cell["share_of_ideal"] for cell in cells)
    reaches = median(cell["utilisation"] for cell in cells)
    figures = {
        "runs": len(cells),
        "calls": sum(cells[0]["n_calls"].values()),
        "wall_s": median(cell["wall_s"] for cell in cells),
        "utilisation": reaches,
        "ideal": median(cell["ideal_utilisation"] for cell in cells),
        "share_of_ideal": share,
        "cpu_ms_per_call": median(c["cpu_s"] * 1e3 / sum(c["n_calls"].values()) for c in cells),
        "same_graph": all(cell["is_same_graph"] for cell in cells),
    }
    if "ours" not in what:
        return line(what, figures)
    if not what.startswith("16 threads: "):
        return line(what, figures, f"share >= {SHARE_BAR}", share >= SHARE_BAR)
    least = UTILISATION_BARS[int(what[-1])]
    bar = f"utilisation >= {least}, share >= {SHARE_BAR}"
    return line(what, figures, bar, reaches >= least and share >= SHARE_BAR)


def _utilisation_of_others() -> list[Line]:
    common = {"kind": "timed_other", "threads": 16, "latency": {}}
    done = measured([{**common, "optimizer": name} for name in OTHERS], JOBS_THAT_WAIT)
    return [
        line(
            f"16 threads: {name}",
            {
                "runs": 1,
                "calls": sum(cell["n_calls"].values()),
                "wall_s": cell["wall_s"],
                "utilisation": cell["utilisation"],
            },
        )
        for name, cell in zip(OTHERS, done, strict=True)
    ]


def wall() -> list[Line]:
    """The same questions, answers and latencies: the reference's schedule over ours."""
    draws = typical_draws(3, {"staleness": 1}, 1.0, 16)
    schedules = {
        "reference": timed("reference", draws, 16, {}),
        "ours": timed("ours", draws, 16, {"staleness": 1}),
        "ours, its calls": timed("ours", draws, 16, {"staleness": 1, "all_calls": True}),
    }
    cells = [cells[n] for n in range(len(draws)) for cells in schedules.values()]
    done = measured(cells, JOBS_THAT_WAIT)
    by = {name: done[at :: len(schedules)] for at, name in enumerate(schedules)}
    lines = []
    for name, own in by.items():
        pairs = list(zip(by["reference"], own, strict=True))
        ratio = median(reference["wall_s"] / cell["wall_s"] for reference, cell in pairs)
        figures = {
            "runs": len(own),
            "calls": median(sum(cell["n_calls"].values()) for cell in own),
            "wall_s": median(cell["wall_s"] for cell in own),
            "reference_over_it": ratio,
            "ideal": median(r["ideal_s"] / cell["ideal_s"] for r, cell in pairs),
            "share_of_ideal": median(cell["share_of_ideal"] for cell in own),
        }
        is_barred = name == "ours"
        bar = "reference_over_it >= 3.0" if is_barred else ""
        lines.append(line(name, figures, bar, ratio >= 3.0 if is_barred else None))
    return lines


# ---------------------------------------------------------------------- memory, scale, coordinator

OURS = ("ours, store in memory", "ours, store on disk")
MEMORY_BAR_MB = 60.0
SIZES = (50, 500, 5_000, 50_000)
SCALE_ROUNDS = 3
FLAT = 1.1
COORDINATOR_BAR = 500


def memory() -> list[Line]:
    """Peak resident size above that before the run; for two also without DSPy's call history."""
    with_both = (OURS[0], "bare")
    pairs = [(name, True) for name in (*OURS, "bare", *OTHERS)] + [(n, False) for n in with_both]
    common = {"kind": "memory", "n_examples": 5_000, "epochs": 1}
    cells = [{**common, "optimizer": name, "history": history} for name, history in pairs]
    done = dict(zip(pairs, measured(cells, JOBS), strict=True))
    lines = []
    for name, has_history in pairs:
        if not has_history:
            continue
        growth = done[name, True]["growth_mb"]
        figures = {
            "calls": done[name, True]["n_calls"],
            "before_mb": done[name, True]["before_mb"],
            "growth_mb": growth,
            "above_bare_mb": growth - done["bare", True]["growth_mb"],
            "seconds": done[name, True]["wall_s"],
        }
        if name in with_both:
            without = done[name, False]["growth_mb"]
            figures |= {"without_history_mb": without, "history_mb": growth - without}
        barred = name in OURS
        bar = f"growth_mb < {MEMORY_BAR_MB:g}" if barred else ""
        lines.append(line(name, figures, bar, growth < MEMORY_BAR_MB if barred else None))
    return lines


def scale() -> list[Line]:
    """A thousand rollouts, whatever the number of examples; the best of rounds of all sizes."""
    lines = []
    for disk in (False, True):
        cells = [
            {
                "kind": "scale",
                "n_examples": size,
                "n_rollouts": 1_000,
                "n_validation": 20,
                "disk": disk,
            }
            for _ in range(SCALE_ROUNDS)
            for size in SIZES
        ]
        done = measured(cells)
        by = {size: done[at :: len(SIZES)] for at, size in enumerate(SIZES)}
        lines += [_scale_line(size, by[size], by[SIZES[0]], disk=disk) for size in SIZES]
    return lines


def _scale_line(size: int, own: Sequence[Cell], first: Sequence[Cell], *, disk: bool) -> Line:
    def of(cells: Sequence[Cell], name: str) -> float:
        return min(cell[name] for cell in cells)

    names = {"wall": "wall_s", "cpu": "cpu_s", "memory": "growth_mb"}
    ratios = {f"{kind}_ratio": of(own, name) / of(first, name) for kind, name in names.items()}
    figures = {
        "examples": size,
        "runs": len(own),
        "rollouts": own[0]["n_calls"]["rollout"],
        **{name: of(own, name) for name in names.values()},
        **ratios,
        "reading_s": median(cell["reading"]["wall_s"] for cell in own),
        "reading_mb": median(cell["reading"]["growth_mb"] for cell in own),
    }
    what = OURS[disk]
    if size == SIZES[0]:
        return line(what, figures)
    is_flat = max(ratios["wall_ratio"], ratios["memory_ratio"]) <= FLAT
    return line(what, figures, f"wall and memory ratio <= {FLAT}", is_flat)


def coordinator() -> list[Line]:
    """Rollouts taken in from two processes."""
    cell = {"kind": "coordinator", "n_examples": 500, "epochs": 2, "processes": 2}
    (done,) = measured([cell])
    if "missing" in done:
        return [line(done["missing"], {}, f"per_second >= {COORDINATOR_BAR}")]
    reached = done["per_second"] >= COORDINATOR_BAR
    return [line("2 processes", done, f"per_second >= {COORDINATOR_BAR}", reached)]


ROWS: dict[str, Callable[[], list[Line]]] = {
    row.__name__: row for row in (overhead, utilisation, wall, memory, scale, coordinator)
}
