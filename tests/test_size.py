"""The package only becomes smaller: nothing is above the size that `pyproject.toml` states."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LIMITS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["tfgrpo"]
LONGEST_FILE = 700  # lines


def lines_by_file(folder: str) -> dict[str, int]:
    files = sorted((ROOT / folder).rglob("*.py"))
    return {
        str(path.relative_to(ROOT)): len(path.read_text(encoding="utf-8").splitlines())
        for path in files
    }


def test_the_package_has_no_more_lines_and_files_than_it_may_have() -> None:
    by_file = lines_by_file("tfgrpo_dspy")
    assert sum(by_file.values()) <= LIMITS["max_lines"]
    assert len(by_file) <= LIMITS["max_files"]


def test_the_tests_have_no_more_lines_than_they_may_have() -> None:
    assert sum(lines_by_file("tests").values()) <= LIMITS["max_test_lines"]


def test_no_file_of_the_package_is_too_long_to_be_read_at_once() -> None:
    by_file = lines_by_file("tfgrpo_dspy")
    assert {path: n for path, n in by_file.items() if n > LONGEST_FILE} == {}
