"""How a program, a group and a lesson list look to the reflection LM, and how long a text is."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from tfgrpo_dspy.experience import named_predictors, own_instructions
from tfgrpo_dspy.rollout import Group, Rollout, fields_text, trajectory_text

BYTES_PER_TOKEN = 3.5
"""UTF-8 bytes in a token, on the low side for English text: a stated estimate, not a tokenizer."""

UNKNOWN = "(not known)"
HIDDEN = "(hidden)"
NO_EXPERIENCES = "(none yet)"


def estimate_tokens(text: str) -> int:
    """About how many tokens the text has, from its UTF-8 length; rather too many than too few."""
    return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)


def encodable(text: str) -> str:
    """The text with "?" for half a character (an LM may write one), which no provider takes."""
    return text.encode("utf-8", "replace").decode()


def as_input(text: str) -> str:
    """The text as it may stand in a prompt: it cannot be taken for a section of DSPy's adapters."""
    return encodable(text).replace("[[ ##", "[ [ ##")


def clip(text: str, max_tokens: int) -> str:
    """The text, or its beginning and end with a note of what was left out between them."""
    if estimate_tokens(text) <= max_tokens:
        return text
    encoded, half = text.encode("utf-8", "replace"), int(max_tokens * BYTES_PER_TOKEN) // 2
    head = encoded[:half].decode("utf-8", "ignore")
    tail = encoded[len(encoded) - half :].decode("utf-8", "ignore")
    return f"{head}\n[... {len(text) - len(head) - len(tail)} characters left out ...]\n{tail}"


def describe_program(program: Any) -> str:
    """What the program does, from its own signatures: instructions, inputs, outputs."""
    parts = []
    for name, predictor in named_predictors(program):
        signature = predictor.signature
        inputs, outputs = ", ".join(signature.input_fields), ", ".join(signature.output_fields)
        parts.append(f"{name} ({inputs} -> {outputs}): {own_instructions(predictor)}")
    return "\n\n".join(parts)


def attempt_text(rollout: Rollout, steps: str | None = None) -> str:
    """Feedback, steps and outputs of a rollout.

    Args:
        rollout: the rollout.
        steps: what stands for its trajectory, such as a summary; by default the whole of it. The
            only step of a rollout that went well is left out: its outputs say the same.
    """
    parts = [f"Feedback: {rollout.feedback}"] if rollout.feedback else []
    if steps is None and (len(rollout.steps) > 1 or rollout.failure is not None):
        steps = trajectory_text(rollout)
    parts += [steps] if steps else []
    outputs = _final_outputs(rollout)
    parts += [f"Outputs:\n{fields_text(outputs)}"] if outputs else []
    return "\n".join(parts) or "(no outputs)"


def feedback_text(group: Group) -> str:
    """What the metric, or an error of the program, says of the worst attempt; "" if nothing."""
    worst = min(group.rollouts, key=lambda rollout: rollout.score or 0.0)
    return worst.feedback or (worst.failure.message if worst.failure else "")


def _final_outputs(rollout: Rollout) -> Mapping[str, str]:
    """The outputs, but for an agent's log of its steps, which the steps tell already."""
    with_tools = any(step.kind == "tool" for step in rollout.steps)
    return {
        name: value
        for name, value in rollout.outputs.items()
        if not (with_tools and name == "trajectory")
    }


def attempts_text(group: Group, texts: Sequence[str]) -> str:
    """The attempts of a group, the best first, each with its score and its advantage.

    Args:
        group: the group.
        texts: one text for each of its rollouts, from `attempt_text`.
    """
    scores, advantages = group.scores, group.advantages
    if not scores:
        titles = [f"Attempt {index}" for index in range(1, len(texts) + 1)]
        majority = f"The answer that most attempts give:\n{group.majority_answer}"
        return "\n\n".join([*_titled(titles, texts), majority])
    order = sorted(range(len(texts)), key=lambda index: -scores[index])
    titles = [
        f"Attempt {place} (score {scores[index]:.3g}, advantage {advantages[index]:+.2f})"
        for place, index in enumerate(order, start=1)
    ]
    return "\n\n".join(_titled(titles, [texts[index] for index in order]))


def _titled(titles: Sequence[str], texts: Sequence[str]) -> list[str]:
    return [f"{title}\n{text}" for title, text in zip(titles, texts, strict=True)]
