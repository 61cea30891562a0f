"""The random worlds: exact, alike for every optimizer, and as varied as they say."""

import json
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import dspy
import pytest

pytest.importorskip("gepa")

import random_worlds
from random_world_engine import RandomEngine, examples_of, lms_of, metric_of, student_of
from random_world_model import (
    FIRST_TEST,
    SHAPES,
    TOGETHER,
    Line,
    World,
    drawn_traits,
    harder_traits_of,
    traits_of,
)


def world_of(seed: int, shape: Any = None, **changed: Any) -> World:
    return World(replace(drawn_traits(seed, shape or ""), **changed), seed)


def test_worlds_differ_in_every_trait() -> None:
    worlds = [traits_of(seed) for seed in range(200)]
    varied = "combine demos wording n_predictors has_feedback nothing graded"
    for name in varied.split():
        assert len({getattr(traits, name) for traits in worlds}) > 1, name
    assert min(traits.student for traits in worlds) < 0.15
    assert max(traits.student for traits in worlds) > 0.8
    assert 0.03 < sum(traits.nothing for traits in worlds) / 200 < 0.2


def test_harder_worlds_are_those_of_the_seed_with_more_bad_advice() -> None:
    pairs = [(traits_of(seed), harder_traits_of(seed)) for seed in range(200)]
    assert all(easy.n_kinds == hard.n_kinds and hard.shape == "predict" for easy, hard in pairs)
    for name in ("wrong", "useless", "n_broad_harmful", "broad_harm"):
        assert fmean(getattr(hard, name) - getattr(easy, name) for easy, hard in pairs) > 0


@pytest.mark.parametrize("shape", [None, TOGETHER, *SHAPES])
def test_the_share_of_right_answers_is_the_exact_chance(shape: Any) -> None:
    world = world_of(3, shape, graded=False, noise=0.0, nothing=False)
    policy, _ = lms_of(RandomEngine(world))
    student, metric = student_of(world), metric_of(world)
    scores = []
    with dspy.context(lm=policy, adapter=dspy.ChatAdapter()):
        for example in examples_of(world, range(FIRST_TEST, FIRST_TEST + 120)):
            scores.append(metric(example, student(**example.inputs())).score)
    exact = world.score(world.told(student), range(FIRST_TEST, FIRST_TEST + 120))
    assert sum(scores) / len(scores) == pytest.approx(exact, abs=0.1)


@pytest.mark.parametrize("shape", [None, *SHAPES])
def test_right_lines_help_wrong_ones_harm_and_nothing_changes_where_nothing_can_be_learned(
    shape: Any,
) -> None:
    world = world_of(5, shape, nothing=False, combine="add", student=0.4)
    none: list[Any] = [((), ())] * len(world.stages)
    right = [([Line("right", kind) for kind in range(world.traits.n_kinds)], ())]
    wrong = [([Line("wrong", kind, 0) for kind in range(world.traits.n_kinds)], ())]
    n = len(world.stages)
    assert world.score(wrong * n) < world.score(none) < world.score(right * n)
    assert world.attainable >= world.score(right * n) - 0.01
    idle = world_of(5, shape, nothing=True)
    assert idle.score(right * n) == idle.score(none)


def test_a_run_is_measured_and_not_run_again(tmp_path: Path) -> None:
    command = f"--worlds 1 --first 2 --rows none labelled --out {tmp_path}".split()
    random_worlds.main(command)
    path = tmp_path / "random_worlds.jsonl"
    first = path.read_text()
    random_worlds.main(command)
    assert path.read_text() == first
    records = [json.loads(line) for line in first.splitlines()]
    assert [record["row"] for record in records] == ["none", "labelled"]
    assert records[0]["score"] == records[0]["student"]
    assert records[1]["n_demos"] > 0


def test_tables_keep_random_worlds_and_shapes_apart() -> None:
    def record(shape: str) -> dict[str, Any]:
        traits = {"nothing": False}
        scores = {"score": 0.6, "student": 0.4, "attainable": 0.8, "unchanged": False}
        which = {"seed": 1, "shape": shape, "row": "tfgrpo", "budget": 200, "dollars": False}
        return {**which, **scores, "traits": traits, "tokens": {"policy": 5000, "reflection": 1000}}

    text = random_worlds.tables([record(shape) for shape in ("", "cot", "harder", TOGETHER, "rag")])
    titles = [line for line in text.splitlines() if line.startswith("200 LM calls")]
    assert [title.partition(", ")[2] for title in titles] == [
        "random worlds",
        "harder worlds",
        "together worlds",
        "all shapes",
        "cot",
        "rag",
    ]
    assert text.count("(1 worlds)") == 5 and "    10  (2 worlds)" in text


def test_advice_by_module_holds_lessons_as_any_other_form_does() -> None:
    world = world_of(5, "rag", nothing=False, writes=1.0, wrong=0.0, useless=0.0, has_labels=True)
    _, reflection = lms_of(RandomEngine(world))
    asked = dspy.Predict("attempt, module_names: list[str] -> module_advice: dict[str, str]")
    written = []
    with dspy.context(lm=reflection, adapter=dspy.ChatAdapter()):
        for example in examples_of(world, range(8)):
            attempt = f"{example.request}\nexpected: {example.answer}"
            names = ["search", "reply.predict"]
            advice = asked(attempt=attempt, module_names=names).module_advice
            assert list(advice) == names
            written += [line for text in advice.values() for line in text.splitlines()]
    assert any(line in world.lessons for line in written)


@pytest.mark.parametrize("shape", ["cot", "rag", TOGETHER])
def test_a_brief_says_what_its_prompt_shows_as_a_new_instruction_does(shape: str) -> None:
    perfect = dict.fromkeys(
        ("wrong", "useless", "leaking", "overreaching", "deletes", "overwrites", "wrong_labels"),
        0.0,
    )
    world = world_of(5, shape, writes=1.0, attention=99, has_labels=True, **perfect)
    _, reflection = lms_of(RandomEngine(world))
    examples = [*examples_of(world, range(12))]
    name = world.stages[-1]
    old, bad = (world.text(Line(what, 0, 0)) for what in ("right", "wrong"))
    ask = dspy.Predict("predictor, present, examples, experiences -> brief")
    with dspy.context(lm=reflection, adapter=dspy.ChatAdapter()):
        written = ask(
            predictor=name,
            present=f"Answer the request.\n{old}",
            examples="\n".join(f"{e.request} {e.labels()}" for e in examples),
            experiences=f"{bad} (dropped: did harm)",
        ).brief
    assert old in written and bad not in written
    found = world.found(written)
    shown = {
        k for case in range(12) for k in world.kinds(case) if world.stages[world.stage(k)] == name
    }
    assert {line.kind for line in found if line.what == "right"} >= shown
