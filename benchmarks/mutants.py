"""Would the tests notice? Mutants of all rooms, each run against the tests of its own room.

    .venv-test/bin/pip install cosmic-ray pytest-cov
    .venv-test/bin/python benchmarks/mutants.py --work /tmp/mutants    # goes on after a kill

cosmic-ray lists and makes the mutants, in a copy of the clone. **Drawn**: for each room some places
of its code, each place alike, and for each place one of its mutants. Left out: annotations, log
calls, what Python cannot compile, and bit operators in the place of others (almost all crash).
**Tests**: of the files named in `mutants.toml`, those that run the changed line (if only an import
does, those that run its file), the fastest first, until one fails; what runs out of time is run
once more before it counts as noticed. In the end all tests that failed run without a mutant.
Verdicts on survivors are written by hand into the results, and kept.
"""

import argparse
import ast
import json
import os
import random
import shutil
import subprocess
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import date
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from coverage import CoverageData

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "mutants.json"
ROOMS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
SEED = 48
LIMIT_S = 60  # for one test, on a machine with other work
LONGEST_S = 10  # tests that take longer, under coverage, are left out
OPTIONS = f"-q -p no:cacheprovider -p no:xdist -o timeout={LIMIT_S} --hypothesis-seed=0".split()
PYTEST = [sys.executable, "-m", "pytest", "-m", "not slow", *OPTIONS]


def left_out(code: str) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Where log calls and annotations begin and end."""
    for node in ast.walk(ast.parse(code)):
        parts = [getattr(node, name, None) for name in ("annotation", "returns")]
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("logger."):
            parts.append(node)
        for part in filter(None, parts):
            yield (part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)


def mutants_of(path: Path) -> Iterator[tuple[tuple[int, int], dict[str, Any]]]:
    """All mutants of a file, each with its place."""
    skipped = list(left_out(path.read_text()))
    for item in _all_work_items([path], {}):
        (change,) = item.mutations
        parts = change.operator_name.split("_")[1:]
        kinds = {part.startswith(("Bit", "LS", "RS")) for part in parts}
        if len(kinds) < 2 and not any(a <= change.start_pos < b for a, b in skipped):
            made = {"path": str(path), "line": change.start_pos[0]}
            made |= {"operator": change.operator_name, "occurrence": change.occurrence}
            yield change.start_pos, made


def mutated(mutant: dict[str, Any]) -> str:
    operator = get_operator(mutant["operator"])()
    return mutate_code(Path(mutant["path"]).read_text(), operator, mutant["occurrence"])


def drawn(room: str) -> Iterator[dict[str, Any]]:
    """The mutants of a room, in the order in which they are drawn."""
    places, folder = defaultdict(list), Path("tfgrpo_dspy", room)
    draw = random.Random(f"{SEED} {room}")
    for path in sorted(folder.rglob("*.py")) or [folder]:
        for place, mutant in mutants_of(path):
            places[path, place].append({"room": room} | mutant)
    for place in draw.sample(sorted(places), k=len(places)):
        mutant = draw.choice(places[place])
        with suppress(SyntaxError, AttributeError):  # cosmic-ray fails on some decorators
            compile(mutated(mutant), "mutant", "exec")
            yield mutant


class Tests:
    """The tests of a room: what each runs, and how long it takes; they are run once to know it."""

    def __init__(self, room: str, work: Path) -> None:
        xml, data = (work / f"{room.replace('.', '_')}.{kind}" for kind in ("xml", "coverage"))
        if not xml.exists():
            options = f"--cov=tfgrpo_dspy --cov-context=test --cov-report= --junitxml={xml}".split()
            files = [f"tests/test_{name}.py" for name in ROOMS[room][1].split()]
            environment = os.environ | {"COVERAGE_FILE": str(data)}
            subprocess.run([*PYTEST, *options, *files], env=environment)
        self.data, self.log = CoverageData(str(data)), work / "last.log"
        self.data.read()
        known = {context.rpartition("|")[0] for context in self.data.measured_contexts()}
        passed = [c for c in ElementTree.parse(xml).iter("testcase") if c.find("failure") is None]
        seconds = {f"{c.get('classname').replace('.', '/')}.py::{c.get('name')}": c for c in passed}
        self.seconds = {test: float(case.get("time")) for test, case in seconds.items()
                        if test in known and float(case.get("time")) <= LONGEST_S}  # fmt: skip

    def of(self, mutant: dict[str, Any]) -> list[str]:
        """Those that run the mutant, the fastest first."""
        running = {
            line: {context.rpartition("|")[0] for context in contexts} & self.seconds.keys()
            for line, contexts in self.data.contexts_by_lineno(
                str(Path(mutant["path"]).resolve())
            ).items()
        }
        of_line, of_file = running.get(mutant["line"]), set().union(*running.values())
        return sorted(of_line or of_file or self.seconds, key=lambda test: self.seconds[test])

    def status(self, tests: Sequence[str]) -> int | None:
        """What pytest returns for these tests, until one fails; None if it ran out of time."""
        limit = 2 * LIMIT_S + 3 * sum(self.seconds[test] for test in tests)
        with self.log.open("w") as file, suppress(subprocess.TimeoutExpired):
            command = [*PYTEST, "-x", *tests]
            return subprocess.run(command, stdout=file, stderr=file, timeout=limit).returncode
        return None


def tried(mutant: dict[str, Any], tests: Tests) -> dict[str, Any]:
    """Makes a mutant, runs its tests, and puts the code back."""
    path, chosen = Path(mutant["path"]), tests.of(mutant)
    before, after = path.read_text(), mutated(mutant)
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    change = next(([a.strip(), b.strip()] for a, b in pairs if a != b), [])
    path.write_text(after)
    try:
        status = tests.status(chosen)
        if status is None or "Timeout (>" in tests.log.read_text(errors="replace"):
            status = tests.status(chosen)
    finally:
        path.write_text(before)
    if status not in (0, 1, 2, 4, None):
        raise RuntimeError(f"pytest ended with {status}; see {tests.log}")
    lines = tests.log.read_text(errors="replace").splitlines()
    failed = [line[7:].split(" - ")[0] for line in lines if line.startswith("FAILED ")]
    return mutant | {"change": change, "status": status, "by": failed[0] if failed else ""}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What is published: of each room the latest figures and survivors, with verdicts so far."""
    known = json.loads(OUT.read_text()) if OUT.exists() else {"rooms": {}, "survivors": []}
    verdicts = {(each["path"], *each["change"]): each["verdict"] for each in known["survivors"]}
    noticed: dict[str, list[bool]] = defaultdict(list)
    for result in results:
        noticed[result["room"]].append(result["status"] != 0)
    survivors = [
        {name: result[name] for name in ("path", "line", "change")}
        | {"verdict": verdicts.get((result["path"], *result["change"]), "")}
        for result in results
        if result["status"] == 0
    ]
    survivors += [each for each in known["survivors"] if Path(each["path"]).parts[1] not in noticed]
    survivors.sort(key=lambda each: (each["path"], each["line"]))
    today = str(date.today())
    rooms = {
        room: {"date": today, "mutants": len(n), "noticed": sum(n)} for room, n in noticed.items()
    }
    versions = {name: version(name) for name in ("cosmic-ray", "coverage", "pytest", "dspy")}
    rooms = known["rooms"] | rooms
    return {
        "seed": SEED,
        "versions": versions,
        "rooms": {room: rooms[room] for room in ROOMS if room in rooms},
        "survivors": survivors,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the copy and a log")
    parser.add_argument("--rooms", nargs="*", default=list(ROOMS), choices=list(ROOMS))
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    tree, notes = work / "tree", work / "tried.jsonl"
    skipped = shutil.ignore_patterns(".git", ".venv*", "__pycache__")
    shutil.copytree(ROOT, tree, ignore=skipped, dirs_exist_ok=True)  # a kill leaves a mutant
    os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1"}
    os.chdir(tree)
    results = [json.loads(line) for line in notes.open()] if notes.exists() else []
    done = {(result["path"], result["operator"], result["occurrence"]) for result in results}
    for room in arguments.rooms:
        tests = Tests(room, work)
        for mutant in islice(drawn(room), ROOMS[room][0]):
            if (mutant["path"], mutant["operator"], mutant["occurrence"]) not in done:
                results.append(tried(mutant, tests))
                with notes.open("a") as file:
                    print(json.dumps(results[-1]), file=file)
        failed = {result["by"] for result in results} & tests.seconds.keys()
        if failed and tests.status(sorted(failed)):
            raise RuntimeError(f"tests fail without a mutant; see {tests.log}")
    OUT.write_text(json.dumps(summary(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
