"""The benchmark of strategies: each has a task, runs repeat, and the page has their figures."""

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

pytest.importorskip("rich")

import strategies
import strategies_elsewhere
import strategies_elsewhere_lines as elsewhere_lines
from strategies_lessons import VERBS, Parts, PartsEngine
from worlds_model import Cell, Lesson

RESULTS = Path(strategies.__file__).parent / "results"


def row_of(outcome: dict[str, Any]) -> str:
    """The outcome as the page has it."""

    def said(number: float, form: str) -> str:
        return format(number, form).replace("0.", ".")

    means, (low, high) = [said(mean, ".3f") for mean in outcome["means"]], outcome["interval"]
    world, difference = outcome["about"].partition(",")[0], said(outcome["difference"], "+.3f")
    interval = f"[{said(low, '+.3f')}, {said(high, '+.3f')}]"
    return f"| `{outcome['strategy']}` | {world} | {' | '.join(means)} | {difference} {interval}"


def lessons_about(engine: Any, example: str, note: str, attempts: str) -> list[str]:
    """The lines that forty samples of reflection write."""
    inputs, lines = "objective, experiences, example, attempts", list[str]()
    for seed in range(40):
        lm = dspy.LM("w", engine=engine, temperature=1.0, seed=seed, cache=False)
        with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
            asked = dspy.Predict(f"{inputs} -> lessons: list[str]")
            shown = {"objective": note, "experiences": "", "example": example}
            lines += asked(**shown, attempts=attempts).lessons
    return lines


def test_advice_against_the_bad_way_helps_and_against_a_needed_part_costs() -> None:
    world = Parts(Cell("parts", "words"), 0)
    needed, _, idle, _, bad, good = (Lesson("", 3, verb) for verb in world.parts(3))
    alone = world.chance(1003, [])
    assert 0.15 <= alone <= 0.55
    assert world.chance(1003, [bad]) == pytest.approx(0.97)
    assert world.chance(1003, [good]) == pytest.approx(0.05)
    assert world.chance(1003, [bad, needed]) == pytest.approx(0.97 * 0.2)
    assert world.chance(1003, [idle]) == alone


def test_reflection_blames_each_part_alike_unless_the_note_names_it() -> None:
    world = Parts(Cell("parts", "words", wrong=0.25), 0)
    *shared, bad, good = world.parts(3)
    engine, said = PartsEngine(world), [f"I {VERBS[verb]} the marble" for verb in shared]
    best, worst = (". ".join([*said, f"I {VERBS[way]} the marble."]) for way in (good, bad))
    attempts = f"Attempt 1 (score 1)\n{best}\n\nAttempt 2 (score 0)\n{worst}"

    def share_of_right(note: str) -> float:
        lines = lessons_about(engine, world.request(3), note, attempts)
        found = [world.lessons[line] for line in lines]
        assert {own.place for own in found} <= {*shared, bad}
        return sum(own.what == "right" for own in found) / len(found)

    assert share_of_right("") == pytest.approx(0.2, abs=0.15)
    assert share_of_right("\n".join(f"- {part}" for part in said)) == pytest.approx(0.8, abs=0.15)


def test_reflection_on_degrees_goes_where_the_best_attempt_was() -> None:
    world = elsewhere_lines.Dials("audiences", 0)
    engine = elsewhere_lines.Engine(world)
    attempts = "Attempt 1 (score 1)\nanswer: 6.0 passed\nAttempt 2 (score 0)\nanswer: 3.0 failed"
    lines = lessons_about(engine, world.request(3), "", attempts)
    degrees = [line.place for text in lines for line in world.found(text)]
    assert 0.6 < degrees.count(5) / len(degrees) < 1
    assert set(degrees) == {3, 5}


def test_the_page_has_the_figures_of_each_world_by_somebody_else() -> None:
    page = (RESULTS.parent / "strategies.md").read_text("utf-8")
    shown = json.loads((RESULTS / "strategies.json").read_text())["outcomes"]
    settings = (*strategies_elsewhere.SETTINGS, *elsewhere_lines.SETTINGS)
    others = {(s.strategy, s.about): s.figures[0] for s in settings if s.strategy != "auto"}
    rows = [row for row in shown if others.get((row["strategy"], row["about"])) == row["figure"]]
    assert len(rows) == len(others)
    assert [row_of(row) for row in rows if row_of(row) not in page] == []


def test_a_run_repeats_and_does_what_the_published_one_did() -> None:
    rows = json.loads((RESULTS / "strategies.json").read_text())["runs"]
    published = [r for r in rows if (r["strategy"], r["seed"]) == ("Induction", 500)]
    about = strategies.settings()["Induction"][0].about
    (row,) = (r for r in published if (r["about"], r["arm"]) == (about, "with"))
    again = strategies.run("Induction", 0, "with", 500)
    assert again["figures"] == row["figures"]


def test_a_strategy_that_is_measured_anew_leaves_the_runs_of_others(tmp_path: Path) -> None:
    published = json.loads((RESULTS / "strategies.json").read_text())
    seed_500 = [r for r in published["runs"] if r["seed"] == 500]
    path, about = tmp_path / "strategies.json", strategies.settings()["Induction"][-1].about
    path.write_text(json.dumps(published | {"runs": seed_500}))
    strategies.main(
        ["--only", "Induction", "--about", about, "--again", "--seeds", "1", "--out", str(path)]
    )
    runs = json.loads(path.read_text())["runs"]
    others = [r for r in seed_500 if r["strategy"] != "Induction"]
    assert [r for r in runs if r["strategy"] != "Induction"] == others
    assert {r["about"] for r in runs if r["strategy"] == "Induction"} == {about}
