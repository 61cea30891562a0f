"""Records on disk: JSON lines as they are made, and one compact JSON file for the repository.

In the published file a record is a list, its fields named once. Scores of test examples are a
string where all are tenths: a digit for each, X for 1.0 (so 0, 5 and X in the simulated tasks).
Instructions are left out: they stand in DIR/results.jsonl of whoever runs the comparison.
"""

import datetime
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from compare_statistics import Record
from running import stored

ROLES = ("policy", "reflection")
SPENT = ("calls", "prompt_tokens", "completion_tokens")
FAILED = ("lm_calls", "held_out_runs")
PLAIN = ("task", "optimizer", "budget", "seed")
MEASURED = ("wall_s", "prompt_words", "prompt_tokens", "ended")
COLUMNS = (*PLAIN, "mean", "scores", *ROLES, "failed", *MEASURED)
DIGITS = "0123456789X"
EXACT = 1e-9
LONGEST_ENDING = 120
ADDRESS = re.compile(r"0x[0-9a-f]+")


def merged(sources: Iterable[Path]) -> list[dict[str, Any]]:
    """The records of folders and published files; of equal cells, the one that was written last."""
    found = {}
    for source in sources:
        records = unpacked(source) if source.is_file() else stored(source / "results.jsonl")
        for record in records:
            found[tuple(record[name] for name in PLAIN)] = record
    return list(found.values())


def about(records: Sequence[Record]) -> dict[str, Any]:
    """How records were made: commands with versions, and the seeds of each task and budget."""
    seeds: dict[str, set[int]] = {}
    for record in records:
        if record["budget"]:
            of_cell = f"{record['task']}, {record['budget']} calls"
            seeds.setdefault(of_cell, set()).add(record["seed"])
    return {
        "published": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "simulated": "figures of tasks that begin with sim: come from a SIMULATED LM",
        "made by": sorted({record["made_by"] for record in records}),
        "seeds": {of_cell: _ranges(sorted(found)) for of_cell, found in sorted(seeds.items())},
    }


def _ranges(numbers: Sequence[int]) -> str:
    """`[100, 101, 102, 105]` -> `100-102, 105`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(f"{a}-{b}" if a < b else str(a) for a, b in parts)


def packed(records: Sequence[Record]) -> str:
    """The records as JSON text, one line for each run, in an order that depends on nothing else."""
    ordered = sorted(records, key=lambda r: [r[name] for name in PLAIN])
    made_by = sorted({record["made_by"] for record in ordered})
    head = json.dumps({"about": about(ordered), "columns": [*COLUMNS, "made_by"]}, indent=1)
    lines = ",\n".join(
        json.dumps([*_row(r), made_by.index(r["made_by"])], separators=(",", ":")) for r in ordered
    )
    return f'{head[:-2]},\n "runs": [\n{lines}\n]}}\n'


def unpacked(path: Path) -> list[dict[str, Any]]:
    """The records of a published file, as far as tables need them."""
    found = json.loads(path.read_text(encoding="utf-8"))
    names, made_by = found["columns"], found["about"]["made by"]
    return [_record(dict(zip(names, run, strict=True)), made_by) for run in found["runs"]]


def _row(record: Record) -> list[Any]:
    spent = record["spent"]
    short = {
        **record,
        "mean": round(record["mean"], 6),
        "scores": _packed_scores(record["scores"]),
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


def _record(run: dict[str, Any], made_by: Any) -> dict[str, Any]:
    scores = run["scores"]
    return {
        **{name: run[name] for name in (*PLAIN, *MEASURED, "mean")},
        "scores": [DIGITS.index(d) / 10 for d in scores] if isinstance(scores, str) else scores,
        "failed": dict(zip(FAILED, run["failed"], strict=True)),
        "spent": {role: dict(zip(SPENT, run[role], strict=True)) for role in ROLES},
        "made_by": made_by if isinstance(made_by, str) else made_by[run["made_by"]],
    }
