"""Bad input: one message that names every fault, before the first LM call; and the defaults."""

import logging
import math
import warnings
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted import ScriptedEngine, chat, scripted_lm

from tfgrpo_dspy import (
    BayesianGate,
    DraftLessons,
    Execution,
    Experience,
    ExperienceLibrary,
    LibraryFormatError,
    NoGate,
    Reflection,
    SettingsError,
    TrainingFreeGRPO,
)
from tfgrpo_dspy.sampling import sampling_copy
from tfgrpo_dspy.settings import Settings
from tfgrpo_dspy.settings.checks import check_run, split


def metric(example: dspy.Example, pred: dspy.Prediction) -> float:
    return float(example.answer == pred.answer)


def questions(n: int, start: int = 0) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"question {i}", answer="yes").with_inputs("question")
        for i in range(start, start + n)
    ]


def predict(**config: Any) -> dspy.Predict:
    return dspy.Predict("question -> answer", **config)


class Refused:
    """Compiles and keeps what was refused; fails when anything was asked of the LM."""

    def __init__(self) -> None:
        self.lm = scripted_lm([("", chat(answer="yes"))])

    def message(self, student: Any = None, **arguments: Any) -> str:
        optimizer = TrainingFreeGRPO(metric, progress=False, **arguments.pop("settings", {}))
        with (
            dspy.context(lm=arguments.pop("lm", self.lm)),
            pytest.raises(SettingsError) as refusal,
        ):
            optimizer.compile(
                predict() if student is None else student,
                trainset=arguments.pop("trainset", questions(9)),
                **arguments,
            )
        assert isinstance(self.lm.engine, ScriptedEngine)
        assert self.lm.engine.n_calls() == 0
        return str(refusal.value)


@pytest.fixture
def refused() -> Refused:
    return Refused()


# ---------------------------------------------------------------------- data


@pytest.mark.parametrize("empty", [[], ()], ids=["list", "tuple"])
def test_an_empty_trainset_is_refused(refused: Refused, empty: Any) -> None:
    message = refused.message(trainset=empty)
    assert message == f"trainset={empty!r}: pass a list of at least one dspy.Example."


def test_a_trainset_that_is_no_list_is_refused(refused: Refused) -> None:
    message = refused.message(trainset=iter(questions(3)))
    assert message.startswith("trainset=<list_iterator object")
    assert "pass a list of at least one dspy.Example" in message


def test_an_empty_valset_is_refused(refused: Refused) -> None:
    assert refused.message(valset=[]).startswith("valset=[]: pass a list")


def test_examples_without_inputs_are_counted_and_the_first_is_named(refused: Refused) -> None:
    marked, unmarked = questions(1)[0], dspy.Example(question="question 1", answer="yes")
    message = refused.message(trainset=[marked, unmarked, marked, unmarked])
    assert message == (
        "trainset: 2 of 4 examples have no inputs (the first at position 1); call "
        "example.with_inputs('question') on each."
    )


def test_examples_whose_inputs_name_no_field_have_no_inputs(refused: Refused) -> None:
    empty = dspy.Example(answer="yes").with_inputs("question")
    assert "1 of 1 examples have no inputs" in refused.message(trainset=[empty])


def test_things_that_are_no_examples_have_no_inputs(refused: Refused) -> None:
    message = refused.message(trainset=[{"question": "question 1"}, "question 2"])
    assert message.startswith("trainset: 2 of 2 examples have no inputs (the first at position 0)")


def test_validation_examples_without_inputs_are_refused_too(refused: Refused) -> None:
    message = refused.message(valset=[dspy.Example(question="question 1")])
    assert message.startswith("valset: 1 of 1 examples have no inputs")


# ---------------------------------------------------------------------- student and teacher


def test_a_student_without_predictors_is_refused(refused: Refused) -> None:
    class Empty(dspy.Module):
        def forward(self, question: str) -> dspy.Prediction:
            return dspy.Prediction(answer=question)

    message = refused.message(Empty())
    assert message.startswith("student=Empty has no predictors")


def test_a_student_whose_predictors_are_all_frozen_is_refused_with_the_reason(
    refused: Refused,
) -> None:
    class Frozen(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = dspy.ChainOfThought("question -> answer")
            self.inner._compiled = True  # noqa: SLF001 - how DSPy marks it

    assert "_compiled=True are frozen" in refused.message(Frozen())


def test_a_student_that_is_no_module_is_refused(refused: Refused) -> None:
    message = refused.message("question -> answer")
    assert message.startswith("student='question -> answer': pass a dspy.Module")


def test_a_teacher_is_refused_and_not_ignored(refused: Refused) -> None:
    assert refused.message(teacher=predict()) == (
        "teacher=Predict: this optimizer has no use for a teacher."
    )


@pytest.mark.parametrize(
    ("texts", "arguments", "message"),
    [
        (
            ["Be brief.", "Be kind."],
            {"max_experiences": 1},
            "max_experiences=1: the student starts with 2 experiences; allow as many, or bake a "
            "smaller library into it first.",
        ),
        (
            ["Be brief and kind."],
            {"reflection": Reflection(max_experience_words=3)},
            "max_experience_words=3: the student starts with an experience of 4 words; allow as "
            "many, or shorten it first.",
        ),
    ],
    ids=["too many", "too long"],
)
def test_a_student_that_starts_beyond_the_limits_is_refused(
    refused: Refused, texts: list[str], arguments: dict[str, Any], message: str
) -> None:
    library = ExperienceLibrary(
        [Experience(f"E{number}", text) for number, text in enumerate(texts, start=1)]
    )
    assert refused.message(library.bake(predict()), settings=arguments) == message


# ---------------------------------------------------------------------- LMs


def test_no_configured_lm_is_refused(refused: Refused) -> None:
    message = refused.message(lm=None)
    assert message.startswith("lm=None: no LM is configured; call dspy.configure(lm=dspy.LM(...))")


def test_a_student_with_lms_of_its_own_still_needs_an_lm_for_reflection(refused: Refused) -> None:
    student = predict()
    student.lm = scripted_lm([("", chat(answer="yes"))])
    assert "pass reflection_lm" in refused.message(student, lm=None)


def test_a_model_name_in_place_of_an_lm_is_refused(refused: Refused) -> None:
    assert refused.message(lm="openai/gpt-4o").startswith("lm='openai/gpt-4o': no LM is configured")


def test_a_temperature_forced_on_a_reasoning_model_is_refused(refused: Refused) -> None:
    lm = dspy.LM("openai/o3", api_key="none")
    message = refused.message(lm=lm, settings={"temperature": 0.5})
    assert message == (
        "temperature=0.5: openai/o3 is a reasoning model and allows none but its own; leave "
        "temperature out."
    )


def test_a_reasoning_model_of_a_single_predictor_is_found(refused: Refused) -> None:
    student = predict()
    student.lm = dspy.LM("openai/o3", api_key="none")
    assert "openai/o3" in refused.message(student, settings={"temperature": 1.3})


@pytest.mark.parametrize("temperature", [None, 1.0, 0.7], ids=["derived", "its own", "the default"])
def test_a_reasoning_model_runs_at_its_own_temperature(
    caplog: pytest.LogCaptureFixture, temperature: float | None
) -> None:
    lm = dspy.LM("openai/o3", api_key="none")
    with dspy.context(lm=lm), caplog.at_level(logging.INFO, logger="tfgrpo_dspy.settings"):
        check_run(Settings(metric, temperature=temperature), predict(), questions(3), None)
    assert sampling_copy(lm, 7, temperature or 0.7).kwargs.get("temperature") in (None, 1.0)
    assert ("its rollouts use that" in caplog.text) == (temperature != 1.0)


# ---------------------------------------------------------------------- arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"group_size": 1},
            "group_size=1: a group needs at least 2 rollouts to compare; pass group_size=5 (the "
            "paper's value).",
        ),
        ({"group_size": "5"}, "group_size='5': a group needs at least 2 rollouts"),
        ({"group_size": True}, "group_size=True: a group needs at least 2 rollouts"),
        ({"epochs": 0}, "epochs=0: pass a whole number of at least 1."),
        ({"epochs": -3}, "epochs=-3: pass a whole number of at least 1."),
        ({"epochs": 1.5}, "epochs=1.5: pass a whole number of at least 1."),
        ({"batch_size": 0}, "batch_size=0: pass a whole number of at least 1."),
        ({"batch_size": -5}, "batch_size=-5: pass a whole number of at least 1."),
        ({"max_experiences": 0}, "max_experiences=0: pass a whole number of at least 1."),
        ({"max_lm_calls": 0.5}, "max_lm_calls=0.5: pass a whole number of at least 1."),
        ({"max_demos": -1}, "max_demos=-1: pass a whole number of at least 0."),
        ({"max_experiences": None}, "max_experiences=None: pass a whole number of at least 1."),
        ({"max_minutes": math.inf}, "max_minutes=inf: pass a number above 0, or None."),
        ({"max_cost": True}, "max_cost=True: pass a number above 0, or None."),
        ({"num_threads": 0}, "num_threads=0: pass a whole number of at least 1."),
        ({"seed": None}, "seed=None: pass a whole number."),
        ({"seed": 0.5}, "seed=0.5: pass a whole number."),
        *(
            ({"temperature": wrong}, f"temperature={wrong!r}: pass a number above 0, at which the")
            for wrong in (0, 0.0, -1, 2.5, math.nan, "hot", True)
        ),
        ({"reflection_lm": "openai/gpt-4o"}, "reflection_lm='openai/gpt-4o': pass a dspy.LM("),
        ({"gate": True}, "gate=True: pass a Gate, such as BayesianGate() or NoGate()."),
        ({"gate": NoGate}, "gate=NoGate is a class: call it, gate=NoGate()."),
        ({"gate": BayesianGate}, "gate=BayesianGate is a class: call it, gate=BayesianGate()."),
        ({"reflection": {"drafts": 0}}, "reflection={'drafts': 0}: pass Reflection(...)."),
        ({"execution": 4}, "execution=4: pass Execution(...)."),
        ({"log_dir": ""}, "log_dir='': pass the path of a folder, or None."),
    ],
    ids=lambda value: (
        ",".join(f"{k}={v!r}" for k, v in value.items()) if isinstance(value, dict) else ""
    ),
)
def test_an_argument_that_cannot_be_used_is_refused_on_construction(
    arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError) as refusal:
        TrainingFreeGRPO(metric, **arguments)
    assert str(refusal.value).startswith(message)


@pytest.mark.parametrize(
    ("group", "arguments", "message"),
    [
        (Reflection, {"extract": "?"}, "extract='?': pass a dspy.Module with the fields of"),
        (Reflection, {"summarize": "?"}, "summarize='?': pass a dspy.Module with the fields of"),
        (Reflection, {"update": "?"}, "update='?': pass a dspy.Module with the fields of"),
        (Reflection, {"draft": DraftLessons}, "draft=DraftLessons is a class: pass DraftLessons()"),
        (Reflection, {"drafts": -1}, "drafts=-1: pass a whole number of at least 0."),
        (
            Reflection,
            {"groups_per_call": 0},
            "groups_per_call=0: pass a whole number of at least 1",
        ),
        (Reflection, {"max_experience_words": None}, "max_experience_words=None: pass a whole"),
        (Execution, {"max_staleness": -1}, "max_staleness=-1: pass a whole number of at least 0."),
        (Execution, {"max_errors": "5"}, "max_errors='5': pass a whole number of at least 0."),
        (
            Execution,
            {"rollout_timeout_s": 0},
            "rollout_timeout_s=0: pass a number above 0, or None",
        ),
        (Execution, {"executor": 4}, "executor=4: pass a concurrent.futures.Executor"),
        (Execution, {"prices": {"m": 1}}, "prices['m']=1: pass US dollars for a million prompt"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_a_field_of_a_group_that_cannot_be_used_is_refused_where_it_is_written(
    group: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError) as refusal:
        group(**arguments)
    assert str(refusal.value).startswith(message)


def test_numbers_of_numpy_and_whole_floats_are_accepted() -> None:
    settings_ = Settings(
        metric,
        group_size=np.int64(4),
        epochs=2.0,
        max_lm_calls=1e3,
        temperature=np.float32(0.5),
        max_cost=np.float64(1.5),
        seed=np.int32(7),
        reflection=Reflection(drafts=np.int8(3)),
        execution=Execution(rollout_timeout_s=np.float32(2.5)),
    )
    scalars = settings_.scalars()
    expected = {
        "group_size": 4,
        "epochs": 2,
        "max_lm_calls": 1000,
        "temperature": 0.5,
        "max_cost": 1.5,
        "seed": 7,
        "drafts": 3,
        "rollout_timeout_s": 2.5,
    }
    assert {name: scalars[name] for name in expected} == expected
    assert {type(scalars[name]) for name in expected} == {int, float}
    assert type(scalars["max_lm_calls"]) is int


def test_a_metric_that_closes_over_a_name_that_is_not_assigned_yet_can_be_priced() -> None:
    def metric_with_judge(example: Any, pred: Any) -> float:
        return judge(example, pred)

    message = ""
    try:
        lm = scripted_lm([("", chat(answer="yes"))])
        with dspy.context(lm=lm):
            TrainingFreeGRPO(metric_with_judge, max_cost=1).estimate(
                predict(), trainset=questions(9)
            )
    except SettingsError as error:
        message = str(error)
    judge = metric
    assert "DSPy knows no price" in message


def test_a_metric_that_is_not_callable_is_refused() -> None:
    with pytest.raises(SettingsError) as refusal:
        TrainingFreeGRPO("accuracy")  # type: ignore[arg-type]
    assert str(refusal.value) == (
        "metric='accuracy' is not callable; pass a function metric(example, pred, trace=None)."
    )


def test_a_metric_that_takes_the_wrong_number_of_arguments_is_refused() -> None:
    for wrong in (lambda: 0.0, lambda _: 0.0, lambda _1, _2, _3, _4, _5, _6: 0.0):
        with pytest.raises(SettingsError, match=r"write it as metric\(example, pred, trace=None\)"):
            TrainingFreeGRPO(wrong)


def test_a_gate_that_needs_scores_is_refused_where_nothing_gives_any() -> None:
    with pytest.raises(
        SettingsError, match=r"BayesianGate\(\) and metric=None: nothing scores the rollouts"
    ):
        TrainingFreeGRPO(None, gate=BayesianGate())


def test_an_argument_of_a_later_version_is_refused_and_not_ignored() -> None:
    with pytest.raises(TypeError, match="credit"):
        TrainingFreeGRPO(metric, credit=None)  # type: ignore[call-arg]


def test_several_faulty_arguments_are_named_in_one_message() -> None:
    with pytest.raises(SettingsError) as refusal:
        TrainingFreeGRPO(
            3,  # type: ignore[arg-type]
            group_size=1,
            epochs=0,
            batch_size=-1,
            temperature=0,
            reflection_lm="gpt",
            gate="strict",  # type: ignore[arg-type]
        )
    for value in (
        "metric=3",
        "group_size=1",
        "epochs=0",
        "batch_size=-1",
        "temperature=0",
        "reflection_lm='gpt'",
        "gate='strict'",
    ):
        assert value in str(refusal.value)


def test_faults_of_student_and_data_are_named_in_one_message(refused: Refused) -> None:
    message = refused.message(
        "no program", trainset=[], valset=[dspy.Example(question="?")], teacher=predict()
    )
    for fault in ("student='no program'", "trainset=[]", "valset: 1 of 1", "teacher=Predict"):
        assert fault in message


def test_every_lm_that_cannot_be_used_is_named_in_one_message(refused: Refused) -> None:
    class Two(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = predict(), predict()
            self.first.lm = dspy.LM("openai/o3", api_key="none")
            self.second.lm = dspy.LM("openai/o1", api_key="none")

    message = refused.message(Two(), settings={"temperature": 0.2})
    assert "openai/o3" in message
    assert "openai/o1" in message


FAULTY: dict[str, list[Any]] = {
    "group_size": [1, 0, -2, "5"],
    "epochs": [0, -1],
    "batch_size": [0, -1, 2.5],
    "max_experiences": [0, -1],
    "num_threads": [0, -4],
    "temperature": [0, -0.1, 2.1],
    "seed": ["0", 1.5],
    "gate": ["none", 0],
}


@given(st.fixed_dictionaries({}, optional={k: st.sampled_from(v) for k, v in FAULTY.items()}))
@settings(max_examples=60)
def test_whatever_is_wrong_at_once_every_fault_is_named_with_its_value(
    arguments: dict[str, Any],
) -> None:
    if not arguments:
        TrainingFreeGRPO(metric)
        return
    with pytest.raises(SettingsError) as refusal:
        TrainingFreeGRPO(metric, **arguments)
    assert all(f"{name}={value!r}" in str(refusal.value) for name, value in arguments.items())


def test_a_refusal_can_be_caught_as_a_value_error() -> None:
    with pytest.raises(ValueError, match="epochs=0"):
        TrainingFreeGRPO(metric, epochs=0)


# ---------------------------------------------------------------------- scopes and library files


def test_a_damaged_block_in_the_student_is_refused_before_the_first_call() -> None:
    library = ExperienceLibrary([Experience(id="E1", text="Ask first.")])
    student = library.bake(predict())
    damaged = student.signature.instructions.replace("[E1*]", "E1")
    student.signature = student.signature.with_instructions(damaged)
    lm = scripted_lm([("", chat(answer="yes"))])
    with dspy.context(lm=lm), pytest.raises(LibraryFormatError, match=r"'E1 Ask first\.'"):
        TrainingFreeGRPO(metric, progress=False).compile(student, trainset=questions(9))
    assert lm.engine.n_calls() == 0


# ---------------------------------------------------------------------- warnings and splitting


def test_validation_examples_that_are_training_examples_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="2 of 4 validation examples are training examples too"):
        split(Settings(metric), questions(6), questions(4, start=4))


def test_examples_with_other_inputs_do_not_overlap_though_their_labels_do() -> None:
    with warnings.catch_warnings(action="error"):
        training, validation = split(Settings(metric), questions(6), questions(4, start=6))
    assert (len(training), len(validation)) == (6, 4)


def test_the_same_inputs_with_another_label_overlap() -> None:
    relabelled = [example.copy(answer="no") for example in questions(6)]
    with pytest.warns(UserWarning, match="6 of 6 validation examples"):
        split(Settings(metric), questions(6), relabelled)


def test_without_a_valset_a_third_is_held_out() -> None:
    training, validation = split(Settings(metric), questions(30), None)
    assert (len(training), len(validation)) == (20, 10)
    trained_on = {f"question {position}" for position in training}
    assert trained_on.isdisjoint(example.question for example in validation)


def test_without_a_valset_at_most_a_hundred_are_held_out() -> None:
    training, validation = split(Settings(metric), questions(400), None)
    assert (len(training), len(validation)) == (300, 100)


def test_what_is_held_out_depends_on_the_seed_and_on_nothing_else() -> None:
    held_out = [
        [example.question for example in split(Settings(metric, seed=seed), questions(30), None)[1]]
        for seed in (0, 0, 1)
    ]
    assert held_out[0] == held_out[1]
    assert held_out[0] != held_out[2]
    assert held_out[0] != [f"question {i}" for i in range(10)]


def test_fewer_than_six_examples_are_the_validation_set_too_with_a_warning() -> None:
    with pytest.warns(UserWarning, match="5 examples are too few to hold some out"):
        training, validation = split(Settings(metric), questions(5), None)
    assert training == [0, 1, 2, 3, 4]
    assert validation == questions(5)


def test_six_examples_are_enough_to_hold_two_out() -> None:
    with warnings.catch_warnings(action="error"):
        training, validation = split(Settings(metric), questions(6), None)
    assert (len(training), len(validation)) == (4, 2)


def test_without_a_gate_nothing_is_held_out() -> None:
    training, validation = split(Settings(metric, gate=NoGate()), questions(30), None)
    assert (len(training), len(validation)) == (30, 0)


@given(st.integers(6, 500), st.integers(0, 5))
@settings(max_examples=50)
def test_a_split_loses_no_example_and_keeps_their_order(n: int, seed: int) -> None:
    training, validation = split(Settings(metric, seed=seed), range(n), None)
    assert sorted([*training, *validation]) == list(range(n))
    assert training == sorted(training)
    assert validation == sorted(validation)


def test_a_test_set_that_is_the_validation_set_is_warned_of() -> None:
    kept = questions(4, start=6)
    with (
        dspy.context(lm=scripted_lm([])),
        pytest.warns(UserWarning, match="4 of 4 test examples are validation examples too"),
    ):
        TrainingFreeGRPO(metric).estimate(
            predict(), trainset=questions(6), valset=kept, testset=kept
        )


def test_threads_and_seed_may_be_given_to_compile_as_to_other_optimizers() -> None:
    student, reflection = predict(), Reflection(drafts=0)
    optimizer = TrainingFreeGRPO(
        metric, epochs=1, max_demos=0, reflection=reflection, progress=False
    )
    with dspy.context(lm=scripted_lm([("", chat(answer="yes"))])):
        compiled = optimizer.compile(student, trainset=questions(9), num_threads=3, seed=5)
    found = compiled.detailed_results.settings
    assert (found["num_threads"], found["seed"]) == (3, 5)
    assert (optimizer.settings.num_threads, optimizer.settings.seed) == (None, 0)
