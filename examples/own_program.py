"""Optimize a program of your own, in 30 lines: a module with Python in it, a metric, 60 examples.

    python examples/own_program.py [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]

Runs on a simulated LM in 2 seconds. Your own program takes the place of `Triage`, your data that
of `examples`. The metric's feedback says in words why an answer is wrong: the reflection LM reads
it. Prints what was learned and what it is worth, and saves the program as `triage.json`.
"""

from typing import Any, Literal

import dspy
from simulated import arguments

from tfgrpo_dspy import TrainingFreeGRPO

# The data: 60 messages, whose right priority is that of their topic.
PRIORITIES = {"invoices": "low", "deliveries": "normal", "passwords": "high", "outages": "urgent"}
CONTRACTS = {"Ada": "standard", "Ben": "premium", "Cleo": "none"}
MESSAGES = (
    "I have a question about {}.",
    "Please look into your {} of yesterday.",
    "Again trouble with {}! Who can help?",
    "My colleague told me to write to you because of {}.",
    "We are waiting for news of our {}.",
)
examples = [
    dspy.Example(
        sender=sender, message=message.format(topic), topic=topic, priority=priority
    ).with_inputs("sender", "message")
    for message in MESSAGES
    for topic, priority in PRIORITIES.items()
    for sender in CONTRACTS
]


class SetPriority(dspy.Signature):
    """Set the priority of a message to a help desk."""

    message: str = dspy.InputField()
    contract: str = dspy.InputField()
    priority: Literal["low", "normal", "high", "urgent"] = dspy.OutputField()


class Triage(dspy.Module):
    """Looks up the sender's contract, then sets the priority of a message."""

    def __init__(self) -> None:
        super().__init__()
        self.set_priority = dspy.Predict(SetPriority)

    def forward(self, sender: str, message: str) -> dspy.Prediction:
        return self.set_priority(message=message, contract=CONTRACTS.get(sender, "none"))


def metric(example: dspy.Example, pred: dspy.Prediction, trace: Any = None) -> dspy.Prediction:  # noqa: ARG001
    """1 for the right priority, else 0 and why."""
    is_right = pred.priority == example.priority
    why = f"When the message is about {example.topic}, the priority is {example.priority}."
    return dspy.Prediction(score=float(is_right), feedback="" if is_right else why)


if __name__ == "__main__":
    given = arguments(__doc__)
    optimizer = TrainingFreeGRPO(metric, reflection_lm=given.reflection_lm, max_lm_calls=200)
    optimized = optimizer.compile(Triage(), trainset=examples[:36], testset=examples[36:])
    print(optimized.detailed_results)
    optimized.save("triage.json")  # load it with Triage().load("triage.json"): needs DSPy only
