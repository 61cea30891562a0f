"""The simulated LM of the comparison: fair to every optimizer, a function of prompt and sample."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.propose.dataset_summary_generator import (
    DatasetDescriptor,
    DatasetDescriptorWithPriorObservations,
    ObservationSummarizer,
)
from dspy.propose.grounded_proposer import (
    DescribeModule,
    DescribeProgram,
    generate_instruction_class,
)
from dspy.teleprompt.copro_optimizer import (
    BasicGenerateInstruction,
    GenerateInstructionGivenAttempts,
)
from dspy.teleprompt.infer_rules import RulesInductionProgram
from dspy.teleprompt.simba_utils import OfferFeedback

from tfgrpo_dspy.reflection.signatures import CompareAttempts, CritiqueAttempts, SummarizeAttempt

for package in ("gepa", "optuna"):
    pytest.importorskip(package)

from compare_budget import POLICY, REFLECTION, Account, BudgetSpentError, counted  # noqa: E402
from compare_observe import Observer  # noqa: E402
from compare_optimizers import OPTIMIZERS, Setup  # noqa: E402
from dspy.teleprompt.gepa.instruction_proposal import ProposeInstruction  # noqa: E402
from simlm import Parameters, SimulatedEngine, policy_lm, reflection_lm  # noqa: E402
from simlm_reflection import evidence  # noqa: E402
from simlm_texts import Prompt, output_fields, sections  # noqa: E402
from simlm_world import (  # noqa: E402
    LESSON,
    UNPLACEABLE,
    WORDINGS,
    World,
    lesson,
    lessons_in,
)
from tasks.simulated import FIRST_TEST, Clerk, Variation, load  # noqa: E402

WORLD = World(seed=0, n_items=8)
ITEM = WORLD.items[0]
RIGHT, WRONG, OTHER = WORLD.codes(ITEM)[:3]
SEEN = f"Request 3: a customer asks about {ITEM}. {ITEM}={WRONG} is wrong: expected {ITEM}={RIGHT}."
ASKED: dict[str, tuple[Any, dspy.Adapter]] = {
    **{
        signature.__name__: (signature, dspy.ChatAdapter())
        for signature in (
            CompareAttempts,
            CritiqueAttempts,
            SummarizeAttempt,
            OfferFeedback,
            DatasetDescriptor,
            DatasetDescriptorWithPriorObservations,
            ObservationSummarizer,
            DescribeProgram,
            DescribeModule,
            BasicGenerateInstruction,
            GenerateInstructionGivenAttempts,
        )
    },
    "GEPA": (ProposeInstruction, dspy.JSONAdapter()),
    "MIPROv2": (generate_instruction_class().signature, dspy.ChatAdapter()),
    "InferRules": (RulesInductionProgram(10).rules_induction.predict.signature, dspy.ChatAdapter()),
}


class RecordingEngine(SimulatedEngine):
    """Keeps the prompts that it answers."""

    def __init__(self, world: World = WORLD, parameters: Parameters | None = None) -> None:
        super().__init__(world, parameters)
        self.prompts: list[Prompt] = []

    def complete(self, request: lm15.Request) -> lm15.Response:
        self.prompts.append(Prompt.of(request, ""))
        return super().complete(request)


def answers(name: str, shown: str, n: int, parameters: Parameters | None = None) -> list[str]:
    """What the reflection LM writes in n samples where an optimizer's signature shows this."""
    signature, adapter = ASKED[name]
    fixed = {
        "module_names": ["ask.predict"],
        "max_words": 40,
        "worse_reward_value": 0.0,
        "better_reward_value": 1.0,
    }
    *_, last = [field for field in signature.input_fields if field not in fixed]
    given = dict.fromkeys(signature.input_fields, "-") | {last: shown}
    if name == "GEPA":
        given["examples_with_feedback"] = [{"Feedback": shown}]
    given |= {field: value for field, value in fixed.items() if field in given}
    engine = RecordingEngine(parameters=parameters)
    lm = reflection_lm(engine).copy(cache=False)
    found = []
    with dspy.context(adapter=adapter):
        for sample in range(n):
            with dspy.context(lm=lm.copy(rollout_id=sample)):
                found.append(str(dict(dspy.Predict(signature)(**given))))
    assert len(engine.prompts) == n  # each answer parsed at once
    return found


@pytest.mark.parametrize("name", ASKED)
def test_every_optimizer_gets_a_lesson_from_the_same_evidence_with_the_same_chance(
    name: str,
) -> None:
    written = [lessons_in(text) for text in answers(name, SEEN, 120)]
    right = sum((ITEM, RIGHT) in lessons for lessons in written)
    assert 40 <= right <= 80
    assert 2 <= sum(bool(lessons) for lessons in written) - right <= 25


@pytest.mark.parametrize("name", ASKED)
def test_no_optimizer_gets_a_lesson_without_evidence(name: str) -> None:
    shown = f"Request 3: a customer asks about {ITEM}. {ITEM}={WRONG} is wrong."
    assert not any(LESSON.search(text) for text in answers(name, shown, 30))


@pytest.mark.parametrize(
    "shown",
    [
        f"expected {ITEM}={RIGHT}",
        f"{ITEM}={RIGHT} is right. {ITEM}={WRONG}",
        f"answer: {ITEM}={RIGHT}",
        f"Attempt 1 (score 1, advantage +1)\n{ITEM}={RIGHT}\n"
        f"Attempt 2 (score 0, advantage -1)\n{ITEM}={WRONG}",
        f"Attempt 1 (score 0.5)\n{ITEM}={RIGHT}\nAttempt 2 (score 0.3)\n{ITEM}={WRONG}",
        f"[[ ## worse_program_outputs ## ]]\n{ITEM}={WRONG}\n\n"
        f"[[ ## better_program_outputs ## ]]\n{ITEM}={RIGHT}",
        f"{ITEM}={RIGHT} {ITEM}={RIGHT} {ITEM}={WRONG}",
    ],
)
def test_labels_verdicts_contrast_and_majority_are_evidence(shown: str) -> None:
    assert evidence(shown) == {ITEM: RIGHT}


@pytest.mark.parametrize(
    "shown",
    [
        "",
        f"{ITEM}={WRONG} is wrong",
        f"{ITEM}={RIGHT} {ITEM}={WRONG}",
        f"Attempt 1 (score 0)\n{ITEM}={OTHER}\nAttempt 2 (score 0)\n{ITEM}={WRONG}",
        lesson(ITEM, RIGHT),
    ],
)
def test_a_tie_a_failure_alone_or_a_lesson_is_no_evidence(shown: str) -> None:
    assert evidence(shown) == {}


def score(advice: str = "", demos: int = 0, n: int = 150, parameters: Any = None) -> float:
    """The share of right answers with this advice, and demos of each item."""
    program = Clerk()
    predictor = program.ask.predict
    told = f"{predictor.signature.instructions}\n{advice}"
    predictor.signature = predictor.signature.with_instructions(told)
    predictor.demos = [
        dspy.Example(request=WORLD.request(i), reasoning="-", answer=WORLD.answer(i))
        for i in range(demos)
    ]
    task = load("sim:easy", 0, parameters=parameters)
    numbers = range(1000, 1000 + n)
    with dspy.context(lm=policy_lm(SimulatedEngine(WORLD, parameters)).copy(cache=False)):
        return (
            sum(
                task.metric(gold, program(request=gold.request)).score
                for gold in (dspy.Example(request=WORLD.request(number)) for number in numbers)
            )
            / n
        )


def test_lessons_help_more_than_demos_and_demos_more_than_nothing() -> None:
    nothing, shown, told = score(), score(demos=16), score("\n".join(WORLD.lessons()))
    assert nothing < 0.35 < 0.6 < shown < told
    assert told > 0.85


@pytest.mark.parametrize("wording", [*WORDINGS, UNPLACEABLE])
def test_a_lesson_is_followed_however_it_is_worded(wording: str) -> None:
    told = [lesson(item, WORLD.right(item), wording) for item in WORLD.items]
    assert score("\n".join(told), n=60) > 0.85


def test_an_answer_is_a_function_of_prompt_and_sample() -> None:
    lm = policy_lm(SimulatedEngine(WORLD)).copy(cache=False)
    asked: Callable[[dspy.LM], str] = lambda lm: str(  # noqa: E731
        dspy.Predict(Clerk().ask.predict.signature)(request=WORLD.request(5), lm=lm)
    )
    again = policy_lm(SimulatedEngine(WORLD)).copy(cache=False)
    warm = [lm.copy(rollout_id=i, temperature=0.7) for i in range(8)]
    assert asked(lm) == asked(again)
    assert [asked(x) for x in warm] == [asked(x) for x in warm]
    assert len({asked(x) for x in warm}) == 8


@pytest.mark.parametrize("variation", Variation.names())
def test_every_variation_changes_what_its_name_says_and_not_the_test(variation: str) -> None:
    plain, varied = load("sim:easy", 3), load(f"sim:easy+{variation}", 3)
    engines = [task.make_lm(3)._engine_spec for task in (plain, varied)]  # type: ignore[misc]  # noqa: SLF001
    changes = Variation.of([variation]).parameters(varied.metric.world)  # type: ignore[attr-defined]
    assert engines[1].parameters == replace(engines[0].parameters, **changes)
    assert changes or varied.train != plain.train
    numbers = range(FIRST_TEST, FIRST_TEST + len(varied.test))
    assert [e.request for e in varied.test] == [varied.metric.world.request(n) for n in numbers]  # type: ignore[attr-defined]


NO_REFLECTION = ("none", "labelled", "oracle", "bootstrap", "bootstrap-rounds8", "best-of-n demos")
KNOWS_NO_DATA = (*NO_REFLECTION, "copro")
"""COPRO's prompts show no example."""


@pytest.mark.filterwarnings("default")  # other packages' own
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_runs_on_it_within_its_budget(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    budget = 120
    task, account, engine = load("sim:easy", 0), Account(budget), RecordingEngine()
    observer = Observer(task.student())
    setup = Setup(
        task=task,
        budget=budget,
        seed=0,
        policy=counted(policy_lm(engine), POLICY, account),
        reflection=counted(reflection_lm(engine), REFLECTION, account),
        observer=observer,
        n_threads=2,
        calls=1.0,
    )
    try:
        with dspy.context(lm=setup.policy, callbacks=[observer]):
            OPTIMIZERS[name](setup)
    except BudgetSpentError:
        assert observer.best is not None
    capfd.readouterr()
    assert account.n_calls == len(engine.prompts) <= budget
    assert account.n_failed == 0
    reflections = [p for p in engine.prompts if "answer" not in output_fields(p.system).names]
    assert account.spent[REFLECTION].calls >= len(reflections) > 0 or name in NO_REFLECTION
    is_shown = any(evidence(prompt.user) for prompt in reflections)
    assert is_shown == (name not in KNOWS_NO_DATA)
    assert all(sections(prompt.user) for prompt in engine.prompts)
