"""Requests are ordered, and prompts laid out, so that providers' prefix caches hit."""

import itertools

import dspy
from runs import ADVICE, optimizer_of, polite_lm, questions
from scripted import Prompt

from tfgrpo_dspy import NoGate

N_EXAMPLES, EPOCHS, GROUP_SIZE = 12, 2, 4


def prompts_of_a_run(field: str) -> list[Prompt]:
    """The prompts with this field, of a run whose one worker has several batches waiting.

    After the first update the library has one experience, and stays as it is.
    """
    lm = polite_lm()
    optimizer = optimizer_of(
        gate=NoGate(),
        group_size=GROUP_SIZE,
        batch_size=3,
        epochs=EPOCHS,
        max_staleness=2,
        num_threads=1,
    )
    with dspy.context(lm=lm, adapter=dspy.ChatAdapter()):
        optimizer.compile(dspy.Predict("question -> answer"), trainset=questions(N_EXAMPLES))
    return [prompt for prompt in lm.engine.prompts if f"`{field}` (" in prompt.system]


def test_the_rollouts_of_a_group_are_sent_one_after_another() -> None:
    sent = [prompt.text for prompt in prompts_of_a_run("answer")]
    sizes = [len(list(same)) for _, same in itertools.groupby(sent)]
    assert sizes == [GROUP_SIZE] * N_EXAMPLES * EPOCHS


def test_an_experience_more_changes_nothing_of_the_policys_prompt_before_it() -> None:
    before, after = dict.fromkeys(prompt.system for prompt in prompts_of_a_run("answer"))
    assert ADVICE not in before
    assert ADVICE in after
    assert after.startswith(before)


def test_prompts_that_ask_for_lessons_with_one_library_are_alike_up_to_the_example() -> None:
    parts = [
        prompt.text.partition("## ]]\nquestion: question ")
        for prompt in prompts_of_a_run("semantic_advantage")
    ]
    asked = [(head, rest) for head, _, rest in parts if "(none yet)" in head]
    (shared,) = {head for head, _ in asked}
    assert len({rest for _, rest in asked}) > 1
    assert shared.endswith("[[ ## example ")
    assert "[[ ## max_words ## ]]\n40\n" in shared
