"""Optimize a pipeline of three predictors, with feedback on each: advice lands where it is needed.

    python examples/three_stages.py [--lm openai/gpt-5-mini] [--reflection-lm openai/gpt-5]

Runs on a simulated LM in 3 seconds. The metric has the five arguments of GEPA's metrics: for
each predictor it is asked again, and says what that predictor did wrong. Here only the second of
the three stages makes mistakes, so the advice that helps goes to `decide`. Prints the library
with the scope of each line.
"""

from typing import Any, Literal

import dspy
from simulated import arguments

from tfgrpo_dspy import ExperienceLibrary, TrainingFreeGRPO

Decision = Literal["pay", "refuse", "inspect", "share"]
POLICY = {"hail": "pay", "rust": "refuse", "theft": "inspect", "floods": "share"}
LETTERS = (
    "Dear insurance, my {thing} is the victim of {cause}. What now?",
    "After last night I report {cause}: it is about my {thing}.",
    "You know me as a loyal customer. My {thing}! It was {cause}, I am certain.",
    "I bought the {thing} last year, and now {cause}. Please help.",
)
THINGS = ("car", "bicycle", "roof", "garden shed", "boat")


class ReadLetter(dspy.Signature):
    """List what the customer claims."""

    letter: str = dspy.InputField()
    facts: str = dspy.OutputField()


class Decide(dspy.Signature):
    """Decide the claim."""

    facts: str = dspy.InputField()
    decision: Decision = dspy.OutputField()


class WriteAnswer(dspy.Signature):
    """Tell the customer what was decided."""

    facts: str = dspy.InputField()
    decision: str = dspy.InputField()
    message: str = dspy.OutputField()


class Claims(dspy.Module):
    """Reads a letter to an insurance, decides the claim, and writes the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.read = dspy.Predict(ReadLetter)
        self.decide = dspy.Predict(Decide)
        self.write = dspy.Predict(WriteAnswer)

    def forward(self, letter: str) -> dspy.Prediction:
        facts = self.read(letter=letter).facts
        decision = self.decide(facts=facts).decision
        message = self.write(facts=facts, decision=decision).message
        return dspy.Prediction(decision=decision, message=message)


def metric(
    example: dspy.Example,
    pred: dspy.Prediction,
    trace: Any = None,  # noqa: ARG001
    pred_name: str | None = None,
    pred_trace: Any = None,
) -> dspy.Prediction:
    """1 if the message tells the right decision. With `pred_name`: feedback on that predictor."""
    score = float(pred.decision == example.decision and example.decision in pred.message)
    feedback = ""
    if pred_name == "read":
        _, _, outputs = pred_trace[0]
        feedback = "" if example.cause in outputs.facts else "Name the cause of the damage."
    if pred_name == "decide" and pred.decision != example.decision:
        feedback = f"When the cause is {example.cause}, the decision is {example.decision}."
    if pred_name == "write" and pred.decision not in pred.message:
        feedback = "Tell the customer the decision."
    return dspy.Prediction(score=score, feedback=feedback)


examples = [
    dspy.Example(
        letter=letter.format(thing=thing, cause=cause), cause=cause, decision=decision
    ).with_inputs("letter")
    for letter in LETTERS
    for thing in THINGS
    for cause, decision in POLICY.items()
]


if __name__ == "__main__":
    given = arguments(__doc__)
    optimizer = TrainingFreeGRPO(metric, reflection_lm=given.reflection_lm, max_lm_calls=600)
    optimized = optimizer.compile(Claims(), trainset=examples[:56], testset=examples[56:])
    print(optimized.detailed_results)
    print("\nThe library: who reads which advice")
    for experience in ExperienceLibrary.from_program(optimized):
        print(f"  [{experience.scope}] {experience.text}")
