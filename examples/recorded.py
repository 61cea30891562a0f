"""Replay a recorded run on real LMs, offline: no LM, no key, a few seconds.

    python examples/recorded.py
    python examples/recorded.py --record --lm http://127.0.0.1:8080/v1 \
        --reflection-lm http://127.0.0.1:9100/v1    # records it again

The program answers a ticket with the code of its queue, of which no instruction says anything
(`Routing` in `benchmarks/real`). Its LM is Qwen2.5-Coder-1.5B; the reflection LM is a large LM,
whose answers were recorded. Prints the page of the run, the lessons of its last update, and the
prompt before and after; writes `recorded.html`.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import dspy

EXAMPLES = Path(__file__).resolve().parent
sys.path[:0] = [str(EXAMPLES.parent / "benchmarks" / name) for name in ("", "real")]
from compare_budget import Account  # noqa: E402 - the folders come first
from compare_cells import Options, setup_of  # noqa: E402
from compare_optimizers import our_arguments  # noqa: E402
from real_tasks import load  # noqa: E402

from tfgrpo_dspy import Reflection, TrainingFreeGRPO  # noqa: E402
from tfgrpo_dspy.report import write_html  # noqa: E402

RECORD = EXAMPLES / "recorded"
NOBODY = "http://127.0.0.1:9/v1"


def compiled(log_dir: Path, policy: str, writer: str, *, offline: bool) -> Any:
    """The optimized program: the benchmark's run of 200 calls, and the held-out tickets beyond."""
    task, most = load("routing", "1.5B", 0, policy, writer), Account(10_000)
    lms = task.make_lm(0), task.make_reflection_lm(0)
    setup = setup_of(task, lms, most, 200, 0, Options(n_threads=4, log_dir=log_dir))
    dspy.configure(lm=setup.policy, adapter=dspy.ChatAdapter())
    settings = our_arguments(setup) | {"max_demos": 0, "offline": offline}
    four = Reflection(groups_per_call=4)  # of the run that was recorded
    optimizer = TrainingFreeGRPO(task.metric, reflection=four, **settings)
    sets = {"trainset": task.train, "valset": task.val}
    optimizer.compile(task.student(), **sets)
    return optimizer.compile(task.student(), **sets, testset=task.test)


def show(optimized: Any) -> None:
    """The page, the last lessons, and the prompt before and after."""
    results = optimized.detailed_results
    print(results)
    for update in [each for each in results.updates if each.lessons][-1:]:
        print(f"\nLessons of update {update.update}:", *update.lessons, sep="\n- ")
    for name, (before, after) in results.instructions.items():
        print(f"\nThe instructions of {name!r}, before:\n\n{before}\n\nand after:\n\n{after}")
    print(f"\nThe report: {write_html(results, 'recorded.html')}")


def main() -> None:
    """Replay the run from a copy of its records; or make them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--record", action="store_true", help="call the LMs, and keep the records")
    parser.add_argument("--lm", default=NOBODY, help="llama.cpp's server with the 1.5B")
    parser.add_argument("--reflection-lm", default=NOBODY, help="the address of a reflection LM")
    asked = parser.parse_args()
    if asked.record:
        show(compiled(RECORD, asked.lm, asked.reflection_lm, offline=False))
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(RECORD, Path(folder) / "records"))
        show(compiled(copy, asked.lm, asked.reflection_lm, offline=True))


if __name__ == "__main__":
    main()
