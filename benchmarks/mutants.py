"""Would the tests notice? Mutants of all rooms, each run against the tests of its own room.

    .venv-test/bin/pip install cosmic-ray pytest-cov
    .venv-test/bin/python benchmarks/mutants.py --work /tmp/mutants    # goes on after a kill

cosmic-ray lists and makes the mutants, in a copy of the clone. **Drawn**: for each room some places
of its code, each place alike, and for each place one of its mutants. Left out: annotations, log
calls, what Python cannot compile, and bit operators in the place of others (almost all crash).
**Tests**: of the files named in `mutants.toml`, those that run the changed statement (if only an
import does, those that run its file), the fastest first, until one fails; what runs out of time is
run once more before it counts as noticed. In the end all tests that failed run without a mutant.
Verdicts on survivors are written by hand into the results, and kept.
"""

import argparse
import ast
import contextlib
import importlib
import itertools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cosmic_ray.commands.init import _all_work_items
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from coverage import CoverageData

ROOT = Path(__file__).parents[1]
OUT = ROOT / "benchmarks" / "results" / "mutants.json"
ROOMS = tomllib.loads(Path(__file__).with_suffix(".toml").read_text())
SEED = 48
LIMIT_S = 60
"""For one test, on a machine with other work."""
LONGEST_S = 10
"""Tests that take longer, under coverage, are left out."""
OPTIONS = f"-p no:cacheprovider -p no:xdist -o timeout={LIMIT_S} --hypothesis-seed=0".split()
IN_FORK = [*OPTIONS, "-x", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
LOADED = ("dspy", "litellm", "hypothesis.stateful", "diskcache", "scipy.stats")
"""Imported once; each mutant is tried in a fork."""


class Order:
    """Keeps of the collected tests those of a list, in its order."""

    def __init__(self, tests: list[str]) -> None:
        self.rank = {test: rank for rank, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        chosen = [item for item in items if item.nodeid in self.rank]
        items[:] = sorted(chosen, key=lambda item: self.rank[item.nodeid])


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
        kinds = {
            part.startswith(("Bit", "LS", "RS")) for part in change.operator_name.split("_")[1:]
        }
        if len(kinds) < 2 and not any(a <= change.start_pos < b for a, b in skipped):
            made = {"path": str(path), "line": change.start_pos[0]}
            made |= {"operator": change.operator_name, "occurrence": change.occurrence}
            yield change.start_pos, made


def mutated(mutant: dict[str, Any]) -> str:
    operator = get_operator(mutant["operator"])()
    return mutate_code(Path(mutant["path"]).read_text(), operator, mutant["occurrence"])


def drawn(room: str) -> Iterator[dict[str, Any]]:
    """The mutants of a room, in the order in which they are drawn."""
    places, folder, draw = (
        defaultdict(list),
        Path("tfgrpo_dspy", room),
        random.Random(f"{SEED} {room}"),
    )
    for path in sorted(folder.rglob("*.py")) or [folder]:
        for place, mutant in mutants_of(path):
            places[path, place].append({"room": room} | mutant)
    for place in draw.sample(sorted(places), k=len(places)):
        mutant = draw.choice(places[place])
        with contextlib.suppress(SyntaxError):
            compile(mutated(mutant), "mutant", "exec")
            yield mutant


def statement(code: str, line: int) -> range:
    """The lines of the statement around a line; of a branch or loop its head alone."""
    nodes = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.stmt)]
    around = [node for node in nodes if node.lineno <= line <= node.end_lineno]
    nothing = ast.Pass(lineno=line, end_lineno=line)
    inner = max(around, key=lambda node: node.lineno, default=nothing)
    headed = isinstance(inner, ast.If | ast.For | ast.While | ast.With)
    return range(inner.lineno, inner.body[0].lineno if headed else inner.end_lineno + 1)


def tests_of(mutant: dict[str, Any], folder: Path) -> list[tuple[float, str]]:
    """The tests of the room that run the mutant, with their seconds, the fastest first."""
    lines = statement(Path(mutant["path"]).read_text(), mutant["line"])
    of_lines, of_file, seconds = set(), set(), {}
    for name in ROOMS[mutant["room"]][1].split():
        xml, data = folder / f"{name}.xml", CoverageData(str(folder / f"{name}.cov"))
        if not xml.exists():
            report = ["--cov=tfgrpo_dspy", "--cov-context=test", "--cov-report="]
            command = [sys.executable, "-m", "pytest", *OPTIONS, *report, "-m", "not slow"]
            environment = os.environ | {"COVERAGE_FILE": data.data_filename()}
            files = [f"--junitxml={xml}", f"tests/test_{name}.py"]
            subprocess.run([*command, *files], env=environment, stdout=subprocess.DEVNULL)
        data.read()
        for line, names in data.contexts_by_lineno(str(Path(mutant["path"]).resolve())).items():
            tests = {name.rsplit("|", 1)[0] for name in names if name}
            of_file |= tests
            of_lines |= tests if line in lines else set()
        for case in ElementTree.parse(xml).iter("testcase"):
            if case.find("failure") is None and float(case.get("time")) <= LONGEST_S:
                seconds[f"tests/test_{name}.py::{case.get('name')}"] = float(case.get("time"))
    chosen = [tests & seconds.keys() for tests in (of_lines, of_file, seconds.keys())]
    return sorted((seconds[test], test) for test in next(filter(None, chosen)))


def status_of(tests: list[tuple[float, str]], log: Path) -> int | None:
    """What pytest returns in a fork of this process; None if it ran out of time."""
    order = [test for _, test in tests]
    if not (child := os.fork()):
        os.setsid()
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
        os.dup2(out, 1), os.dup2(out, 2)
        files = dict.fromkeys(test.split("::")[0] for test in order)
        try:
            os._exit(int(pytest.main([*IN_FORK, *files], plugins=[Order(order)])))
        finally:
            os._exit(3)
    limit = 2 * LIMIT_S + 3 * sum(duration for duration, _ in tests)
    ended, _, _ = select.select([os.pidfd_open(child)], [], [], limit)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)  # what the tests left behind, too
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status) if ended else None


def tried(mutant: dict[str, Any], work: Path) -> dict[str, Any]:
    """Makes a mutant, runs its tests, and puts the code back."""
    path, log, tests = Path(mutant["path"]), work / "last.log", tests_of(mutant, work / "covered")
    before, after = path.read_text(), mutated(mutant)
    pairs = zip(before.splitlines(), after.splitlines(), strict=False)
    change = next(([a.strip(), b.strip()] for a, b in pairs if a != b), [])
    path.write_text(after)
    try:
        status = status_of(tests, log)
        if status is None or "Timeout (>" in log.read_text(errors="replace"):
            status = status_of(tests, log)
    finally:
        path.write_text(before)
    if status not in (0, 1, 2, None):
        raise RuntimeError(f"pytest ended with {status}; see {log}")
    failed = [
        line.split(" - ")[0]
        for line in log.read_text(errors="replace").splitlines()
        if line.startswith("FAILED ")
    ]
    return mutant | {"change": change, "status": status, "by": failed[0][7:] if failed else ""}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """What is published: figures of each room, and the survivors with the verdicts given so far."""
    known = json.loads(OUT.read_text())["survivors"] if OUT.exists() else []
    verdicts = {(each["path"], *each["change"]): each["verdict"] for each in known}
    survivors = [
        {name: result[name] for name in ("path", "line", "change")}
        | {"verdict": verdicts.get((result["path"], *result["change"]), "")}
        for result in sorted(results, key=lambda result: (result["path"], result["line"]))
        if result["status"] == 0
    ]
    drawn, left = (
        Counter(result["room"] for result in some)
        for some in (results, [r for r in results if r["status"] == 0])
    )
    rooms = {
        room: {"mutants": drawn[room], "noticed": drawn[room] - left[room]}
        for room in ROOMS
        if drawn[room]
    }
    versions = {name: version(name) for name in ("cosmic-ray", "coverage", "pytest", "dspy")}
    head = {"date": str(date.today()), "seed": SEED, "versions": versions}
    return head | {"rooms": rooms, "survivors": survivors}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, required=True, help="a folder for the copy and a log")
    parser.add_argument("--rooms", nargs="*", default=list(ROOMS), choices=list(ROOMS))
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    tree, notes = work / "tree", work / "tried.jsonl"
    if not tree.exists():
        shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".git", ".venv*", "__pycache__"))
    (work / "covered").mkdir(exist_ok=True)
    os.environ |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONDONTWRITEBYTECODE": "1"}
    os.environ["PYTHONPATH"] = sys.path[0] = str(tree)
    os.chdir(tree)
    sys.dont_write_bytecode = True
    for name in LOADED:
        importlib.import_module(name)
    results = [json.loads(line) for line in notes.open()] if notes.exists() else []
    done = {(result["path"], result["operator"], result["occurrence"]) for result in results}
    for room in arguments.rooms:
        for mutant in itertools.islice(drawn(room), ROOMS[room][0]):
            if (mutant["path"], mutant["operator"], mutant["occurrence"]) not in done:
                results.append(tried(mutant, work))
                with notes.open("a") as file:
                    print(json.dumps(results[-1]), file=file)
    failed = {(1.0, result["by"]) for result in results if result["by"]}
    if status_of(sorted(failed), work / "last.log"):
        raise RuntimeError(f"tests fail without a mutant; see {work / 'last.log'}")
    OUT.write_text(json.dumps(summary(results), indent=1) + "\n")


if __name__ == "__main__":
    main()
