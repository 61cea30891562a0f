"""The picture of README, drawn from committed results. Needs matplotlib; calls no LM.

    python benchmarks/picture.py    # writes benchmarks/results/picture.svg

Left: held-out scores of real LMs, the mean over seeds, on the tasks that were run with a reflection
LM that can write (`real_writer.jsonl`; of runs with the same seed the last one; rows without a
reflection LM come from `real.jsonl`). Right: simulated worlds (`briefs.json`), with 90 % intervals
over worlds.
"""

import statistics
from collections import defaultdict

import matplotlib as mpl
from matplotlib import pyplot as plt
from random_worlds import bootstrapped, share
from running import RESULTS, stored

MODEL, OURS, GEPA = "1.5B", "TrainingFreeGRPO", "GEPA"
BARS = {  # by row: its name and its colour
    "none": ("student", "#b8b8b8"),
    "advice": ("advice by hand", "#8fb3d9"),
    "labelled": ("16 labelled demos", "#d9c48f"),
    "bootstrap": ("bootstrapped demos", "#c9a24d"),
    "gepa": (GEPA, "#7aa874"),
    "tfgrpo-no-demos": (f"{OURS}, no demos", "#d98880"),
    "tfgrpo": (OURS, "#b03a2e"),
}
LINES = {"tfgrpo": (OURS, "#b03a2e"), "gepa-mb8": (GEPA, "#7aa874")}


def real(axes: plt.Axes) -> None:
    """A group of bars for each task."""
    scores: dict[tuple[str, str], dict[int, float]] = defaultdict(dict)
    written = stored(RESULTS / "real_writer.jsonl")
    elsewhere = [r for r in stored(RESULTS / "real.jsonl") if r["row"] in [*BARS][:4]]
    for record in [*written, *elsewhere]:
        if record["model"] == MODEL:
            scores[record["task"], record["row"]][record["seed"]] = record["mean"]
    tasks = sorted(task for task, row in scores if row == "tfgrpo-no-demos")
    bars = {row: bar for row, bar in BARS.items() if any(scores[task, row] for task in tasks)}
    width = 0.8 / len(bars)
    for k, (row, (name, colour)) in enumerate(bars.items()):
        at = [i + (k - len(bars) / 2) * width for i in range(len(tasks))]
        means = [statistics.fmean(scores[task, row].values() or [0.0]) for task in tasks]
        drawn = axes.bar(at, means, width, label=name, color=colour)
        labels = [
            f"{mean:.2f}".lstrip("0") if scores[task, row] else ""
            for task, mean in zip(tasks, means, strict=True)
        ]
        axes.bar_label(drawn, labels, fontsize=7)
    axes.set_xticks(range(len(tasks)), tasks)
    axes.set(
        title="Real LMs: Qwen2.5-Coder-1.5B, 200 calls", ylabel="held-out score", ylim=(0, 1.3)
    )
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.legend(fontsize=7, frameon=False, ncols=2, loc="upper left")


def simulated(axes: plt.Axes) -> None:
    """The share of the attainable gain by the number of calls."""
    groups: dict[tuple[str, int], list[float]] = defaultdict(list)
    for record in stored(RESULTS / "briefs.json"):
        if not (record["shape"] or record["traits"]["nothing"]):
            best = max(record["attainable"], record["score"])
            groups[record["row"], record["budget"]].append(share(record, best))
    for row, (name, colour) in LINES.items():
        budgets = sorted(budget for of, budget in groups if of == row)
        means = [statistics.fmean(groups[row, budget]) for budget in budgets]
        low, high = zip(*(bootstrapped(groups[row, budget]) for budget in budgets), strict=True)
        axes.plot(budgets, means, "o-", color=colour, label=name)
        axes.fill_between(budgets, low, high, color=colour, alpha=0.15)
    axes.set(title="Simulated: 24 random worlds", xlabel="LM calls", ylim=(0, 1))
    axes.set_ylabel("share of the attainable gain")
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def main() -> None:
    """Draw both."""
    mpl.rcParams["svg.hashsalt"] = "picture"  # the same file each time
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), width_ratios=(3, 2))
    real(left)
    simulated(right)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(RESULTS / "picture.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
