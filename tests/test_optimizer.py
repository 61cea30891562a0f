"""The loop of `optimizer`, end to end, on a scripted LM."""

import itertools
import json
import re
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import is_score, questions
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

from tfgrpo_dspy import (
    AddLessons,
    Experience,
    ExperienceLibrary,
    Gate,
    NoGate,
    TrainingFreeGRPO,
)
from tfgrpo_dspy.rollout import rollout_id_for

# ---------------------------------------------------------------------- scripted runs


def worth(prompt: Prompt) -> float:
    """As deployed, an answer scores what the experiences in its prompt are worth, "+2" is 0.2."""
    return 0.5 + sum(int(n) for n in re.findall(r"worth ([+-]\d)", prompt.system)) / 10


def policy(training: Sequence[str]) -> Rule:
    """In training, rollout `i` of each group answers `training[i]`; as deployed, `worth`."""
    answers = {
        rollout_id_for(seed, epoch, example, index, "training") % 2**31: text
        for seed, epoch, example in itertools.product(range(2), range(3), range(30))
        for index, text in enumerate(training)
    }

    def answer(prompt: Prompt) -> str:
        if prompt.temperature is None:
            return chat(answer=str(round(worth(prompt), 1)))
        text = answers[prompt.seed or 0]
        return chat(answer=text) if text != "?" else "?"

    return ("question", answer)


def teaching(*texts: str) -> list[Rule]:
    """ExtractAdvantage finds these lessons, and UpdateLibrary adds each."""
    numbered = enumerate(texts, start=1)
    adds = ({"op": "ADD", "text": text, "lessons": [number]} for number, text in numbered)
    return [(EXTRACT, lessons(*texts)), (UPDATE, operations(*adds))]


class Run:
    """One compile, with its LM, what it returned and what it reports.

    The gate is the plainest, which takes what is better on four examples without any doubt.
    """

    def __init__(
        self,
        *rules: Rule,
        training: Sequence[str] = ("1", "0"),
        n: int = 6,
        n_validation: int | None = 8,
        metric: Any = is_score,
        student: Any = None,
        schedule: Callable[..., TrainingFreeGRPO] = grpo,
        lm_arguments: dict[str, Any] | None = None,
        **arguments: Any,
    ) -> None:
        self.lm = scripted_lm([*rules, policy(training)], **lm_arguments or {})
        defaults: dict[str, Any] = {
            "group_size": len(training),
            "num_threads": 2,
            "progress": False,
        }
        if schedule is grpo and metric is not None:
            defaults["gate"] = Gate()
        optimizer = schedule(metric, **defaults | arguments)
        valset = None if n_validation is None else questions(n_validation, start=100)
        with dspy.context(lm=self.lm):
            self.optimized = optimizer.compile(
                student or dspy.Predict("question -> answer"),
                trainset=questions(n),
                valset=valset,
            )
        self.results = self.optimized.detailed_results
        self.library = ExperienceLibrary.from_program(self.optimized)

    def prompts(self, pattern: str) -> list[Prompt]:
        return [prompt for prompt in self.lm.engine.prompts if re.search(pattern, prompt.text)]

    @property
    def deployed(self) -> list[Prompt]:
        """The prompts of validation."""
        return self.prompts(r"question 1\d\d")

    @property
    def trained_on(self) -> list[list[int]]:
        """The examples of each update, in their order."""
        return [[group.example for group in update.groups] for update in self.results.updates]


# ---------------------------------------------------------------------- epochs and batches


@given(st.integers(1, 12), st.integers(1, 14), st.integers(1, 3))
@settings(max_examples=12)
@pytest.mark.timeout(60)
def test_whatever_the_sizes_each_epoch_is_a_partition_of_the_trainset(
    n: int, batch_size: int, epochs: int
) -> None:
    run = Run(*teaching("worth +0"), n=n, batch_size=batch_size, epochs=epochs, gate=NoGate())
    for epoch in range(epochs):
        batches = [
            [group.example for group in update.groups]
            for update in run.results.updates
            if update.epoch == epoch
        ]
        assert sorted(itertools.chain(*batches)) == list(range(n))
        assert all(len(batch) == batch_size for batch in batches[:-1])


def test_each_epoch_goes_through_the_trainset_in_another_order() -> None:
    run = Run(*teaching("worth +0"), n=8, batch_size=8, epochs=3, gate=NoGate())
    assert len({tuple(order) for order in run.trained_on}) == 3


# ---------------------------------------------------------------------- validation


def test_without_a_valset_what_is_held_out_is_never_trained_on() -> None:
    run = Run(*teaching("worth +1"), n=9, n_validation=None, epochs=1)
    trained = {prompt.user for prompt in run.prompts("question") if prompt.temperature == 0.7}
    deployed = {
        prompt.user for prompt in run.prompts(r"## question ##") if prompt.temperature is None
    } - {prompt.user for prompt in run.prompts(f"{EXTRACT}|{UPDATE}")}
    assert (len(trained), len(deployed)) == (6, 3)
    assert trained.isdisjoint(deployed)
    assert run.results.best.n == 3


def test_with_fewer_than_six_examples_the_gate_measures_on_the_trainset_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="5 examples are too few to hold some out"):
        run = Run(*teaching("worth +1"), n=5, n_validation=None, epochs=1)
    assert run.results.best.n == 5
    assert sorted(itertools.chain(*run.trained_on)) == list(range(5))


def test_training_samples_at_the_set_temperature_and_validation_at_the_lms_own() -> None:
    run = Run(*teaching("worth +1"), epochs=1, lm_arguments={"temperature": 0.2},
              student=None, training=("1", "0"), temperature=1.1, n_validation=None)  # fmt: skip
    policy_prompts = [p for p in run.prompts("## question ##") if "`attempts`" not in p.text]
    assert {prompt.temperature for prompt in policy_prompts} == {1.1, 0.2}


# ---------------------------------------------------------------------- the gate and the end


def test_what_was_learned_is_the_incumbent_of_the_next_update() -> None:
    def more(prompt: Prompt) -> str:
        known = prompt.user.count("] worth")
        return lessons(f"worth +{known + 1}")

    on_policy: dict[str, Any] = {"batch_size": 6, "max_staleness": 0}
    run = Run((EXTRACT, more), epochs=2, update=AddLessons(), **on_policy)
    assert run.library.render() == "[E1*] worth +1\n[E2*] worth +2"
    assert (run.results.student.mean, run.results.best.mean) == (0.5, 0.8)


def test_a_student_with_a_library_is_continued_and_is_itself_the_first_incumbent() -> None:
    known = ExperienceLibrary([Experience(id="E4", text="worth +1")], next_number=8)
    student = known.bake(dspy.Predict("question -> answer"))
    run = Run(*teaching("worth +2"), student=student, epochs=1, batch_size=6)
    assert run.results.student.mean == 0.6
    assert run.results.best.mean == 0.8
    assert run.library.render() == "[E4*] worth +1\n[E8*] worth +2"
    assert run.optimized.signature.instructions.count("<experiences>") == 1


# ---------------------------------------------------------------------- the paper's schedule


def paper(*rules: Rule, **arguments: Any) -> Run:
    summary: Rule = (SUMMARIZE, chat(summary="Done."))
    return Run(*rules, summary, schedule=paper_grpo, **arguments)


def test_the_papers_schedule_summarises_every_rollout_of_a_group_with_contrast() -> None:
    run = paper(*teaching("worth +1"), n=2, n_validation=None, epochs=1, training=["1", "0", "0"])
    assert len(run.prompts(SUMMARIZE)) == 6
    assert len(paper(n=2, n_validation=None, epochs=1, training=["1", "1"]).prompts(SUMMARIZE)) == 0


def test_the_papers_schedule_returns_its_last_library_even_if_it_is_worse() -> None:
    run = paper(*teaching("worth -2"), n=2)
    assert run.library.render() == "[E1*] worth -2"
    assert run.results.student.mean == 0.5
    assert run.results.best.mean == 0.3


# ---------------------------------------------------------------------- without ground truth


def test_without_a_metric_it_warns_learns_and_measures_nothing() -> None:
    with pytest.warns(UserWarning, match="metric=None: lessons are drawn from agreement"):
        run = Run(*teaching("worth -2"), metric=None, epochs=1, batch_size=6)
    assert run.library.render() == "[E1*] worth -2"
    assert (run.results.student, run.results.best) == (None, None)
    assert run.results.updates[0].groups[0].scores == (None, None)


# ---------------------------------------------------------------------- why nothing was learned


def test_nothing_learned_says_that_groups_had_no_contrast() -> None:
    run = Run(training=("1", "1"), max_staleness=0)
    assert run.results.nothing_learned == (
        "6 of 6 groups had no contrast; 2 updates brought no change that the library takes"
    )


def test_nothing_learned_says_that_answers_came_from_a_cache() -> None:
    arguments: dict[str, Any] = {"gate": NoGate(), "epochs": 1, "n_validation": None}
    lm_arguments = {"cache": True}
    first = Run(training=("1", "1"), lm_arguments=lm_arguments, **arguments)
    assert "cache" not in first.results.nothing_learned
    second = Run(training=("1", "1"), lm_arguments=lm_arguments, **arguments)
    assert "12 answers were replayed from a cache" in second.results.nothing_learned
    assert second.results.policy_usage.n_lm_calls == 0
    assert second.lm.engine.n_calls() == 0


def test_nothing_learned_says_that_the_updates_did_not_beat_the_student() -> None:
    run = Run(*teaching("worth -1"), epochs=1)
    assert run.results.nothing_learned == (
        "1 updates stood, but did not beat the student in the end"
    )


def test_operations_that_the_library_refused_are_not_reported_as_rejected_by_the_gate() -> None:
    run = Run((EXTRACT, lessons("Be exact.")), (UPDATE, operations({"op": "MERGE"})), epochs=1)
    assert run.results.nothing_learned == "2 updates brought no change that the library takes"


# ---------------------------------------------------------------------- what comes back


def test_the_results_tell_the_whole_run_and_are_json() -> None:
    run = Run(*teaching("worth +1"), epochs=1, batch_size=6, training=("1", "0", "?"))
    told = run.results.to_dict()
    assert json.loads(json.dumps(told)) == told
    (update,) = told["updates"]
    assert update["groups"][0] == {
        "example": run.trained_on[0][0],
        "scores": [1.0, 0.0, 0.0],
        "failures": ["parse"],
        "used_as": "contrast",
    }
    assert update["lessons"] == ["worth +1"]
    assert update["operations"] == [
        {"op": "ADD", "id": "", "text": "worth +1", "scope": "*", "reason": "", "refused": ""}
    ]
    assert update["accepted"] is True
    assert update["reason"] == "every operation stays"
    assert update["library_size"] == 1
    assert told["student"] == {"mean": 0.5, "n": 8, "n_failed": 0}
    assert told["best"] == {"mean": 0.6, "n": 8, "n_failed": 0}
    assert told["failures"] == {"parse": 6}
    assert told["ended_because"] == "all epochs are done"
    assert told["nothing_learned"] == ""
    assert told["library"]["experiences"][0]["text"] == "worth +1"
    assert told["settings"]["group_size"] == 3
    assert told["wall_time_s"] > 0


def test_an_optimizer_compiles_twice_with_the_same_result() -> None:
    optimizer = grpo(is_score, group_size=2, epochs=1, progress=False, num_threads=2)
    lm = scripted_lm([*teaching("worth +1"), policy(["1", "0"])])
    with dspy.context(lm=lm):
        first, second = (
            optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(9))
            for _ in range(2)
        )
    assert first.signature.instructions == second.signature.instructions
    assert first.detailed_results.updates == second.detailed_results.updates
