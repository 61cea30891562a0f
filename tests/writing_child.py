"""Writes a file through each door, again and again, each time in a fork that meets a misfortune.

Started as a script with a folder and the names of doors. For each moment (an opened, replaced or
changed file of the folder) a fork is killed there with SIGKILL; another finds the disk full; in
another one a colleague saves the file while it is written. Prints as JSON what became of each file.
"""

import itertools
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import runs
from click.testing import CliRunner
from report_runs import a_large_run

from tfgrpo_dspy import ExperienceLibrary
from tfgrpo_dspy.cli import tfgrpo
from tfgrpo_dspy.errors import UnsavedError
from tfgrpo_dspy.interchange import write_library
from tfgrpo_dspy.report import write_html

OLD = ExperienceLibrary.from_texts([f"Old advice {n}." for n in range(200)])
NEW = ExperienceLibrary.from_texts([f"New advice {n}." for n in range(200)])
COLLEAGUE = b"what a colleague has just saved"
FULL_AT = 700, 9_000  # bytes: less than each file has; room for the text that is edited


def command(*args: Any, **environment: str) -> None:
    result = CliRunner(env=environment).invoke(tfgrpo, [*map(str, args)])
    if result.exit_code:
        raise UnsavedError(result.stderr, result.stdout)


def edit(path: Path) -> None:
    script = path.with_name("editor.py")
    command("edit", path, VISUAL="", EDITOR=f"{sys.executable} {script}")


def doors(folder: Path) -> dict[str, tuple[str, Callable[[Path], Any]]]:
    """By name: the file that is there before, and what replaces it."""
    new, agent, large = folder / "new.json", folder / "into.yaml", a_large_run()
    store = folder / "store"
    return {
        "save": ("old.json", NEW.save),
        **{f"write_library {e}": (f"old.{e}", lambda path: write_library(NEW, path))
           for e in ("md", "yaml")},
        "write_html": ("old.html", lambda path: write_html(large, path)),
        "edit": ("edited.json", edit),
        "bake": ("program.json", lambda path: command("bake", path, new, "--in-place")),
        "export": ("old.yaml", lambda path: command("export", new, "--into", agent, "-o", path)),
        "import": ("old.csv", lambda path: command("import", new, "-o", path)),
        "merge": ("old.json", lambda path: command("merge", path, new, "-o", path)),
        "parquet": ("old.pq", lambda path: command("rollouts", store, "--parquet", path)),
        "report": ("old.html", lambda path: command("report", store, "-o", path)),
    }  # fmt: skip


def prepare(folder: Path, door: str) -> None:
    NEW.save(folder / "new.json")
    write_library(OLD, folder / "into.yaml")
    for name in ("old.json", "old.md", "old.csv", "old.yaml", "old.txt", "edited.json"):
        write_library(OLD, folder / name)
    (folder / "old.html").write_text("an older report" * 100)
    OLD.bake(runs.predictor()).save(folder / "program.json")
    edited = "path.write_text(path.read_text('utf-8').replace('Old', 'New'), 'utf-8')"
    code = f"import pathlib, sys\npath = pathlib.Path(sys.argv[1])\n{edited}\n"
    (folder / "editor.py").write_text(code)
    (folder / "old.pq").write_text("an older table" * 100)
    if door in ("parquet", "report"):
        runs.learned(log_dir=folder / "store")


def in_a_fork(work: Callable[[], None], at: Callable[[int, str, tuple[Any, ...]], None]) -> int:
    """How a fork ends that does the work; `at` is told of each of its changes of a file."""
    if process := os.fork():
        return os.waitpid(process, 0)[1]
    n = 0

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal n
        is_write = event == "open" and isinstance(args[2], int) and args[2] & os.O_CREAT
        if is_write or event in ("os.rename", "os.chmod", "os.remove", "os.truncate"):
            n += 1
            at(n, event, args)

    sys.addaudithook(hook)
    code = 0
    try:
        work()
    except UnsavedError as error:
        code = 3 if error.text else 2
    except BaseException as error:  # noqa: BLE001 - the exit code tells of it
        sys.stderr.write(repr(error))
        code = 1
    os._exit(code)


class Case:
    """A file, the door that writes it, and what it held before."""

    def __init__(self, folder: Path, door: str) -> None:
        prepare(folder, door)
        name, self.write = doors(folder)[door]
        self.folder, self.path = folder, folder / name
        self.old = self.path.read_bytes()
        self.path.chmod(0o640)
        in_a_fork(lambda: self.write(self.path), lambda *_: None)
        self.new, self.mode = self.path.read_bytes(), self.path.stat().st_mode & 0o777
        self.restore()

    def restore(self) -> None:
        self.path.write_bytes(self.old)
        for rest in self.folder.glob(".*"):
            rest.unlink()

    @property
    def state(self) -> str:
        data = self.path.read_bytes()
        names = {self.old: "old", self.new: "new", COLLEAGUE: "colleague's"}
        return names.get(data, f"{len(data)} bytes")

    def killed(self, moment: int) -> str:
        """The state after a kill at that moment; "" where it was done before."""

        def kill(n: int, _event: str, _args: Any) -> None:
            if n == moment:
                os.kill(os.getpid(), signal.SIGKILL)

        code = in_a_fork(lambda: self.write(self.path), kill)
        state = self.state if code else ""
        self.restore()
        return state

    def on_a_full_disk(self) -> tuple[int, str]:
        def write() -> None:
            limit = FULL_AT[self.write is edit]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            self.write(self.path)

        code = os.waitstatus_to_exitcode(in_a_fork(write, lambda *_: None))
        return code, self.state

    def shared(self) -> tuple[int, str]:
        def save_too(_n: int, event: str, args: tuple[Any, ...]) -> None:
            is_beside = str(args[0]).startswith(str(self.folder / "."))
            if event == "open" and is_beside and str(args[0]).endswith(".tmp"):
                self.path.write_bytes(COLLEAGUE)

        code = os.waitstatus_to_exitcode(in_a_fork(lambda: self.write(self.path), save_too))
        return code, self.state


def fate(folder: Path, door: str) -> dict[str, Any]:
    """What became of the file of a door."""
    folder.mkdir()
    case = Case(folder, door)
    killed = list(itertools.takewhile(bool, map(case.killed, itertools.count(1))))
    full = case.on_a_full_disk()
    case.restore()
    shared = case.shared()
    kept = [rest.read_bytes() == case.new for rest in folder.glob(".*.unsaved")]
    found = {"killed": killed, "full": full, "shared": shared, "kept": kept, "mode": case.mode}
    return {**found, "is_new": case.new != case.old}


def main(folder: Path, doors: Sequence[str]) -> None:
    fates = {door: fate(folder / door.replace(" ", "-"), door) for door in doors}
    sys.stdout.write(json.dumps(fates) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
