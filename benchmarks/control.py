"""How much of the quickstart's gain is the advice itself? Prompt layouts and irrelevant advice.

    python benchmarks/control.py

Scores the bare program, a relevant and an irrelevant experience, each in both layouts of
`PlainAdapter`, on the quickstart's 60 held-out complaints at temperature 0. Real LM:
SmolLM2-135M-Instruct, Q4_1, inside the process. Writes `benchmarks/results/control.json`.
"""

import importlib.metadata
import json
import logging
import math
import statistics
import sys
from pathlib import Path
from typing import Any

import dspy

from tfgrpo_dspy import Experience, ExperienceLibrary
from tfgrpo_dspy.local import PlainAdapter, local_lm

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "control.json"
ADVICE = {
    "none": None,
    "relevant": "Ask for the order number.",
    "irrelevant": "Avoid any form of abusive language or behavior.",
}
N_TEST = 60

sys.path.insert(0, str(ROOT / "examples"))
import support_replies  # noqa: E402 - an example, found where examples are

for _name in ("dspy.clients.lm", "dspy.evaluate.evaluate"):
    logging.getLogger(_name).setLevel(logging.ERROR)


def scores(text: str | None) -> list[float]:
    """The score of the program with that one experience on every held-out complaint."""
    library = ExperienceLibrary([Experience("E1", text)] if text else [])
    evaluate = dspy.Evaluate(
        devset=support_replies.load()[2][:N_TEST],
        metric=support_replies.house_style,
        num_threads=4,
        display_progress=False,
    )
    results = evaluate(library.bake(support_replies.program())).results
    return [float(score) for _, _, score in results]


def main() -> None:
    """Measure every layout with every advice, print the table, write the results."""
    rows: list[dict[str, Any]] = []
    lm = local_lm(temperature=0.0, max_tokens=90, cache=False)
    print("| layout | advice | score | standard error |\n| --- | --- | --- | --- |")
    for layout, one_message in (("system message", False), ("one message", True)):
        for name, text in ADVICE.items():
            with dspy.context(lm=lm, adapter=PlainAdapter(one_message=one_message)):
                values = scores(text)
            error = statistics.stdev(values) / math.sqrt(len(values))
            rows.append(
                {
                    "layout": layout,
                    "advice": name,
                    "text": text,
                    "score": round(statistics.fmean(values), 4),
                    "standard_error": round(error, 4),
                    "n": len(values),
                }
            )
            print(
                f"| {layout} | {name} | {statistics.fmean(values):.3f} | {error:.3f} |", flush=True
            )
    versions = {name: importlib.metadata.version(name) for name in ("dspy", "xllamacpp")}
    RESULTS.write_text(json.dumps({"rows": rows, "versions": versions}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
