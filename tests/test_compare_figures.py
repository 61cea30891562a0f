"""The comparison's figures: differences, learning curves, bars, the report, what is published."""

import json
from typing import Any

import pytest

for package in ("gepa", "optuna", "numpy", "scipy", "matplotlib", "rich"):
    pytest.importorskip(package)

from compare import merged, publish, stored  # noqa: E402
from compare_bars import OTHERS, bars  # noqa: E402
from compare_curves import calls_until, median, reached  # noqa: E402
from compare_publish import packed, unpacked  # noqa: E402
from compare_report import page, parts, text_page  # noqa: E402
from compare_statistics import Interval, difference, interval, rows  # noqa: E402


def record_of(optimizer: str, seed: int, scores: list[float], **more: Any) -> dict[str, Any]:
    mean = sum(scores) / len(scores)
    spent = {"calls": 250, "prompt_tokens": 50, "completion_tokens": 10}
    return {
        "task": "sim:easy",
        "optimizer": optimizer,
        "budget": 0 if optimizer in ("none", "oracle") else 100,
        "seed": seed,
        "scores": scores,
        "mean": mean,
        "spent": {"policy": spent, "reflection": spent},
        "cost": None,
        "wall_s": 1.0,
        "prompt_words": 20,
        "prompt_tokens": 100.0,
        "failed": {"lm_calls": 0},
        "ended": "finished",
        "curve": [[100, mean]],
    } | more


def test_differences_are_paired_by_seed_and_example() -> None:
    ours = {0: record_of("a", 0, [1.0, 0.0, 1.0]), 1: record_of("a", 1, [0.0, 1.0, 1.0])}
    theirs = {0: record_of("b", 0, [0.5, -0.5, 0.5])}
    assert difference(ours, theirs) == Interval(0.5, 0.5, 0.5)
    assert difference(ours, {}) is None


def test_an_interval_holds_its_mean_and_shrinks_with_more_values() -> None:
    few, many = interval([0.0, 0.1, 0.4, 0.2]), interval([0.0, 0.1, 0.4, 0.2] * 20)
    assert few.low < few.mean < few.high
    assert many.high - many.low < few.high - few.low


# ---------------------------------------------------------------------- learning curves


def test_a_score_is_reached_where_it_is_held_and_kept_where_it_is_never_lost_again() -> None:
    assert calls_until([[10, 0.5], [40, 0.93], [60, 0.6], [100, 0.95]], 0.9) == (100, 40)
    assert calls_until([[10, 0.9], [100, 0.9]], 0.9) == (10, 10)
    assert calls_until([[10, 0.9], [100, 0.8]], 0.9) == (None, 10)
    assert calls_until([[10, 0.5]], 0.9) == (None, None)


def test_the_median_is_never_where_half_of_the_seeds_never_did() -> None:
    assert median([None, 30, 10]) == 30
    assert median([None, None, 10, 20]) is None


def test_an_optimizer_is_judged_at_its_best_budget_not_by_the_best_run_of_each_seed() -> None:
    records = [record_of("none", s, [0.2]) for s in range(3)]
    records += [record_of("oracle", s, [1.0]) for s in range(3)]
    at_200, at_500 = (150, 500, None), (300, 160, 300)
    for budget, calls in ((200, at_200), (500, at_500)):
        for seed, n in enumerate(calls):
            curve = [[budget, 0.5]] if n is None else [[n, 0.95]]
            records.append(record_of("gepa", seed, [0.95], budget=budget, curve=curve))
    (found,) = reached(records)
    assert (found.budget, found.calls_by_seed, found.median) == (500, (300, 160, 300), 300)


def test_a_budget_with_fewer_seeds_is_not_the_best() -> None:
    records = [record_of("none", s, [0.2]) for s in range(2)]
    records += [record_of("gepa", s, [0.9], curve=[[90, 0.9]]) for s in range(2)]
    records.append(record_of("gepa", 0, [0.9], budget=50, curve=[[40, 0.9]]))
    assert [found.budget for found in reached(records)] == [100]


# ---------------------------------------------------------------------- the report


def test_the_report_holds_every_optimizer_and_needs_no_other_file() -> None:
    records = [
        record_of(name, seed, [0.1 * seed, score])
        for name, score in (("none", 0.2), ("oracle", 1.0), ("tfgrpo", 0.8), ("gepa", 0.7))
        for seed in range(3)
    ]
    made = parts(records, "tfgrpo")
    text, plain = page(made, "made <so>"), text_page(made, "made <so>")
    assert "made &lt;so&gt;" in text
    assert text.count("<svg") == 1
    assert page(parts(records, "tfgrpo"), "made <so>") == text
    assert "<link" not in text and "<script" not in text and "<img" not in text
    best_first = [row.optimizer for row in rows(records, "tfgrpo")]
    assert best_first == ["oracle", "tfgrpo", "gepa", "none"]
    assert all(name in plain and name in text for name in best_first)
    assert "| gepa | 0.400 (0.050) | +0.250 [+0.250, +0.250] | -0.050 [-0.050, -0.050] |" in plain


def test_ablations_and_varied_lms_stand_in_parts_of_their_own() -> None:
    records = [
        record_of(name, seed, [0.1 * seed, 0.5], task=task)
        for task in ("sim:easy", "sim:easy@attention=2.0")
        for name in ("none", "tfgrpo", "gepa")
        for seed in range(3)
    ]
    records += [record_of("no gate", seed, [0.4, 0.6]) for seed in range(3)]
    made = {part.title: part.sheets for part in parts(records, "tfgrpo")}
    assert list(made) == ["Comparison", "Ablations", "The simulated LM varied"]
    named = {title: [line[0] for s in sheets for line in s.lines] for title, sheets in made.items()}
    assert "no gate" in named["Ablations"] and "no gate" not in named["Comparison"]
    assert "against tfgrpo" in " ".join(made["Ablations"][0].heads)
    assert "gepa" in named["Comparison"] and "gepa" not in named["Ablations"]
    assert "sim:easy, attention for two items" in named["The simulated LM varied"]


def test_a_varied_lm_stands_beside_the_one_as_set_with_the_same_seeds_and_budgets() -> None:
    varied = [record_of("gepa", s, [0.5], task="sim:easy@attention=2.0") for s in range(2)]
    as_set = [record_of("gepa", seed, [seed / 2]) for seed in range(3)]
    more = record_of("gepa", 0, [0.9], budget=500)
    named = {part.title: part.sheets for part in parts([*varied, *as_set, more], "tfgrpo")}
    (sheet,) = named["The simulated LM varied"]
    assert sorted(sheet.lines) == [
        ["sim:easy", "0.250*"],
        ["sim:easy, attention for two items", "0.500*"],
    ]


# ---------------------------------------------------------------------- bars

SETTINGS = ("sim:easy", "sim:sparse", "sim:noisy", "sim:many", "sim:misleading")


def run_of(task: str, optimizer: str, mean: float, curve: list[Any], budget: int = 500) -> Any:
    where = {"task": task, "budget": 0 if optimizer in ("none", "oracle") else budget}
    return [record_of(optimizer, seed, [mean] * 2, curve=curve, **where) for seed in range(3)]


def compared(ours: float, ours_at: int, theirs_at: int = 400) -> list[Any]:
    """Five settings: GEPA at 0.8 after `theirs_at` calls, MIPROv2 at 0.7, ours as given."""
    found = []
    for task in SETTINGS:
        found += run_of(task, "none", 0.2, [[0, 0.2]])
        found += run_of(task, "oracle", 0.8, [[0, 0.8]])
        found += run_of(task, "gepa", 0.8, [[theirs_at, 0.8]])
        found += run_of(task, "mipro", 0.7, [[80, 0.7]])
        found += run_of(task, "tfgrpo", ours, [[ours_at, ours]])
        found += run_of(task, "tfgrpo-paper", 0.9, [[390, 0.9]])
    return found


def test_others_are_other_methods() -> None:
    assert {"gepa", "gepa-mb8", "simba", "mipro", "bootstrap"} <= set(OTHERS)
    assert not [name for name in OTHERS if name.startswith("tfgrpo") or name in ("none", "oracle")]


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        (0.8, "met (in 5 of 5; lowest +0.000)"),
        (0.78, "NOT met (in 0 of 5; lowest -0.020)"),
        (0.85, "met (in 5 of 5; lowest +0.050)"),
    ],
)
def test_the_held_out_score_is_held_against_the_best_other(ours: float, verdict: str) -> None:
    scores = bars(compared(ours, 100))[0]
    assert scores.title.endswith(verdict)
    assert {line[3] for line in scores.lines} == {"gepa 0.800"}


def test_scores_are_compared_on_the_seeds_that_we_have_too() -> None:
    records = compared(0.8, 100)
    records += [record_of("mipro", 7, [1.0], task=task, budget=500) for task in SETTINGS]
    records += [record_of("mipro", 8, [1.0], task=task, budget=500) for task in SETTINGS]
    assert {line[3] for line in bars(records)[0].lines} == {"gepa 0.800"}


def test_one_setting_far_below_misses_the_bar_and_a_little_below_does_not() -> None:
    good, far = compared(0.82, 100), compared(0.7, 100)
    little = compared(0.775, 100)

    def with_one(low: list[Any]) -> str:
        mixed = [r for r in good if r["task"] != "sim:many"]
        return bars(mixed + [r for r in low if r["task"] == "sim:many"])[0].title

    assert " met (in 4 of 5; lowest -0.025)" in with_one(little)
    assert "NOT met (in 4 of 5; lowest -0.100)" in with_one(far)


@pytest.mark.parametrize(("ours_at", "verdict"), [(200, ": met (in 5"), (201, "NOT met (in 0")])
def test_the_gain_has_to_be_reached_with_half_of_the_calls_of_the_quickest_that_reaches_it(
    ours_at: int, verdict: str
) -> None:
    calls = bars(compared(0.8, ours_at))[1]
    assert verdict in calls.title
    assert {line[2] for line in calls.lines} == {"gepa 400 (3/3)"}  # not MIPROv2, which never does


def test_where_no_other_reaches_the_gain_reaching_it_is_enough() -> None:
    assert (
        "(in 5 of 5)" in bars([r for r in compared(0.8, 450) if r["optimizer"] != "gepa"])[1].title
    )
    never = bars(compared(0.5, 100))[1]
    assert "(in 0 of 5)" in never.title
    assert {line[3] for line in never.lines} == {"never"}


def test_the_papers_schedule_is_compared_by_calls_until_the_score_it_ends_with() -> None:
    records = run_of("sim:easy", "none", 0.2, [[0, 0.2]])
    records += run_of("sim:easy", "tfgrpo-paper", 0.6, [[100, 0.4], [200, 0.7], [400, 0.6]])
    records += run_of("sim:easy", "tfgrpo", 0.9, [[80, 0.5], [160, 0.65], [480, 0.9]])
    (schedules,) = [sheet for sheet in bars(records) if "paper's schedule" in sheet.title]
    assert schedules.lines == [["sim:easy", "500", "tfgrpo-paper", "0.600", "3/3", "0.40", "0.80"]]
    assert "at most 0.5 of tfgrpo-paper's: 1 of 1" in schedules.title


# ---------------------------------------------------------------------- what is published


def test_nothing_is_said_of_calls_where_results_alone_were_scored() -> None:
    records = [r | {"curve": [[500, r["mean"]]]} for r in compared(ours=0.8, ours_at=10)]
    titles = [sheet.title for sheet in bars(records)]
    assert len(titles) == 1
    assert titles[0].startswith("Held-out score")


def test_published_records_give_the_same_tables(tmp_path: Any) -> None:
    records = compared(0.8, 100) + [
        record_of("bootstrap", seed, [0.123, 1.0, 0.5], task="rg:x") for seed in range(2)
    ]
    again, about = unpacked(packed(records, {"made": "so"}))
    assert about == {"made": "so"}
    ordered = sorted(records, key=lambda r: (r["task"], r["optimizer"], r["budget"], r["seed"]))
    shown = text_page(parts(ordered, "tfgrpo"), "")
    assert text_page(parts(again, "tfgrpo"), "") == shown
    publish(records, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        "compare.json",
        "compare.md",
        "compare.html",
    }
    assert "SIMULATED" in (tmp_path / "compare.md").read_text(encoding="utf-8")


def test_published_text_is_compact_ordered_and_names_no_address() -> None:
    records = [
        record_of("gepa", seed, [0.0, 0.5, 1.0], ended="Error: <x at 0x7f00aa>") for seed in (1, 0)
    ]
    text = packed(records, {})
    assert '"05X"' in text and "0x7f00aa" not in text
    assert [run["seed"] for run in unpacked(text)[0]] == [0, 1]
    assert packed(records[::-1], {}) == text


def test_of_several_folders_the_later_record_of_a_cell_counts(tmp_path: Any) -> None:
    for folder, score in (("first", 0.1), ("second", 0.9)):
        (tmp_path / folder).mkdir()
        record = json.dumps(record_of("gepa", 0, [score]))
        (tmp_path / folder / "results.jsonl").write_text(record + "\n", encoding="utf-8")
    found = merged([tmp_path / "first", tmp_path / "second"], stored)
    assert [record["mean"] for record in found] == [0.9]


def test_new_runs_are_published_with_those_that_are_published_already(tmp_path: Any) -> None:
    published = tmp_path / "compare.json"
    old = [record_of("gepa", seed, [0.1]) for seed in range(2)]
    published.write_text(packed(old, {}), encoding="utf-8")
    again = json.dumps(record_of("gepa", 1, [0.9]))
    (tmp_path / "results.jsonl").write_text(again + "\n", encoding="utf-8")
    found = merged([published, tmp_path], stored)
    assert [(record["seed"], record["mean"]) for record in found] == [(0, 0.1), (1, 0.9)]
