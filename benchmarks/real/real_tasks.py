"""The tasks of the evidence by name, each as a `Task` of `benchmarks/tasks` with a real LM.

40 examples for training, 30 for validation, 60 held out, drawn by the seed (16, 8, 16 for the
agent of `stock`, whose rollouts take several calls each). A task is taken only
where hand-written advice or labelled demos lift the bare LM by .15 (README says by how much, and
which tasks were dropped).
"""

import functools
import random
from collections.abc import Callable
from typing import Any

import dspy
from derived import Coin, Stages
from houses import Extraction, Routing
from models import MODELS, default_cache, fetched
from public import FunctionCalls, Reasoning
from sql import Sql
from stock import Stock
from tasks import Task, in_gepas_form, plain, seeded

from tfgrpo_dspy.local import local_lm

N_TRAIN, N_VALIDATION, N_TEST = 40, 30, 60
N_CTX, POLICY_TOKENS, REFLECTION_TOKENS = 8192, 160, 700
TASKS: dict[str, Callable[[], Any]] = {
    "sql": Sql,
    "routing": Routing,
    "extraction": Extraction,
    "coin": lambda: Coin(Routing()),
    "functions": FunctionCalls,
    "gcd": functools.partial(Reasoning, "gcd", "Use Euclid's algorithm. Give the number alone."),
    "stages": lambda: Stages(Routing()),
    "stock": Stock,
}


@functools.cache
def _source(name: str) -> Any:
    return TASKS[name]()


def load(
    name: str, model: str, seed: int, policy: str | None = None, writer: str | None = None
) -> Task:
    """The task with the LM of that name, as policy and as reflection LM.

    `policy`: the address of a server of that LM, in place of the LM inside the process. `writer`:
    the address of a reflection LM that can write.
    """
    source = _source(name)
    inputs, outputs = ([f.strip() for f in part.split(",")] for part in source.fields.split("->"))
    examples = source.examples(random.Random(f"{name}/{seed}"))
    n_train, n_validation, n_test = getattr(source, "sizes", (N_TRAIN, N_VALIDATION, N_TEST))
    n = n_train + n_validation + n_test
    drawn = [next(examples).with_inputs(*inputs) for _ in range(n)]
    signature = dspy.Signature(source.fields, source.instruction)
    make = getattr(source, "student", dspy.Predict)

    def judged(gold: Any, pred: Any) -> dspy.Prediction:
        score, feedback = source.verdict(gold, pred)
        return dspy.Prediction(score=score, feedback=feedback)

    metric = in_gepas_form(judged)
    return Task(
        name=f"{name}@{model}",
        student=lambda: make(signature),
        train=drawn[:n_train],
        val=drawn[n_train : n_train + n_validation],
        test=drawn[-n_test:],
        metric=metric,
        plain_metric=plain(metric),
        demo_threshold=0.99,
        make_lm=lambda seed: lm_of(model, POLICY_TOKENS, seed, policy),
        make_reflection_lm=lambda seed: (
            served("writer", writer, timeout=3000)
            if writer
            else lm_of(model, REFLECTION_TOKENS, seed, policy)
        ),
        notes=f"{', '.join(outputs)}\n{source.advice}",
    )


def served(model: str, address: str, **settings: Any) -> Any:
    """The LM behind an OpenAI-compatible address of this machine."""
    at = {"api_base": address, "api_key": "none", "cache": False, "num_retries": 0}
    return dspy.LM(f"openai/{model}", **at, **settings)


def lm_of(model: str, max_tokens: int, seed: int, address: str | None = None) -> Any:
    """The LM on one thread, or behind an address; samples of one prompt differ by rollout id."""
    if address:
        settings = {"temperature": 0.0, "max_tokens": max_tokens, "seed": seed, "timeout": 600}
        return seeded(served(model, address, **settings))
    path = fetched(MODELS[model], default_cache())
    settings = {"n_parallel": 1, "n_ctx": N_CTX, "max_tokens": max_tokens, "seed": seed}
    return seeded(local_lm(path, temperature=0.0, **settings))


def advised(task: Task) -> dspy.Module:
    """The student with the hand-written advice in its instructions."""
    program = task.student()
    advice = task.notes.partition("\n")[2]
    for predictor in program.predictors():
        before = predictor.signature
        predictor.signature = before.with_instructions(f"{before.instructions}\n\n{advice}")
    return program
