"""What the pipeline tells a gate, does for it, and makes of its answers.

The gates here are a user's own: subclasses of the public `Gate`.
"""

import itertools
import re
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from coded_cases import (
    FIRST_VALIDATION,
    RIGHT,
    SMALL,
    case_in,
    cases,
    compiled,
    is_right,
    solved,
    texts,
    world,
)
from runs import add, knowing, predictor
from scripted import EXTRACT, UPDATE, lessons, operations, scripted_lm
from small import grpo

from tfgrpo_dspy import (
    AddLessons,
    Decision,
    ExperienceLibrary,
    Gate,
    GateError,
    GroupPlan,
    NoGate,
    RunEvidence,
    UpdateLibrary,
    best_so_far,
)


def on_trial(library: ExperienceLibrary) -> ExperienceLibrary:
    return library.holding(replace(each, is_on_trial=True) for each in library)


@dataclass
class Own(Gate):
    """What is proposed stays on trial; the first two rollouts of a group have it; all is noted."""

    told: list[RunEvidence] = field(default_factory=list)
    made: list[Decision] = field(default_factory=list)
    plans: list[GroupPlan] = field(default_factory=list)

    def decide(self, evidence: RunEvidence) -> Decision:
        self.told.append(evidence)
        library, dropped = on_trial(evidence.proposed), {"E9": "it is number nine"}
        self.made.append(Decision(library, "on trial", ExperienceLibrary(), dropped=dropped))
        return self.made[-1]

    def assign(self, plan: GroupPlan) -> Sequence[ExperienceLibrary]:
        self.plans.append(plan)
        return [plan.decision.library] * 2 + [ExperienceLibrary()] * (plan.n_rollouts - 2)


@pytest.mark.parametrize("num_threads", [1, 8])
def test_a_gate_is_told_of_every_group_of_the_run_in_the_order_of_the_updates(
    num_threads: int,
) -> None:
    gate = Own()
    program = compiled(world(), gate=gate, num_threads=num_threads, **{**SMALL, "epochs": 2})
    updates = program.detailed_results.updates
    assert len(gate.told) == len(updates) == 4
    recorded = [(g.example, score) for u in updates for g in u.groups for score in g.scores]
    for number, evidence in enumerate(gate.told, start=1):
        seen = [(rollout.example, rollout.score) for rollout in evidence.rollouts]
        assert seen == recorded[: 4 * 4 * number]
    assert [evidence.previous for evidence in gate.told[1:]] == gate.made[:-1]
    first = gate.told[0]
    assert first.previous.library == ExperienceLibrary()
    assert first.training == tuple(range(8))
    for case, text in zip(cases(8), first.texts, strict=True):
        assert case.question in text
        assert case.answer in text


def test_of_each_rollout_a_gate_is_told_what_its_prompt_showed() -> None:
    gate, lm = Own(), world()
    compiled(lm, gate=gate, **{**SMALL, "epochs": 3, "batch_size": 8})
    assert {plan.update for plan in gate.plans} == {2}, "before, there was nothing on trial"
    for plan in gate.plans:
        assert plan.decision in gate.made
        assert plan.n_rollouts == 4
    held = [len(rollout.library) > 0 for rollout in gate.told[-1].rollouts[16 * 4 :]]
    assert held == [True, True, False, False] * 8
    shown = Counter(
        (case_in(prompt.user)[0], "[E1*]" in prompt.system)
        for prompt in lm.engine.prompts
        if not re.search(EXTRACT, prompt.text) and case_in(prompt.user)[0] < FIRST_VALIDATION
    )
    assert shown == {(i, False): 10 for i in range(8)} | {(i, True): 2 for i in range(8)}


def test_rollouts_made_elsewhere_held_nothing_of_what_this_run_learns() -> None:
    gate = Own()
    traces = [
        {"inputs": {"question": case.question}, "outputs": {"answer": text}, "score": score}
        for case in cases(6)
        for text, score in ((case.answer, 1.0), ("unsure", 0.0))
    ]
    optimizer = grpo(
        is_right, gate=gate, batch_size=2, max_staleness=0, progress=False, update=AddLessons()
    )
    with dspy.context(lm=world()):
        optimizer.learn(predictor(), traces=traces, valset=cases(4, FIRST_VALIDATION))
    assert len(gate.told[-1].previous.library) > 0
    assert not any(len(rollout.library) for rollout in gate.told[-1].rollouts)


def test_failures_of_the_provider_tell_a_gate_nothing_and_other_failures_the_lowest_score() -> None:
    failures = {1: dspy.lm15.ServerError("overloaded"), 2: "no form at all"}

    def metric(case: Any, pred: Any, _trace: Any = None) -> Any:
        return is_right(case, pred).score - 3 if case.question[:7] != "Case 3," else 1 / 0

    gate = Own()
    lm = world(lambda p: failures.get(case_in(p.user)[0]) or solved(p), num_retries=0)
    compiled(lm, gate=gate, metric=metric, max_errors=1000, **SMALL)
    told = gate.told[-1].rollouts
    scores = {i: {each.score for each in told if each.example == i} for i in (1, 2, 3)}
    assert scores == {1: {None}, 2: {-3.0}, 3: {-3.0}}


def test_what_a_gate_decides_is_in_the_report_and_what_it_exports_in_the_program() -> None:
    program = compiled(world(), gate=Own(), **SMALL)
    update = program.detailed_results.updates[-1]
    assert (update.reason, update.accepted) == ("on trial", True)
    assert update.library_size > 0
    assert texts(program) == set(), "what is on trial is not deployable here"


class Deploys(Gate):
    """Everything stays; a program is given all but E2, unmeasured."""

    measures = False

    def decide(self, evidence: RunEvidence) -> Decision:
        before = evidence.previous.library
        return Decision(before, "stays", deployable=before.apply([{"op": "DELETE", "id": "E2"}]))


@pytest.mark.parametrize(
    ("gate", "n"), [(NoGate(), 3), (Deploys(), 1)], ids=["no gate", "a gate that forgets it"]
)
def test_what_a_keep_says_is_evidence_in_the_result_whatever_the_gate_makes_of_it(
    gate: Gate, n: int
) -> None:
    rules: list[Any] = [
        (EXTRACT, lessons(RIGHT["slate"], "Be brief.")),
        (UPDATE, operations(add("Be brief.", 1))),
        ("question", solved),
    ]
    student = knowing(RIGHT["slate"], "Be kind.")
    small = {**SMALL, "batch_size": 8, "update": UpdateLibrary()}
    results = compiled(scripted_lm(rules), gate=gate, student=student, **small).detailed_results
    assert {op.op for op in results.updates[0].operations} == {"KEEP", "ADD"}
    experiences = results.library["experiences"]
    assert len(experiences) == n
    assert experiences[0]["evidence"]


class OnTrial(Gate):
    """Everything that is proposed stays on trial."""

    def decide(self, evidence: RunEvidence) -> Decision:
        return Decision(on_trial(evidence.proposed), "on trial")


@pytest.mark.parametrize(
    ("method", "answer", "message"),
    [
        ("decide", None, "decided None; return a Decision on a library"),
        ("decide", Decision(None, "?"), "return a Decision on a library"),  # type: ignore[arg-type]
        ("decide", Decision(ExperienceLibrary(), "?", []), "on a library"),  # type: ignore[arg-type]
        ("assign", [None] * 4, "return 4 libraries"),
        ("demo_sets", None, "chose the demos None; return 4 numbers from 0 to 8"),
        ("finalists", None, "gave as finalists None; return a sequence of libraries"),
        ("finalists", [ExperienceLibrary(), "E1"], "return a sequence of libraries"),
    ],
)
def test_a_gate_that_answers_nonsense_is_told_what_was_wrong(
    method: str, answer: Any, message: str
) -> None:
    gate = type("Answers", (OnTrial,), {method: lambda *_: answer})()
    with pytest.raises(GateError, match="^Answers .*" + re.escape(message)):
        compiled(world(), gate=gate, **{**SMALL, "epochs": 3, "max_demos": 1})


@pytest.mark.parametrize(
    ("method", "n_before", "raised"),
    [
        ("decide", 1, SystemExit(3)),
        ("assign", 10, ValueError("tok-0123456789xyz")),
        ("demo_sets", 10, ValueError("tok-0123456789xyz")),
        ("finalists", 0, SystemExit(3)),
    ],
)
def test_a_gate_that_raises_is_named_and_what_was_finished_is_kept(
    method: str, n_before: int, raised: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "tok-0123456789xyz")
    count = itertools.count(1)

    def answer(self: Any, question: Any) -> Any:
        if next(count) > n_before:
            raise raised
        return getattr(OnTrial, method)(self, question)

    given_ = {**SMALL, "epochs": 3, "max_demos": 1, "log_dir": tmp_path}
    gate, events = type("Raises", (OnTrial,), {method: answer})(), []
    with pytest.raises(GateError, match=rf"^Raises\.{method} raised \w+: .*; correct") as told:
        compiled(world(), gate=gate, on_event=events.append, **given_)
    assert f"GateError: {told.value}" == f"{events[-1].results.ended_because}."
    assert told.value.__cause__ is (None if isinstance(raised, ValueError) else raised)
    assert "tok-0123456789xyz" not in "".join(traceback.format_exception(told.value))
    assert isinstance(vars(told.value)["program"], dspy.Module)
    assert isinstance(best_so_far(tmp_path, predictor()), dspy.Module)
    again = compiled(world(), gate=OnTrial(), **given_).detailed_results
    assert again.replayed["rollout"] > 0
