"""Drafts: lessons from labels alone, before the first rollout."""

import re
from pathlib import Path
from typing import Any

import dspy
import pytest
from runs import Run, add, library_texts, predictor
from scripted import EXTRACT, UPDATE, Prompt, chat, operations, scripted_lm
from small import grpo

from tfgrpo_dspy import AddLessons, DraftLessons

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


RIGHT = chat(lessons=list(LESSONS.values()))


def drafting(says: Any = RIGHT, **arguments: Any) -> Run:
    lm = scripted_lm(
        [(EXTRACT, chat(semantic_advantage="", lessons=[])), (DRAFT, says), ("weigh", follow)]
    )
    given = {"drafts": 3, "group_size": 2, "trainset": TRAINSET, "valset": VALSET}
    return Run([["0"]], metric=is_right, lm=lm, update=AddLessons(), **given | arguments)


def numbers(prompt: str) -> set[int]:
    """The cases that a prompt shows."""
    return set(map(int, re.findall(r"Case (\d+):", prompt)))


def test_each_draft_shows_ten_examples_with_labels_all_once_before_one_comes_again() -> None:
    prompts = drafting(drafts=6).texts(DRAFT)
    assert sorted(len(numbers(prompt)) for prompt in prompts) == [4, 4, 10, 10, 10, 10]
    assert [sum(n in numbers(p) for p in prompts) for n in range(44)] == [2] * 24 + [0] * 20
    text = "\n".join(prompts)
    assert set(re.findall(r"does (\w+) weigh\?\nLabels:\nanswer: (\d)", text)) == {*WEIGHT.items()}


@pytest.mark.parametrize("n_labelled", [8, 0])
def test_examples_without_labels_are_left_out(n_labelled: int) -> None:
    unlabelled = [e.inputs() for e in TRAINSET[n_labelled:]]
    run = drafting(trainset=[*TRAINSET[:n_labelled], *unlabelled], valset=None, epochs=1)
    drafts = [numbers(prompt) for prompt in run.texts(DRAFT)]
    assert len(drafts) == (3 if n_labelled else 0)
    assert all(shown <= set(range(n_labelled)) for shown in drafts)


def test_drafts_that_are_asked_for_show_the_same_examples_again_only_where_all_were_shown() -> None:
    prompts = drafting(drafts=24, trainset=TRAINSET[:11]).texts(DRAFT)
    assert len(prompts) == 24
    assert len({frozenset(numbers(prompt)) for prompt in prompts}) == 22


def test_a_module_of_ones_own_says_how_many_examples_are_shown_and_how_long_they_may_be() -> None:
    module = DraftLessons(shown_tokens=60)
    module.n_examples = 4
    prompts = drafting(drafts=2, draft=module).texts(DRAFT)
    assert [prompt.count("answer:") for prompt in prompts] == [4, 4]
    assert all("characters left out" in prompt for prompt in prompts)


@pytest.mark.parametrize(
    ("batch_size", "staleness", "without"), [(4, 0, 0), (4, 1, 4), (4, 3, 8), (8, 1, 8), (12, 1, 0)]
)
def test_at_most_eight_examples_are_sampled_before_the_drafts_are_decided(
    batch_size: int, staleness: int, without: int
) -> None:
    run = drafting(batch_size=batch_size, max_staleness=staleness)
    rollouts = [text for text in run.texts("weigh") if not re.search(f"{DRAFT}|{EXTRACT}", text)]
    training = [text for text in rollouts if min(numbers(text)) < 24]
    told = [text for text in training if any(lesson in text for lesson in LESSONS.values())]
    assert told
    assert len(training) - len(told) == 2 * without


def test_what_one_draft_says_alone_is_left_out() -> None:
    def draft(prompt: Prompt) -> str:
        n = min(numbers(prompt.user))
        return chat(lessons=[WRONG] if n == 0 else [LESSONS["gold"], LESSONS["coal"]])

    assert set(drafting(draft).results.updates[0].lessons) == set(LESSONS.values())


def test_where_no_draft_repeats_another_all_that_they_say_counts() -> None:
    run = drafting(lambda prompt: chat(lessons=f"Answer {min(numbers(prompt.user))} at once."))
    assert len(run.results.updates[0].lessons) == 3


def test_the_lessons_of_a_draft_have_no_rollouts_for_evidence_and_may_not_copy_an_example() -> None:
    def draft(prompt: Prompt) -> str:
        shown = TRAINSET[min(numbers(prompt.user))]
        return chat(lessons=[*LESSONS.values(), f"{shown.question} It weighs {shown.answer}."])

    run = drafting(draft)
    assert sorted(library_texts(run.optimized)) == sorted(LESSONS.values())
    assert [experience.evidence for experience in run.library] == [(), ()]
    first = run.results.updates[0]
    assert (first.groups, len(first.lessons)) == ((), 2)
    assert any("copies the training data" in refused for refused in first.refused_lessons)


def test_an_update_from_a_draft_may_copy_no_example_whether_it_was_shown_or_not() -> None:
    copies = [f"{example.question} It weighs {example.answer}." for example in TRAINSET]
    rules: list[Any] = [(UPDATE, operations(*map(add, copies))), (DRAFT, RIGHT), ("weigh", follow)]
    lm = scripted_lm([(EXTRACT, chat(semantic_advantage="", lessons=[])), *rules])
    run = Run([["0", "0"]], metric=is_right, lm=lm, trainset=TRAINSET, drafts=1)
    (refused,) = (u.operations for u in run.results.updates if u.operations)
    assert ["copies the training data" in each.refused for each in refused] == [True] * 24


@pytest.mark.parametrize("answer", ["I had rather not say.", chat(lessons=[])])
def test_drafts_that_say_nothing_cost_themselves_only(answer: str) -> None:
    run = drafting(answer)
    assert list(run.library) == []
    assert len(run.results.updates) == 6  # five batches besides
    assert run.results.ended_because == "all epochs are done"


def test_drafts_are_counted_and_replayed_from_the_store(tmp_path: Path) -> None:
    first = drafting(log_dir=tmp_path)
    assert first.results.usage["draft"].n_lm_calls == 3
    again = drafting(log_dir=tmp_path, offline=True)
    assert again.prompts("") == []
    assert again.library == first.library
    assert again.results.replayed["draft"] == 3
    assert len(drafting(log_dir=tmp_path, drafts=4).prompts(DRAFT)) == 1


def test_a_prompt_that_is_too_long_for_the_lm_is_shortened() -> None:
    def too_long(prompt: Prompt) -> str:
        if len(prompt.user) > 1200:
            raise dspy.utils.exceptions.ContextWindowExceededError(model="scripted")
        return RIGHT

    wordy = [e.copy(question=e.question + " so" * 200) for e in TRAINSET]
    run = drafting(too_long, trainset=wordy, draft=DraftLessons(shown_tokens=2000))
    assert sorted(library_texts(run.optimized)) == sorted(LESSONS.values())
    assert len(run.prompts(DRAFT)) > 3


def follow_broadly(prompt: Prompt) -> str:
    kind = re.findall(r"what does (\w+) weigh", prompt.user)[-1]
    return chat(answer=WEIGHT[kind] if "Answer 9 and 4." in prompt.system else "0")


@pytest.mark.parametrize("learned", [[*LESSONS.values()], ["Answer 9 and 4."]])
def test_lessons_drafted_from_traces_are_decided_on_at_once_as_no_rollouts_follow(
    learned: list[str],
) -> None:
    lm = scripted_lm([(EXTRACT, ""), (DRAFT, chat(lessons=learned)), ("weigh", follow_broadly)])
    optimizer = grpo(is_right, drafts=3, update=AddLessons(), progress=False)
    with dspy.context(lm=lm):
        valset = VALSET if len(learned) == 1 else None
        program = optimizer.learn(predictor(), traces=TRACES, valset=valset)
    assert sorted(library_texts(program)) == sorted(learned)


@pytest.mark.parametrize("says", [RIGHT, chat(lessons=[WRONG])], ids=["right", "wrong"])
def test_the_default_gate_keeps_drafts_that_help_and_no_other(says: str) -> None:
    run = drafting(says, gate=None, group_size=4, epochs=3)
    learned = sorted(library_texts(run.optimized))
    assert learned == (sorted(LESSONS.values()) if says == RIGHT else [])
