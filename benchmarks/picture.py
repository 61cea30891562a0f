"""The README's picture, made of published results: held-out score against LM calls. SIMULATED.

    python benchmarks/picture.py            # writes docs/score-by-calls.svg

Reads `results/compare.json` (see `compare.py`); a point is the mean over the five simulated tasks
and their seeds, at one budget. Left out are variants of what is shown (GEPA's own minibatches, more
rounds of bootstrapping, SIMBA with rules only), demos of the bare student's best runs, and COPRO.
"""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

import matplotlib as mpl
from compare_records import unpacked
from compare_statistics import Record
from matplotlib.figure import Figure

RESULTS = Path(__file__).parent / "results" / "compare.json"
PICTURE = Path(__file__).parents[1] / "docs" / "score-by-calls.svg"
SETTINGS = ("sim:easy", "sim:sparse", "sim:noisy", "sim:many", "sim:misleading")
BUDGETS = (200, 500, 1500)
SHOWN = {
    "tfgrpo": "TrainingFreeGRPO",
    "gepa-mb8": "GEPA, minibatches of 8",
    "mipro": "MIPROv2",
    "bootstrap": "bootstrapping",
    "infer_rules": "InferRules",
    "simba": "SIMBA",
    "tfgrpo-paper": "the paper's schedule",
}
BOUNDS = {"oracle": "told every lesson", "none": "student"}
FONT = {"svg.fonttype": "none", "svg.hashsalt": "score-by-calls", "font.family": "sans-serif"}
"""Text stays text, and the same results give the same file."""


def mean_score(records: Sequence[Record], optimizer: str, budget: int) -> float:
    """The mean over settings and seeds; a record without a budget holds for every budget."""
    scores = [
        record["mean"]
        for record in records
        if record["optimizer"] == optimizer
        and record["task"] in SETTINGS
        and record["budget"] in (0, budget)
    ]
    return fmean(scores)


def drawn(records: Sequence[Record]) -> Figure:
    """The figure."""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for optimizer, name in BOUNDS.items():
        height = mean_score(records, optimizer, 0)
        axes.axhline(height, color="0.6", linestyle=":", linewidth=1)
        axes.annotate(name, (BUDGETS[0], height), (0, 3), textcoords="offset points", color="0.4")
    for optimizer, name in SHOWN.items():
        is_ours = optimizer == "tfgrpo"
        axes.plot(
            BUDGETS,
            [mean_score(records, optimizer, budget) for budget in BUDGETS],
            marker="o",
            label=name,
            linewidth=3 if is_ours else 1.3,
            zorder=3 if is_ours else 2,
        )
    axes.set_xscale("log")
    axes.set_xticks(BUDGETS, [f"{budget:,}" for budget in BUDGETS])
    axes.minorticks_off()
    axes.set_xlabel("LM calls, of policy and reflection LM together")
    axes.set_ylabel("held-out score")
    axes.set_title("Simulated LM: mean of five settings, ten seeds each", loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def main() -> None:
    """Write the picture."""
    with mpl.rc_context(FONT):
        drawn(unpacked(RESULTS)).savefig(PICTURE, metadata={"Date": None}, facecolor="white")
    print(f"wrote {PICTURE.relative_to(PICTURE.parents[1])}")


if __name__ == "__main__":
    main()
