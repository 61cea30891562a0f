"""Customer-support replies on the embedded LM: data, program, metric and LM of the quickstart.

Policy and reflection LM are SmolLM2-135M inside the process. Such a model needs a prompt without
field markers, so the student brings its adapter along: it is then the same for every optimizer.
"""

import os
import random
import sys
from pathlib import Path

import dspy

from tasks import Task, in_gepas_form, plain
from tasks.seeded import seeded
from tfgrpo_dspy.local import PlainAdapter, local_lm

EXAMPLES = Path(__file__).parents[2] / "examples"
if str(EXAMPLES) not in sys.path:
    sys.path.append(str(EXAMPLES))
import support_replies  # noqa: E402 - an example, found where examples are

N_TRAIN, N_VALIDATION = 36, 40
MAX_TOKENS, MAX_TOKENS_OF_REFLECTION = 90, 256
DEMO_THRESHOLD = 0.4
"""Two rules of the five: so few replies keep three that there would often be no demo at all."""
GGUF = os.environ.get("BENCHMARK_GGUF")  # None: the file of the wheel
PLAIN_ADAPTER = PlainAdapter()


metric = in_gepas_form(support_replies.house_style)
"""The quickstart's: the share of five rules of style that the reply keeps."""


class ReplyInPlainText(dspy.Module):
    """The quickstart's program, in the prompt form that a small model follows."""

    def __init__(self) -> None:
        super().__init__()
        self.reply = support_replies.program()

    def forward(self, complaint: str) -> dspy.Prediction:
        with dspy.context(adapter=PLAIN_ADAPTER):
            return self.reply(complaint=complaint)


def make_lm(seed: int) -> dspy.LM:
    return seeded(local_lm(GGUF, temperature=0.0, max_tokens=MAX_TOKENS, seed=seed))


def make_reflection_lm(seed: int) -> dspy.LM:
    return seeded(local_lm(GGUF, temperature=0.7, max_tokens=MAX_TOKENS_OF_REFLECTION, seed=seed))


def load(seed: int) -> Task:
    """36 complaints to train and 40 to validate, drawn by seed; all 80 of the test, always."""
    trainset, valset, testset = support_replies.load()
    draw = random.Random(f"support/{seed}")
    return Task(
        name="support",
        student=ReplyInPlainText,
        train=draw.sample(trainset, N_TRAIN),
        val=draw.sample(valset, N_VALIDATION),
        test=testset,
        metric=metric,
        plain_metric=plain(metric),
        demo_threshold=DEMO_THRESHOLD,
        make_lm=make_lm,
        make_reflection_lm=make_reflection_lm,
        notes=(
            "A 135M model repeats advice rather than understands it, and the metric looks for "
            "words: any second line in the prompt gains something (README, limits). The "
            f"reflection LM may write {MAX_TOKENS_OF_REFLECTION} tokens here, 60 in the quickstart."
        ),
    )
