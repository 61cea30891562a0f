"""The optimizers, each the real one from its own package, with its settings for a budget.

Each is given all data of the task and the budget. How they are fair:

- `tfgrpo` is TrainingFreeGRPO with the metric, the reflection LM and `max_lm_calls`: nothing else;
  `tfgrpo-no-demos` has `max_demos=0`, `tfgrpo-no-gate` has `NoGate()`.
- `labelled` is LabeledFewShot with 16 demos, which takes no call.
- Every other optimizer has the settings that its documentation recommends for so small a budget,
  and those of its arguments that decide how long it goes on are set so high that it uses its
  budget: the account ends it, and its best program so far is what it would have returned.
- Validation sets: MIPROv2 and few-shot bootstrapping pay for the whole set with each candidate;
  they get so many of its examples as a tenth of the budget has runs, at least 10. GEPA gets 10, and
  20 where the budget has 1,000 runs or more, as its documentation asks for the smallest that will
  do, and the others for training.
- GEPA: minibatches of 3 (its default) and of 8.
- MIPROv2: the most candidates for which the budget reaches for the number of trials that its own
  formula recommends; trials until the budget ends. Minibatches only where its `auto` would use
  them.
- Few-shot bootstrapping: BootstrapFewShotWithRandomSearch with candidates until the budget ends;
  demos as by default (4 bootstrapped, 16 labelled). Where scores are graded, a run becomes a demo
  from the task's `demo_threshold` on, also for MIPROv2.
- SIMBA: 8 steps, its default, or fewer, of the batch size and number of candidates that are
  expected to take the whole budget (`SIMBA_USES`: the cache answers some of its calls), and more
  steps while there is budget. What its final choice among the winners of its steps takes is kept
  back, and made as it makes it. It has no validation set: it trains on both.
- `tfgrpo-paper`: `TrainingFreeGRPO.paper`, which has no validation: it trains on both sets, on as
  many examples as leave room for its three epochs.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
from compare_budget import BudgetSpentError
from dspy.utils.callback import BaseCallback
from tasks import Task

from tfgrpo_dspy import NoGate, TrainingFreeGRPO

N_GEPA_VALIDATION, N_OF_LARGE_BUDGET, LARGE_BUDGET = 10, 20, 1000
N_LABELLED = 16
ATTEMPTS_AT_DEMOS = 12
"""Runs of the program that bootstrapping a set of at most 4 demos takes, about."""
SIMBA_USES = 0.8
"""Of the most calls that its settings can take, the share that it makes, about."""
SIMBA_STEPS = (8, 7, 6, 5, 4, 3)


class Observer(BaseCallback):
    """The best program that a run has told of so far: its result, where the budget ends it.

    MIPROv2 and few-shot bootstrapping tell by DSPy's callback of evaluations of a whole validation
    set (best is the highest score, the first of equals, as they choose too), GEPA by
    `on_valset_evaluated`. One for each run; put it into `dspy.context(callbacks=[...])`.
    """

    def __init__(self, student: Any) -> None:
        self.best: Any | None = None
        self._student = student
        self._open: dict[str, Any] = {}
        self._best_score = float("-inf")
        self._validation: list[Any] | None = None

    def watch(self, validation: Sequence[Any]) -> None:
        """Evaluations on exactly these examples are those by which the optimizer chooses."""
        self._validation = list(validation)

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if (inputs.get("devset") or instance.devset) == self._validation:
            self._open[call_id] = inputs["program"]

    def on_evaluate_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        program = self._open.pop(call_id, None)
        if program is not None and exception is None and outputs.score > self._best_score:
            self._best_score = outputs.score
            self.best = program.deepcopy()

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        """GEPA's event."""
        if event["is_best_program"]:
            program = self._student.deepcopy()
            for name, predictor in program.named_predictors():
                text = event["candidate"][name]
                predictor.signature = predictor.signature.with_instructions(text)
            self.best = program


@dataclass(frozen=True)
class Setup:
    """What an optimizer is given. `calls` is how many LM calls one run of the program takes.

    `log_dir`: where runs of this optimizer are recorded, to go on after a stop.
    """

    task: Task
    budget: int
    seed: int
    policy: Any
    reflection: Any
    observer: Observer
    n_threads: int
    calls: float
    log_dir: Path | None = None

    @property
    def n_runs(self) -> int:
        """How many runs of the program the budget reaches for."""
        return int(self.budget / self.calls)

    @property
    def examples(self) -> list[dspy.Example]:
        """Training and validation set together."""
        return [*self.task.train, *self.task.val]

    def watched_val(self) -> list[dspy.Example]:
        """So much of the validation set as belongs to the budget; the observer watches it."""
        val = list(self.task.val[: max(10, int(0.1 * self.n_runs))])
        self.observer.watch(val)
        return val


def ours(**settings: Any) -> Callable[[Setup], Any]:
    """This optimizer with these settings beside the usual ones, or in their place."""

    def run(setup: Setup) -> Any:
        optimizer = TrainingFreeGRPO(setup.task.metric, **(our_arguments(setup) | settings))
        train, val = list(setup.task.train), list(setup.task.val)
        return optimizer.compile(setup.task.student(), trainset=train, valset=val)

    return run


def our_arguments(setup: Setup) -> dict[str, Any]:
    """The budget; how many threads, which seed and no progress bar change nothing of a method."""
    return {
        "reflection_lm": setup.reflection,
        "max_lm_calls": setup.budget,
        "num_threads": setup.n_threads,
        "seed": setup.seed,
        "progress": False,
        **({"log_dir": setup.log_dir} if setup.log_dir else {}),
    }


def _paper(setup: Setup) -> Any:
    """A group of 5 takes at most 11 calls (rollouts, summaries, lessons), for 3 epochs."""
    room = int(setup.budget / (3 * (5 * setup.calls + 6)))
    n = min(len(setup.examples), max(5, room))
    examples = random.Random(setup.seed).sample(setup.examples, n)
    optimizer = TrainingFreeGRPO.paper(setup.task.metric, **our_arguments(setup))
    return optimizer.compile(setup.task.student(), trainset=examples)


def _gepa(minibatch: int) -> Callable[[Setup], Any]:
    def run(setup: Setup) -> Any:
        optimizer = dspy.GEPA(
            setup.task.metric,
            max_metric_calls=2 * setup.n_runs,  # it counts what the cache answers, too
            reflection_lm=setup.reflection,
            reflection_minibatch_size=minibatch,
            num_threads=setup.n_threads,
            seed=setup.seed,
            gepa_kwargs={"callbacks": [setup.observer]},
        )
        n = N_GEPA_VALIDATION if setup.n_runs < LARGE_BUDGET else N_OF_LARGE_BUDGET
        train, val = [*setup.task.train, *setup.task.val[n:]], list(setup.task.val[:n])
        return optimizer.compile(setup.task.student(), trainset=train, valset=val)

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
        num_trials=5 * max(trials(n), int(room(n))),  # trials of what was tried cost nothing
        minibatch=has_minibatches,
    )


def _simba(setup: Setup) -> Any:
    steps, batch, candidates, train = _simba_settings(setup)
    optimizer = dspy.SIMBA(
        metric=setup.task.metric,
        bsize=batch,
        num_candidates=candidates,
        max_steps=3 * steps,
        max_demos=4,
        prompt_model=setup.reflection,
        num_threads=setup.n_threads,
    )
    final = math.ceil(setup.calls * len(train) * (candidates + 1))
    try:
        with setup.policy.compare_account.kept_back(final):
            return optimizer.compile(setup.task.student(), trainset=train, seed=setup.seed)
    except BudgetSpentError as error:
        winners = winners_of_simba(error)
    return _best_winner(setup, winners, candidates, train)


def winners_of_simba(error: BaseException) -> list[Any]:
    """The student and the winners of the steps that SIMBA had done when this error ended it.

    SIMBA keeps them in a variable of its `compile` only, which the error's traceback still holds.
    """
    trace = error.__traceback__
    while trace is not None:
        if "winning_programs" in trace.tb_frame.f_locals:
            return list(trace.tb_frame.f_locals["winning_programs"])
        trace = trace.tb_next
    raise error


def _best_winner(
    setup: Setup, winners: Sequence[Any], candidates: int, train: list[dspy.Example]
) -> Any:
    """SIMBA's final choice: of so many winners, evenly spaced, the best on the training set."""
    last = len(winners) - 1
    places = dict.fromkeys(round(place * last / candidates) for place in range(candidates + 1))
    setup.observer.watch(train)
    evaluate = dspy.Evaluate(
        devset=train, metric=setup.task.plain_metric, num_threads=setup.n_threads, max_errors=10**9
    )
    for place in places:
        evaluate(winners[place])
    return setup.observer.best


def _simba_settings(setup: Setup) -> tuple[int, int, int, list[dspy.Example]]:
    """Steps, batch size, candidates and examples that use the budget best; most steps first."""
    most = setup.budget / SIMBA_USES
    best, best_cost = (3, 4, 2, setup.examples[:4]), 0.0
    for steps in SIMBA_STEPS:
        for batch in range(4, 33):
            candidates = min(6, max(2, batch // 4))
            train = setup.examples[: max(batch, int(0.3 * setup.n_runs / (candidates + 1)))]
            step = setup.calls * batch * (2 * candidates + 1) + candidates + 1
            final = setup.calls * len(train) * min(steps + 1, candidates + 1)
            cost = steps * step + final
            if len(train) >= batch and best_cost < cost <= most:
                best, best_cost = (steps, batch, candidates, train), cost
        if best_cost > 0.9 * most:
            break
    return best


def _bootstrap(setup: Setup) -> Any:
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        setup.task.plain_metric,
        max_rounds=1,
        num_candidate_programs=setup.n_runs,  # the account ends it
        metric_threshold=setup.task.demo_threshold,
        num_threads=setup.n_threads,
    )
    train, val = list(setup.task.train), setup.watched_val()
    return optimizer.compile(setup.task.student(), trainset=train, valset=val)


def _labelled(setup: Setup) -> Any:
    optimizer = dspy.LabeledFewShot(k=N_LABELLED)
    return optimizer.compile(setup.task.student(), trainset=setup.examples)


OPTIMIZERS: dict[str, Callable[[Setup], Any]] = {
    "none": lambda setup: setup.task.student(),
    "labelled": _labelled,
    "tfgrpo": ours(),
    "tfgrpo-no-demos": ours(max_demos=0),
    "tfgrpo-no-gate": ours(gate=NoGate()),
    "tfgrpo-paper": _paper,
    "gepa": _gepa(3),
    "gepa-mb8": _gepa(8),
    "mipro": _mipro,
    "simba": _simba,
    "bootstrap": _bootstrap,
}
