"""Does each strategy pay where it is meant to? SIMULATED tasks; NOTHING IS REAL.

    python benchmarks/strategies.py --jobs 2                        # everything, seeds 500 to 509
    python benchmarks/strategies.py --only LearningFrontier --first-seed 0 --seeds 3
    python benchmarks/strategies.py --show benchmarks/results/strategies.json

Each setting is a task that one strategy is made for. Its arms are runs of `TrainingFreeGRPO` with
and without the strategy, on the same seeds; they differ in nothing else but, where the bar asks for
it, in the number of LM calls. The settings stand in the modules `strategies_*`, which say what is
simulated. Scores are exact: the mean chances on held-out cases, without luck.

**Seeds.** Settings and rules of the strategies were chosen on seeds below 400; those shown are 500
and up. The file is written after each run, and what it has is not run again.
"""

import argparse
import importlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dspy
from rich.console import Console
from rich.table import Table
from running import results, silence, versions, write

from tfgrpo_dspy.results.records import Gain

OUT = Path(__file__).parent / "results" / "strategies.json"


@dataclass(frozen=True)
class Bar:
    """That a figure of the arm `one` exceeds that of the arm `other` by `least` or more.

    `share`: the bar is instead that the mean of `one` is at least this share of that of `other`;
    `wins`: that `one` is above `other` in at least this share of the seeds; `surely`: that the
    whole interval of the difference lies above `least`.
    """

    figure: str
    one: str
    other: str
    least: float = 0.0
    share: float | None = None
    wins: float | None = None
    surely: bool = False


@dataclass(frozen=True)
class Setting:
    """A task for one strategy: `run(arm, seed)` gives figures by name, more is better in each."""

    strategy: str
    about: str
    arms: tuple[str, ...]
    run: Callable[[str, int], Mapping[str, float]]
    bars: tuple[Bar, ...]


def settings() -> dict[str, list[Setting]]:
    """All settings by strategy."""
    found: dict[str, list[Setting]] = {}
    for path in sorted(Path(__file__).parent.glob("strategies_*.py")):
        for setting in importlib.import_module(path.stem).SETTINGS:
            found.setdefault(setting.strategy, []).append(setting)
    return found


def run(strategy: str, place: int, arm: str, seed: int) -> dict[str, Any]:
    """One arm of one setting on one seed."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    setting = settings()[strategy][place]
    began = time.monotonic()
    with silence():
        figures = dict(setting.run(arm, seed))
    seconds = round(time.monotonic() - began, 1)
    where = {"strategy": strategy, "about": setting.about, "arm": arm, "seed": seed}
    return {**where, "figures": figures, "seconds": seconds}


def outcome(bar: Bar, runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The means of both arms over the seeds, their paired difference, and the verdict."""
    of_arm = {
        arm: [each["figures"][bar.figure] for each in runs if each["arm"] == arm]
        for arm in (bar.one, bar.other)
    }
    one, other = of_arm[bar.one], of_arm[bar.other]
    gain = Gain.between(other, one)
    if gain is None:
        raise ValueError(f"bar={bar!r}: the runs hold no pair of its arms.")
    mean = sum(one) / len(one)
    is_met = gain.mean >= bar.least
    if bar.share is not None:
        is_met = mean >= bar.share * sum(other) / len(other)
    wins = sum(a > b for a, b in zip(one, other, strict=True)) / len(one)
    if bar.wins is not None:
        is_met = wins >= bar.wins
    if bar.surely:
        is_met = gain.low is not None and gain.low > bar.least
    means = [mean, sum(other) / len(other)]
    figures = {"won": wins, "means": means, "difference": gain.mean}
    return {**asdict(bar), **figures, "interval": [gain.low, gain.high], "met": is_met}


def outcomes(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The outcome of each bar that these runs can show."""
    found = []
    for name, of_strategy in settings().items():
        for setting in of_strategy:
            own = [r for r in runs if (r["strategy"], r["about"]) == (name, setting.about)]
            seeds = [{r["seed"] for r in own if r["arm"] == arm} for arm in setting.arms]
            own = [r for r in own if r["seed"] in set.intersection(*seeds)]
            where = {"strategy": name, "about": setting.about}
            found += [{**where, **outcome(bar, own)} for bar in setting.bars if own]
    return found


def show(shown: Mapping[str, Any]) -> None:
    """Print a row for each bar."""
    table = Table(
        *("strategy", "setting", "figure", "with", "without", "difference", "won", "bar", "met")
    )
    for row in shown["outcomes"]:
        low, high = row["interval"]
        bounds = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
        wanted = f"{row['least']:+.3g}" if row["share"] is None else f"{row['share']:.0%}"
        wanted = wanted if row["wins"] is None else f"{row['wins']:.0%} of seeds"
        wanted = f"surely {wanted}" if row.get("surely") else wanted
        means = [f"{mean:.3f} ({arm})" for mean, arm in zip(
            row["means"], (row["one"], row["other"]), strict=True)]  # fmt: skip
        difference = f"{row['difference']:+.3f}{bounds}"
        met = "yes" if row["met"] else "NO"
        won = f"{row['won']:.0%}"
        cells = row["strategy"], row["about"], row["figure"], *means, difference, won, wanted, met
        table.add_row(*cells)
    Console(width=200).print(table)


def head_of(runs: Sequence[Mapping[str, Any]], seeds: Sequence[int]) -> dict[str, Any]:
    """What stands in the file above the runs."""
    about = {"command": "python benchmarks/strategies.py", "versions": versions()}
    return {**about, "seeds": list(seeds), "outcomes": outcomes(runs)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what was asked for, writes it, shows it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="names of strategies")
    parser.add_argument("--about", nargs="+", default=[""], help="words of the settings to run")
    parser.add_argument("--again", action="store_true", help="measure what the file has anew")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=500)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--show", type=Path, help="print the table of a result file")
    asked = parser.parse_args(arguments)
    if asked.show:
        show(json.loads(asked.show.read_text()))
        return
    known = settings()
    names = asked.only or list(known)
    if unknown := sorted(set(names) - set(known)):
        parser.error(f"--only {' '.join(unknown)}: no such strategy; there are {', '.join(known)}.")
    seeds = range(asked.first_seed, asked.first_seed + asked.seeds)
    stored = json.loads(asked.out.read_text())["runs"] if asked.out.exists() else []
    measured = [r for r in stored if r["seed"] in seeds]
    runs = [r for r in measured if not (asked.again and r["strategy"] in names)]
    done = {(r["strategy"], r["about"], r["arm"], r["seed"]) for r in runs}
    tasks = [
        (name, place, arm, seed)
        for seed in seeds
        for name in names
        for place, setting in enumerate(known[name])
        for arm in setting.arms
        if any(about in setting.about for about in asked.about)
        and (name, setting.about, arm, seed) not in done
    ]
    for one in results(run, tasks, asked.jobs):
        runs.append(one)
        write(asked.out, head_of(runs, seeds), runs)
    show({"outcomes": outcomes(runs)})


if __name__ == "__main__":
    main()
