"""Ablations of TrainingFreeGRPO, as optimizers of the comparison; the oracle of simulated tasks.

What differs from `tfgrpo`, with its settings for the budget, is in the name; and all are without
drafts from labels, which come before all else and would hide much of what the rest is worth. So the
row to compare them with is `no drafts`, and `tfgrpo` shows what drafts add. Not all is what one
setting says:

- group_size=1, no gate: the paper's ablation without group computation, lessons from single
  rollouts. Our settings refuse it (a group of one has nothing to compare), and `learn` takes no
  lesson from a group of one either. So each rollout is made once and given to `learn` twice: the
  two are equal, and teach by failure analysis (feedback, and a score below the best seen) or not at
  all. In the paper right answers may teach too. No gate, as `learn` makes no rollouts for its
  trials; so the row to compare it with is `no gate`.
- no feedback: nor is there any failure analysis then, which lives on feedback.
- no contrast filter: the metric takes less than a millionth of its score from each answer, of every
  answer another part, so groups of equal scores have contrast, but for answers equal to the letter
  and for groups that are all at 0, which failure analysis takes anyway. Scores look the same to the
  reflection LM; the advantages of such groups do not.
- no rollouts: the paper's "directly generated experiences", from inputs and labels.
- no gate: learns from the training examples only, as `tfgrpo` does, and is given no validation set,
  which it would pay to be measured on before and after.
- metric=None: nor is there a gate then.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

import dspy
from compare_optimizers import FOR_CALLS, Setup, arguments, paper, tfgrpo
from simlm_world import draw
from tasks.simulated import lessons_of

from tfgrpo_dspy import Experience, ExperienceLibrary, NoGate, TrainingFreeGRPO

SHOWN_AT_ONCE = 10
"""Examples in one prompt, where experiences are generated without rollouts."""
NO_DRAFTS = "no drafts"
"""The row that all others differ from by what their names say."""
JITTER = 1e-6
BATCH = 8
"""Examples in an update of single rollouts: the default for the 40 of a simulated task."""
TEMPERATURE = 0.7
"""Of training rollouts, as by default."""


class DirectExperiences(dspy.Signature):
    """Read examples of a task, each with its inputs and its labels, and write experiences: short
    lines of advice, "When <condition>, <advice>.", that help to do the task on other examples.
    """

    program: str = dspy.InputField(desc="what the program does")
    examples: str = dspy.InputField(desc="inputs and labels")
    lessons: list[str] = dspy.OutputField(desc="one line each")


def _direct(setup: Setup) -> Any:
    """Experiences from the examples alone: no rollout, no score (the paper's first ablation)."""
    student = setup.task.student()
    ask = dspy.Predict(DirectExperiences)
    does = "\n".join(p.signature.instructions for _, p in student.named_predictors())
    lines: dict[str, None] = {}
    examples = setup.examples
    with dspy.context(lm=setup.reflection):
        for start in range(0, len(examples), SHOWN_AT_ONCE):
            shown = "\n\n".join(map(_shown, examples[start : start + SHOWN_AT_ONCE]))
            lines |= dict.fromkeys(ask(program=does, examples=shown).lessons)
    return _baked(list(lines), student)


def _shown(example: dspy.Example) -> str:
    return "\n".join(f"{name}: {value}" for name, value in example.items())


def _baked(lines: Sequence[str], student: Any) -> Any:
    library = ExperienceLibrary(
        [Experience(f"E{number}", line) for number, line in enumerate(lines, start=1)]
    )
    return library.bake(student)


def _oracle(setup: Setup) -> Any:
    """All that there is to learn, for nothing: what a simulated task can give at most."""
    return _baked(lessons_of(setup.task), setup.task.student())


def _without_feedback(setup: Setup) -> Any:
    def metric(gold: Any, pred: Any, trace: Any = None) -> float:  # noqa: ARG001
        return float(setup.task.metric(gold, pred).score)

    return _without_drafts(setup, metric=metric)


def _without_filter(setup: Setup) -> Any:
    """Scores differ by less than anything a metric means."""

    def metric(gold: Any, pred: Any, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
        found = setup.task.metric(gold, pred)
        score = found.score * (1 - JITTER * draw(pred))
        return dspy.Prediction(score=score, feedback=found.feedback)

    return _without_drafts(setup, metric=metric, min_contrast=0.0)


def _single_rollouts(setup: Setup) -> Any:
    """Epoch after epoch, until the budget ends it; each rollout with the library of its time."""
    given = arguments(setup) | {"max_lm_calls": None, "batch_size": BATCH}
    optimizer = TrainingFreeGRPO(setup.task.metric, **given)
    program, train = setup.task.student(), list(setup.task.train)
    for epoch in range(max(1, setup.budget // len(train))):
        order = random.Random(f"{setup.seed}/{epoch}").sample(train, len(train))
        for start in range(0, len(order), BATCH):
            batch = order[start : start + BATCH]
            traces = [_trace(setup, program, example, epoch) for example in batch]
            program = optimizer.learn(program, traces=[t for t in traces for _ in range(2)])
            setup.observer.note(program)
    return program


def _trace(setup: Setup, program: Any, example: dspy.Example, sample: int) -> dict[str, Any]:
    inputs, labels = dict(example.inputs()), dict(example.labels())
    found: dict[str, Any] = {"inputs": inputs, "labels": labels}
    lm = setup.policy.copy(temperature=TEMPERATURE, rollout_id=sample, seed=sample)
    try:
        with dspy.context(lm=lm):
            prediction = program(**inputs)
    except Exception as error:  # noqa: BLE001 - a failed rollout is a trace, too
        return found | {"error": str(error), "score": 0.0}
    said = setup.task.metric(example, prediction)
    outputs = dict(prediction.items())
    return found | {"outputs": outputs, "score": said.score, "feedback": said.feedback}


def _without_gate(metric: bool = True) -> Callable[[Setup], Any]:
    def run(setup: Setup) -> Any:
        gate = setup.observer.watched(NoGate())
        given = arguments(setup) | FOR_CALLS | {"gate": gate}
        optimizer = TrainingFreeGRPO(setup.task.metric if metric else None, **given)
        return optimizer.compile(setup.task.student(), trainset=list(setup.task.train))

    return run


def _with(**settings: Any) -> Callable[[Setup], Any]:
    return lambda setup: _without_drafts(setup, **settings)


def _without_drafts(setup: Setup, **settings: Any) -> Any:
    return tfgrpo(setup, drafts=0, **settings)


ABLATIONS: dict[str, Callable[[Setup], Any]] = {
    NO_DRAFTS: _with(),
    "group_size=1, no gate": _single_rollouts,
    **{f"group_size={n}": _with(group_size=n) for n in (2, 3, 5, 8)},
    "no labels": _with(use_labels=False),
    "no feedback": _without_feedback,
    "metric=None": _without_gate(metric=False),
    "no gate": _without_gate(),
    "no contrast filter": _without_filter,
    "contrast only": _with(failure_analysis=False),
    "always summarise": _with(summarize_always=True),
    "no rollouts": _direct,
    **{f"max_staleness={n}": _with(max_staleness=n) for n in (0, 1, 2)},
    "paper": paper,
    "paper, small batches": lambda setup: paper(setup, batch_size=5),
    "paper, as implemented": lambda setup: paper(setup, update_per_group=True),
    "oracle": _oracle,
}
