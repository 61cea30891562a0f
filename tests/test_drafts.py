"""Drafts: lessons from labels alone, before the first rollout."""

import re
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import library_texts, predictor
from scripted import EXTRACT, UPDATE, Prompt, Rule, chat, operations, scripted_lm
from small import grpo

from tfgrpo_dspy import (
    BayesianGate,
    DraftLessons,
    ExperienceLibrary,
    NoGate,
)

DRAFT = r"`lessons`(?s:.)*## examples ##"
"""Found in the prompts of DraftLessons only."""
KINDS = ("coal", "gold")
WEIGHT = {"coal": "9", "gold": "4"}


def example(number: int) -> dspy.Example:
    kind = KINDS[number % 2]
    question = f"Case {number}: what does {kind} weigh?"
    return dspy.Example(question=question, answer=WEIGHT[kind]).with_inputs("question")


TRAINSET, VALSET = [example(n) for n in range(24)], [example(n) for n in range(24, 44)]
TRACES = [
    {"inputs": e.inputs().toDict(), "labels": e.labels().toDict(), "outputs": {"answer": "0"}}
    | {"score": 0.0}
    for e in TRAINSET
]
LESSONS = {kind: f"When {kind} is weighed, answer {WEIGHT[kind]}." for kind in KINDS}
WRONG = "When gold is weighed, answer 5."


def is_right(gold: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """No feedback, and no answer differs from the other rollouts': groups teach nothing."""
    return dspy.Prediction(score=float(pred.answer == gold.get("answer")))


def follow(prompt: Prompt) -> str:
    """The program does what the last lesson on the kind says; else it answers 0."""
    kind = re.findall(r"what does (\w+) weigh", prompt.user)[-1]
    told = re.findall(rf"When {kind} is weighed, answer (\d)", prompt.system)
    return chat(answer=told[-1] if told else "0")


def adding(prompt: Prompt) -> str:
    """UpdateLibrary adds each lesson that is numbered."""
    texts = re.findall(r"^\d+\. (.*)$", prompt.user, re.MULTILINE)
    return operations(*({"op": "ADD", "text": text} for text in texts))


RIGHT = chat(lessons=list(LESSONS.values()))


def rules(draft: Any = RIGHT) -> list[Rule]:
    return [(UPDATE, adding), (EXTRACT, chat(semantic_advantage="", lessons=[])), (DRAFT, draft)]


class Run:
    """One compile."""

    def __init__(self, says: Any = RIGHT, trainset: Any = None, **arguments: Any) -> None:
        self.lm = scripted_lm([*rules(says), ("weigh", follow)])
        settings = {"drafts": 3, "gate": NoGate(), "group_size": 2, "epochs": 1, "num_threads": 2}
        self.optimizer = grpo(is_right, **(settings | {"progress": False} | arguments))
        with dspy.context(lm=self.lm):
            self.optimized = self.optimizer.compile(
                predictor(), trainset=trainset or TRAINSET, valset=VALSET
            )
        self.results = self.optimized.detailed_results
        self.library = ExperienceLibrary.from_program(self.optimized)

    @property
    def texts(self) -> list[str]:
        return [experience.text for experience in self.library]

    def prompts(self, pattern: str) -> list[str]:
        return [p.text for p in self.lm.engine.prompts if re.search(pattern, p.text)]


def numbers(prompt: str) -> set[int]:
    """The cases that a prompt shows."""
    return set(map(int, re.findall(r"Case (\d+):", prompt)))


# ---------------------------------------------------------------------- what is asked


def test_each_draft_shows_ten_examples_with_labels_all_of_them_once_before_one_comes_again() -> (
    None
):
    shown = sorted(map(numbers, Run().prompts(DRAFT)), key=len)
    assert [len(each) for each in shown] == [4, 10, 10]
    assert set().union(*shown) == set(range(24))
    pairs = [
        pair
        for prompt in Run().prompts(DRAFT)
        for pair in re.findall(r"does (\w+) weigh\?\nLabels:\nanswer: (\d)", prompt)
    ]
    assert len(pairs) == 24 and set(pairs) == set(WEIGHT.items())
    twice = Run(drafts=6).prompts(DRAFT)
    assert [sum(n in numbers(prompt) for prompt in twice) for n in range(44)] == [2] * 24 + [0] * 20


def test_examples_without_labels_are_left_out() -> None:
    unlabelled = [dspy.Example(question=e.question).with_inputs("question") for e in TRAINSET[8:]]
    trainset = [*TRAINSET[:8], *unlabelled]
    shown = list(map(numbers, Run(trainset=trainset).prompts(DRAFT)))
    assert shown == [set(range(8))] * 3


def test_a_module_of_ones_own_says_how_many_examples_are_shown_and_how_long_they_may_be() -> None:
    module = DraftLessons(n_examples=4, examples_tokens=60)
    prompts = Run(drafts=2, draft=module).prompts(DRAFT)
    assert [prompt.count("answer:") for prompt in prompts] == [4, 4]
    assert all("characters left out" in prompt for prompt in prompts)


@pytest.mark.parametrize(
    ("batch_size", "staleness", "without"), [(4, 0, 0), (4, 1, 4), (4, 3, 8), (8, 1, 8), (12, 1, 0)]
)
def test_at_most_eight_examples_are_sampled_before_the_drafts_are_decided(
    batch_size: int, staleness: int, without: int
) -> None:
    run = Run(batch_size=batch_size, max_staleness=staleness)
    rollouts = [
        prompt.text
        for prompt in run.lm.engine.prompts
        if not re.search(f"{DRAFT}|{UPDATE}|{EXTRACT}", prompt.text)
    ]
    training = [text for text in rollouts if min(numbers(text)) < 24]
    told = [text for text in training if any(lesson in text for lesson in LESSONS.values())]
    assert (len(training), len(training) - len(told)) == (48, 2 * without)


# ---------------------------------------------------------------------- what becomes of it


def test_what_one_draft_says_alone_is_left_out() -> None:
    def draft(prompt: Prompt) -> str:
        n = min(numbers(prompt.user))
        return chat(lessons=[WRONG] if n == 0 else [LESSONS["gold"], LESSONS["coal"]])

    run = Run(draft)
    update = run.prompts(UPDATE)[0].rpartition("## lessons ##")[2]
    lines = re.findall(r"^\d+\. (.*)$", update, re.MULTILINE)
    assert set(lines) == set(LESSONS.values())


def test_where_no_draft_repeats_another_all_that_they_say_counts() -> None:
    run = Run(lambda prompt: chat(lessons=f"Answer {min(numbers(prompt.user))} at once."))
    update = run.prompts(UPDATE)[0].rpartition("## lessons ##")[2]
    assert len(re.findall(r"^\d+\. Answer", update, re.MULTILINE)) == 3


def test_the_lessons_of_a_draft_have_no_rollouts_for_evidence_and_may_not_copy_an_example() -> None:
    def draft(prompt: Prompt) -> str:
        shown = TRAINSET[min(numbers(prompt.user))]
        return chat(lessons=[*LESSONS.values(), f"{shown.question} It weighs {shown.answer}."])

    run = Run(draft)
    assert sorted(run.texts) == sorted(LESSONS.values())
    assert [experience.evidence for experience in run.library] == [(), ()]
    first = run.results.updates[0]
    assert (first.groups, len(first.lessons)) == ((), 2)
    assert any("copies the training data" in refused for refused in first.refused_lessons)


@pytest.mark.parametrize("answer", ["I had rather not say.", chat(lessons=[])])
def test_drafts_that_say_nothing_cost_themselves_only(answer: str) -> None:
    run = Run(answer)
    assert run.texts == []
    assert len(run.results.updates) == 6  # five batches besides
    assert run.results.ended_because == "all epochs are done"


def test_what_drafts_cost_is_counted_and_planned() -> None:
    run = Run()
    assert run.results.usage["draft"].n_lm_calls == 3
    assert run.results.reflection_usage.n_lm_calls >= 4
    with dspy.context(lm=run.lm):
        plan = run.optimizer.estimate(predictor(), trainset=TRAINSET, valset=VALSET)
    (row,) = [row for row in plan.rows if row.purpose == "drafts from labels"]
    assert row.n_lm_calls is not None and row.n_lm_calls >= 3
    assert plan.n_updates == len(run.results.updates)


def test_drafts_are_replayed_from_the_store(tmp_path: Path) -> None:
    first = Run(log_dir=tmp_path)
    again = Run(log_dir=tmp_path, offline=True)
    assert again.lm.engine.prompts == []
    assert again.library == first.library
    assert again.results.replayed["draft"] == 3
    more = Run(log_dir=tmp_path, drafts=4)
    assert len(more.prompts(DRAFT)) == 1


def test_the_number_of_threads_changes_nothing() -> None:
    arguments: dict[str, Any] = {"gate": BayesianGate(), "epochs": 2, "max_lm_calls": 300}
    one, four = Run(num_threads=1, **arguments), Run(num_threads=4, **arguments)
    assert one.library == four.library
    assert [u.reason for u in one.results.updates] == [u.reason for u in four.results.updates]


def test_lessons_are_drafted_from_traces_that_have_labels() -> None:
    lm = scripted_lm(rules())
    optimizer = grpo(is_right, drafts=3, progress=False)
    with dspy.context(lm=lm):
        learned = optimizer.learn(predictor(), traces=TRACES)
    assert sorted(library_texts(learned)) == sorted(LESSONS.values())


def test_a_prompt_that_is_too_long_for_the_lm_is_shortened() -> None:
    def too_long(prompt: Prompt) -> str:
        if len(prompt.user) > 1200:
            raise dspy.utils.exceptions.ContextWindowExceededError(model="scripted")
        return RIGHT

    wordy = [
        dspy.Example(question=e.question + " so" * 200, answer=e.answer).with_inputs("question")
        for e in TRAINSET
    ]
    run = Run(too_long, trainset=wordy, draft=DraftLessons(examples_tokens=2000))
    assert sorted(run.texts) == sorted(LESSONS.values())
    assert len(run.prompts(DRAFT)) > 3


def test_broad_advice_drafted_from_traces_is_decided_on_at_once_as_no_rollouts_follow() -> None:
    lm = scripted_lm([*rules(chat(lessons=["Answer 9 and 4."])), ("weigh", follow_broadly)])
    optimizer = grpo(is_right, drafts=3, progress=False)
    with dspy.context(lm=lm):
        learned = optimizer.learn(predictor(), traces=TRACES, valset=VALSET)
    assert library_texts(learned) == ["Answer 9 and 4."]


def follow_broadly(prompt: Prompt) -> str:
    kind = re.findall(r"what does (\w+) weigh", prompt.user)[-1]
    return chat(answer=WEIGHT[kind] if "Answer 9 and 4." in prompt.system else "0")


# ---------------------------------------------------------------------- the gate


@pytest.mark.parametrize("says", [RIGHT, chat(lessons=[WRONG])], ids=["right", "wrong"])
def test_the_default_gate_keeps_drafts_that_help_and_no_other(says: str) -> None:
    run = Run(says, gate=None, group_size=4, epochs=3)
    assert sorted(run.texts) == (sorted(LESSONS.values()) if says == RIGHT else [])


# ---------------------------------------------------------------------- what is refused


def test_without_labels_there_are_no_drafts() -> None:
    unlabelled = [dspy.Example(question=e.question).with_inputs("question") for e in TRAINSET]
    optimizer = grpo(lambda _example, _pred: 0.0, drafts=2, epochs=1, progress=False)
    lm = scripted_lm([*rules(), ("weigh", follow)])
    with dspy.context(lm=lm):
        results = optimizer.compile(predictor(), trainset=unlabelled).detailed_results
    assert (lm.engine.n_calls(DRAFT), results.schedule["drafts"]) == (0, 0)
