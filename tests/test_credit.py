"""Strategies that value steps, seen through a compile: what is found, shown, counted and kept."""

import functools
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import Pair, Run, questions, section, untimed
from scripted import EXTRACT, UPDATE, Prompt, Rule, chat, lessons, operations, scripted_lm
from small import Answering, group_of, grpo

from tfgrpo_dspy import ExperienceLibrary, NoGate
from tfgrpo_dspy.rollout import Rollout, Step, Usage
from tfgrpo_dspy.sampling.examples import Example, SampledGroup
from tfgrpo_dspy.strategies import (
    Ask,
    BranchingRollouts,
    Credit,
    GroupContext,
    ImplicitStepRewards,
    InformationGain,
    MonteCarloCredit,
    Play,
    Strategy,
    TeacherMarks,
)
from tfgrpo_dspy.strategies.evidence import expected_score, tree_values

STAGES = ("first", "second", "third", "fourth")


class Route(dspy.Module):
    """Four predictors, each of which goes left or right; it ends well if the third goes left."""

    def __init__(self) -> None:
        super().__init__()
        for name in STAGES:
            setattr(self, name, dspy.Predict("question, so_far: list[str] -> reasoning, way"))

    def forward(self, question: str) -> Any:
        so_far: list[str] = []
        for name in STAGES:
            so_far.append(getattr(self, name)(question=question, so_far=so_far).way)
        return dspy.Prediction(answer=so_far[2])


class Wandering(Route):
    """Begins with three stages, which no two of 64 runs in a row have in common."""

    n_begun = itertools.count()

    def forward(self, question: str) -> Any:
        n = next(Wandering.n_begun)
        for place in range(3):
            getattr(self, STAGES[n // 4**place % 4])(question=question, so_far=[])
        return super().forward(question)


def way(prompt: Prompt) -> str:
    chosen = "left" if prompt.random().random() < 0.5 else "right"
    return chat(reasoning=f"so {prompt.random('why').random()}", way=chosen)


def ends_left(_example: Any, pred: Any, _trace: Any = None) -> float:
    return float(pred.answer == "left")


RULES: list[Rule] = [
    (EXTRACT, lessons("Go left.")),
    (UPDATE, operations({"op": "ADD", "text": "Go left.", "lessons": [1]})),
    ("`better`", chat(reason="so", better="1")),
    ("steps_so_far", chat(answer="left")),
    ("question", way),
]


@dataclass
class Learned:
    """A compile of a route on six questions, in groups of four."""

    program: Any
    lm: dspy.LM

    @property
    def results(self) -> Any:
        return self.program.detailed_results

    @property
    def attempts(self) -> list[str]:
        """What the reflection LM is shown of the attempts, in the order of the examples."""
        asked = [p.user for p in self.lm.engine.prompts if re.search(EXTRACT, p.text)]
        return sorted(section(text, "attempts") for text in asked)


def learned(
    *chosen: Strategy, student: Any = None, rules: Sequence[Rule] = RULES, n: int = 6,
    **arguments: Any,
) -> Learned:  # fmt: skip
    lm = scripted_lm(rules)
    usual = {"group_size": 4, "epochs": 1, "num_threads": 2, "gate": NoGate(), "progress": False}
    optimizer = grpo(ends_left, strategies=chosen, **usual | arguments)
    with dspy.context(lm=lm):
        return Learned(optimizer.compile(student or Route(), trainset=questions(n)), lm)


@functools.cache
def credited(calls: int = 4) -> Learned:
    """The usual compile with so many continuations, which several tests look at."""
    return learned(MonteCarloCredit(calls=calls))


@functools.cache
def uncredited() -> Learned:
    return learned()


def changes_shown(attempts: str) -> list[tuple[str, float]]:
    """The predictors whose values changed, each with the size of the change."""
    found = re.findall(
        r"Step \d+, predictor (\w+)\n(?:  [^a].*\n)*"
        r"  after this step the expected score (?:fell|rose) from ([\d.]+) to ([\d.]+)",
        attempts,
    )
    return [(name, abs(float(after) - float(before))) for name, before, after in found]


def test_the_reflection_lm_reads_after_which_step_the_expected_score_changed() -> None:
    run = credited()
    largest = [max(changes_shown(text), key=lambda one: one[1]) for text in run.attempts
               if changes_shown(text)]  # fmt: skip
    assert len(largest) >= 4
    names = [name for name, _ in largest]
    assert names.count("third") >= len(names) - 1
    assert max(size for _, size in largest) > 0.6
    assert sum("decided by step 3" in text for text in run.attempts) >= len(names) - 1


def test_a_good_and_a_bad_attempt_from_the_same_state_are_compared() -> None:
    run = credited()
    titles = re.findall(r"Attempt \d+ \((.*)\)", "\n".join(run.attempts))
    assert any("goes on after step 2 of another attempt" in title for title in titles)
    shown = next(text for text in run.attempts if "goes on after step 2" in text)
    own = next(part for part in shown.split("\n\nAttempt") if "goes on after step 2" in part)
    assert "Step 3, predictor third" in own
    assert "Step 2, predictor second" not in own


def test_a_lesson_is_for_the_predictor_whose_step_was_decisive() -> None:
    def scopes(run: Learned) -> set[str]:
        return {one.scope for update in run.results.updates for one in update.changes}

    assert scopes(uncredited()) == {"*"}
    assert "third" in scopes(credited())
    everywhere = operations({"op": "ADD", "text": "Go left.", "lessons": [1], "scope": "*"})
    for said, scope in (
        ((EXTRACT, lessons("[first] Go left.")), "first"),
        ((UPDATE, everywhere), "*"),
    ):
        run = learned(MonteCarloCredit(calls=4), rules=[said, *RULES], n=3)
        assert scopes(run) == {scope}


def test_continuations_cost_only_what_follows_and_stay_within_the_share_of_calls() -> None:
    runs = uncredited(), credited(calls=1)
    before, after = (run.results.usage["rollout"].n_lm_calls for run in runs)
    assert before == 6 * 4 * 4
    assert before < after <= 2 * before


def test_a_program_that_does_not_repeat_itself_gets_outcome_credit_and_a_note() -> None:
    run = learned(MonteCarloCredit(calls=4), student=Wandering())
    assert 1 <= run.results.failures["replay"] <= 6
    assert "replay" in str(run.results)
    assert not any("expected score" in text for text in run.attempts)
    assert run.attempts


@pytest.mark.parametrize("strategy", [MonteCarloCredit(calls=2), BranchingRollouts(leaves=4)])
def test_the_number_of_threads_changes_nothing(strategy: Strategy) -> None:
    one, many = (learned(strategy, num_threads=n) for n in (1, 8))
    assert one.attempts == many.attempts
    assert untimed(one.results) == untimed(many.results) | {
        "settings": untimed(one.results)["settings"]
    }


def test_a_finished_run_is_replayed_offline_with_its_continuations(tmp_path: Path) -> None:
    first = learned(MonteCarloCredit(calls=2), log_dir=tmp_path)
    again = learned(MonteCarloCredit(calls=2), log_dir=tmp_path, offline=True)
    assert again.lm.engine.prompts == []
    assert again.results.updates == first.results.updates


def test_branches_give_the_leaves_of_a_group_for_fewer_calls() -> None:
    run = learned(BranchingRollouts(leaves=4), student=Acting())
    groups = [group for update in run.results.updates for group in update.groups]
    assert all(len(group.scores) == 2 for group in groups)
    assert all(len(group.aided_scores) == 2 for group in groups)
    whole = learned(student=Acting())
    n, n_whole = (r.results.usage["rollout"].n_lm_calls for r in (run, whole))
    assert n < 0.9 * n_whole


def branches_of(*rollouts: Rollout) -> tuple[list[tuple[int, int]], Credit]:
    """From where a group of these branches: rollout ids and steps; and what comes of it."""
    asked: list[tuple[int, int]] = []

    def play(rollout: Rollout, n_steps: int, **_: Any) -> list[Rollout]:
        asked.append((rollout.rollout_id, n_steps))
        branch = len(asked) + 10
        return [replace(rollout, rollout_id=branch, n_replayed=n_steps)]

    return asked, credit(BranchingRollouts(leaves=4), context(rollouts), play=play)


def test_rollouts_branch_first_where_the_entropy_of_the_next_answer_rises_most() -> None:
    def unsure(id_: int, entropies: Sequence[float]) -> Rollout:
        steps = [
            one for e in entropies
            for one in (Step("predictor", "act", {}, {"way": "left"}, entropy=e),
                        Step("tool", "step", {}, {"result": "done"}))
        ]  # fmt: skip
        return Rollout(0, id_, steps=tuple(steps), score=float(id_))

    asked, credit = branches_of(unsure(0, [0.1, 0.2, 0.9, 0.3]), unsure(1, [0.1, 0.7, 0.2, 0.2]))
    assert asked == [(0, 4), (1, 2)]
    assert [branch.rollout_id for branch in credit.beside] == [11, 12]


def step(number: int) -> str:
    """Takes a step."""
    return f"step {number}"


class Acting(Route):
    """Calls a tool after each stage."""

    def __init__(self) -> None:
        super().__init__()
        self.tool = dspy.Tool(step)

    def forward(self, question: str) -> Any:
        so_far: list[str] = []
        for number, name in enumerate(STAGES):
            so_far.append(getattr(self, name)(question=question, so_far=so_far).way)
            self.tool(number=number)
        return dspy.Prediction(answer=so_far[2])


def taking(
    id_: int, ways: Sequence[str], score: float | None, n_replayed: int | None = None
) -> Rollout:
    """A rollout of a turn for each letter, which is what the turn decides."""
    steps = tuple(Step("predictor", "turn", {}, {"way": letter}) for letter in ways)
    return Rollout(0, id_, steps=steps, score=score, n_replayed=n_replayed)


def test_values_of_a_tree_are_shared_up_to_where_rollouts_part() -> None:
    values = tree_values([taking(1, "abc", 1.0), taking(2, "abd", 0.0), taking(3, "xyz", 0.0)])
    assert values[1] == pytest.approx([1 / 3, 0.5, 0.5, 1.0])
    assert values[2] == pytest.approx([1 / 3, 0.5, 0.5, 0.0])
    assert values[3] == pytest.approx([1 / 3, 0.0, 0.0, 0.0])


def answered(text: str, score: float, chance: float | None) -> Rollout:
    entropy = None if chance is None else -math.log(chance)
    return Rollout(0, 1, outputs={"answer": text}, score=score, entropy=entropy)


def test_log_probabilities_weigh_the_answers_that_were_sampled() -> None:
    assert expected_score([answered("a", 1.0, None), answered("b", 0.0, None)]) == 0.5
    known = [answered("a", 1.0, 0.9), answered("b", 0.0, 0.05)]
    assert expected_score(known) == pytest.approx(0.9 + 0.05 * 0.5)
    assert expected_score([answered("a", 1.0, 0.6)] * 3) == pytest.approx(1.0)


@dataclass(frozen=True)
class Odd(Strategy):
    """Gives what cannot be used."""

    how: str

    def credit(self, context: GroupContext, ask: Ask, play: Play) -> Any:  # noqa: ARG002
        first = context.group.rollouts[0]
        if self.how in ("n_steps", "play"):
            play(first, 4 if self.how == "n_steps" else 1)
        return {
            "type": [0.5],
            "length": Credit({first.rollout_id: [0.5]}),
            "number": Credit({first.rollout_id: [float("nan")] * 5}),
            "id": Credit({7: [0.5] * 5}),
            "beside": Credit({}, (first,)),
        }[self.how]


@pytest.mark.parametrize("how", ["type", "length", "number", "id", "beside", "n_steps"])
def test_values_that_cannot_be_used_are_counted_and_cost_nothing_else(how: str) -> None:
    run = learned(Odd(how))
    assert run.results.failures == {"strategy": 4}  # of the six groups, the first of each batch
    assert [one.text for one in run.results.experiences] == ["Go left."]


EXAMPLES = [
    Example(dspy.Example(question=f"question {name}", answer="1").with_inputs("question"))
    for name in "ab"
]


def context(rollouts: Sequence[Rollout], *past: SampledGroup) -> GroupContext:
    return GroupContext(
        sampled=group_of(*rollouts),
        past=past,
        library=ExperienceLibrary(),
        training=(0, 1),
        examples=EXAMPLES,
    )


BETTER = group_of(Rollout(1, 100, score=1.0))  # of another example: there are other scores


class Played:
    """Goes on with these scores, and keeps from where."""

    def __init__(self, *scores: float) -> None:
        self.scores, self.states = scores, list[int]()

    def __call__(self, rollout: Rollout, n_steps: int, n: int = 1, **_: Any) -> Sequence[Rollout]:
        self.states.append(n_steps)
        ways = [step.outputs["way"] for step in rollout.steps[:n_steps]]
        first = 1000 * len(self.states)
        return [
            taking(first + k, [*ways, "new"], score, n_steps)
            for k, score in enumerate(self.scores[:n])
        ]


def never(*_: Any, **__: Any) -> Any:
    raise AssertionError


def credit(strategy: Any, group: GroupContext, ask: Any = never, play: Any = never) -> Credit:
    found = strategy.credit(group, ask, play)
    assert isinstance(found, Credit)
    return found


FAILING = [taking(1, "abc", 0.0), taking(2, "abd", 0.0)]


def test_the_marks_of_a_teacher_are_the_values_of_the_students_own_states() -> None:
    asked = Answering(marks="1: 7, 7, 2\n2: 7, 1, 1")
    found = credit(TeacherMarks(), context(FAILING, BETTER), asked)
    assert dict(found.values) == {1: [0.5, 0.7, 0.7, 0.2], 2: [0.5, 0.7, 0.1, 0.1]}
    assert found.measure == "mark of the teacher"
    (question,) = asked.questions
    assert "way: c" in question["attempts"]
    assert question["expected"] == "answer: 1"


@pytest.mark.parametrize("marks", ["", "None", "1: 7", "1: 7, 70, 2", "1: a, b, c"])
def test_marks_that_cannot_be_read_value_nothing(marks: str) -> None:
    asked = Answering(marks=marks)
    assert dict(credit(TeacherMarks(), context(FAILING, BETTER), asked).values) == {}


def test_failing_groups_of_a_silent_metric_teach_by_the_marks_of_the_teacher() -> None:
    rules: list[Any] = [("`marks`", chat(marks="1: 8, 1\n2: 8, 1"))]
    rows = [["0", "0"]] * 3 + [["1", "1"]]
    arguments: dict[str, Any] = {"student": Pair(), "use_labels": False, "epochs": 2}
    marked = Run(rows, *rules, strategies=(TeacherMarks(),), **arguments)
    assert marked.results.failures.get("strategy", 0) == 0
    attempts = [section(prompt.user, "attempts") for prompt in marked.prompts(EXTRACT)]
    assert attempts
    assert all("the mark of the teacher fell from 0.80 to 0.10" in text for text in attempts)


def test_a_state_of_a_failing_rollout_becomes_a_task_and_gives_the_group_contrast() -> None:
    played = Played(1.0, 0.0)
    found = credit(MonteCarloCredit(tasks=2), context(FAILING, BETTER), play=played)
    assert [rollout.score for rollout in found.beside] == [1.0, 0.0]
    assert played.states == [2] or played.states == [1]
    assert found.values[1][played.states[0]] == pytest.approx(1 / 4)


def test_pairs_are_made_by_outcome() -> None:
    rollouts = [taking(1, "ab", 1.0), taking(2, "ac", 0.0)]
    found = credit(ImplicitStepRewards(), context(rollouts))
    assert found.values[1][-1] > 0.5 > found.values[2][-1]
    assert credit(ImplicitStepRewards(), context(FAILING, BETTER)) == Credit({})


def test_the_gain_of_information_values_every_rollout_that_the_calls_pay_for() -> None:
    taken = [taking(1, "ab", 1.0), taking(2, "ac", 0.0), taking(3, "ad", 0.0)]
    rollouts = [replace(each, usage=Usage(4)) for each in taken]
    found = credit(InformationGain(calls=2.0), context(rollouts), play=Played(0.5))
    assert set(found.values) == {1, 2, 3}
    few = credit(InformationGain(calls=0.2), context(rollouts), play=Played(0.5))
    assert set(few.values) == {1}
