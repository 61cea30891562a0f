"""The benchmark of strategies: each has a task, runs repeat, and bars are judged by the runs."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import dspy
import pytest

pytest.importorskip("rich")

import credit
import strategies
import strategies_conflict
import strategies_elsewhere
import strategies_elsewhere_agents as elsewhere_agents
import strategies_elsewhere_lines as elsewhere_lines
from credit_world import OPTIONS, World
from random_world_model import Line
from strategies import Bar
from strategies_conflict import VERBS, OwnActionsEngine, Parts, PartsEngine
from strategies_states import STEP, AgentEngine, Degrees, DegreesEngine
from worlds_model import Cell, Lesson

import tfgrpo_dspy.strategies as shipped

ELSEWHERE = (strategies_elsewhere, elsewhere_agents, elsewhere_lines)
RESULTS = Path(strategies.__file__).parent / "results"
KINDS = {name: kind for name, kind in vars(shipped).items() if isinstance(kind, type)}
SHIPPED = {name for name, kind in KINDS.items() if issubclass(kind, shipped.Strategy)}
SHIPPED -= {"Strategy"}


def runs_of(with_: list[float], without: list[float]) -> list[dict[str, object]]:
    pairs = {"with": with_, "without": without}
    return [
        {"arm": arm, "seed": seed, "figures": {"score": score}}
        for arm, scores in pairs.items()
        for seed, score in enumerate(scores)
    ]


@pytest.mark.timeout(90)
def test_strategies_that_value_steps_are_measured_where_critical_steps_are_known() -> None:
    rows = list(credit.found("MonteCarloCredit", (5, 1, 0.0), 0))
    assert rows == list(credit.found("MonteCarloCredit", (5, 1, 0.0), 0))
    assert all(row["calls"] <= 2 for row in rows)
    assert sum(row["found"] for row in rows) > 2 * sum(row["guess"] for row in rows)
    published = json.loads((RESULTS / "credit.json").read_text())
    measured = {cell["name"] for cell in published["cells"] if cell["part"] == "found"}
    assert measured == set(credit.STRATEGIES)


def test_the_world_of_steps_knows_its_critical_turns() -> None:
    world = World(4, 1, 0, usual=0.5)
    ((turn, right),) = [(t, o) for (kind, t), o in world.right.items() if kind == "amber"]
    wrong = next(option for option in OPTIONS if option != right)
    for option, end in ((right, 1.0), (wrong, 0.0)):
        taken = ["north"] * 4
        taken[turn] = option
        assert world.value("amber", taken, {}) == end
        assert world.critical("amber", taken) == {turn}
    assert world.value("amber", (), {}) == 0.5
    assert world.attainable == pytest.approx(0.97)


def test_a_degree_pays_up_to_the_best_one_and_costs_past_it() -> None:
    world = Degrees(0)
    best = world.best_degrees[0]
    chances = [world.chance(0, [Lesson("degree", 0, n)]) for n in (best - STEP, best, best + STEP)]
    assert chances[1] == pytest.approx(0.575)
    assert chances[0] == pytest.approx(chances[2])
    assert chances[0] < chances[1]
    assert world.chance(0, [Lesson("degree", n, d) for n, d in enumerate(world.best_degrees)]) == (
        pytest.approx(0.95)
    )


@pytest.mark.parametrize(("worse", "better", "further"), [(4, 8, [12]), (8, 4, []), (8, 6, [4])])
def test_reflection_goes_past_the_better_degree_in_the_direction_from_the_worse(
    worse: int, better: int, further: list[int]
) -> None:
    world = Degrees(0)
    lines = [world.text(Lesson("degree", 1, degree)) for degree in (worse, better)]
    answer = DegreesEngine(world).further(*lines, factor=1.0)
    assert [own.place for own in world.found(answer)] == further


def test_marks_rise_where_the_option_is_right_and_mostly_say_so() -> None:
    world = World(3, 3, 0, usual=0.4)
    engine, right, told = AgentEngine(world, gives_up=False), world.right, []
    for number in range(400):
        taken = {turn: OPTIONS[(number // 3**turn) % 3] for turn in range(3)}
        marks = engine.marks("amber", taken, 3, number)
        rises = [after > before for before, after in zip([5, *marks], marks, strict=False)]
        told += [rise == (right["amber", t] == taken[t]) for t, rise in enumerate(rises)]
    assert sum(told) / len(told) == pytest.approx(0.85, abs=0.07)


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


def test_reflection_on_an_agent_mostly_passes_over_what_the_note_names() -> None:
    def attempt(*options: str) -> str:
        calls = (f'  out next_tool_args: {{"option": "{option}"}}' for option in options)
        return "\n".join(f"Step {2 * k + 1}, predictor react\n{c}" for k, c in enumerate(calls))

    engine: Any = OwnActionsEngine(World(2, 1, 0, usual=0.3), gives_up=False)
    good, bad = attempt("north1", "south2"), attempt("west1", "north2")
    attempts = f"Attempt 1 (score 1)\n{good}\n\nAttempt 2 (score 0)\n{bad}"

    def share_about_turn_1(*named: str) -> float:
        note = "\n".join(f'- predictor react: act {{"option": "{option}"}}' for option in named)
        lines = lessons_about(engine, "Case 1 about amber.", note, attempts)
        return sum(line.endswith("at turn 1.") for line in lines) / len(lines)

    assert share_about_turn_1() == pytest.approx(0.5, abs=0.2)
    assert share_about_turn_1("north2") > 0.7
    assert share_about_turn_1("north1") == pytest.approx(0.5, abs=0.2)
    assert share_about_turn_1("west1", "north2") == pytest.approx(0.5, abs=0.2)


def test_an_agent_in_a_workshop_cannot_mend_what_one_in_a_search_can() -> None:
    workshop, search = (elsewhere_agents.World(name, 0) for name in elsewhere_agents.WORLDS)
    first, second, third = workshop.order["amber"]
    told = {key: tools for kind in workshop.order for key, tools in workshop.right(kind).items()}
    assert workshop.value("amber", [second], {}) == 0.0
    assert workshop.value("amber", [first, second], {}) > workshop.value("amber", [first], {})
    assert workshop.value("amber", [first, second, third], told) == 1.0
    one, two = search.order["amber"]
    wrong = next(tool for tool in search.tools if tool not in (one, two))
    values = [search.value("amber", used, {}) for used in ([wrong], [], [one], [wrong, one, two])]
    assert search.guess < values[0] < values[1] < values[2] < values[3] == 1.0


def test_reflection_on_tools_follows_the_largest_change_of_the_value() -> None:
    world: Any = elsewhere_agents.World("workshop", 0)

    def attempt(*tools: str, value: str = "") -> str:
        calls = [
            f"Step {n}, predictor react\n  out next_tool_name: {tool}"
            for n, tool in enumerate(tools, 1)
        ]
        return "\n".join([*calls, value])

    rose = attempt(
        "sand", "paint", value="  after this step the expected score rose from 0.1 to 0.9"
    )
    attempts = f"Attempt 1 (score 1)\n{rose}\nAttempt 2 (score 0)\n{attempt('clean', 'sand')}"
    lines = lessons_about(elsewhere_agents.Engine(world), "Case 1 about amber.", "", attempts)
    right = "In cases of amber, after sand use paint."
    assert 0.6 < lines.count(right) / len(lines) < 1
    assert {line[: line.index("use")] for line in lines} == {right[: right.index("use")]}


def test_reflection_on_degrees_goes_where_the_best_attempt_was() -> None:
    world = elsewhere_lines.Dials("audiences", 0)
    engine = elsewhere_lines.Engine(world)
    attempts = "Attempt 1 (score 1)\nanswer: 6.0 passed\nAttempt 2 (score 0)\nanswer: 3.0 failed"
    lines = lessons_about(engine, world.request(3), "", attempts)
    degrees = [line.place for text in lines for line in world.found(text)]
    assert 0.6 < degrees.count(5) / len(degrees) < 1
    assert set(degrees) == {3, 5}


def test_the_long_tail_is_seldom_and_can_be_learned() -> None:
    world = strategies_elsewhere.Needy("long tail", 0)
    kinds = Counter(world.kinds(case)[0] for case in range(2000))
    assert kinds[0] > 5 * kinds[9] > 0
    case = next(case for case in range(2000) if world.kinds(case)[0] == 9)
    assert world.chance(case, 0, [Line("right", 9)]) > 0.9 > 0.2 == world.unaided(case, 0)


def test_every_strategy_has_a_task_of_its_own_and_two_by_somebody_else() -> None:
    assert strategies.settings().keys() - {"auto"} == SHIPPED
    modules = (*ELSEWHERE, strategies_conflict)
    by_others = Counter(one.strategy for module in modules for one in module.SETTINGS)
    assert {name: n for name in SHIPPED if (n := by_others[name]) < 2} == {}


def test_the_page_has_the_figures_of_each_world_by_somebody_else() -> None:
    page = (RESULTS.parents[1] / "docs" / "strategies.md").read_text("utf-8")
    shown = json.loads((RESULTS / "strategies.json").read_text())["outcomes"]
    settings = (one for module in ELSEWHERE for one in module.SETTINGS if one.strategy != "auto")
    others = {(one.strategy, one.about): one.bars[0].figure for one in settings}
    rows = [row for row in shown if others.get((row["strategy"], row["about"])) == row["figure"]]
    assert len(rows) == len(others)
    assert [row_of(row) for row in rows if row_of(row) not in page] == []


@pytest.mark.parametrize(
    ("bar", "is_met"),
    [
        (Bar("score", "with", "without", least=0.1), True),
        (Bar("score", "with", "without", least=0.2), False),
        (Bar("score", "with", "without", wins=0.6), True),
        (Bar("score", "with", "without", wins=0.7), False),
        (Bar("score", "with", "without", surely=True), False),
        (Bar("score", "with", "without", least=-1.0, surely=True), True),
        (Bar("score", "without", "with", share=0.7), True),
        (Bar("score", "without", "with", share=0.9), False),
    ],
)
def test_a_bar_is_met_by_the_difference_the_share_or_the_seeds_won(bar: Bar, is_met: bool) -> None:
    runs = runs_of([0.9, 0.7, 0.5], [0.5, 0.5, 0.6])
    outcome = strategies.outcome(bar, runs)
    assert outcome["met"] == is_met
    assert outcome["difference"] == pytest.approx(0.5 / 3 if bar.one == "with" else -0.5 / 3)


def test_a_run_repeats_and_does_what_the_published_one_did() -> None:
    rows = json.loads((RESULTS / "strategies.json").read_text())["runs"]
    published = [r for r in rows if (r["strategy"], r["seed"]) == ("Induction", 500)]
    about = strategies.settings()["Induction"][1].about
    (row,) = (r for r in published if (r["about"], r["arm"]) == (about, "with"))
    again = strategies.run("Induction", 1, "with", 500)
    assert again["figures"] == row["figures"]


def test_a_strategy_that_is_measured_anew_leaves_the_runs_of_others(tmp_path: Path) -> None:
    published = json.loads((RESULTS / "strategies.json").read_text())
    seed_500 = [r for r in published["runs"] if r["seed"] == 500]
    path, about = tmp_path / "strategies.json", strategies.settings()["Induction"][1].about
    path.write_text(json.dumps(published | {"runs": seed_500}))
    strategies.main(
        ["--only", "Induction", "--about", about, "--again", "--seeds", "1", "--out", str(path)]
    )
    runs = json.loads(path.read_text())["runs"]
    others = [r for r in seed_500 if r["strategy"] != "Induction"]
    assert [r for r in runs if r["strategy"] != "Induction"] == others
    assert {r["about"] for r in runs if r["strategy"] == "Induction"} == {about}


def test_an_unknown_strategy_is_refused_with_the_known_names(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        strategies.main(["--only", "Frontier"])
    assert "no such strategy; there are " in capsys.readouterr().err


def test_the_published_table_can_be_shown_again(capsys: pytest.CaptureFixture[str]) -> None:
    strategies.main(["--show", str(RESULTS / "strategies.json")])
    shown = capsys.readouterr().out
    assert [name for name in sorted(SHIPPED) if name not in shown] == []
