"""Does each strategy pay where it is meant to? SIMULATED tasks; NOTHING IS REAL.

    python benchmarks/strategies.py --jobs 2                        # everything, seeds 500 to 509
    python benchmarks/strategies.py --only Objectives --about litres --first-seed 0 --seeds 3
    python benchmarks/strategies.py --show benchmarks/results/strategies.json

Each setting is a task that one strategy is made for. Its arms are runs of `TrainingFreeGRPO` with
and without the strategy, on the same seeds, which differ in nothing else. The settings stand in the
modules `strategies_*`, which say what is simulated. Scores are exact: the mean chances on held-out
cases, without luck.

**Seeds.** Settings and rules of the strategies were chosen on seeds below 400; those shown are 500
and up. The file is written after each run, and what it has is not run again.
"""

import importlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import dspy
import running
from running import results, silence, versions, write
from simlm import Prompt, sections

from tfgrpo_dspy.results import Gain

OUT = running.RESULTS / "strategies.json"
ARMS = ("with", "without")
ATTEMPT = re.compile(r"^Attempt \d+ \(score (-?[\d.e-]+)[^\n]*\n(.*?)(?=^Attempt |\Z)", re.M | re.S)


@dataclass(frozen=True)
class Setting:
    """A task for one strategy: `run(arm, seed)` gives figures by name, more is better in each."""

    strategy: str
    about: str
    run: Callable[[str, int], Mapping[str, float]]
    figures: tuple[str, ...]


def attempts_of(world: Any, prompt: Prompt) -> list[tuple[int, list[tuple[float, str]]]]:
    """The cases that reflection is shown, each with scores and texts of its attempts."""
    shown = sections(prompt.user)
    cases = world.cases_in(shown.get("example", ""))
    parts = re.split(r"^Example \d+$", shown.get("attempts", ""), flags=re.M)[-len(cases) :]
    read = [[(float(score), text) for score, text in ATTEMPT.findall(part)] for part in parts]
    return list(zip(cases, read if cases else (), strict=False))


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


def outcomes(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each figure: means with and without, over seeds that have both, and their difference."""
    found = []
    for setting in (one for of_strategy in settings().values() for one in of_strategy):
        where = {"strategy": setting.strategy, "about": setting.about}
        own = [r for r in runs if (r["strategy"], r["about"]) == (setting.strategy, setting.about)]
        by_arm = [{r["seed"]: r["figures"] for r in own if r["arm"] == arm} for arm in ARMS]
        seeds = [seed for seed in by_arm[0] if seed in by_arm[1]]
        for figure in setting.figures if seeds else ():
            one, other = ([figures[seed][figure] for seed in seeds] for figures in by_arm)
            gain = Gain.between(other, one)
            won = sum(a > b for a, b in zip(one, other, strict=True)) / len(seeds)
            means = [sum(each) / len(seeds) for each in (one, other)]
            row = {**where, "figure": figure, "won": won, "means": means}
            found.append({**row, "difference": gain.mean, "interval": [gain.low, gain.high]})
    return found


def show(shown: Sequence[Mapping[str, Any]]) -> None:
    """Print a row for each figure."""
    rows = []
    for row in shown:
        low, high = row["interval"]
        bounds = "" if low is None else f" [{low:+.3f}, {high:+.3f}]"
        means = [f"{mean:.3f}" for mean in row["means"]]
        difference = f"{row['difference']:+.3f}{bounds}"
        where = row["strategy"], row["about"], row["figure"]
        rows.append((*where, *means, difference, f"{row['won']:.0%}"))
    running.show(("strategy", "setting", "figure", *ARMS, "difference", "won"), rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what was asked for, writes it, shows it."""
    parser = running.parser_of(__doc__, OUT, seeds=10, first=500)
    parser.add_argument("--only", nargs="+", help="names of strategies")
    parser.add_argument("--about", nargs="+", default=[""], help="words of the settings to run")
    parser.add_argument("--again", action="store_true", help="measure what the file has anew")
    asked = parser.parse_args(arguments)
    if asked.show:
        show(json.loads(asked.show.read_text())["outcomes"])
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
        for arm in ARMS
        if any(about in setting.about for about in asked.about)
        and (name, setting.about, arm, seed) not in done
    ]
    head = {"command": "python benchmarks/strategies.py", "versions": versions()}
    for one in results(run, tasks, asked.jobs):
        runs.append(one)
        write(asked.out, head | {"seeds": list(seeds), "outcomes": outcomes(runs)}, runs)
    show(outcomes(runs))


if __name__ == "__main__":
    main()
