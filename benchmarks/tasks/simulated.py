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

Where the world as it is favours one optimizer or another, it can be varied, also in several ways at
once: `sim:easy+wrong-labels`, `sim:many+paraphrased+merges-err`.

- `wrong-labels`: one labelled case in five (training and validation) has a wrong code for one of
  its items, and the metric follows the label. Held-out scores are exact.
- `no-labels`: examples have no labels, and the feedback says only whether a code is right.
- `agreeing-wrong-lessons`: about a quarter of the items the reflection LM has a misconception: its
  lessons are wrong as often as they are right elsewhere, and name the same code each time, so that
  no vote of lessons finds the right one.
- `merges-err`: of the lines that an update of a library or a rewriting of an instruction reads, one
  in twenty is lost, and one in twenty comes out with another code.
- `paraphrased`: lessons, right and wrong, are worded in five ways.
- `strong-reflection`: .9 of the lessons are as claimed, .02 wrong.
- `unplaceable`: a lesson shares no word with any request.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import dspy
from simlm import Parameters, SimulatedEngine, policy_lm, reflection_lm
from simlm_world import CLAIM, INSTRUCTION, UNPLACEABLE, WORDINGS, World, cases_in, draw, pick

from tasks import Task

N_TRAIN, N_VAL, N_TEST = 40, 40, 200
PREFIX = "sim:"
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


SHARE_OF_WRONG_LABELS = 0.2


@dataclass(frozen=True)
class Variation:
    """In what a task differs from its variant; the names of tasks have these with a hyphen."""

    wrong_labels: bool = False
    no_labels: bool = False
    agreeing_wrong_lessons: bool = False
    merges_err: bool = False
    paraphrased: bool = False
    strong_reflection: bool = False
    unplaceable: bool = False

    @classmethod
    def names(cls) -> tuple[str, ...]:
        """The names of all variations."""
        return tuple(field.name.replace("_", "-") for field in fields(cls))

    @classmethod
    def of(cls, names: list[str]) -> "Variation":
        """The variation that these names make together."""
        return cls(**{name.replace("-", "_"): True for name in names})

    def parameters(self, world: World) -> dict[str, Any]:
        """What the simulated LM has in place of its usual parameters."""
        of_flag: Mapping[str, Mapping[str, Any]] = {
            "agreeing_wrong_lessons": {"misconceived": world.items[: world.n_items // 4]},
            "merges_err": {"lesson_dropped": 0.05, "lesson_garbled": 0.05},
            "paraphrased": {"wordings": WORDINGS},
            "strong_reflection": {
                "lesson_as_claimed": 0.9,
                "lesson_vague": 0.05,
                "lesson_wrong": 0.02,
            },
            "unplaceable": {"wordings": (UNPLACEABLE,)},
        }
        found: dict[str, Any] = {}
        for flag, values in of_flag.items():
            if getattr(self, flag):
                found |= values
        return found


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
    variation: Variation = Variation()

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

    def label(self, number: int) -> dict[str, str]:
        """The code of each item of a case, as labels and metric have it."""
        items = self.world.case(number)
        codes = {item: self.world.right(item) for item in items}
        key = (self.world.seed, "label", number)
        if (
            self.variation.wrong_labels
            and number < FIRST_TEST
            and draw(*key) < SHARE_OF_WRONG_LABELS
        ):
            item = items[pick(len(items), "item", *key)]
            _, *wrong = self.world.codes(item)
            codes[item] = wrong[pick(len(wrong), "code", *key)]
        return codes

    def example(self, number: int) -> dspy.Example:
        """A case as an example."""
        answer = " ".join(f"{item}={code}" for item, code in self.label(number).items())
        labels = {} if self.variation.no_labels else {"answer": answer}
        request = self.world.request(number)
        return dspy.Example(request=request, **labels).with_inputs("request")

    def examples(self, start: int, n: int) -> list[dspy.Example]:
        """So many cases from this number on."""
        return [self.example(number) for number in range(start, start + n)]

    def _verdict(
        self, number: int, item: str, code: str | None, reasoning: str
    ) -> tuple[bool, str]:
        right = self.label(number)[item]
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
        if self.variation.no_labels:
            return False, f"{given} is wrong."
        return False, f"{given} is wrong: expected {item}={right}."


def load(name: str, seed: int, parameters: Parameters | None = None) -> Task:
    """A variant of the task with its variations, such as `sim:easy+no-labels`, and its LMs.

    Raises:
        ValueError: there is no such variant or variation.
    """
    variant, *variations = name.split("+")
    names = [f"{PREFIX}{known}" for known in VARIANTS]
    if variant not in names or not set(variations) <= set(Variation.names()):
        known = f"{', '.join(names)}, each with +{', +'.join(Variation.names())}"
        raise ValueError(f"task {name!r}: there is none; pass one of {known}.")
    kind, variation = VARIANTS[variant.removeprefix(PREFIX)], Variation.of(variations)
    chances = {"chance_hard": kind.chance_hard, "chance_easy": kind.chance_easy}
    given = {what: chance for what, chance in chances.items() if chance is not None}
    world = World(seed, kind.n_items)
    changed = replace(parameters or Parameters(), **given, **variation.parameters(world))
    engine = SimulatedEngine(world, changed)
    judge = Judge(world, kind, variation)
    return Task(
        name=name,
        student=Clerk,
        train=judge.examples(0, N_TRAIN),
        val=judge.examples(N_TRAIN, N_VAL),
        test=judge.examples(FIRST_TEST, N_TEST),
        metric=judge,
        plain_metric=judge.plain,
        make_lm=lambda _: policy_lm(engine),
        make_reflection_lm=lambda _: reflection_lm(engine),
        notes="simulated; " + "; ".join(world.lessons()),
    )


def lessons_of(task: Task) -> list[str]:
    """All that there is to learn in a simulated task: what no optimizer is told."""
    return task.notes.split("; ")[1:]
