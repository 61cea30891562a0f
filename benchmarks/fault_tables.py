"""What is made of the cells: verdicts, by the rules in `faults.py`, and tables."""

import re
from collections.abc import Sequence
from typing import Any

from fault_cells import OPTIMIZERS
from fault_rows import ROWS

N_EXAMPLES = 48


def judged(cell: dict[str, Any], faultless: dict[str, Any], untouched: float) -> dict[str, Any]:
    """The cell with its verdict and why, by the rules on top."""
    if cell["is_hopeless"]:
        verdict, why = judged_hopeless(cell)
    elif "raised" in cell:
        verdict, why = "dies", [cell["raised"]]
    else:
        why = faults_of(cell, faultless, untouched)
        told = cell["named_by_log"] or cell["told_by_results"]
        verdict = "well" if not why else "told" if told else "silent"
    return {**cell, "verdict": verdict, "why": "; ".join(why)}


def judged_hopeless(cell: dict[str, Any]) -> tuple[str, list[str]]:
    """Verdict and reason where only an early, clear error is right."""
    n_calls = cell["n_policy_calls"] + cell["n_reflection_calls"]
    after = f"after {n_calls} calls"
    if "raised" not in cell:
        told = cell["named_by_log"] or cell["told_by_results"]
        return ("told" if told else "silent"), [f"returns {after}"]
    is_clear = re.search(cell["named"], cell["raised"], re.IGNORECASE)
    verdict = "well" if is_clear and n_calls <= N_EXAMPLES else "dies"
    return verdict, [f"raises {after}: {cell['raised']}"]


def faults_of(cell: dict[str, Any], faultless: dict[str, Any], untouched: float) -> list[str]:
    """Which of (a), (b) and (c) hold."""
    held_out, gain = cell["held_out"], faultless["held_out"] - untouched
    faults = []
    if held_out < untouched - 0.02:
        faults.append(f"worse than the untouched program ({held_out:.2f})")
    if cell["reported"] is None or not abs(cell["reported"] - cell["measured"]) <= 0.1:
        reported = "nothing" if cell["reported"] is None else f"{cell['reported']:.2f}"
        faults.append(f"reports {reported}, scores {cell['measured']:.2f}")
    if held_out - untouched < gain / 2:
        faults.append(f"gained {held_out - untouched:+.2f} of {gain:+.2f}")
    return faults


def table_of_verdicts(cells: Sequence[dict[str, Any]]) -> str:
    """One line for each fault, one column for each optimizer."""
    optimizers = [o for o in OPTIMIZERS if any(cell["optimizer"] == o for cell in cells)]
    by_place = {(cell["fault"], cell["optimizer"]): cell for cell in cells}
    lines = ["| fault | " + " | ".join(optimizers) + " |", "| --- " * (len(optimizers) + 1) + "|"]
    for name, row in ROWS.items():
        shown = [shown_cell(by_place.get((name, optimizer))) for optimizer in optimizers]
        if any(shown):
            lines.append(f"| {row.title} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def shown_cell(cell: dict[str, Any] | None) -> str:
    """Verdict, held-out accuracy, and why it is not well, in a few words."""
    if cell is None:
        return ""
    verdict = cell["verdict"]
    bold = f"**{verdict}**" if verdict in ("silent", "dies") else verdict
    held_out = f" {cell['held_out']:.2f}" if "held_out" in cell else ""
    waited = f", {cell['wall_s']:.0f} s" if cell["wall_s"] >= 3 else ""
    why = " ".join(cell["why"].split()).replace("|", "/")
    why = f": {why[:90]}{'…' if len(why) > 90 else ''}" if why else ""
    return f"{bold}{held_out}{waited}{why}"


def table_of_walls(rows: Sequence[dict[str, Any]]) -> str:
    """Seconds and ratios."""
    lines = [
        "| optimizer | latency | calls | refused | none refused | ideal client | as it is "
        "| ratio to none | ratio to ideal |",
        "| --- " * 9 + "|",
    ]
    for row in rows:
        seconds = [f"{row[name]:.2f} s" for name in ("without_s", "ideal_s", "refused_s")]
        ratios = [f"{row[name]:.1f}" for name in ("ratio_to_without", "ratio_to_ideal")]
        first = [row["optimizer"], f"{1000 * row['latency_s']:.0f} ms", row["n_calls"]]
        lines.append(
            "| " + " | ".join(map(str, [*first, row["n_refused"], *seconds, *ratios])) + " |"
        )
    return "\n".join(lines)


def table_of_kills(rows: Sequence[dict[str, Any]]) -> str:
    """Calls."""
    lines = [
        "| optimizer | kept by | calls, uninterrupted | before the kill | after it "
        "| of these repeated | same result |",
        "| --- " * 7 + "|",
    ]
    for row in rows:
        kept = [
            name for name, holds in (("log_dir", row["log_dir"]), ("cache", row["cache"])) if holds
        ]
        same = "yes" if row["same_result"] else row["raised"][:60] or "no"
        counts = [row[n] for n in ("n_uninterrupted", "n_before_kill", "n_after", "n_repeated")]
        kept_by = " + ".join(kept) or "nothing"
        lines.append("| " + " | ".join(map(str, [row["optimizer"], kept_by, *counts, same])) + " |")
    return "\n".join(lines)
