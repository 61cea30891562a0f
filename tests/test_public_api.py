"""What users import, and the arguments of the optimizer."""

import inspect
import pydoc
import re
from typing import Any

import pytest

import tfgrpo_dspy
from tfgrpo_dspy import (
    Execution,
    ExtractAdvantage,
    Reflection,
    TrainingFreeGRPO,
    TrainingFreeGRPOError,
)

PUBLIC = [
    "AddLessons", "BayesianGate", "Belief", "Decision", "DraftLessons", "Effect",
    "Evidence", "Execution", "Experience", "ExperienceLibrary", "ExtractAdvantage", "Gate",
    "GateError", "GroupPlan", "LibraryError", "LibraryFormatError", "LocalLMUnavailableError",
    "Measured", "MetricError", "MissingRecordError", "NoGate", "Reflection", "RunEvidence",
    "RunFailedError", "SettingsError", "StoreError", "SummarizeTrajectory", "TrainingFreeGRPO",
    "TrainingFreeGRPOError", "UpdateLibrary", "WriteBrief", "best_so_far",
]  # fmt: skip
ARGUMENTS = [
    "metric", "reflection_lm", "objective", "auto", "max_lm_calls", "max_metric_calls",
    "max_cost", "max_minutes", "group_size", "batch_size", "epochs", "temperature",
    "max_experiences", "max_demos", "gate", "strategies", "reflection", "execution", "on_event",
    "approve",
    "log_dir", "offline", "version", "num_threads", "seed", "progress",
]  # fmt: skip
PINNED = dict.fromkeys(ARGUMENTS) | {"metric": inspect.Parameter.empty}
PINNED |= {"max_experiences": 30, "strategies": (), "offline": False, "seed": 0, "progress": True}
GROUPS: dict[type, dict[str, Any]] = {
    Reflection: {
        "use_labels": True,
        "max_experience_words": 80,
        "drafts": None,
        "groups_per_call": None,
        "show_images": None,
        "guard": "refuse",
    },
    Execution: dict.fromkeys(
        ["executor", "max_staleness", "rollout_timeout_s", "max_errors", "target_score", "prices"]
    ),
}


def a_metric(example: Any, pred: Any, trace: Any = None) -> float:
    return float(example.answer == pred.answer) if trace is None else 0.0


def test_the_public_names_are_these_and_can_all_be_imported() -> None:
    assert tfgrpo_dspy.__all__ == PUBLIC == sorted(set(PUBLIC))
    assert [name for name in PUBLIC if not hasattr(tfgrpo_dspy, name)] == []


@pytest.mark.parametrize("taking", [TrainingFreeGRPO, *GROUPS])
def test_the_pinned_arguments_are_taken_in_their_order_with_their_defaults(taking: type) -> None:
    parameters = inspect.signature(taking).parameters
    defaults = {name: parameter.default for name, parameter in parameters.items()}
    modules = ["extract", "update", "summarize", "draft", "brief"] if taking is Reflection else []
    assert list(defaults)[: len(modules)] == modules
    defaults = {name: value for name, value in defaults.items() if name not in modules}
    assert list(defaults.items()) == list(GROUPS.get(taking, PINNED).items())
    assert len(defaults) <= 26


@pytest.mark.parametrize("documented", [TrainingFreeGRPO, Reflection, Execution])
def test_every_argument_is_explained_in_the_docstring_in_the_order_of_the_signature(
    documented: type,
) -> None:
    text = (inspect.getdoc(documented) or "").partition("Args:")[2].partition("Raises:")[0]
    explained = re.findall(r"^    (\w+):", text, re.MULTILINE)
    assert explained == list(inspect.signature(documented).parameters)


@pytest.mark.parametrize("method", ["compile", "acompile"])
def test_compile_has_the_parameters_of_dspys_optimizers(method: str) -> None:
    parameters = dict(inspect.signature(getattr(TrainingFreeGRPO, method)).parameters)
    names = ["trainset", "teacher", "valset", "testset", "num_threads", "seed", "max_errors"]
    assert list(parameters) == ["self", "student", *names]
    assert parameters["trainset"].default is inspect.Parameter.empty
    assert {parameters[name].default for name in names[1:]} == {None}
    assert {parameters[name].kind for name in names} == {inspect.Parameter.KEYWORD_ONLY}


@pytest.mark.parametrize("name", ["compile", "learn"])
def test_the_async_twin_of_a_method_has_its_parameters_and_a_docstring_of_its_own(
    name: str,
) -> None:
    method, twin = getattr(TrainingFreeGRPO, name), getattr(TrainingFreeGRPO, f"a{name}")
    assert inspect.iscoroutinefunction(twin)
    assert inspect.signature(twin) == inspect.signature(method)
    assert (inspect.getdoc(twin) or "").startswith(f"The result of `{name}`")
    assert twin.__qualname__ == f"TrainingFreeGRPO.a{name}"


def test_the_papers_schedule_can_be_overridden_argument_by_argument() -> None:
    paper, ours = TrainingFreeGRPO.paper(a_metric).settings, TrainingFreeGRPO(a_metric).settings
    assert (paper.reflection.lessons_per_group, paper.reflection.max_experience_words) == (1, 32)
    assert paper.max_experiences > 10**9
    asked = [settings.reflection.extract.ask.signature.instructions for settings in (paper, ours)]
    assert ["write one lesson for each example" in text for text in asked] == [True, False]
    extract = ExtractAdvantage(shown_tokens=900)
    given = Reflection(use_labels=False, extract=extract), Execution(max_errors=3)
    paper = TrainingFreeGRPO.paper(
        a_metric, epochs=1, reflection=given[0], execution=given[1]
    ).settings
    assert (paper.group_size, paper.epochs, paper.max_demos) == (5, 1, 0)
    assert paper.reflection.extract is extract
    assert paper.reflection.max_experience_words == 32
    reflection, execution = paper.reflection, paper.execution
    assert (reflection.summarize_always, reflection.failure_analysis) == (True, False)
    assert (reflection.use_labels, reflection.drafts) == (False, 0)
    assert (execution.max_staleness, execution.max_errors) == (0, 3)
    assert not paper.measures


@pytest.mark.parametrize(
    ("error", "parents"),
    [
        ("SettingsError", [ValueError]),
        ("LibraryError", [ValueError]),
        ("LibraryFormatError", [tfgrpo_dspy.LibraryError]),
        ("GateError", [RuntimeError]),
        ("MetricError", [ValueError]),
        ("StoreError", [RuntimeError]),
        ("MissingRecordError", [tfgrpo_dspy.StoreError]),
        ("RunFailedError", [RuntimeError]),
        ("LocalLMUnavailableError", [ImportError]),
    ],
)
def test_every_error_is_of_the_package_and_of_the_kind_that_a_caller_expects(
    error: str, parents: list[type[Exception]]
) -> None:
    for parent in (TrainingFreeGRPOError, *parents):
        assert issubclass(getattr(tfgrpo_dspy, error), parent)


@pytest.mark.parametrize("documented", [TrainingFreeGRPO, Reflection, Execution])
def test_help_shows_plain_types(documented: type) -> None:
    shown = pydoc.render_doc(documented, renderer=pydoc.plaintext)
    assert "Annotated" not in shown
    assert "Check(" not in shown
    assert " constructor(" not in shown


@pytest.mark.parametrize(
    ("argument", "advice"),
    [
        ("drafts", "pass reflection=Reflection(drafts=...)"),
        ("prices", "pass execution=Execution(prices=...)"),
        ("max_lm_call", "the nearest one is max_lm_calls="),
        ("summarize_always", "docs/settings.md lists all"),
    ],
)
@pytest.mark.parametrize("make", [TrainingFreeGRPO, TrainingFreeGRPO.paper])
def test_an_argument_that_it_does_not_have_is_refused_with_what_to_pass(
    argument: str, advice: str, make: Any
) -> None:
    with pytest.raises(TypeError) as refused:
        make(a_metric, **{argument: 3})
    assert str(refused.value) == f"TrainingFreeGRPO has no argument '{argument}'; {advice}."


def test_a_missing_metric_is_named_without_names_of_internals() -> None:
    with pytest.raises(TypeError) as refused:
        TrainingFreeGRPO()  # type: ignore[call-arg]
    assert "TrainingFreeGRPO: missing a required argument: 'metric'; pass" in str(refused.value)
    assert "Settings" not in str(refused.value)
