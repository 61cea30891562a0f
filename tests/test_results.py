"""What a run reports: values that are JSON, and that need nothing of ours when pickled."""

import copy
import dataclasses
import io
import json
import pickle
from typing import Any

import cloudpickle
import dspy
import pytest

from tfgrpo_dspy import Effect, Evidence, Experience, ExperienceLibrary
from tfgrpo_dspy.results import (
    DemoTrial,
    Finalist,
    Gain,
    GroupRecord,
    HeldOut,
    OperationRecord,
    RunResults,
    ScoreSummary,
    TriedAdvice,
    UpdateRecord,
)
from tfgrpo_dspy.rollout import Usage

LIBRARY = ExperienceLibrary(
    [Experience("E1", "Ask.", evidence=(Evidence(0, 4, (11, 12), (0.0, None)),))]
)
RESULTS = RunResults(
    student=ScoreSummary(mean=0.25, n=8),
    best=ScoreSummary(mean=None, n=8, n_failed=8),
    updates=(
        UpdateRecord(
            update=0,
            epoch=0,
            groups=(GroupRecord(4, (0.0, 1.0, None), ("provider",), "contrast"),),
            lessons=("Ask.",),
            refused_lessons=(),
            operations=(
                OperationRecord("ADD", "", "Ask.", "*", "new"),
                OperationRecord("DELETE", "E9", "", "", "", refused="there is no E9"),
            ),
            accepted=True,
            reason="+0.250 on 8 validation examples",
            library_size=1,
            dropped={"E2": "P(helps) 0.10, P(harms) 0.60 after 4 rollouts"},
        ),
    ),
    usage={"rollout": Usage(n_lm_calls=10, prompt_tokens=100), "lesson": Usage()},
    failures={"provider": 1},
    ended_because="all epochs are done",
    nothing_learned="",
    wall_time_s=1.5,
    library=LIBRARY.to_dict(),
    metric_calls=12,
    gain=Gain(mean=0.25, low=0.0, high=0.5, n=8),
    test=HeldOut(
        student=ScoreSummary(mean=0.5, n=2),
        best=ScoreSummary(mean=0.5, n=2),
        gain=Gain(mean=0.0, low=None, high=None, n=2),
    ),
    replayed={"validation": 2},
    rescored=1,
    text_only=3,
    settings={"group_size": 5, "objective": None},
    finalists=(Finalist(("E1",), has_demos=True, score=None, chance=0.9, is_best=False),),
    tried=(TriedAdvice("Ask.", "*", Effect(0.25, 0.1, 4), chance=0.9),),
    schedule={"epochs": {"value": 5, "reason": "no budget"}},
    demos=DemoTrial(n=4, gain=None, chance=0.5, is_kept=False),
)
NO_USAGE = {
    "n_lm_calls": 0,
    "n_cached_calls": 0,
    "n_second_calls": 0,
    "n_failed_calls": 0,
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "cost_usd": 0.0,
}
AS_DICT: dict[str, Any] = {
    "student": {"mean": 0.25, "n": 8, "n_failed": 0},
    "best": {"mean": None, "n": 8, "n_failed": 8},
    "updates": [
        {
            "update": 0,
            "epoch": 0,
            "groups": [
                {
                    "example": 4,
                    "scores": [0.0, 1.0, None],
                    "failures": ["provider"],
                    "used_as": "contrast",
                }
            ],
            "lessons": ["Ask."],
            "refused_lessons": [],
            "operations": [
                {
                    "op": "ADD",
                    "id": "",
                    "text": "Ask.",
                    "scope": "*",
                    "reason": "new",
                    "refused": "",
                },
                {
                    "op": "DELETE",
                    "id": "E9",
                    "text": "",
                    "scope": "",
                    "reason": "",
                    "refused": "there is no E9",
                },
            ],
            "accepted": True,
            "reason": "+0.250 on 8 validation examples",
            "library_size": 1,
            "dropped": {"E2": "P(helps) 0.10, P(harms) 0.60 after 4 rollouts"},
        }
    ],
    "usage": {
        "rollout": {**NO_USAGE, "n_lm_calls": 10, "prompt_tokens": 100},
        "lesson": NO_USAGE,
    },
    "failures": {"provider": 1},
    "ended_because": "all epochs are done",
    "nothing_learned": "",
    "wall_time_s": 1.5,
    "library": {
        "format": "tfgrpo_dspy.library",
        "version": 1,
        "next_number": 2,
        "experiences": [
            {
                "id": "E1",
                "text": "Ask.",
                "scope": "*",
                "evidence": [
                    {"update": 0, "example": 4, "rollout_ids": [11, 12], "scores": [0.0, None]}
                ],
            }
        ],
    },
    "metric_calls": 12,
    "gain": {"mean": 0.25, "low": 0.0, "high": 0.5, "n": 8},
    "test": {
        "student": {"mean": 0.5, "n": 2, "n_failed": 0},
        "best": {"mean": 0.5, "n": 2, "n_failed": 0},
        "gain": {"mean": 0.0, "low": None, "high": None, "n": 2},
    },
    "replayed": {"validation": 2},
    "rescored": 1,
    "text_only": 3,
    "settings": {"group_size": 5, "objective": None},
    "finalists": [
        {"ids": ["E1"], "has_demos": True, "score": None, "chance": 0.9, "is_best": False}
    ],
    "tried": [
        {
            "text": "Ask.",
            "scope": "*",
            "effect": {"estimate": 0.25, "standard_error": 0.1, "n_rollouts": 4},
            "chance": 0.9,
        }
    ],
    "schedule": {"epochs": {"value": 5, "reason": "no budget"}},
    "demos": {"n": 4, "gain": None, "chance": 0.5, "is_kept": False},
}


def test_the_results_of_a_run_are_dicts_lists_strings_and_numbers() -> None:
    assert RESULTS.to_dict() == AS_DICT


def test_the_results_of_a_run_go_through_json_unchanged() -> None:
    assert json.loads(json.dumps(RESULTS.to_dict(), allow_nan=False)) == AS_DICT


class BuiltinsOnly(pickle.Unpickler):
    """Refuses whatever an interpreter without this package does not have."""

    def find_class(self, module: str, name: str) -> Any:
        assert module == "builtins", f"{module}.{name} is needed to read it"
        return super().find_class(module, name)


@pytest.mark.parametrize("pickler", [pickle, cloudpickle])
def test_pickled_results_are_read_without_this_package_as_a_dict(pickler: Any) -> None:
    read = BuiltinsOnly(io.BytesIO(pickler.dumps(RESULTS))).load()
    assert type(read) is dict
    assert read == AS_DICT


def test_a_copied_program_keeps_its_results_typed() -> None:
    program = dspy.Predict("question -> answer")
    program.detailed_results = RESULTS
    assert program.deepcopy().detailed_results.best.n_failed == 8
    assert copy.deepcopy(program).detailed_results == RESULTS
    assert copy.copy(RESULTS) == RESULTS


def test_the_dict_of_the_results_may_be_changed_without_changing_them() -> None:
    changed = RESULTS.to_dict()
    changed["updates"][0]["groups"].clear()
    changed["settings"]["group_size"] = 99
    assert RESULTS.to_dict() == AS_DICT


def test_results_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RESULTS.nothing_learned = "x"  # type: ignore[misc]
