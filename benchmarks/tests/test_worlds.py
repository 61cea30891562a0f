"""The simulated worlds: exact, parallel in every wording, and telling only what was shown."""

import json
from pathlib import Path
from typing import Any

import dspy
import pytest

pytest.importorskip("gepa")
pytest.importorskip("rich")

from worlds import main, true_effect
from worlds_engine import WorldEngine
from worlds_model import N_KINDS, WORDINGS, Cell, Lesson, World

Asked = dict[str, tuple[type, Any]]
AS_LIST: Asked = {"lessons": (list[str], dspy.OutputField())}
AS_TEXT: Asked = {"lessons": (str, dspy.OutputField())}
OPERATIONS: Asked = {"operations": (list[dict[str, Any]], dspy.OutputField())}


def asked(world: World, fields: Asked, seed: int = 1, **shown: str) -> Any:
    """What the reflection side answers to these inputs."""
    inputs = {name: (str, dspy.InputField()) for name in shown}
    lm = dspy.LM("w", engine=WorldEngine(world), temperature=1.0, seed=seed, cache=False)
    signature = dspy.make_signature(inputs | fields, "Answer.")
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        return getattr(dspy.Predict(signature)(**shown), next(iter(fields)))


def shown_case(world: World, case: int) -> str:
    """A case with evidence of its right code."""
    code = world.right[world.kind(case)]
    return f"{world.request(case)}\n{world.wording.wrong.format(code=code)}"


def taught(world: World, *lessons: Lesson) -> dspy.Module:
    """The student with these lessons in its instructions."""
    program = dspy.Predict("request -> answer")
    lines = "\n".join(map(world.text, lessons))
    program.signature = program.signature.with_instructions(lines)
    return program


def test_an_answer_is_a_function_of_prompt_and_seed() -> None:
    world, answers = World(Cell("c"), 0), set()
    for seed in range(20):
        twice = []
        for _ in range(2):
            lm = dspy.LM(
                "w",
                engine=WorldEngine(World(Cell("c"), 0)),
                temperature=0.7,
                seed=seed,
                cache=False,
            )
            with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
                twice.append(world.student()(request=world.request(7)).answer)
        assert twice[0] == twice[1]
        answers.add(twice[0])
    assert len(answers) > 1


@pytest.mark.parametrize("wording", WORDINGS)
def test_lessons_change_the_exact_score_as_stated(wording: str) -> None:
    world = World(Cell("c", wording), 5)
    right = [Lesson("right", kind) for kind in range(N_KINDS)]
    assert world.score(world.held(taught(world, *right))) == pytest.approx(0.97)
    assert world.score([[]]) == pytest.approx(0.35, abs=0.01)
    of_kind = range(1003, 1203, 10)
    wrong = Lesson("wrong", 3, 1)
    assert world.score(world.held(taught(world, wrong)), of_kind) == pytest.approx(0.05)
    assert world.score(world.held(taught(world, wrong, right[3])), of_kind) == pytest.approx(0.51)
    assert world.score(world.held(taught(world, right[4])), of_kind) == world.score([[]], of_kind)


def test_wordings_are_parallel() -> None:
    written = {}
    for wording in WORDINGS:
        world = World(Cell("c", wording, wrong=0.4, leaking=0.2), 2)
        shown = "\n\n".join(shown_case(world, case) for case in (4, 17, 60))
        answers = [asked(world, AS_LIST, seed, attempts=shown) for seed in range(15)]
        written[wording] = [world.found("\n".join(lines)) for lines in answers]
    first = written["words"]
    assert all(other == first for other in written.values())
    assert {own.what for found in first for own in found} >= {"right", "wrong", "leak"}


def test_reflection_tells_nothing_that_is_not_in_its_prompt() -> None:
    world = World(Cell("c"), 2)
    for seed in range(15):
        found = world.found("\n".join(asked(world, AS_LIST, seed, attempts=world.request(4))))
        assert {own.what for own in found} <= {"useless"}
        told = asked(world, AS_LIST, seed, attempts=shown_case(world, 4))
        assert {own.kind for own in world.found("\n".join(told))} <= {4, -1}
        of_other = f"{world.request(4)}\n{world.right[5]}"
        assert not [
            o for o in world.found(str(asked(world, AS_LIST, seed, x=of_other))) if o.kind >= 0
        ]


def test_a_true_effect_is_taken_besides_halves_of_the_others() -> None:
    world = World(Cell("c"), 0)
    right, wrong, other = (
        (Lesson("right", 1), "*"),
        (Lesson("wrong", 1), "*"),
        (Lesson("right", 2), "*"),
    )
    assert true_effect(world, right, [right, other]) == pytest.approx(0.062, abs=0.006)
    with_wrong = (0.062 + 0.046) / 2  # .05 -> .51 where the wrong one is there
    assert true_effect(world, right, [right, wrong]) == pytest.approx(with_wrong, abs=0.006)


def test_a_run_that_was_made_before_a_stop_is_not_made_again(tmp_path: Path) -> None:
    cell = "nothing/kinds ignored"
    record = {
        **{"cell": cell, "row": "tfgrpo", "budget": 40, "seed": 100, "score": 0.123},
        **{"student": 0.35, "best": 0.35, "left": {"right": 0, "harmful": 0, "useless": 0}},
        **{"calls": {}, "unchanged": True, "ended": "", "seconds": 0.5, "effects": []},
    }
    (tmp_path / "worlds.jsonl").write_text(json.dumps(record) + "\n")
    asked = ["--cells", cell, "--rows", "tfgrpo", "--budgets", "40", "--seeds", "2"]
    main([*asked, "--out", str(tmp_path)])
    first, second = json.loads((tmp_path / "worlds.json").read_text())["runs"]
    assert (first["seed"], first["score"]) == (100, 0.123)
    assert (second["seed"], second["row"]) == (101, "tfgrpo")
    assert not (tmp_path / "worlds.jsonl").exists()
