"""Strategies that change what a rollout counts with; and how unsure an LM was of a rollout."""

from typing import Any

import dspy
import pytest
from dspy import lm15
from runs import Pair, is_score, predictor
from scripted import ScriptedEngine, chat

from tfgrpo_dspy.metric import adapt_metric
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.one_rollout import RolloutTask, run_rollout


class UnsureEngine(ScriptedEngine):
    """Says of each answer how likely its tokens were: the first token of its own, the second .5."""

    supported_params = frozenset({"temperature", "max_tokens", "seed", "logprobs"})

    def __init__(self, first: list[float]) -> None:
        super().__init__([("question", chat(answer="1"))])
        self.first = first

    def complete(self, request: lm15.Request) -> lm15.Response:
        response = super().complete(request)
        said = self.first[len(self.prompts) - 1]
        tokens = tuple(lm15.TokenLogprob("a", value) for value in (said, -0.5))
        return lm15.Response(
            id=None,
            model=response.model,
            message=response.message,
            finish_reason="stop",
            usage=response.usage,
            logprobs=tokens,
        )


def one_rollout(first: list[float], program: Any = None, **arguments: Any) -> Rollout:
    lm = dspy.LM("unsure", engine=UnsureEngine(first), cache=False, **arguments)
    example = dspy.Example(question="question 1").with_inputs("question")
    task = RolloutTask(program or predictor(), example, 0, 1, 0.7, adapt_metric(is_score))
    with dspy.context(lm=lm):
        return run_rollout(task)


def test_a_rollout_knows_the_mean_surprise_of_all_tokens_of_its_calls() -> None:
    assert one_rollout([-1.5], logprobs=True).entropy == pytest.approx(1.0)
    assert one_rollout([-1.5, -3.5], Pair(), logprobs=True).entropy == pytest.approx(1.5)


def test_without_log_probabilities_nothing_is_known_of_the_entropy() -> None:
    assert one_rollout([-1.5]).entropy is None


def test_a_token_of_chance_zero_leaves_the_entropy_finite() -> None:
    assert one_rollout([float("-inf")], logprobs=True).entropy == pytest.approx(0.5)


def test_log_probabilities_are_no_output_of_the_program() -> None:
    plain, asked = one_rollout([-1.5]), one_rollout([-1.5], logprobs=True)
    assert asked.outputs == {"answer": "1"}
    assert asked.steps == plain.steps


def test_the_entropy_comes_back_from_the_record_of_a_rollout_and_old_records_have_none() -> None:
    made = one_rollout([-1.5], logprobs=True)
    record = made.to_dict()
    assert Rollout.from_dict(record) == made
    del record["entropy"]
    assert Rollout.from_dict(record).entropy is None
