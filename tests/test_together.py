"""At home in DSPy: BetterTogether, Ensemble, Refine and BestOfN, callbacks of evaluations."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.teleprompt import COPRO, GEPA, SIMBA, BootstrapFewShot, Ensemble, MIPROv2
from dspy.teleprompt.bettertogether import BetterTogether
from runs import (
    ADVICE,
    is_polite,
    knowing,
    learned,
    library_texts,
    optimizer_of,
    polite_answer,
    polite_lm,
    polite_rules,
    predictor,
    questions,
    records,
)
from scripted import Prompt, chat, scripted_lm

from tfgrpo_dspy import ExperienceLibrary, Gate, NoGate

# ------------------------------------------------------------------ other optimizers


def anything(prompt: Prompt) -> str:
    """An answer to whatever another optimizer asks: each output field that the prompt names."""
    names = re.findall(r"`\[\[ ## (\w+) ## \]\]`", prompt.user) or ["answer"]
    return chat(**{name: "Answer the question." for name in names if name != "completed"})


def shared_lm() -> dspy.LM:
    extract, update, _ = polite_rules()
    asked = (r"\[\[ ## question ## \]\]\nquestion \d+\n", polite_answer)
    return scripted_lm([extract, update, asked, ("", anything)])


def plain(example: Any, pred: Any, trace: Any = None) -> float:
    return float(is_polite(example, pred, trace).score)


def five(
    gold: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None
) -> Any:
    del pred_name, pred_trace
    return is_polite(gold, pred, trace)


OTHERS: dict[str, Callable[[], Any]] = {
    "bootstrap": lambda: BootstrapFewShot(plain, max_bootstrapped_demos=1, max_labeled_demos=1),
    "gepa": lambda: GEPA(five, max_metric_calls=20, reflection_lm=shared_lm(), num_threads=1),
    "mipro": lambda: MIPROv2(
        plain, auto=None, num_candidates=2, num_threads=1, max_bootstrapped_demos=0,
        max_labeled_demos=0,
    ),
    "simba": lambda: SIMBA(metric=plain, bsize=4, num_candidates=2, max_steps=1, num_threads=1),
    "copro": lambda: COPRO(metric=plain, breadth=2, depth=1),
}  # fmt: skip
ARGUMENTS: dict[str, Any] = {
    "mipro": {"num_trials": 2, "minibatch": False},
    "copro": {"eval_kwargs": {"num_threads": 1, "display_progress": False}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("strategy", ["other -> ours", "ours -> other -> ours"])
def test_it_is_a_step_of_better_together_in_any_order(name: str, strategy: str) -> None:
    student = predictor()
    student.set_lm(shared_lm())
    ours = optimizer_of(gate=NoGate(), epochs=1, group_size=3)
    with dspy.context(lm=shared_lm()):
        together = BetterTogether(metric=plain, other=OTHERS[name](), ours=ours)
    arguments = {"ours": {"num_threads": 2, "seed": 3, "max_errors": 50}}
    with dspy.context(lm=shared_lm()):
        result = together.compile(
            student, trainset=questions(12), valset=questions(8, start=50), strategy=strategy,
            seed=0, optimizer_compile_args=arguments | {"other": ARGUMENTS.get(name, {})},
        )  # fmt: skip
    assert not result.flag_compilation_error_occurred
    assert len(result.candidate_programs) == strategy.count("->") + 2
    for candidate in result.candidate_programs:
        (ask,) = candidate["program"].predictors()
        assert ask.signature.instructions.count("<experiences>") <= 1
    learned_by = [ExperienceLibrary.from_program(c["program"]) for c in result.candidate_programs]
    assert any(ADVICE in [e.text for e in library] for library in learned_by)


def test_better_togethers_empty_valset_and_its_teacher_are_no_error() -> None:
    with dspy.context(lm=polite_lm()), pytest.warns(UserWarning, match="uses no teacher"):
        program = optimizer_of(gate=NoGate(), epochs=1).compile(
            predictor(), trainset=questions(6), valset=[], teacher=[predictor()]
        )
    assert library_texts(program) == [ADVICE]


def test_a_student_that_brings_the_only_lm_is_reflected_on_by_it() -> None:
    student = predictor()
    student.set_lm(polite_lm())
    with dspy.context(lm=None):
        program = optimizer_of(gate=NoGate(), epochs=1).compile(student, trainset=questions(6))
    assert library_texts(program) == [ADVICE]


def test_text_that_another_optimizer_appends_stays_behind_the_block() -> None:
    student = knowing("Be brief.")
    appended = f"{student.signature.instructions}\n\nIf in doubt, ask."
    student.signature = student.signature.with_instructions(appended)
    program = learned(student, gate=Gate(), epochs=1)
    assert library_texts(program) == ["Be brief.", ADVICE]
    assert program.signature.instructions.endswith("</experiences>\n\nIf in doubt, ask.")


def test_demos_of_the_student_stay_and_results_may_form_an_ensemble() -> None:
    student = predictor()
    student.demos = [dspy.Example(question="q", answer="please")]
    programs = [learned(student, seed=seed, gate=Gate(), epochs=1) for seed in (0, 1)]
    assert [program.demos for program in programs] == [student.demos] * 2
    ensemble = Ensemble(reduce_fn=dspy.majority).compile(programs)
    with dspy.context(lm=polite_lm()):
        assert ensemble(question="question 1").answer in ("please", "no")


@pytest.mark.parametrize("kind", [dspy.Refine, dspy.BestOfN])
def test_rollouts_of_refine_and_best_of_n_name_the_predictor_that_they_try(
    kind: Any, tmp_path: Path
) -> None:
    class Trying(dspy.Module):
        def __init__(self) -> None:
            super().__init__()
            inner = predictor()
            self.tries = kind(
                inner, N=2, reward_fn=lambda _, pred: plain(None, pred), threshold=1.0
            )

        def forward(self, question: str) -> Any:
            return self.tries(question=question)

    advice = ("`discussion`", chat(discussion="d", advice={"tries.module": "Be kind."}))
    lm = scripted_lm([advice, *polite_rules()])
    program = learned(Trying(), lm=lm, gate=Gate(), epochs=1, group_size=2, log_dir=tmp_path)
    steps = [step for each in records(tmp_path, "rollout").values() for step in each["steps"]]
    assert {step["name"] for step in steps if "question" in step["inputs"]} == {"tries.module"}
    assert library_texts(program) == [ADVICE]


# -------------------------------------------------------------------------- callbacks
