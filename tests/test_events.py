"""What a run tells a listener, what `approve` decides, and what survives an interrupt."""

import itertools
import logging
from pathlib import Path
from types import MethodType
from typing import Any

import dspy
import pytest
from runs import (
    ADVICE,
    Asked,
    add,
    is_polite,
    knowing,
    learned,
    library_texts,
    optimizer_of,
    polite_lm,
    polite_rules,
    predictor,
    questions,
    records,
    untimed,
)
from scripted import EXTRACT, UPDATE, chat, lessons, operations, scripted_lm

from tfgrpo_dspy import Gate, MissingRecordError, NoGate
from tfgrpo_dspy.events import BudgetUsed, ExperienceChanged, RunEnded, UpdateDecided

GATED: dict[str, Any] = {"gate": Gate(), "epochs": 2}


def kinds_of(events: list[Any]) -> list[str]:
    return [event.change.kind for event in events if isinstance(event, ExperienceChanged)]


def test_a_listener_is_told_of_changes_updates_and_the_budget_in_order_and_of_the_end() -> None:
    events: list[Any] = []
    program = learned(on_event=events.append, epochs=4, max_lm_calls=150)
    results = program.detailed_results
    decided = [event for event in events if isinstance(event, UpdateDecided)]
    assert [event.record for event in decided] == list(results.updates)
    assert decided[0].rollouts and "rollouts=" not in repr(decided[0])
    assert kinds_of(events)[:1] == ["born"]
    assert "settled" in kinds_of(events)
    changes = [event.change for event in events if isinstance(event, ExperienceChanged)]
    assert changes == [change for update in results.updates for change in update.changes]
    used = [event for event in events if isinstance(event, BudgetUsed)]
    assert len(used) == len(decided)
    assert used[-1].limits == {"max_lm_calls": 150}
    assert 0 < used[0].n_lm_calls < used[-1].n_lm_calls <= 150
    assert isinstance(events[-1], RunEnded)
    assert events[-1].results == results
    assert [type(event) for event in events[:3]] == [ExperienceChanged, UpdateDecided, BudgetUsed]


def test_an_update_records_the_best_and_the_worst_rollout_behind_a_new_experience() -> None:
    born = learned(**GATED).detailed_results.updates[0].changes[0]
    assert (born.kind, born.id, born.text) == ("born", "E1", ADVICE)
    comparison = born.comparisons[0]  # a group with contrast, if there is one
    assert (comparison.good.outputs, comparison.good.score) == ("answer: please", 1.0)
    assert (comparison.bad.outputs, comparison.bad.score) == ("answer: no", 0.0)
    assert comparison.bad.feedback == "Say please."
    assert comparison.advantage == "The better attempts follow the advice."
    assert f"question: question {comparison.example}" in comparison.inputs


def test_an_experience_that_the_gate_drops_is_told_with_its_text_and_the_reason() -> None:
    events: list[Any] = []
    usual, spoiled = polite_rules("Shout."), ("Shout.", chat(answer="NO!"))
    lm = scripted_lm([*usual[:2], spoiled, usual[2]])
    learned(lm=lm, on_event=events.append, epochs=8)
    changes = [event.change for event in events if isinstance(event, ExperienceChanged)]
    dropped = [change for change in changes if change.kind == "dropped"]
    assert dropped[0].text == "Shout."
    assert "worth its tokens with probability" in dropped[0].reason


def test_an_experience_is_born_once_also_where_the_gate_left_out_an_addition_before_it() -> None:
    modified, lesson = f"{ADVICE} Smile.", map("Call number {}.".format, itertools.count())
    modify = {"op": "MODIFY", "id": "E1", "text": modified, "lessons": [1]}
    both = [add(modified, 1), add("Thank them.", 1)]  # the first says what E1 may say soon
    answers = iter([[add(ADVICE, 1)], [modify], both, both])
    rules: list[Any] = [
        (EXTRACT, lambda _: lessons(next(lesson))),
        (UPDATE, lambda _: operations(*next(answers))),
        ("question", lambda prompt: chat(answer="please" if prompt.seed % 2 else "no")),
    ]
    program = learned(lm=scripted_lm(rules), epochs=2, num_threads=1, max_staleness=0)
    changes = [change for one in program.detailed_results.updates for change in one.changes]
    born = [(change.id, change.text) for change in changes if change.kind == "born"]
    assert born == [("E1", ADVICE), ("E2", "Thank them.")]


def test_approve_sees_operations_with_evidence_and_comparisons_before_they_are_made() -> None:
    asked = Asked(True)
    program = learned(approve=asked, **GATED)
    proposal = asked.proposals[0]
    (operation,) = proposal.operations
    assert (operation.op, operation.text, len(proposal.library)) == ("ADD", ADVICE, 0)
    assert operation.evidence[0].scores
    assert proposal.comparisons[0][0].good.outputs.startswith("answer: ")
    assert proposal.diff == f"+ [E1] {ADVICE}"
    assert library_texts(program) == [ADVICE]


def test_what_is_rejected_is_not_made_and_the_update_says_so() -> None:
    program = learned(approve=Asked(False), **GATED)
    assert library_texts(program) == []
    refused = [
        op.refused for update in program.detailed_results.updates for op in update.operations
    ]
    assert set(refused) == {"rejected by approve"}


@pytest.mark.parametrize(
    "edited",
    [
        [{"op": "ADD", "text": "Always say please."}],
        lambda proposal: [type(proposal.operations[0])("Always say please.")],
    ],
    ids=["mapping", "operation"],
)
def test_edited_operations_are_made_instead_and_keep_the_evidence(edited: Any) -> None:
    program = learned(approve=Asked(edited, False), gate=NoGate(), epochs=1)
    assert library_texts(program) == ["Always say please."]
    (experience,) = program.detailed_results.experiences
    assert experience.evidence


@pytest.mark.parametrize(
    "answer", ["yes", None, [{"op": "SHOUT"}]], ids=["a text", "None", "an unknown operation"]
)
def test_an_answer_of_approve_that_is_none_lets_nothing_through_and_is_counted(answer: Any) -> None:
    program = learned(approve=Asked(answer), **GATED)
    assert library_texts(program) == []
    assert program.detailed_results.failures["approval"] >= 1


def test_decisions_are_recorded_and_not_asked_for_again_on_resume_or_offline(
    tmp_path: Path,
) -> None:
    edit = [{"op": "ADD", "text": "Always say please."}]
    asked, again = Asked(edit, False), Asked(True)
    settings = {"log_dir": tmp_path, "gate": NoGate(), "epochs": 2}
    first = learned(approve=asked, **settings)
    n_asked = len(asked.proposals)
    assert len(records(tmp_path, "approval")) == n_asked >= 1
    assert library_texts(learned(approve=again, **settings)) == library_texts(first)
    offline = learned(approve=again, lm=scripted_lm([]), offline=True, **settings)
    assert (
        untimed(offline.detailed_results)["library"] == untimed(first.detailed_results)["library"]
    )
    assert again.proposals == []


def test_offline_a_decision_that_was_not_recorded_is_named(tmp_path: Path) -> None:
    learned(log_dir=tmp_path, **GATED)
    with pytest.raises(MissingRecordError, match="approval of update 0"):
        learned(approve=Asked(True), log_dir=tmp_path, offline=True, **GATED)


@pytest.mark.parametrize(("staleness", "n_paid"), [(1, 3), (0, 3 + 3)])
def test_a_metric_that_cannot_work_is_found_out_within_three_rollouts(
    staleness: int, n_paid: int
) -> None:
    """With staleness 0, the first rollouts need the three drafts, which are made before."""

    def metric(_example: Any, pred: Any, _trace: Any = None) -> float:
        return float(pred.verdict)

    lm = scripted_lm([("`examples`", chat(lessons="None")), *polite_rules()])
    optimizer = optimizer_of(metric=metric, drafts=3, max_staleness=staleness)
    with dspy.context(lm=lm), pytest.raises(RuntimeError, match="AttributeError") as raised:
        optimizer.compile(predictor(), trainset=questions(9))
    assert "the metric gave no score to any of the first 3 rollouts" in str(raised.value)
    assert lm.engine.n_calls() == n_paid


class NoForward(dspy.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ask = predictor()


class Given(NoForward):
    def forward(self, text: str, tone: str = "kind") -> Any:
        del tone
        return self.ask(question=text)


class Yielding(NoForward):
    def forward(self, question: str) -> Any:
        yield self.ask(question=question)


@pytest.mark.parametrize(
    ("student", "fault"),
    [
        (Yielding(), "student=Yielding: define `forward` (or `aforward`), which returns a pred"),
        (NoForward(), "student=NoForward: define `forward`"),
        (Given(), "trainset: Given takes the inputs ['text', 'tone'], and the example at "
                  "position 0 has ['question']"),
        (dspy.Predict("text -> answer"), "takes the inputs ['text'], and the example"),
        (dspy.ChainOfThought("text, tone -> answer"), "takes the inputs ['text', 'tone']"),
        (dspy.ReAct("text -> answer", tools=[]), "ReAct takes the inputs ['text']"),
        (dspy.BestOfN(dspy.Predict("text -> answer"), 2, is_polite, 1.0), "takes the inputs"),
    ],
    ids=lambda given: type(given).__name__,
)  # fmt: skip
def test_inputs_that_a_program_does_not_take_are_refused_before_the_first_call(
    student: Any, fault: str
) -> None:
    lm = polite_lm()
    with dspy.context(lm=lm), pytest.raises(ValueError, match=r"takes|define") as raised:
        optimizer_of().compile(student, trainset=questions(3))
    assert fault in str(raised.value)
    assert lm.engine.n_calls() == 0


def test_optional_inputs_may_be_missing_and_predictors_may_be_given_more() -> None:
    examples = [dspy.Example(text=f"question {i}").with_inputs("text") for i in range(4)]
    more = [dspy.Example(question="question", b="b").with_inputs("question", "b")] * 4
    for student, data in ((Given(), examples), (predictor(), more)):
        with dspy.context(lm=polite_lm()):
            optimized = optimizer_of(gate=NoGate()).compile(student, trainset=data)
        assert not optimized.detailed_results.failures


def asked(self: Any, question: str) -> Any:
    return self.ask(question=question)


class Static(NoForward):
    @staticmethod
    def forward(question: str) -> Any:
        return dspy.Predict("question -> answer")(question=question)


def test_the_inputs_of_a_forward_that_is_set_on_the_program_or_static_are_those_that_it_names() -> (
    None
):
    student = NoForward()
    vars(student)["forward"] = MethodType(asked, student)
    assert library_texts(learned(student)) == [ADVICE]
    with dspy.context(lm=polite_lm()):
        plan = optimizer_of().estimate(Static(), trainset=questions(6))
    assert plan.total.n_lm_calls > 0


def test_an_update_is_one_log_line_that_needs_no_glossary_and_the_end_is_another(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO, "tfgrpo_dspy"):
        learned(student=knowing("Be brief."), **GATED)
    rooms = ("tfgrpo_dspy.run", "tfgrpo_dspy.listeners")
    lines = [r.getMessage() for r in caplog.records if r.name.startswith(rooms)]
    updates = [line for line in lines if line.startswith("update ")]
    assert updates[0].startswith("update 1 (epoch 1): 5 examples, mean score 0.")
    assert "; 1 lesson; experiences: 1 added, 2 in the library; " in updates[0]
    assert len(updates) == 4
    assert lines[-1].startswith("the run ended (all epochs are done): validation score ")
    assert all("\n" not in line for line in updates)
