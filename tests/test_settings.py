"""Bad input: one message that names every fault, before the first LM call; and the split."""

import math
import warnings
from typing import Any

import dspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from runs import is_polite, knowing, predictor, questions
from scripted import chat, scripted_lm

from tfgrpo_dspy import (
    BayesianGate,
    Execution,
    LibraryFormatError,
    NoGate,
    Reflection,
    SettingsError,
    TrainingFreeGRPO,
)
from tfgrpo_dspy.sampling.examples import Example
from tfgrpo_dspy.settings import Settings
from tfgrpo_dspy.settings.preparation import split
from tfgrpo_dspy.strategies import TeacherRollouts

UNMARKED = dspy.Example(question="question 1", answer="yes")
ERRORS = (SettingsError, LibraryFormatError)


class Ticket(dspy.Example):
    """An example whose class DSPy cannot make a part of."""

    def __init__(self, question: str) -> None:
        super().__init__(question=question)
        self._input_keys = {"question"}


EMPTY = dspy.Example(answer="yes").with_inputs("question")


class Holding(dspy.Module):
    """Holds these predictors."""

    def __init__(self, *predictors: Any) -> None:
        super().__init__()
        self.all = list(predictors)


def with_lm(lm: Any) -> Any:
    student = predictor()
    student.lm = lm if isinstance(lm, dspy.LM) else dspy.LM(lm, api_key="none")
    return student


def set_to(lm: Any) -> Any:
    student = predictor()
    student.set_lm(lm)
    return student


def frozen() -> dspy.Module:
    inner = dspy.ChainOfThought("question -> answer")
    inner._compiled = True  # noqa: SLF001 - how DSPy marks what no optimizer may change
    return inner


def damaged() -> Any:
    block = knowing("Ask first.").signature.instructions.replace("[E1*]", "E1")
    return dspy.Predict(dspy.Signature("question -> answer", block))


@pytest.mark.parametrize(
    ("given", "faults"),
    [
        ({"trainset": []}, ["trainset=[]: pass a list of at least one dspy.Example."]),
        ({"trainset": ()}, ["trainset=(): pass a list"]),
        ({"trainset": iter(questions(3))}, ["trainset=<list_iterator", ": pass a list"]),
        ({"valset": np.array(questions(3))}, ["valset=array(", ": pass a list"]),
        ({"testset": []}, ["testset=[]: pass a list"]),
        ({"trainset": [*questions(1), UNMARKED, *questions(1), UNMARKED]},
         ["trainset: 2 of 4 examples have no inputs (the first at position 1); call "]),
        ({"trainset": [EMPTY]},
         ["trainset: 1 of 1 examples have no inputs (the first at position 0); call"]),
        ({"trainset": [Ticket("question 1")]},
         ["1 of 1 examples have no inputs (the first at position 0); call"]),
        ({"trainset": [{"question": "?"}, "?"]}, ["trainset: position 0 is of type dict"]),
        ({"valset": [UNMARKED]}, ["valset: 1 of 1 examples have no inputs"]),
        ({"student": Holding()}, ["student=Holding has no predictors"]),
        ({"student": Holding(frozen())}, ["(sub-modules with _compiled=True are frozen;"]),
        ({"student": Holding([predictor()])}, ["in a list or dict within another one: make them"]),
        ({"student": "q -> a"}, ["student='q -> a': pass a dspy.Module"]),
        ({"student": 3, "trainset": [], "valset": [UNMARKED]},
         ["student=3", "trainset=[]", "valset: 1 of 1"]),
        ({"student": knowing("Be brief.", "Be kind."), "max_experiences": 1},
         ["max_experiences=1: the student starts with 2 experiences; allow as many, or bake a"]),
        ({"student": damaged()}, ["'E1 Ask first.'"]),
        ({"student": Holding(set_to("openai/gpt-5"))},
         ["is no LM; configure and set an instance, such as dspy.LM('openai/gpt-5')"]),
        ({"student": set_to(dspy.LM)}, ["is no LM; configure"]),
        ({"reflection": Reflection(update=set_to("openai/o3"))}, ["lm='openai/o3' is no LM"]),
        ({"strategies": [TeacherRollouts(set_to("openai/o3"))]}, ["lm='openai/o3' is no LM"]),
        ({"trainset": [dspy.Prediction(question="?", answer="yes").with_inputs("question")]},
         ["trainset: position 0 is of type Prediction, not a dspy.Example"]),
        ({"lm": None}, ["lm=None: no LM is configured; call dspy.configure(lm=dspy.LM(...))"]),
        ({"lm": None, "trainset": [dspy.Example(q="?").with_inputs("q")], "valset": [UNMARKED]},
         ["lm=None", "Predict takes the inputs ['question'], and", "valset: 1 of 1 examples"]),
        ({"lm": "openai/gpt-4o"}, ["lm='openai/gpt-4o' is no LM; configure"]),
        ({"lm": None, "student": Holding(with_lm(scripted_lm([])), with_lm(scripted_lm([])))},
         ["pass reflection_lm"]),
        ({"lm": None, "student": Holding(with_lm(scripted_lm([])), predictor()),
          "reflection_lm": scripted_lm([])}, ["lm=None: no LM is configured"]),
        ({"student": with_lm("openai/o3"), "temperature": 0.5},
         ["temperature=0.5: openai/o3 is a reasoning model and allows no temperature but its own"]),
        ({"student": Holding(with_lm("openai/o3"), with_lm("openai/o1")), "temperature": 0.2,
          "max_cost": 1, "testset": []},
         ["/o3", "/o1", "knows no price of scripted; pass Execution(prices=", "testset=[]"]),
    ],
)  # fmt: skip
def test_what_cannot_be_compiled_is_refused_with_every_fault_before_the_first_call(
    given: dict[str, Any], faults: list[str]
) -> None:
    lm = scripted_lm([("", chat(answer="yes"))])
    data: dict[str, Any] = {"student": predictor(), "trainset": questions(9)}
    names = ("student", "trainset", "valset", "testset", "teacher")
    data |= {name: given.pop(name) for name in names if name in given}
    context = {"lm": given.pop("lm", lm), "adapter": given.pop("adapter", None)}
    with dspy.context(**context), pytest.raises(ERRORS) as refusal:
        TrainingFreeGRPO(is_polite, progress=False, **given).compile(data.pop("student"), **data)
    assert [fault for fault in faults if fault not in str(refusal.value)] == []
    assert lm.engine.n_calls() == 0


@pytest.mark.parametrize("temperature", [None, 1.0])
def test_a_reasoning_model_is_accepted_at_its_own_temperature(temperature: float | None) -> None:
    with dspy.context(lm=dspy.LM("openai/o3", api_key="none")):
        optimizer = TrainingFreeGRPO(is_polite, temperature=temperature)
        assert optimizer.estimate(predictor(), trainset=questions(9)).total.n_lm_calls > 0


# ---------------------------------------------------------------------- arguments

WHOLE_FROM_1 = ("max_lm_calls", "max_metric_calls", "batch_size", "epochs", "num_threads")
FAULTY: list[tuple[str, Any, str]] = [
    *((name, 0, "it should be greater than or equal to 1.") for name in WHOLE_FROM_1),
    *((name, bad, "it should be a") for name in WHOLE_FROM_1 for bad in (1.5, "5", True, math.nan)),
    ("group_size", 1, "it should be greater than or equal to 2."),
    ("max_experiences", None, "it should be a number, and is a NoneType."),
    ("num_threads", 10**6, "it should be less than or equal to 10000."),
    ("max_demos", -1, "it should be greater than or equal to 0."),
    *(("max_cost", bad, "it should be") for bad in (0, math.inf, True, "x")),
    ("seed", 0.5, "it should be a"),
    *(("temperature", bad, "it should be 'own' or it should be") for bad in (0, 2.5, "hot", True)),
    ("auto", "max", "it should be 'light', 'medium' or 'heavy'."),
    ("reflection_lm", 3, "it should be an LM: dspy.LM(...)."),
    ("reflection_lm", "openai/gpt-5", "it should be an LM: dspy.LM('openai/gpt-5')."),
    ("reflection_lm", dspy.LM, "it should be an LM: dspy.LM(...)."),
    ("gate", NoGate, "it should be an instance of Gate."),
    ("reflection", {"drafts": 0}, "it should be an instance of Reflection."),
    ("execution", 4, "it should be an instance of Execution."),
    *(("log_dir", bad, "give a folder") for bad in ("", 3)),
    ("version", 3, "it should be a valid string."),
]  # fmt: skip


async def later(*_: str) -> bool:
    return False


@pytest.mark.parametrize(("name", "value", "message"), FAULTY)
def test_an_argument_that_cannot_be_used_is_refused_on_construction(
    name: str, value: Any, message: str
) -> None:
    with pytest.raises(SettingsError) as refusal:
        TrainingFreeGRPO(is_polite, **{name: value})
    assert str(refusal.value).startswith(f"{name}={value!r}: {message}")
    assert isinstance(refusal.value, ValueError)


@given(st.lists(st.sampled_from(FAULTY), min_size=1, unique_by=lambda fault: fault[0]))
@settings(max_examples=60)
def test_whatever_is_wrong_at_once_every_fault_is_named_with_its_value(
    faults: list[tuple[str, Any, str]],
) -> None:
    with pytest.raises(SettingsError) as refusal:
        TrainingFreeGRPO(is_polite, **{name: value for name, value, _ in faults})
    assert all(f"{name}={value!r}: " in str(refusal.value) for name, value, _ in faults)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (TrainingFreeGRPO, {"metric": "accuracy"}, "metric='accuracy': 'accuracy' is not callable"),
        (TrainingFreeGRPO, {"metric": lambda: 0.0}, "write it as metric(example, pred, trace=Non"),
        (TrainingFreeGRPO, {"metric": None, "gate": BayesianGate()},
         "gate=BayesianGate(): with metric=None nothing scor"),
        (TrainingFreeGRPO, {"metric": is_polite, "offline": True},
         "offline=True: log_dir=None holds nothing to replay; pass that of a recorded run."),
        *((Reflection, {name: "?"}, f"{name}='?': it should be an instance of Module")
          for name in ("extract", "update", "summarize", "draft")),
        (TrainingFreeGRPO, {"metric": dict}, "<class 'dict'> is a class; pass an instance"),
        (TrainingFreeGRPO, {"metric": is_polite, "strategies": "autos"},
         "strategies='autos': it should be 'auto' or 'str' instances are not allowed"),
        (TrainingFreeGRPO, {"metric": is_polite, "offline": "no"}, "offline='no': it should be"),
        (TrainingFreeGRPO.paper, {"metric": is_polite, "reflection": 5}, "reflection=5: it sho"),
        (Reflection, {"drafts": -1}, "drafts=-1: it should be greater than"),
        (Execution, {"max_errors": "5"}, "max_errors='5': it should be a number"),
        *((Execution, {"prices": bad}, f"prices={bad!r}: it should be")
          for bad in (3, {"m": 1}, {"m": (1, "two")}, {"m": (1, -1)}, {"m": (1, math.nan)})),
        (Execution, {"prices": {"m": (1,)}}, "prices={'m': (1,)}: field required."),
        (Reflection, {"guard": later}, "it should not be async"),
        (TrainingFreeGRPO, {"metric": is_polite, "on_event": later}, "it should not be async"),
    ],
)  # fmt: skip
def test_other_arguments_and_fields_of_groups_are_refused_where_they_are_written(
    kind: Any, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(SettingsError) as refusal:
        kind(**arguments)
    assert message in str(refusal.value)


def test_numbers_of_numpy_and_whole_floats_are_accepted() -> None:
    given = {"group_size": np.int64(4), "epochs": 2.0, "max_lm_calls": 1e3, "seed": np.int32(7)}
    given |= {"temperature": np.float32(0.5), "max_cost": np.float64(1.5)}
    optimizer = TrainingFreeGRPO(
        is_polite,
        **given,
        reflection=Reflection(drafts=np.int8(3)),
        execution=Execution(rollout_timeout_s=np.float32(2.5)),
    )
    expected = {"group_size": 4, "epochs": 2, "max_lm_calls": 1000, "temperature": 0.5}
    expected |= {"max_cost": 1.5, "seed": 7, "drafts": 3, "rollout_timeout_s": 2.5}
    params = optimizer.get_params()
    assert {name: params[name] for name in expected} == expected
    assert [type(params[name]) for name in expected] == [type(v) for v in expected.values()]


def test_threads_and_seed_may_be_given_to_compile_as_to_other_optimizers() -> None:
    arguments: dict[str, Any] = {"epochs": 1, "max_demos": 0, "reflection": Reflection(drafts=0)}
    optimizer = TrainingFreeGRPO(is_polite, **arguments, seed=5, progress=False)
    with dspy.context(lm=scripted_lm([("", chat(answer="yes"))]), num_threads=7):
        compiled = optimizer.compile(predictor(), trainset=questions(9), num_threads=3, seed=0)
        assert optimizer.settings.threads == 7
    found = compiled.detailed_results.settings
    assert (found["num_threads"], found["seed"]) == (3, 0)
    assert (optimizer.settings.num_threads, optimizer.settings.seed) == (None, 5)


def read(n: int) -> list[Example]:
    return [*map(Example, questions(n))]


@pytest.mark.parametrize(
    ("n", "gate", "sizes"),
    [(6, None, (4, 2)), (30, None, (20, 10)), (400, None, (300, 100)), (30, NoGate(), (30, 0))],
)
def test_without_a_valset_a_third_is_held_out_but_at_most_a_hundred_and_none_without_a_gate(
    n: int, gate: Any, sizes: tuple[int, int]
) -> None:
    with warnings.catch_warnings(action="error"):
        training, validation = split(Settings(is_polite, gate=gate), read(n), ())
    assert (len(training), len(validation)) == sizes


@given(st.integers(6, 200), st.integers(0, 5), st.integers(1, 3))
@settings(max_examples=50)
def test_a_split_depends_on_the_seed_and_holds_examples_with_the_same_inputs_out_together(
    n: int, seed: int, times: int
) -> None:
    examples = [*read(n)] * times
    training, validation = split(Settings(is_polite, seed=seed), examples, ())
    assert (training, validation) == split(Settings(is_polite, seed=seed), examples, ())
    assert 0 < len(validation) == n * times - len(training)
    assert training == sorted(training)
    assert {examples[i].text for i in training}.isdisjoint(each.text for each in validation)
    assert n < 20 or training != split(Settings(is_polite, seed=seed + 1), examples, ())[0]


def relabelled(n: int) -> list[dspy.Example]:
    return [example.copy(answer="no") for example in questions(n)]


@pytest.mark.parametrize(
    ("valset", "testset", "warning"),
    [
        (questions(4, start=4), None, "2 of 4 validation examples are training examples too"),
        (relabelled(6), None, "6 of 6 validation examples are training examples too"),
        (questions(4, start=6), questions(4, start=8), "2 of 4 test examples are validation exam"),
        (questions(4, start=6), questions(4, start=10), None),
    ],
)
def test_inputs_that_are_in_two_sets_are_warned_of(
    valset: Any, testset: Any, warning: str | None
) -> None:
    with dspy.context(lm=scripted_lm([])), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        data = {"trainset": questions(6), "valset": valset, "testset": testset}
        TrainingFreeGRPO(is_polite).estimate(predictor(), **data)
    warned = [str(w.message) for w in caught if "examples too" in str(w.message)]
    assert len(warned) == (warning is not None)
    assert all(warning in text for text in warned)  # type: ignore[operator]


@pytest.mark.parametrize("call", ["compile", "estimate", "learn"])
def test_a_warning_points_to_the_line_of_the_user_and_not_into_a_library(call: str) -> None:
    optimizer = TrainingFreeGRPO(is_polite, max_lm_calls=40, progress=False)
    trace = {"inputs": {"question": "question 1"}, "outputs": {"answer": "yes"}, "score": 1.0}
    data = {"traces": [trace] * 2} if call == "learn" else {"trainset": questions(3)}
    lm = scripted_lm([("", chat(answer="yes", lessons="None"))])
    with dspy.context(lm=lm), pytest.warns(UserWarning, match="are optimistic") as caught:
        getattr(optimizer, call)(predictor(), **data, valset=questions(3)[:2])
    assert {warning.filename for warning in caught} == {__file__}
