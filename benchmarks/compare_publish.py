"""Records for the repository: one compact JSON file, from which all tables can be made again.

A record is a list, its fields named once. Scores of test examples are a string where all are
tenths: a digit for each, X for 1.0 (so 0, 5 and X in the simulated tasks). Ablations and varied
simulated LMs go without them, where there are enough seeds for intervals over seeds. Instructions
are left out: they stand in DIR/results.jsonl of whoever runs the comparison.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from compare_optimizers import OPTIMIZERS
from compare_statistics import ENOUGH_SEEDS, Record

ROLES = ("policy", "reflection")
SPENT = ("calls", "prompt_tokens", "completion_tokens")
FAILED = ("lm_calls", "held_out_runs")
PLAIN = ("task", "optimizer", "budget", "seed")
MEASURED = ("cost", "wall_s", "prompt_words", "prompt_tokens", "ended")
COLUMNS = ("mean", "scores", "curve", *ROLES, "failed", *MEASURED)
DIGITS = "0123456789X"
EXACT = 1e-9
LONGEST_ENDING = 120
ADDRESS = re.compile(r"0x[0-9a-f]+")


def packed(records: Sequence[Record], about: Mapping[str, Any]) -> str:
    """The records as JSON text, one line for each run, in an order that depends on nothing else."""
    ordered = sorted(records, key=lambda r: [r[name] for name in PLAIN])
    n_seeds = Counter(_group(record) for record in ordered)
    runs = [
        [*(r[name] for name in PLAIN), *_row(r, n_seeds[_group(r)] < ENOUGH_SEEDS)] for r in ordered
    ]
    head = json.dumps({"about": about, "columns": [*PLAIN, *COLUMNS]}, indent=1)
    lines = ",\n".join(json.dumps(run, separators=(",", ":")) for run in runs)
    return f'{head[:-2]},\n "runs": [\n{lines}\n]}}\n'


def unpacked(text: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The records, as far as tables and curves need them, and what is said about them."""
    found = json.loads(text)
    names = found["columns"]
    return [_record(dict(zip(names, run, strict=True))) for run in found["runs"]], found["about"]


def merged(sources: Iterable[Path], read: Any) -> list[dict[str, Any]]:
    """The records of folders and published files; of equal cells, the one that was written last."""
    found = {}
    for source in sources:
        is_file = source.is_file()
        text = source.read_text(encoding="utf-8") if is_file else ""
        for record in unpacked(text)[0] if is_file else read(source / "results.jsonl"):
            found[tuple(record[name] for name in PLAIN)] = record
    return list(found.values())


def _group(record: Record) -> tuple[Any, ...]:
    return tuple(record[name] for name in PLAIN[:-1])


def _row(record: Record, needs_scores: bool) -> list[Any]:
    spent = record["spent"]
    is_main = record["optimizer"] in OPTIMIZERS and "@" not in record["task"]
    short = {
        **record,
        "mean": round(record["mean"], 6),
        "scores": _packed_scores(record["scores"]) if is_main or needs_scores else "",
        "curve": [[calls, round(score, 4)] for calls, score in record["curve"]],
        "failed": [record["failed"].get(name, 0) for name in FAILED],
        "wall_s": round(record["wall_s"], 2),
        "ended": ADDRESS.sub("0x", record["ended"])[:LONGEST_ENDING],
        **{role: [spent[role][name] for name in SPENT] for role in ROLES},
    }
    return [short[name] for name in COLUMNS]


def _packed_scores(scores: Sequence[float]) -> str | list[float]:
    tenths = [round(score * 10) for score in scores]
    is_exact = all(
        0 <= n <= 10 and abs(n / 10 - score) < EXACT
        for n, score in zip(tenths, scores, strict=True)
    )
    return "".join(DIGITS[n] for n in tenths) if is_exact else [round(s, 4) for s in scores]


def _record(run: dict[str, Any]) -> dict[str, Any]:
    scores = run["scores"]
    return {
        **{name: run[name] for name in (*PLAIN, *MEASURED, "mean", "curve")},
        "scores": [DIGITS.index(d) / 10 for d in scores] if isinstance(scores, str) else scores,
        "failed": dict(zip(FAILED, run["failed"], strict=True)),
        "spent": {role: dict(zip(SPENT, run[role], strict=True)) for role in ROLES},
    }
