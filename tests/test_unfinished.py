"""Answers that were cut, and thoughts that never end."""

from typing import Any

import pytest
from runs import Run
from scripted import EXTRACT, UPDATE, Cut, Prompt, lessons

from tfgrpo_dspy.experience import Add
from tfgrpo_dspy.reflection.lessons import Lesson, finished, settled, without_thoughts
from tfgrpo_dspy.rollout import Rollout, Step, trajectory_text

OPEN = "[[ ## semantic_advantage ## ]]\nSo.\n\n[[ ## lessons ## ]]\n"
DRAFT = "- Wait, is it the first desk?\n- Maybe the second one, I should look."


@pytest.mark.parametrize(
    ("begin", "end"),
    [("<think>", "</think>"), ("<thinking>\n", "</thinking>"), ("<reasoning>", "</reasoning>")],
)
def test_a_thought_in_tags_is_left_out_and_seen_if_it_never_ends(begin: str, end: str) -> None:
    assert without_thoughts(f"{begin}Hm.\n{DRAFT}") == ("", True)
    text, is_open = without_thoughts(f"{begin}Hm.\n{DRAFT}\n{end}\nBe kind.")
    assert (text.strip(), is_open) == ("Be kind.", False)


@pytest.mark.parametrize(
    "text", ["Put the steps into <reasoning> tags.", "Write <think>, then </think2>.", "a < b"]
)
def test_a_tag_that_advice_speaks_of_is_no_thought(text: str) -> None:
    assert without_thoughts(text) == (text, False)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Be kind.\nBe brief unless the", "Be kind."),
        ("- Be kind\n- Be brief unless\n  the seal was", "- Be kind"),
        ("Be kind.\nBe brief!", "Be kind.\nBe brief!"),
        ('["Be kind.", "Be bri', '["Be kind."'),
        ('[{"op": "ADD", "text": "A."}, {"op": "ADD", "te', '[{"op": "ADD", "text": "A."}'),
        ("Be brief unless", ""),
    ],
)
def test_a_cut_text_loses_the_part_that_has_no_end(text: str, kept: str) -> None:
    assert finished(text) == kept


@pytest.mark.parametrize(
    "first",
    [f"<think>\n{DRAFT}", f"{OPEN}Be brief unless the", f"<thinking>\n{OPEN}{DRAFT}"],
    ids=["a thought", "one fragment", "a thought with fields in it"],
)
def test_after_an_answer_without_an_end_the_lm_is_asked_once_more_with_more_room(
    first: str,
) -> None:
    rooms = []

    def answer(prompt: Prompt) -> Any:
        rooms.append(prompt.max_tokens)
        return lessons("Be kind.") if "cut off" in prompt.user else Cut(first)

    run = Run([["1", "0"]], (EXTRACT, answer), lm_arguments={"max_tokens": 100})
    assert [lesson for update in run.results.updates for lesson in update.lessons] == ["Be kind."]
    assert rooms == [100, 400]


@pytest.mark.parametrize(
    "copied",
    [
        "your previous answer was cut off before its end",
        "each under its own marker, and nothing else.",
    ],
)
def test_what_a_small_lm_copies_from_the_correction_is_no_lesson(copied: str) -> None:
    def answer(prompt: Prompt) -> Any:
        return lessons(copied, "Be kind.") if "cut off" in prompt.user else Cut(f"<think>\n{DRAFT}")

    run = Run([["1", "0"]], (EXTRACT, answer))
    assert [lesson for update in run.results.updates for lesson in update.lessons] == ["Be kind."]


def test_of_a_cut_answer_the_finished_lessons_are_taken_and_nothing_is_asked_again() -> None:
    said = Cut(f"{OPEN}Be kind.\nBe brief unless the")
    run = Run([["1", "0"]], (EXTRACT, said))
    assert run.results.updates[0].lessons == ("Be kind.",)
    assert len(run.texts(EXTRACT)) == 1


def test_of_a_cut_update_the_finished_operations_are_made() -> None:
    said = '[[ ## operations ## ]]\n[{"op": "ADD", "text": "Be kind."}, {"op": "ADD", "text": "Be'
    run = Run([["1", "0"]], (UPDATE, Cut(said)))
    assert [experience.text for experience in run.library] == ["Be kind."]


@pytest.mark.parametrize("blank", ["", " ", "\n", "\r\n", " \t\n\n"])
def test_blanks_behind_a_tool_result_do_not_repeat_an_agents_history(blank: str) -> None:
    def step(history: str) -> Step:
        return Step("predictor", "react", {"trajectory": history}, {"thought": "t"})

    first = f"[[ ## observation_0 ## ]]\nfound it{blank}"
    steps = (step(first.strip()), step(f"{first}\n\n[[ ## observation_1 ## ]]\nmore{blank}"))
    text = trajectory_text(Rollout(0, 1, steps=steps, outputs={"answer": "1"}))
    assert text.count("found it") == 1 and "(as before, and)" in text


def test_reworded_advice_that_was_dropped_comes_back_in_the_words_that_were_tried() -> None:
    dropped = [Lesson("Shout at them."), Lesson("Name the bay in words.")]
    new = Add("Name the bay in digits.")
    told = settled([Add("Please, always name the bay in words!"), new], dropped)
    assert told == [Add("Name the bay in words."), new]
