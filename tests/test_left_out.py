"""Sampling parameters that a provider refuses are left out, said once, and cost no rollout."""

import logging
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from dspy import lm15
from runs import learned, n_calls, polite_answer, polite_rules
from scripted import Prompt, scripted_lm

Refusal = Callable[[Prompt], str]


def refusing_lm(refusal: Refusal, error: Any = lm15.InvalidRequestError, **kwargs: Any) -> dspy.LM:
    """An LM whose engine raises the error with what `refusal` says of a prompt, if it does."""

    def answer(prompt: Prompt) -> Any:
        why = refusal(prompt)
        return error(why) if why else polite_answer(prompt)

    extract, update, _ = polite_rules()
    return scripted_lm([extract, update, ("question", answer)], num_retries=0, **kwargs)


def no_temperature(prompt: Prompt) -> str:
    return "本模型不支持temperature参数" if prompt.temperature is not None else ""


def no_seed(prompt: Prompt) -> str:
    return "Unknown field 'seed'; known: temperature, top_p." if prompt.seed is not None else ""


def not_together(prompt: Prompt) -> str:
    both = prompt.seed is not None and prompt.temperature is not None
    return "seed and temperature exclude each other" if both else ""


def neither(prompt: Prompt) -> str:
    names = {"temperature": prompt.temperature, "seed": prompt.seed}
    return "".join(f"{n} is not taken. " for n, value in names.items() if value is not None)


@pytest.mark.parametrize(
    ("refusal", "n_left_out", "error"),
    [
        (no_temperature, 1, lm15.ServerError),
        (no_seed, 1, ValueError),
        (not_together, 1, lm15.InvalidRequestError),
        (neither, 2, lm15.InvalidRequestError),
    ],
)
def test_what_the_provider_refuses_is_left_out_and_no_rollout_fails(
    refusal: Refusal, n_left_out: int, error: Any
) -> None:
    lm = refusing_lm(refusal, error)
    results = learned(lm=lm).detailed_results
    assert results.failures == {"parameter left out": n_left_out}
    assert results.updates


def test_the_log_says_once_what_is_left_out_and_the_argument_that_does_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.WARNING, "tfgrpo_dspy"):
        learned(lm=refusing_lm(no_temperature))
    said = [m for m in caplog.messages if "temperature" in m]
    assert len(said) == 1
    assert 'pass temperature="own"' in said[0]


def test_refused_calls_are_few_and_counted_within_the_budget() -> None:
    lm = refusing_lm(no_temperature)
    program = learned(lm=lm, max_lm_calls=60, num_threads=2)
    n_refused = sum(p.temperature is not None for p in lm.engine.prompts)
    assert len(lm.engine.prompts) - n_refused == n_calls(program) <= 60
    assert n_refused <= 3


def test_a_temperature_of_their_own_is_never_sent() -> None:
    lm = refusing_lm(lambda _prompt: "")
    learned(lm=lm, temperature="own")
    assert {prompt.temperature for prompt in lm.engine.prompts} == {None}
