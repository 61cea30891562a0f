"""Reflection: how lessons are read and compared, and what its modules make of an LM."""

import re
from pathlib import Path
from typing import Any

import dspy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted import lessons, scripted_lm

from tfgrpo_dspy import (
    DraftLessons,
    Effect,
    Evidence,
    Experience,
    ExperienceLibrary,
    ExtractAdvantage,
    SettingsError,
    SummarizeTrajectory,
    UpdateLibrary,
)
from tfgrpo_dspy.reflection.lessons import (
    Lesson,
    bare_line,
    is_same_lesson,
    read_lesson,
    resolve_scope,
    sources_of,
)
from tfgrpo_dspy.reflection.modules import attempt_text, attempts_text, feedback_text, library_text
from tfgrpo_dspy.rollout import Failure, Group, Rollout, ScoreRange, Step

GROUP_0 = Evidence(update=0, example=0, rollout_ids=(1, 2), scores=(1.0, 0.0))
GROUP_1 = Evidence(update=0, example=1, rollout_ids=(3, 4), scores=(0.5, 0.0))


@pytest.mark.parametrize(
    ("line", "scope", "text"),
    [
        ("  Say\n please.\t", "*", "Say please."),
        ("[Writer]: Be brief.", "writer", "Be brief."),
        ("[predictor writer]Be brief.", "writer", "Be brief."),
        ("[writer] Use [reader] tags.", "writer", "Use [reader] tags."),
        ("[steps[1]] Be brief.", "steps[1].predict", "Be brief."),
        ("\u3010steps[1].predict\u3011: Be [very] brief.", "steps[1].predict", "Be [very] brief."),
        ("[by['x] y']]: Be brief.", "by['x] y']", "Be brief."),
        ("[steps[7]] Be brief.", "*", "[steps[7]] Be brief."),
    ],
)
def test_a_predictors_name_in_brackets_is_the_scope_of_a_lesson(
    line: str, scope: str, text: str
) -> None:
    predictors = ["reader", "writer", "steps[0].predict", "steps[1].predict", "by['x] y']"]
    assert read_lesson(line, predictors) == (text, scope)
    assert read_lesson("[self] Be brief.", ["self"]) == ("Be brief.", "*")


@pytest.mark.parametrize(
    ("name", "scope"),
    [
        ("route", "route.predict"),
        ("summarize.predict", "summarize.predict"),
        ("`check`", "flow.check"),
        ("[route]", "route.predict"),
        ("all", "*"),
        ("*", "*"),
        ("predict", None),
        ("flow", "flow.check"),
        ("rout", None),
    ],
)
def test_a_predictor_may_be_named_by_a_part_of_its_name_that_no_other_has(
    name: str, scope: str | None
) -> None:
    assert resolve_scope(name, ["route.predict", "summarize.predict", "flow.check"]) == scope


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("Be brief. (examples 1, 3)", "Be brief."),
        ("Be brief (example 2).", "Be brief"),
        ("Be brief. (from examples 1 and 2)", "Be brief."),
        ("\u7b80\u77ed\u3002\uff08\u793a\u4f8b 2\u30013\uff09", "\u7b80\u77ed\u3002"),
        ("Use step (4).", "Use step (4)."),
        ("Add the fee (step 2)", "Add the fee (step 2)"),
    ],
)
def test_the_examples_that_a_lesson_names_as_its_sources_are_left_out(line: str, text: str) -> None:
    assert read_lesson(line, ["self"]) == (text, "*")


# ---------------------------------------------------------------------- the same lesson twice

LESSON = "When the customer is angry, say sorry before you ask for the order number."
LONGER = LESSON.replace("angry", "very angry")


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (LESSON, LESSON.lower().replace(", ", " - "), True),
        (LESSON, LONGER, True),
        (LESSON, f"{LESSON} Then wait for a reply.", False),
        (LESSON, LESSON.replace("say", "never say"), False),
        (LESSON, LESSON.replace("is angry", "isn't angry"), False),
        (LESSON, LESSON.replace("before", "after"), False),
        (LESSON, LESSON.replace("sorry", "sorry 2 times"), False),
        (LESSON, "When the customer is angry, ask before you say sorry.", False),
        (LESSON, "Say sorry.", False),
        ("Use at most 60 words in each reply.", "Use at most 6 words in each reply.", False),
        *((f"When the balance is {sign} 0 $, refuse to send.", "When the balance is < 0 $, refuse "
           "to send.", sign == "<") for sign in "<>="),
        ("Name the bay in words.", "Please name the bay  in words!", True),
        ("Name the bay in words.", "As a rule, always name the bay in words.\r\n", True),
        ("当客户抱怨时要先道歉", "当客户抱怨时不要先道歉", False),
        ("Gib dem Kunden gleich das Geld.", "Gib dem Kunden nicht gleich das Geld.", False),
        ("Si le client demande, rembourse.", "Si le client ne demande pas, rembourse.", False),
    ],
)  # fmt: skip
def test_a_lesson_with_a_few_words_more_is_the_same_unless_they_turn_its_meaning(
    one: str, other: str, is_same: bool
) -> None:
    assert is_same_lesson(Lesson(one), Lesson(other)) is is_same
    assert is_same_lesson(Lesson(other), Lesson(one)) is is_same
    assert not is_same_lesson(Lesson(one, "reader"), Lesson(other, "*"))


KINDS = [
    Lesson(f"When a case is of kind K{i}, answer Q{i * 7}.", "*", (Evidence(0, i, (i,), (1.0,)),))
    for i in range(1, 11)
]


@pytest.mark.parametrize(
    ("text", "examples"),
    [
        ("When a case is of kind K3, answer Q21.", [3]),
        ("For kind K3 the answer is Q21.", [3]),
        ("Kinds K3 and K4 are answered with Q21 and Q28.", [3, 4]),
        ("When a case is of kind K3 or K4, answer Q21.", [3, 4]),
        ("Be polite.", []),
    ],
)
def test_an_operation_without_numbers_rests_on_the_lessons_that_its_text_is_like(
    text: str, examples: list[int]
) -> None:
    assert [lesson.evidence[0].example for lesson in sources_of(text, KINDS)] == examples


def test_what_an_operation_rests_on_is_found_in_any_language() -> None:
    refund, ask = Lesson("商品损坏时退款。"), Lesson("先问订单号。")
    assert sources_of("如果商品损坏,就退款。", [refund, ask]) == [refund]
    assert sources_of("Say sorry.", [ask]) == [ask]


# ---------------------------------------------------------------------- texts

GOOD = Rollout(0, 11, {"answer": "blue"}, score=1.0, feedback="Right.")
POOR = Rollout(0, 12, {"answer": "red"}, score=0.5)
BAD = Rollout(0, 13, failure=Failure("parse", "no fields"))


def group(*rollouts: Rollout) -> Group:
    return Group.of(0, rollouts, has_metric=True)


@pytest.mark.parametrize(
    ("steps", "summary", "text"),
    [
        (2, None, "Step 1, predictor plan\n  in question: 2+2\n  out plan: add\n"
         "Step 2, tool calculator\n  in expression: 2+2\n  out result: 4\nOutputs:\nanswer: 4"),
        (2, "A summary.", "A summary.\nOutputs:\nanswer: 4"),
        (1, None, "Outputs:\ntrajectory: t\nanswer: 4"),
        (0, None, "Outputs:\ntrajectory: t\nanswer: 4"),
    ],
)  # fmt: skip
def test_the_steps_of_an_attempt_are_shown_where_its_outputs_do_not_say_the_same(
    steps: int, summary: str | None, text: str
) -> None:
    made = (
        Step("predictor", "plan", {"question": "2+2"}, {"plan": "add"}),
        Step("tool", "calculator", {"expression": "2+2"}, {"result": "4"}),
    )
    rollout = Rollout(0, 11, {"trajectory": "t", "answer": "4"}, steps=made[:steps])
    assert attempt_text(rollout, steps=summary) == text
    assert attempt_text(Rollout(0, 11)) == "(no outputs)"


def test_the_feedback_of_a_group_is_that_of_its_worst_attempt() -> None:
    worse = Rollout(0, 14, {"answer": "pink"}, score=0.25, feedback="Not a colour of the sky.")
    assert feedback_text(group(GOOD, worse, POOR)) == "Not a colour of the sky."
    assert feedback_text(group(GOOD, worse, BAD)) == "no fields"
    assert feedback_text(group(GOOD, POOR)) == ""


def test_attempts_say_which_experiences_only_some_of_them_were_given() -> None:
    always, tested = Experience("E1", "Be exact."), Experience("E2", "Be brief.", is_on_trial=True)
    shown = Group.of(0, (POOR, BAD, GOOD), has_metric=True, score_range=ScoreRange(0.0, 1.0))
    libraries = [
        ExperienceLibrary([always, tested]),
        ExperienceLibrary([always]),
        ExperienceLibrary([always, Experience("E2", "Be very brief.")]),
    ]
    text = attempts_text(shown, ["a", "b", "c"], libraries, ("by a teacher", "", ""), libraries[0])
    assert re.findall(r"^Attempt .*$", text, re.MULTILINE) == [
        'Attempt 1 (score 1, advantage +1.22, with E1, E2 as "Be very brief.")',
        "Attempt 2 (score 0.5, advantage +0.00, with E1, E2, by a teacher)",
        "Attempt 3 (score 0, advantage -1.22, with E1)",
    ]


def test_update_library_sees_what_supports_an_experience_and_its_measured_effect() -> None:
    library = ExperienceLibrary(
        [
            Experience("E1", "Be exact.", "writer", (GROUP_0, GROUP_1), Effect(0.125, 0.0512, 40)),
            Experience("E2", "Be brief.", "*", (GROUP_0,), is_on_trial=True),
            Experience("E3", "Be kind."),
        ]
    )
    assert library_text(library) == (
        "[E1] Be exact. (for writer)\n"
        "    learned from 2 examples; measured effect on the score +0.12 \u00b1 0.05\n"
        "[E2*] Be brief.\n"
        "    learned from 1 example; on trial\n"
        "[E3*] Be kind."
    )
    assert library_text(ExperienceLibrary()) == "(none yet)"


@given(
    st.lists(st.sampled_from([GROUP_0, GROUP_1]), max_size=2),
    st.none() | st.builds(Effect, st.floats(-9, 9), st.floats(0, 9), st.integers(1, 99)),
    st.booleans(),
)
def test_what_the_prompt_says_beside_an_experience_is_no_part_of_its_text_when_it_comes_back(
    evidence: list[Evidence], effect: Effect | None, is_on_trial: bool
) -> None:
    experience = Experience("E1", "Be exact.", "*", tuple(evidence), effect, is_on_trial)
    answer = " ".join(library_text(ExperienceLibrary([experience])).split())
    assert bare_line(answer) == "Be exact."


@pytest.mark.parametrize(
    "text",
    [
        "E10 is a fuel.",
        "Say which case is on trial",
        "Name what was learned from 2 examples of each kind.",
        "Quote from 3 examples: the shortest ones.",
    ],
)
def test_advice_that_speaks_of_trials_and_examples_stays_as_it_is(text: str) -> None:
    assert bare_line(text) == text


# ---------------------------------------------------------------------- the modules

INPUTS: dict[str, Any] = {
    "program": "self (question -> answer): Answer.",
    "objective": "Politeness.",
    "experiences": "(none yet)",
    "example": "question: 1",
    "expected": "answer: yes",
    "attempts": "Attempt 1 (score 1, advantage +1.00)",
    "max_words": 40,
}


def test_a_module_may_have_an_adapter_and_a_prompt_of_its_own() -> None:
    class Short(dspy.Signature):
        """Find one lesson."""

        attempts: str = dspy.InputField()
        lessons: list[str] = dspy.OutputField()

    lm = scripted_lm([("Find one lesson", '{"lessons": ["Say please."]}')])
    with dspy.context(lm=lm):
        answer = ExtractAdvantage(Short, adapter=dspy.JSONAdapter())(**INPUTS)
    assert answer.lessons == ["Say please."]
    (prompt,) = lm.engine.prompts
    assert "Attempt 1 (score 1, advantage +1.00)" in prompt.user
    assert "Politeness." not in prompt.text


def test_a_module_can_be_compiled_saved_and_loaded_as_any_dspy_program(tmp_path: Path) -> None:
    compiled = ExtractAdvantage(shown_tokens=99)
    compiled.ask.demos = [dspy.Example(attempts="Attempt 0", lessons=["Never shout."])]
    compiled.ask.signature = compiled.ask.signature.with_instructions("Learn in Latin.")
    compiled.save(tmp_path / "extract.json")
    loaded = ExtractAdvantage()
    loaded.load(tmp_path / "extract.json")
    lm = scripted_lm([("", lessons("Dic quaeso."))])
    with dspy.context(lm=lm):
        assert loaded(**INPUTS).lessons == ["Dic quaeso."]
    (prompt,) = lm.engine.prompts
    assert "Learn in Latin." in prompt.system
    assert "Never shout." in prompt.user
    assert compiled.deepcopy().shown_tokens == 99


@pytest.mark.parametrize(
    ("module", "output"),
    [
        (ExtractAdvantage, "lessons"),
        (DraftLessons, "lessons"),
        (UpdateLibrary, "operations"),
        (SummarizeTrajectory, "summary"),
    ],
)
def test_a_prompt_without_the_output_that_the_run_reads_is_refused(
    module: Any, output: str
) -> None:
    module(f"program -> thoughts, {output}")
    with pytest.raises(SettingsError, match=rf"{module.__name__}: .*\['rules'\]; add '{output}'"):
        module("program -> rules")
