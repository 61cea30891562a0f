"""Golden prompts: what the reflection LM is asked, word for word, so that a change shows in review.

To accept a change, also one of DSPy's ChatAdapter, which writes the frame:
`UPDATE_GOLDEN=1 pytest tests/test_prompts.py`, then read the diff of `tests/golden`.
"""

import enum
import os
from pathlib import Path
from typing import Any

import dspy
import pytest
from scripted import EXTRACT, SUMMARIZE, UPDATE, Prompt, chat, lessons, operations, scripted_lm
from small import grpo

from tfgrpo_dspy import Experience, ExperienceLibrary, NoGate
from tfgrpo_dspy.reflection.modules import WriteBrief, describe_program

GOLDEN = Path(__file__).parent / "golden"


class SupportDesk(dspy.Module):
    """Finds out what a customer wants, then answers."""

    def __init__(self) -> None:
        super().__init__()
        self.understand = dspy.Predict(
            dspy.Signature("complaint -> wish", "Say in a few words what the customer wants.")
        )
        self.reply = dspy.Predict(
            dspy.Signature("complaint, wish -> reply", "Write the reply to the customer.")
        )

    def forward(self, complaint: str) -> dspy.Prediction:
        return self.reply(complaint=complaint, wish=self.understand(complaint=complaint).wish)


COMPLAINT = dspy.Example(
    complaint="My lamp arrived broken.", policy="Damaged goods: refund or replacement."
).with_inputs("complaint")
KNOWN = ExperienceLibrary([Experience(id="E1", text="Name the customer's wish.", scope="reply")])


def understand(prompt: Prompt) -> str:
    return chat(wish="a new lamp" if (prompt.seed or 0) % 2 else "to complain")


def reply(prompt: Prompt) -> str:
    return chat(reply="We send a new one." if "a new lamp" in prompt.user else "Noted.")


def offers(example: dspy.Example, pred: dspy.Prediction) -> dspy.Prediction:
    if "new" in pred.reply:
        return dspy.Prediction(score=1.0, feedback="Offers what the policy allows.")
    return dspy.Prediction(score=0.0, feedback=f"Offers nothing. {example.policy}")


def prompts(pattern: str, metric: Any = offers, **overrides: Any) -> list[Prompt]:
    """The prompts of one update that match the pattern, in the order of their text."""
    lm = scripted_lm(
        [
            (r"## correction ##", lessons("Offer a replacement.")),
            (
                EXTRACT,
                overrides.pop("extracted", lessons("[reply] When goods are damaged, offer.")),
            ),
            (UPDATE, operations({"op": "KEEP", "id": "E1"})),
            ("## examples ##", chat(lessons=["When goods are damaged, offer a refund."])),
            (SUMMARIZE, chat(summary="It understood the wish.")),
            ("what the customer wants", understand),
            ("Write the reply", reply),
        ]
    )
    optimizer = grpo(
        metric, objective="Replies that settle the case.", group_size=2, epochs=1, gate=NoGate(),
        progress=False, num_threads=1, **overrides,
    )  # fmt: skip
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        optimizer.compile(KNOWN.bake(SupportDesk()), trainset=[COMPLAINT])
    found = [prompt for prompt in lm.engine.prompts if pattern in prompt.text]
    return sorted(found, key=lambda prompt: prompt.text)


def check(name: str, prompt: Prompt) -> None:
    """Compare with the golden file, or rewrite it."""
    path = GOLDEN / f"{name}.txt"
    text = f"=== system ===\n{prompt.system}\n=== user ===\n{prompt.user}\n"
    if os.environ.get("UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8"), f"see {path}; UPDATE_GOLDEN=1 rewrites it"


CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "summarize_trajectory": ("`summary`", {"summarize_always": True}),
    "extract_advantage": ("`semantic_advantage`", {}),
    "extract_advantage_hidden": (
        "`semantic_advantage`",
        {"summarize_always": True, "use_labels": False},
    ),
    "extract_advantage_no_ground_truth": ("`critique`", {"metric": None}),
    "extract_advantage_again": ("## correction ##", {"extracted": "Offer a replacement."}),
    "draft_lessons": ("## examples ##", {"drafts": 1}),
    "update_library": ("`operations`", {}),
}


@pytest.mark.filterwarnings("ignore:.*metric=None:UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_reflection_lm_is_asked_word_for_word_what_the_golden_file_says(name: str) -> None:
    pattern, arguments = CASES[name]
    check(name, prompts(pattern, **arguments)[-1])


def test_the_reflection_lm_is_asked_for_a_brief_as_the_golden_file_says() -> None:
    lm = scripted_lm([("`brief`", chat(brief="Offer a refund."))])
    asked = ("program", "objective", "predictor", "present", "examples", "experiences", "attempts")
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
        assert WriteBrief()(**{name: f"({name})" for name in asked}).brief == "Offer a refund."
    check("write_brief", lm.engine.prompts[0])


class Bay(enum.Enum):
    NORTH, SOUTH = "A1", "B2"


@pytest.mark.parametrize("annotation", [Bay, Bay | None, list[Bay]], ids=str)
def test_the_values_that_an_enum_allows_are_told(annotation: Any) -> None:
    output = {"bay": (annotation, dspy.OutputField())}
    program = dspy.Predict(dspy.make_signature({"note": (str, dspy.InputField()), **output}))
    assert "; Bay is one of A1, B2)" in describe_program(program)
