"""SIMULATED tasks for the simulated LM (`simlm.py`): `sim:easy`, `sim:sparse`, and so on.

All are the same work: give the codes of the items that a request names. The score is the share of
items with the right code, the feedback says of each code whether it is right, or what was expected.

- `easy`: 8 items.
- `sparse`: what is not known is nearly never guessed, and the score is all or nothing.
- `noisy`: one verdict in five is the opposite of the truth, in score and feedback, drawn for each
  answer anew. Held-out scores are exact.
- `many`: 24 items, so 24 lessons.
- `misleading`: the score is exact, but in two cases in five the feedback expects a wrong code, that
  of the item's usual mistake.
"""

import pathlib
from dataclasses import dataclass, replace
from typing import Any

import dspy
from simlm import Parameters, SimulatedEngine, policy_lm, reflection_lm
from simlm_world import CLAIM, INSTRUCTION, World, cases_in, draw

from tasks import Task

N_TRAIN, N_VAL, N_TEST = 40, 40, 200
FIRST_TEST = 10_000
"""Numbers of cases from here on are held out."""


@dataclass(frozen=True)
class Variant:
    """What sets a variant apart; shares are of 1."""

    n_items: int = 8
    all_or_nothing: bool = False
    verdicts_turned: float = 0.0
    feedback_misleads: float = 0.0
    chance_hard: float | None = None
    chance_easy: float | None = None


VARIANTS = {
    "easy": Variant(),
    "sparse": Variant(all_or_nothing=True, chance_hard=0.0, chance_easy=0.12),
    "noisy": Variant(verdicts_turned=0.2),
    "many": Variant(n_items=24),
    "misleading": Variant(feedback_misleads=0.4),
}


class Clerk(dspy.Module):
    """The program: one predictor that thinks first."""

    def __init__(self) -> None:
        super().__init__()
        self.ask = dspy.ChainOfThought(dspy.Signature("request -> answer", INSTRUCTION))

    def forward(self, request: str) -> dspy.Prediction:
        return self.ask(request=request)


@dataclass(frozen=True)
class Judge:
    """The metric, with feedback."""

    world: World
    variant: Variant

    def __call__(
        self,
        gold: Any,
        pred: Any,
        trace: Any = None,  # noqa: ARG002
        pred_name: Any = None,  # noqa: ARG002
        pred_trace: Any = None,  # noqa: ARG002
    ) -> dspy.Prediction:
        number, _ = next(cases_in(gold.request))
        given = dict(CLAIM.findall(str(getattr(pred, "answer", ""))))
        verdicts = {
            item: self._verdict(number, item, given.get(item), str(getattr(pred, "reasoning", "")))
            for item in self.world.case(number)
        }
        right = [is_right for is_right, _ in verdicts.values()]
        score = float(all(right)) if self.variant.all_or_nothing else sum(right) / len(right)
        return dspy.Prediction(
            score=score, feedback=" ".join(said for _, said in verdicts.values())
        )

    def plain(self, gold: Any, pred: Any, trace: Any = None) -> float:
        """The score alone; in bootstrapping (DSPy passes a trace then), 1.0 or nothing."""
        score = self(gold, pred).score
        return score if trace is None else float(score == 1.0)

    def _verdict(
        self, number: int, item: str, code: str | None, reasoning: str
    ) -> tuple[bool, str]:
        right = self.world.right(item)
        is_right = code == right
        given = f"{item}={code}" if code else f"{item} has no code, which"
        if number < FIRST_TEST:
            key = (self.world.seed, number, item)
            if draw("judge", *key, code, reasoning) < self.variant.verdicts_turned:
                return not is_right, f"{given} is {'wrong' if is_right else 'right'}."
            if draw("misled", *key) < self.variant.feedback_misleads:
                right = self.world.codes(item)[1]
        if is_right:
            return True, f"{given} is right."
        return False, f"{given} is wrong: expected {item}={right}."


def load(
    seed: int,
    data: pathlib.Path | None = None,  # noqa: ARG001 - part of the protocol; nothing is read
    variant: str = "easy",
    parameters: Parameters | None = None,
) -> Task:
    """A variant of the task, and its LMs."""
    kind = VARIANTS[variant]
    chances = {"chance_hard": kind.chance_hard, "chance_easy": kind.chance_easy}
    known = {name: chance for name, chance in chances.items() if chance is not None}
    world = World(seed, kind.n_items)
    engine = SimulatedEngine(world, replace(parameters or Parameters(), **known))
    judge = Judge(world, kind)
    return Task(
        name=f"sim:{variant}",
        student=Clerk,
        train=_examples(world, 0, N_TRAIN),
        val=_examples(world, N_TRAIN, N_VAL),
        test=_examples(world, FIRST_TEST, N_TEST),
        metric=judge,
        plain_metric=judge.plain,
        make_lm=lambda _: policy_lm(engine),
        make_reflection_lm=lambda _: reflection_lm(engine),
        notes="simulated; " + "; ".join(world.lessons()),
    )


def _examples(world: World, start: int, n: int) -> list[dspy.Example]:
    return [
        dspy.Example(request=world.request(number), answer=world.answer(number)).with_inputs(
            "request"
        )
        for number in range(start, start + n)
    ]


def lessons_of(task: Task) -> list[str]:
    """All that there is to learn in a simulated task: what no optimizer is told."""
    return task.notes.split("; ")[1:]
