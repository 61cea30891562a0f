"""The optimizers, each the real one from its own package, with its settings for a budget.

Each is given all data of the task and the budget, and what fits is worked out here from its own
documented arguments, so that it ends by itself before the budget where it can. What it costs is
estimated from its code; the estimates are upper ones. How they are fair:

- Validation sets: an optimizer that pays for the whole set with each candidate (GEPA, MIPROv2,
  few-shot bootstrapping, InferRules, COPRO) gets so many of its examples as a tenth (COPRO: a
  twentieth) of the budget has runs, at least 10: GEPA's documentation, too, asks for a small one.
- GEPA: `max_metric_calls` counts what the cache answers too, and not its reflection calls; so it
  is set above the budget, and the account ends it. Its best candidate so far is what it would have
  returned.
- MIPROv2: the most candidates for which the budget reaches for the number of trials that its own
  formula recommends, and then as many trials as it reaches for. Minibatches only where its `auto`
  would use them.
- Few-shot bootstrapping: BootstrapFewShotWithRandomSearch, as many candidates as the budget
  reaches for; demos as by default (4 bootstrapped, 16 labelled). Where scores are graded, a run
  becomes a demo from the task's `demo_threshold` on, also for MIPROv2 and InferRules.
- SIMBA: its default of 8 steps where they fit with any batch size, with the largest that does, else
  fewer. Tried on `sim:easy`, 3 seeds, 500 and 1,500 calls: held-out 0.63 and 0.67, against 0.48 and
  0.54 with 3 steps of larger batches, 0.52 and 0.63 with 12 of smaller ones. It tells of nothing
  before its end, so its settings leave room, and it spends about 70 % of the budget. It has no
  validation set: it trains on both.
- COPRO: depth 3 (default), and the breadth that fits. InferRules: the number of candidates that
  fits; its rules are written by the reflection LM.
- TrainingFreeGRPO, `tfgrpo`: `max_lm_calls`, and of its documented settings those for a budget in
  calls, as every other optimizer has its own: groups of 2 in batches of 5 (smaller steps, more
  updates), `max_staleness=0` (staleness spends calls to save time, and only calls count here) and
  `AutoGate(broad=TrialInUse(max_trials=0, max_epochs=4))`, which judges advice for every example by
  the training groups alone, for up to four epochs, as groups of 2 tell less each; and more epochs
  than the budget has room for, so that the budget ends it; and 12 drafts where examples have
  labels, which the others that propose from examples read, too. Chosen on these simulated tasks:
  drafts of 8, 12 and 16 (`easy`, `sparse`, `noisy` at 200 calls, 4 to 10 seeds), groups
  of 2, 3 and 5 and batches of 5, 8 and 12 with 8 seeds, the gate with 4 (with trials of one epoch
  .83 on average at 200 calls and .88 at 500, against .80 and .89 with the default one). Against
  them: four epochs. Here, where no advice for every example is worth anything, one is better.
  `tfgrpo-demos`: the same with 4 demos from its own rollouts at the end, as few-shot bootstrapping
  takes. `tfgrpo-defaults`: `max_lm_calls` and nothing else. The paper's schedule has no validation:
  it trains on both sets; its one batch an epoch holds as many examples as leave room for its three
  epochs; `tfgrpo-paper-small` has batches of 5 over all examples, until the budget ends.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import dspy
from compare_observe import Observer
from dspy.teleprompt import InferRules
from tasks import Task

from tfgrpo_dspy import AutoGate, TrainingFreeGRPO, TrialInUse

SIMBA_STEPS = (8, 7, 6, 5, 4, 3)
SIMBA_SIZES = ((32, 6), (24, 6), (16, 6), (16, 4), (8, 4), (8, 3), (4, 3), (4, 2))
"""Batch size and candidates; the first are the defaults."""
FOR_CALLS: dict[str, Any] = {
    "epochs": 10,
    "group_size": 2,
    "batch_size": 5,
    "max_staleness": 0,
    "gate": AutoGate(broad=TrialInUse(max_trials=0, max_epochs=4)),
}
"""What `tfgrpo` sets besides its budget, and drafts."""
DRAFTS = 12
"""Of `tfgrpo`, where examples have labels."""
MAX_DEMOS = 4
"""Of `tfgrpo-demos`: as many as few-shot bootstrapping takes by default."""
ATTEMPTS_AT_DEMOS = 12
"""Runs of the program that bootstrapping a set of at most 4 demos takes, about."""


@dataclass(frozen=True)
class Setup:
    """What an optimizer is given. `calls` is how many LM calls one run of the program takes."""

    task: Task
    budget: int
    seed: int
    policy: Any
    reflection: Any
    observer: Observer
    n_threads: int
    calls: float

    @property
    def n_runs(self) -> int:
        """How many runs of the program the budget reaches for."""
        return int(self.budget / self.calls)

    @property
    def examples(self) -> list[dspy.Example]:
        """Training and validation set together."""
        return [*self.task.train, *self.task.val]

    def val(self, share: float = 0.1) -> list[dspy.Example]:
        """So much of the validation set as belongs to the budget."""
        return list(self.task.val[: max(10, int(share * self.n_runs))])

    def watched_val(self, share: float = 0.1) -> list[dspy.Example]:
        """The same, for optimizers that choose by DSPy's evaluation on it."""
        val = self.val(share)
        self.observer.watch(val)
        return val


def _gepa(minibatch: int) -> Callable[[Setup], Any]:
    def run(setup: Setup) -> Any:
        optimizer = dspy.GEPA(
            setup.task.metric,
            max_metric_calls=2 * setup.n_runs,  # the account ends it
            reflection_lm=setup.reflection,
            reflection_minibatch_size=minibatch,
            num_threads=setup.n_threads,
            seed=setup.seed,
            gepa_kwargs={"callbacks": [setup.observer]},
        )
        train = list(setup.task.train)
        return optimizer.compile(setup.task.student(), trainset=train, valset=setup.val())

    return run


def _mipro(setup: Setup) -> Any:
    val = setup.watched_val()
    n_predictors = len(setup.task.student().predictors())
    n_summaries = min(11, 2 + len(setup.task.train) // 10)

    def trials(n: int) -> int:
        return int(max(4 * n_predictors * math.log2(n), 1.5 * n))

    def room(n: int) -> float:
        """How many trials the budget reaches for, once all is proposed."""
        proposing = n_summaries + 3 * n * n_predictors
        runs = (n - 2) * ATTEMPTS_AT_DEMOS + len(val)
        a_trial = len(val) if not has_minibatches else 35 + len(val) / 5
        return (setup.budget - proposing - setup.calls * runs) / (setup.calls * a_trial)

    has_minibatches = len(val) > 50
    n = max((n for n in range(3, 19) if trials(n) <= room(n)), default=3)
    optimizer = dspy.MIPROv2(
        setup.task.plain_metric,
        prompt_model=setup.reflection,
        task_model=setup.policy,
        auto=None,
        num_candidates=n,
        num_threads=setup.n_threads,
        seed=setup.seed + 1,  # a seed of 0 is taken for none
        metric_threshold=setup.task.demo_threshold,
    )
    return optimizer.compile(
        setup.task.student(),
        trainset=list(setup.task.train),
        valset=val,
        num_trials=max(trials(n), int(room(n))),
        minibatch=has_minibatches,
    )


def _simba(max_demos: int) -> Callable[[Setup], Any]:
    def run(setup: Setup) -> Any:
        batch, candidates, steps, train = _simba_settings(setup)
        optimizer = dspy.SIMBA(
            metric=setup.task.metric,
            bsize=batch,
            num_candidates=candidates,
            max_steps=steps,
            max_demos=max_demos,
            prompt_model=setup.reflection,
            num_threads=setup.n_threads,
        )
        return optimizer.compile(setup.task.student(), trainset=train, seed=setup.seed)

    return run


def _simba_settings(setup: Setup) -> tuple[int, int, int, list[dspy.Example]]:
    for steps in SIMBA_STEPS:
        for batch, candidates in SIMBA_SIZES:
            train = setup.examples[: max(batch, int(0.3 * setup.n_runs / (candidates + 1)))]
            step = setup.calls * batch * (2 * candidates + 1) + candidates + 1
            final = setup.calls * len(train) * min(steps + 1, candidates + 1)
            if len(train) >= batch and steps * step + final <= setup.budget:
                return batch, candidates, steps, train
    return 4, 2, 1, setup.examples[:4]


def _bootstrap(setup: Setup) -> Any:
    val = setup.watched_val()
    n = setup.n_runs // (len(val) + ATTEMPTS_AT_DEMOS) - 3
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        setup.task.plain_metric,
        num_candidate_programs=max(1, n),
        metric_threshold=setup.task.demo_threshold,
        num_threads=setup.n_threads,
    )
    train = list(setup.task.train)
    return optimizer.compile(setup.task.student(), trainset=train, valset=val)


def _infer_rules(setup: Setup) -> Any:
    val = setup.watched_val()
    n = int((setup.budget - setup.calls * ATTEMPTS_AT_DEMOS) / (setup.calls * len(val) + 1))
    optimizer = InferRules(
        metric=setup.task.plain_metric,
        num_candidates=max(1, n),
        metric_threshold=setup.task.demo_threshold,
        num_threads=setup.n_threads,
        teacher_settings={"lm": setup.reflection},
    )
    train = list(setup.task.train)
    return optimizer.compile(setup.task.student(), trainset=train, valset=val)


def _copro(setup: Setup) -> Any:
    val = setup.watched_val(0.05)
    n_predictors = len(setup.task.student().predictors())
    breadth = int(setup.budget / (3 * n_predictors * (setup.calls * len(val) + 1)))
    optimizer = dspy.COPRO(
        prompt_model=setup.reflection,
        metric=setup.task.plain_metric,
        breadth=max(2, breadth),
        depth=3,
    )
    threads = {"num_threads": setup.n_threads, "display_progress": False}
    return optimizer.compile(setup.task.student(), trainset=val, eval_kwargs=threads)


def arguments(setup: Setup) -> dict[str, Any]:
    """What every variant of TrainingFreeGRPO is given."""
    return {
        "reflection_lm": setup.reflection,
        "max_lm_calls": setup.budget,
        "num_threads": setup.n_threads,
        "seed": setup.seed,
        "progress": False,
    }


def _watched(setup: Setup, make: Any, metric: Any, settings: dict[str, Any]) -> Any:
    """The optimizer, with its own gate in a form that the observer hears of."""
    given = arguments(setup) | settings
    gate = make(metric, **given).settings.gate
    return make(metric, **(given | {"gate": setup.observer.watched(gate)}))


def tfgrpo(setup: Setup, metric: Any = None, **settings: Any) -> Any:
    """TrainingFreeGRPO with its settings for a budget in calls, but for `settings`.

    `metric` stands in place of the task's.
    """
    has_labels = any(len(example.labels()) for example in setup.task.train)
    drafts = {"drafts": DRAFTS} if has_labels else {}
    return _defaults(setup, metric, **(FOR_CALLS | drafts | settings))


def _defaults(setup: Setup, metric: Any = None, **settings: Any) -> Any:
    optimizer = _watched(setup, TrainingFreeGRPO, metric or setup.task.metric, settings)
    train, val = list(setup.task.train), list(setup.task.val)
    return optimizer.compile(setup.task.student(), trainset=train, valset=val)


def paper(setup: Setup, **settings: Any) -> Any:
    """The paper's schedule; without a batch size, on as many examples as the budget has room for.

    A group of 5 takes at most 11 calls (rollouts, their summaries, the lessons; 12 with operations
    for each group), for 3 epochs.
    """
    examples = setup.examples
    if "batch_size" not in settings:
        n_reflections = 7 if settings.get("update_per_group") else 6
        room = int(setup.budget / (3 * (5 * setup.calls + n_reflections)))
        n = min(len(examples), max(5, room))
        examples = random.Random(setup.seed).sample(examples, n)
    optimizer = _watched(setup, TrainingFreeGRPO.paper, setup.task.metric, settings)
    return optimizer.compile(setup.task.student(), trainset=examples)


OPTIMIZERS: dict[str, Callable[[Setup], Any]] = {
    "none": lambda setup: setup.task.student(),
    "tfgrpo": tfgrpo,
    "tfgrpo-demos": lambda setup: tfgrpo(setup, max_demos=MAX_DEMOS),
    "tfgrpo-defaults": _defaults,
    "tfgrpo-paper": paper,
    "tfgrpo-paper-small": lambda setup: paper(setup, batch_size=5),
    "gepa": _gepa(3),
    "gepa-mb8": _gepa(8),
    "simba": _simba(4),
    "simba-rules": _simba(0),
    "mipro": _mipro,
    "bootstrap": _bootstrap,
    "copro": _copro,
    "infer_rules": _infer_rules,
}
