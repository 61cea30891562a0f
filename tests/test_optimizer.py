"""The loop of `optimizer`, end to end, on a scripted LM."""

import itertools
import re
from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import Run, is_score, library_texts, predictor, questions
from scripted import (
    EXTRACT,
    SUMMARIZE,
    UPDATE,
    Prompt,
    Rule,
    chat,
    lessons,
    operations,
    scripted_lm,
)
from small import grpo, paper_grpo

from tfgrpo_dspy import Experience, ExperienceLibrary, Gate, NoGate, SettingsError


def deployed(prompt: Prompt) -> str:
    """An answer scores what the experiences in its prompt are worth: "worth +2" is 0.2 more."""
    worth = sum(int(n) for n in re.findall(r"worth ([+-]\d)", prompt.system))
    return chat(answer=str(round(0.5 + worth / 10, 1)))


def teaching(*texts: str) -> list[Rule]:
    """ExtractAdvantage finds these lessons, and UpdateLibrary adds each."""
    numbered = enumerate(texts, start=1)
    adds = ({"op": "ADD", "text": text, "lessons": [number]} for number, text in numbered)
    return [(EXTRACT, lessons(*texts)), (UPDATE, operations(*adds))]


def run(*rules: Rule, row: Sequence[str] = ("1", "0"), n: int = 6, **arguments: Any) -> Run:
    """One epoch over examples whose rollouts answer `row` in training, measured on 8 others.

    The gate is the plainest, which takes what is better on four examples without any doubt.
    """
    usual = {"gate": Gate(), "valset": questions(8, start=100)}
    return Run([row] * n, *rules, (r"question 1\d\d", deployed), **usual | arguments)


def trained_on(done: Run, epoch: int = 0) -> list[list[int]]:
    """The examples of each update of an epoch, in their order."""
    updates = [update for update in done.results.updates if update.epoch == epoch]
    return [[group.example for group in update.groups] for update in updates]


@given(st.integers(1, 12), st.integers(1, 14), st.integers(1, 3))
@settings(max_examples=12)
@pytest.mark.timeout(60)
def test_whatever_the_sizes_each_epoch_is_a_partition_of_the_trainset(
    n: int, batch_size: int, epochs: int
) -> None:
    done = run(*teaching("worth +0"), n=n, batch_size=batch_size, epochs=epochs, gate=NoGate())
    for epoch in range(epochs):
        batches = trained_on(done, epoch)
        assert sorted(itertools.chain(*batches)) == list(range(n))
        assert all(len(batch) == batch_size for batch in batches[:-1])


def test_each_epoch_goes_through_the_trainset_in_another_order() -> None:
    done = run(*teaching("worth +0"), n=8, batch_size=8, epochs=3, gate=NoGate())
    assert len({str(trained_on(done, epoch)) for epoch in range(3)}) == 3


def test_without_a_valset_what_is_held_out_is_never_trained_on() -> None:
    done = run(*teaching("worth +1"), n=9, valset=None)
    policy = [p for p in done.prompts("## question ##") if "`attempts`" not in p.text]
    trained = {prompt.user for prompt in policy if prompt.temperature == 0.7}
    measured = {prompt.user for prompt in policy} - trained
    assert (len(trained), len(measured), done.results.best.n) == (6, 3, 3)


def test_with_fewer_than_six_examples_the_gate_measures_on_the_trainset_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="5 different examples are too few to hold some out"):
        done = run(*teaching("worth +1"), n=5, valset=None)
    assert done.results.best.n == 5
    assert sorted(itertools.chain(*trained_on(done))) == list(range(5))


def test_training_samples_at_the_set_temperature_and_validation_at_the_lms_own() -> None:
    done = run(*teaching("worth +1"), lm_arguments={"temperature": 0.2}, temperature=1.1)
    assert {prompt.temperature for prompt in done.prompts(r"question \d\n")} == {1.1, 0.2}
    assert {prompt.temperature for prompt in done.prompts(r"question 1\d\d")} == {0.2}


def test_a_student_with_a_library_is_continued_and_is_itself_the_first_incumbent() -> None:
    known = ExperienceLibrary([Experience(id="E4", text="worth +1")], next_number=8)
    done = run(*teaching("worth +2"), student=known.bake(predictor()), batch_size=6)
    assert (done.results.student.mean, done.results.best.mean) == (0.6, 0.8)
    assert done.library.render() == "[E4*] worth +1\n[E8*] worth +2"
    assert done.optimized.signature.instructions.count("<experiences>") == 1


def test_the_papers_schedule_returns_its_last_library_even_if_it_is_worse() -> None:
    rules = [*teaching("worth -2"), (SUMMARIZE, chat(summary="Done."))]
    done = run(*rules, n=2, schedule=paper_grpo, gate=NoGate())
    assert done.library.render() == "[E1*] worth -2"
    assert (done.results.student.mean, done.results.best.mean) == (0.5, 0.3)


def test_without_a_metric_it_warns_learns_and_measures_nothing() -> None:
    with pytest.warns(UserWarning, match="metric=None: lessons are drawn from agreement"):
        done = run(*teaching("worth -2"), metric=None, gate=None, batch_size=6)
    assert done.library.render() == "[E1*] worth -2"
    assert (done.results.student, done.results.best) == (None, None)
    assert done.results.schedule["reserve"] == 0
    assert done.results.updates[0].groups[0].scores == (None, None)


@pytest.mark.parametrize(("metric", "n_scored"), [(None, 2), (is_score, 0), (is_score, 2)])
def test_traces_are_learned_from_and_measured_if_they_have_scores_and_there_is_a_metric(
    metric: Any, n_scored: int
) -> None:
    traces = [{"inputs": {"question": "q"}, "outputs": {"answer": str(n)}} for n in range(2)]
    scored = [trace | {"score": n} for n, trace in enumerate(traces) if n < n_scored]
    lm = scripted_lm([*teaching("worth +1"), (r"question 1\d\d", deployed)])
    optimizer = grpo(metric, progress=False)
    data: dict[str, Any] = {"traces": [*scored, *traces], "valset": questions(8, start=100)}
    with dspy.context(lm=lm):
        if not n_scored or metric is None:
            needed = "traces with scores" if not n_scored else "a metric"
            for name in ("testset", "valset"):
                given = {"traces": data["traces"], name: data["valset"]}
                with pytest.raises(SettingsError, match=f"^{name}: measuring on it needs {needed}"):
                    optimizer.learn(predictor(), **given)
            data["valset"] = None
        learned = optimizer.learn(predictor(), **data)
    assert lm.engine.n_calls(r"question 1\d\d") == (16 if data["valset"] else 0)
    assert learned.detailed_results.failures == {}  # a trace without a score is none
    assert library_texts(learned) == ["worth +1"]


def test_nothing_learned_says_that_groups_had_no_contrast() -> None:
    assert run(row=("1", "1"), use_labels=False).results.nothing_learned == (
        "12 attempts scored 1.000, and none another score; 6 of 6 groups had no contrast; "
        "2 updates brought no change that the library takes"
    )


def test_nothing_learned_says_that_answers_came_from_a_cache() -> None:
    arguments: dict[str, Any] = {"row": ("1", "1"), "gate": NoGate(), "valset": None}
    arguments["use_labels"] = False  # or what they ask for is a lesson
    first, second = (run(**arguments, lm_arguments={"cache": True}) for _ in range(2))
    assert "cache" not in first.results.nothing_learned
    assert "12 answers were replayed from a cache" in second.results.nothing_learned
    assert second.results.policy_usage.n_lm_calls == second.lm.engine.n_calls() == 0


def test_operations_that_the_library_refused_are_not_reported_as_rejected_by_the_gate() -> None:
    done = run((EXTRACT, lessons("Be exact.")), (UPDATE, operations({"op": "MERGE"})))
    assert done.results.nothing_learned == "2 updates brought no change that the library takes"
