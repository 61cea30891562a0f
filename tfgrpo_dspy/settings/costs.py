"""What a rollout, and a call of the reflection LM, is assumed to take: calls, tokens, dollars."""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy

from tfgrpo_dspy.budget.prices import price_of, token_price
from tfgrpo_dspy.experience.programs import bare_instructions, named_predictors
from tfgrpo_dspy.metric import held_lms
from tfgrpo_dspy.reflection.texts import estimate_tokens
from tfgrpo_dspy.sampling.fields import Example, as_fields
from tfgrpo_dspy.settings import Settings
from tfgrpo_dspy.settings.schedule import EXAMPLES_OF_DRAFT, usual_demos

COMPLETION_TOKENS, FORMAT_TOKENS = 150, 200  # DSPy's adapters add the second to a prompt
UPDATE_TOKENS = 2_000
AGENT_TURNS = 4  # how many calls an agent is likely to make, unless `max_iters` allows fewer
DEMOS_SHARE = 0.8  # of the rollouts show demos, in runs in twelve random worlds


def one_rollout(settings: Settings, student: Any, examples: Sequence[Example]) -> dict[str, Any]:
    """The assumed cost of a rollout, as fields of `RunData`; an agent makes `AGENT_TURNS` calls."""
    iterations = [getattr(each, "max_iters", 0) for _, each in student.named_sub_modules()]
    turns = 1 + sum(min(n, AGENT_TURNS - 1) for n in iterations)
    most = 1 + sum(iterations) - turns  # turns that an agent may take besides
    inputs = _mean_tokens(example.inputs for example in examples[:100])
    whole = _mean_tokens(as_fields(dict(example.raw.items())) for example in examples[:100])
    n_demos = settings.arguments["max_demos"]
    demos = whole * (usual_demos(whole) if n_demos is None else n_demos) * settings.measures
    prices = settings.arguments["prices"] or {}
    calls, tokens, dollars = 0, 0, 0.0
    lms = []
    for _, predictor in named_predictors(student):
        lms.append(lm := predictor.lm or dspy.settings.lm)
        n = turns * (predictor.config.get("n") or getattr(lm, "kwargs", {}).get("n") or 1)
        most += n
        turns = 1
        prompt = int(estimate_tokens(bare_instructions(predictor)) + FORMAT_TOKENS + inputs)
        calls += n
        tokens += n * (prompt + COMPLETION_TOKENS)
        dollars += n * answer_cost(lm, settings, prompt + int(DEMOS_SHARE * demos))
    for lm in {id(lm): lm for lm in held_lms(settings.metric)}.values():  # a judge's, a call each
        lms.append(lm)
        calls, most = calls + 1, most + 1
        tokens, dollars = tokens + prompt, dollars + answer_cost(lm, settings, prompt)
    lms += [lm for strategy in settings.strategies for lm in held_lms(strategy)]  # a teacher's
    prices_of_lms = [price_of(lm, prices) for lm in lms]
    longest = prompt + int(demos)
    dearest = [longest * each.prompt + each.max_tokens * each.completion
               for each in prices_of_lms if not isinstance(each, str)]  # fmt: skip
    dearest = dearest if len(dearest) == len(lms) else []
    reflection_lm = settings.reflection_lm or dspy.settings.lm
    every = (*prices_of_lms, price_of(reflection_lm, prices))
    missing = [each for each in every if isinstance(each, str)]
    return {
        "calls_per_rollout": calls,
        "tokens_per_rollout": tokens,
        "tokens_of_example": int(whole),
        "dollars_per_rollout": dollars,
        "dollars_per_draft": answer_cost(reflection_lm, settings, EXAMPLES_OF_DRAFT * tokens),
        "most_calls_per_rollout": most,
        "dollars_of_dearest_call": max(dearest, default=0.0),
        "unpriced": tuple(dict.fromkeys(missing)),
    }


def answer_cost(lm: Any, settings: Settings, prompt: int, *, is_most: bool = False) -> float:
    """Dollars of a call with `prompt` tokens, and an answer of the usual or most tokens."""
    price = (price_of if is_most else token_price)(lm, settings.arguments["prices"] or {})
    if isinstance(price, str):
        return math.nan
    n_answer = price.max_tokens if is_most else COMPLETION_TOKENS
    return prompt * price.prompt + n_answer * price.completion


def _mean_tokens(fields: Iterable[Mapping[str, str]]) -> float:
    return statistics.fmean(estimate_tokens(" ".join(texts.values())) for texts in fields)
