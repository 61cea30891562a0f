"""An optimizer with small explicit settings, for tests of something else; what strategies ask."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from tfgrpo_dspy import Execution, ExperienceLibrary, Reflection, TrainingFreeGRPO
from tfgrpo_dspy.rollout import Group, Rollout
from tfgrpo_dspy.sampling.examples import Additions, SampledGroup
from tfgrpo_dspy.settings import PaperReflection, RunData, RunSettings, derive

SMALL = {"group_size": 5, "epochs": 3, "max_demos": 0, "drafts": 0, "max_staleness": 1}
SMALL |= {"groups_per_call": 1, "brief": None}
OF_REFLECTION = {field.name for field in fields(PaperReflection)}
OF_EXECUTION = {field.name for field in fields(Execution)}


def grouped(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same arguments, those of the groups in `reflection` and `execution`."""
    reflection = {name: given[name] for name in OF_REFLECTION & given.keys()}
    execution = {name: given[name] for name in OF_EXECUTION & given.keys()}
    others = {k: v for k, v in given.items() if k not in OF_REFLECTION | OF_EXECUTION}
    is_public = reflection.keys() <= {field.name for field in fields(Reflection)}
    usual = {} if is_public else {"summarize_always": False, "failure_analysis": True}
    kind = Reflection if is_public else PaperReflection
    return {"reflection": kind(**usual | reflection), "execution": Execution(**execution)} | others


def grpo(metric: Callable[..., Any] | None, **given: Any) -> TrainingFreeGRPO:
    """Groups of 5, each in a call; 3 epochs, no drafts, no demos, staleness 1; what is given wins.

    The fields of `Reflection` and `Execution` are given by their own names.
    """
    return TrainingFreeGRPO(metric, **grouped(SMALL | given))


def paper_grpo(metric: Callable[..., Any] | None, **given: Any) -> TrainingFreeGRPO:
    """`TrainingFreeGRPO.paper`, with the fields of the groups given by their own names."""
    return TrainingFreeGRPO.paper(metric, **grouped(given))


def run_settings(metric: Callable[..., Any] | None, **given: Any) -> RunSettings:
    """The same settings as a run has them, for 20 examples."""
    return derive(grpo(metric, **given).settings, RunData(n_training=20))


def group_of(*rollouts: Rollout, added: Any = None, **more: Any) -> SampledGroup:
    """The group of these rollouts, all of which had these additions."""
    group = Group.of(rollouts[0].example, rollouts, rollouts[0].score is not None)
    additions = (added or Additions(ExperienceLibrary()),) * len(rollouts)
    return SampledGroup(group, additions, **more)


class Answering:
    """The `ask` of strategies: answers each question alike, and keeps them."""

    def __init__(self, **answer: str) -> None:
        self.answer, self.questions = answer, list[Mapping[str, Any]]()

    def __call__(self, signature: Any, **inputs: Any) -> Mapping[str, Any]:
        assert set(inputs) <= set(signature.input_fields)
        self.questions.append(inputs)
        return self.answer
