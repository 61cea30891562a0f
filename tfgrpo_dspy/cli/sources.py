"""What a LIBRARY argument names: a library file, a saved program, a run directory, or `-`."""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tfgrpo_dspy.errors import LibraryFormatError, StoreError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.library_files import json_value
from tfgrpo_dspy.files import decoded
from tfgrpo_dspy.interchange import format_of, parse, rewritten
from tfgrpo_dspy.store.runs import SavedRun, saved_runs


@dataclass(frozen=True, slots=True)
class _Signature:
    instructions: str

    def with_instructions(self, instructions: str) -> "_Signature":
        return _Signature(instructions.removeprefix("\n"))


@dataclass(slots=True)
class _Predictor:
    state: dict[str, Any]

    @property
    def signature(self) -> _Signature:
        return _Signature(self.state["signature"]["instructions"])

    @signature.setter
    def signature(self, changed: _Signature) -> None:
        self.state["signature"]["instructions"] = changed.instructions


@dataclass(frozen=True, slots=True)
class SavedProgram:
    """The JSON of a saved program in the shape of a program, whose class is not imported."""

    state: dict[str, Any]

    def named_predictors(self) -> list[tuple[str, Any]]:
        """The predictors by name; that of a program that is a predictor itself is `self`."""
        if _is_predictor(self.state):
            return [("self", _Predictor(self.state))]
        states = self.state.items()
        return [(name, _Predictor(each)) for name, each in states if _is_predictor(each)]

    def named_sub_modules(self) -> list[tuple[str, Any]]:
        """None: JSON holds no modules, so no LMs that a copy would share."""
        return []

    def __str__(self) -> str:
        return json.dumps(self.state, indent=2, ensure_ascii=False) + "\n"


def _is_predictor(state: Any) -> bool:
    signature = state.get("signature") if isinstance(state, dict) else None
    return isinstance(signature, dict) and isinstance(signature.get("instructions"), str)


@dataclass(frozen=True, slots=True)
class Source:
    """A library, and where it was found: in `program`, in `run`, or in a text of `format`."""

    name: str
    library: ExperienceLibrary
    program: SavedProgram | None = None
    run: SavedRun | None = None
    format: str = ""
    data: bytes = field(default=b"", repr=False)

    def rewritten(self, library: ExperienceLibrary) -> str:
        """The file with this library in it, all else as it was.

        Raises LibraryError: the library has scopes that are not of the program, or something of the
        file would be lost.
        """
        if self.program is not None:
            return str(library.bake(self.program))
        text = decoded(self.data, self.name)
        return rewritten(text, library, self.format, self.name)


def read_source(name: str, format: str | None = None) -> Source:
    """What LIBRARY stands for; without `format`, the ending of the file says how to read it.

    Raises LibraryFormatError, StoreError, OSError: it is nothing of that kind.
    """
    folder, _, run_id = name.rpartition("#")
    if Path(name).is_dir():
        folder, run_id = name, ""
    elif Path(name).exists() or not folder:
        folder = ""
    if folder:
        run = read_run(folder, run_id)
        return Source(name, run.results.experiences, run=run)
    if name.endswith((".pkl", ".db")) and not format:
        raise LibraryFormatError(
            f"{name}: no library is read from this; save a program with program.save('x.json'), "
            f"or name the folder of a run store."
        )
    data = given_bytes(name)
    if name == "-" and not format:
        format = "json" if decoded(data, name).lstrip()[:1] in ("{", "[") else "md"
    named = format or format_of(name)
    text = decoded(data, name)
    value = json_value(text, name) if named == "json" and "signature" in text else None
    if isinstance(value, dict) and SavedProgram(value).named_predictors():
        program = SavedProgram(value)
        return Source(name, ExperienceLibrary.from_program(program), program=program, data=data)
    return Source(name, parse(text, named, source=name), format=named, data=data)


def given_bytes(name: str) -> bytes:
    """What the file, or standard input (`-`, once), holds. Raises LibraryFormatError, OSError."""
    if name != "-":
        return Path(name).read_bytes()
    data = sys.stdin.buffer.read()
    if not data:  # the command before it failed, or another argument has read it
        raise LibraryFormatError(
            f"{name}: standard input is empty; see whether the command before it failed, and name "
            f"{name} only once."
        )
    return data


def read_run(folder: str, run_id: str = "") -> SavedRun:
    """The run of a store whose id begins so; by default the last one. Raises StoreError."""
    if (Path(folder) / "program.pkl").exists():
        raise StoreError(f"{folder}: a pickled program; save it with program.save('x.json').")
    runs = saved_runs(folder)
    matching = [run for run in runs if run.id.startswith(run_id)]
    if not matching or (run_id and len(matching) > 1):
        ids = ", ".join(run.id[:8] for run in runs) or "no run yet"
        what = "several runs" if matching else "no run"
        raise StoreError(f"{folder}#{run_id}: {what} of that id; the store holds {ids}.")
    return matching[-1]
