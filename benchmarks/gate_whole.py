"""Whole runs of the optimizer on a simulated LM of conditional lessons, beside the fast model.

    python benchmarks/gate_whole.py --again                   # every row, about 15 minutes of CPU
    python benchmarks/gate_whole.py --rows "auto: G 4" --seeds 3
    python benchmarks/gate_whole.py --minutes 4               # go on with what is not measured yet

The world is that of `gate_model.py`, as text (`gate_whole_lm.py`); optimizer, pipeline, gates and
prompts are real. What lessons concern is told with the precision and recall of `concern.json`, in
rows with 'words' by the real `WordConcern`. At each decision of the gate this notes the library
that would be exported, its exact held-out accuracy, and the LM calls so far.

Calls are counted twice. **calls**: what reached the LM, which is what the run's budget counts; with
the student's score on 40 validation examples, and one call for each group that is reflected on.
With a staleness of 1 rollouts of the next batch are under way at a decision, and count. **as the
model counts**: no call for the student's score, G + 2 for a group that is reflected on, one for
each update; everything else as it happened. The model is run beside each row on other samples of
the same seeds, and for as many calls by its count; p is that of a rank test (Mann and Whitney) of
the two samples of calls until .9 held-out, never reached being the latest. What the model says
besides, and where it differs by design, is in `benchmarks/README.md`.

Writes `benchmarks/results/gate_whole.json`, each row when it is done.
"""

import argparse
import importlib.metadata
import itertools
import json
import logging
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from gate_model import BARS, ROOT, Course
from gate_whole_run import MAX_CALLS, WORDS, Row, measured, run
from rich.console import Console
from rich.table import Table
from scipy.stats import mannwhitneyu

from tfgrpo_dspy import (
    FactorialGate,
    NoGate,
    PairedGate,
    ProbeThenTrial,
    TrialInUse,
    TrialThenConfirm,
)

RESULTS = ROOT / "benchmarks" / "results" / "gate_whole.json"
PACKAGES = ("tfgrpo-dspy", "dspy", "numpy", "scipy")
FIRST_SEED, N_SEEDS = 1001, 20
NEVER = math.inf

IN_MODEL: dict[str, Callable[[], Any]] = {
    "none": NoGate,
    "auto": ProbeThenTrial,
    "trial": ProbeThenTrial,
    "paired": PairedGate,
    "factorial": FactorialGate,
    "confirm": TrialThenConfirm,
    "in use": TrialInUse,
}
"""The model has no conditions in its texts, by which AutoGate would know what goes to trial."""


def rows() -> Iterator[Row]:
    """All rows, those of the default gate first."""

    def of(gate: str, size: int, name: str, signal: str = "measured", staleness: int = 0) -> Row:
        return Row(gate, name, replace(BARS[name], group_size=size, signal=signal), staleness)

    for gate, size, name in itertools.product(("auto", "none"), (4, 5), BARS):
        yield of(gate, size, name)
    for name in BARS:
        yield of("auto", 4, name, staleness=1)
    others = ("trial", "paired", "factorial", "confirm", "in use")
    for gate, name in itertools.product(others, BARS):
        yield of(gate, 4, name)
    for name in ("wrong 0.25", "leaking 0.25"):
        yield of("auto", 4, name, WORDS)


# ---------------------------------------------------------------------- rows


def summary(row: Row, seeds: Sequence[int]) -> dict[str, Any]:
    """The row, with the model's beside it."""
    runs = [run(row, seed) for seed in seeds]
    hits = [NEVER if each.hit is None else each.hit.calls for each in runs]
    as_model = [NEVER if each.hit is None else each.hit.as_model for each in runs]
    horizon = round(statistics.median(each.curve[-1].as_model for each in runs if each.curve))
    model = _model(row, seeds, horizon)
    roles = runs[0].calls
    return {
        "hit": _spread(hits),
        "hit_as_model": _spread(as_model),
        "reach": _share(hit < NEVER for hit in hits),
        "stay": _share(each.stays for each in runs),
        "returned_reaches": _share(each.returned >= each.target for each in runs),
        "harmful_left": _mean(each.n_harmful for each in runs),
        "returned": _mean(each.returned for each in runs),
        "updates": _mean(each.n_updates for each in runs),
        "calls": {role: _mean(each.calls[role] for each in runs) for role in roles},
        "horizon_as_model": horizon,
        "model": model.as_row,
        "p_same_hits": _p(as_model, model.hits),
        "hits": [_finite(hit) for hit in hits],
        "ended_because": sorted({each.ended_because for each in runs}),
        "seeds": [seeds[0], seeds[-1]],
        "cpu_s": round(sum(each.cpu_s for each in runs), 1),
    }


@dataclass(frozen=True)
class OfModel:
    """The model's runs: calls until the target by seed, and the rest as a row."""

    hits: list[float]
    as_row: dict[str, Any]


def _model(row: Row, seeds: Sequence[int], max_calls: int) -> OfModel:
    signal = measured(row.world.signal) if row.gate in ("auto", "trial") else "none"
    world = replace(row.world, signal=signal, max_calls=max_calls)
    courses = [Course(world, IN_MODEL[row.gate](), seed).run() for seed in seeds]
    hits = [course.hit for course in courses]
    as_row = {
        "hit": _spread(hits),
        "reach": _share(hit < NEVER for hit in hits),
        "stay": _share(course.stays for course in courses),
        "harmful_left": _mean(course.n_harmful for course in courses),
        "final": _mean(course.curve[-1][1] for course in courses),
        "updates": _mean(course.update for course in courses),
    }
    return OfModel(hits, as_row)


def _spread(hits: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles; None: never."""
    ordered = sorted(hits)
    low, high = (ordered[round(share * (len(ordered) - 1))] for share in (0.25, 0.75))
    middle = statistics.median_low(ordered)
    return {"median": _finite(middle), "quartiles": [_finite(low), _finite(high)]}


def _finite(calls: float) -> float | None:
    return None if math.isinf(calls) else calls


def _mean(values: Any) -> float:
    return round(statistics.fmean(values), 3)


_share = _mean


def _p(one: Sequence[float], other: Sequence[float]) -> float | None:
    """That two samples of calls are of one distribution; None where all values are equal."""
    if len({*one, *other}) == 1:
        return None
    latest = 10 * max(value for value in (*one, *other) if value < NEVER)
    ranked = [[min(value, latest) for value in values] for values in (one, other)]
    return round(float(mannwhitneyu(*ranked).pvalue), 4)


# ---------------------------------------------------------------------- output


HEADS = (
    "row",
    "calls until .9",
    "reach / stay",
    "harmful left",
    "returned",
    "as the model counts",
    "model",
    "model: reach / stay",
    "harmful left",
    "p",
)


def table(done: Mapping[str, Any]) -> Table:
    """The rows, for the terminal."""
    found = Table(*HEADS, title="Whole runs (SIMULATED) beside the fast model (SIMULATED)")
    for name, row in done.items():
        model = row["model"]
        found.add_row(
            name,
            _shown(row["hit"]),
            f"{row['reach']:.2f} / {row['stay']:.2f}",
            f"{row['harmful_left']:.2f}",
            f"{row['returned']:.3f}",
            _shown(row["hit_as_model"]),
            _shown(model["hit"]),
            f"{model['reach']:.2f} / {model['stay']:.2f}",
            f"{model['harmful_left']:.2f}",
            "" if row["p_same_hits"] is None else f"{row['p_same_hits']:.2f}",
        )
    return found


def _shown(hit: Mapping[str, Any]) -> str:
    told = [
        "never" if calls is None else str(calls) for calls in (hit["median"], *hit["quartiles"])
    ]
    return f"{told[0]} [{told[1]}, {told[2]}]"


def _write(done: Mapping[str, Any]) -> None:
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    head = {"simulated": True, "versions": versions, "n_seeds": N_SEEDS, "max_lm_calls": MAX_CALLS}
    RESULTS.write_text(json.dumps({**head, "rows": done}, indent=1) + "\n", "utf-8")


def main() -> None:
    """Measure what is not in the results yet; each row is written when it is done."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", default="", help="only rows whose name holds this")
    parser.add_argument("--seeds", type=int, help=f"instead of {N_SEEDS}; not written")
    parser.add_argument("--minutes", type=float, default=math.inf, help="begin no row after these")
    parser.add_argument("--again", action="store_true", help="measure these rows anew")
    args = parser.parse_args()
    logging.getLogger("tfgrpo_dspy").setLevel(logging.ERROR)
    known = json.loads(RESULTS.read_text("utf-8"))["rows"] if RESULTS.exists() else {}
    done = {name: row for name, row in known.items() if not (args.again and args.rows in name)}
    shown: dict[str, Any] = {}
    began = time.monotonic()
    for row in rows():
        if args.rows not in row.name:
            continue
        is_wanted = args.seeds or row.name not in done
        if is_wanted and time.monotonic() - began < 60 * args.minutes:
            seeds = range(FIRST_SEED, FIRST_SEED + (args.seeds or N_SEEDS))
            shown[row.name] = summary(row, seeds)
            print(row.name, json.dumps(shown[row.name]), flush=True)
            if not args.seeds:
                done[row.name] = {**shown[row.name], "world": asdict(row.world)}
                _write(done)
        elif row.name in done:
            shown[row.name] = done[row.name]
    Console(width=200).print(table(shown))


if __name__ == "__main__":
    main()
