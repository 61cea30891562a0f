"""Forms in which LMs of 1B to 70B parameters answer, and what they mean.

Each answer goes through the real module, DSPy's ChatAdapter and an LM on a scripted engine, as in
a run; the engine gives the same answer when it is asked again.
"""

import json
from typing import Any

import dspy
import pytest
from scripted import scripted_lm

from tfgrpo_dspy import ExtractAdvantage, UpdateLibrary
from tfgrpo_dspy.reflection.lessons import read_lesson

Lessons = list[tuple[str, str]]
"""Scope and text of each lesson."""
Proposed = list[tuple[str, str, str, str | None, list[int]]]
"""Op, id, text, scope and lessons of each operation."""
PREDICTORS = ["understand", "reply.predict"]
ASK, REFUND = "Ask for the order number.", "When goods are damaged, offer a refund."
BOTH = [("*", ASK), ("*", REFUND)]
WHY = "[[ ## semantic_advantage ## ]]\nThe better ones asked.\n\n[[ ## lessons ## ]]\n"
PLAN = "[[ ## plan ## ]]\nLesson 1 is new.\n\n[[ ## operations ## ]]\n"
DONE = "\n\n[[ ## completed ## ]]"
SAY = "Say sorry."
AN_ADD, ADD = f'{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}', ("ADD", "", SAY, None, [1])
A_KEEP, KEEP = '{"op": "KEEP", "id": "E1"}', ("KEEP", "E1", "", None, [])


def answered(module: dspy.Module, answer: str) -> Any:
    """What the module makes of the answer; None: it is not read."""
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    with dspy.context(lm=scripted_lm([("", answer)]), adapter=adapter):
        found = module(**dict.fromkeys(module.ask.signature.input_fields, "x"))
    return None if found.parse_failures == 2 else found


SAID_TWICE: dict[str, str] = {
    "a list with a heading and talk": json.dumps(
        ["Here's a summary of the attempts", "The next attempt:", ASK, REFUND]
    ),
    "talk above bullets": f"Here\u2019s what to learn\n- {ASK}\n- {REFUND}",
    "round bullets": f"\u2022 {ASK}\n\u2022{REFUND}",
    "numbers": f"1. {ASK}\n2. {REFUND}",
    "bold headings above bullets": f"**Orders**\n- {ASK}\n\n**Damage**\n- {REFUND}",
    "numbered headings above bullets": f"1. **Orders:**\n   - {ASK}\n2. **Damage:**\n   - {REFUND}",
    "explanations below lessons":
        f"1. {ASK}\n   - Attempt 2 did not, and failed.\n2. {REFUND}\n   Why: it is policy.",
    "markers of other fields": f"[## goal ##]\n[feedback]\n{ASK}\n{REFUND}\n[## expected ##]",
    "markdown headings": f"### Lessons\n\n- {ASK}\n- {REFUND}\n\n---",
    "talk before and after":
        f"Here are the lessons I found:\n\n1. {ASK}\n2. {REFUND}\n\nI hope they help!",
    "a JSON list behind a heading": f'Lessons learned: ["{ASK}", "{REFUND}"]',
    "a label without a number": f"Lesson: {ASK}\nLesson: {REFUND}",
    "talk and a JSON list": f'My lessons:\n["{ASK}", "{REFUND}"]\nThat is all.',
    "an object around lines": f'{{"lessons": "{ASK}\\n{REFUND}"}}',
    "numbered objects": f'1. {{"lesson": "{ASK}"}}\n2. {{"lesson": "{REFUND}"}}',
    "numbers in square brackets": f"[1] {ASK}\n[2] {REFUND}",
    "the end of thoughts": f"Hm, ask.\n</think>\n{ASK}\n{REFUND}",
    "all predictors": f"[all] {ASK}\n[*] {REFUND}",
}  # fmt: skip
"""Forms of the two lessons."""

SAID: dict[str, tuple[str, Lessons | None]] = {
    "bold lines without a full stop": ("1. **Ask for the number**\n2. **Offer a refund**",
        [("*", "Ask for the number"), ("*", "Offer a refund")]),
    "wrapped lines": (
        "1. When goods are\n   damaged, offer a refund.\n2. Ask for the order\nnumber.",
        [("*", REFUND), ("*", ASK)]),
    "a line that goes on": ("When goods are damaged,\noffer a refund.", [("*", REFUND)]),
    "lines in lower case": ("ask first\noffer a refund",
        [("*", "ask first"), ("*", "offer a refund")]),
    **{f"signs in a lesson: {text[:15]}": (text, [("*", text)]) for text in (
        "Write x**2, and not 2**x.", "Define __init__.", "Put <li> and </li> around each.")},
    "a condition above a line": (f"When angry:\n{ASK}\n{REFUND}",
        [("*", f"When angry: {ASK}"), ("*", REFUND)]),
    "JSON that a lesson shows": (f'Use this form:\n{{"name": "Ann"}}\n{ASK}',
        [("*", 'Use this form: {"name": "Ann"}'), ("*", ASK)]),
    "a heading, and no lesson": ("## What was learned", None),
    "a Python list": (f'[\'{ASK}\', "Don\'t shout."]', [("*", ASK), ("*", "Don't shout.")]),
    "a predictor": (f"[understand] {ASK}\n{REFUND}", [("understand", ASK), ("*", REFUND)]),
    "a predictor in bold": (f"1. **[understand]** {ASK}", [("understand", ASK)]),
    **{f"nothing: {text[:20]}": (text, []) for text in (
        "None", "- None.", '["None"]', "[]", "", "7", "null", "N/A", "无。", "No new lessons.",
        "There are no new lessons from these attempts.", "None (all attempts are right)",
        "None, since all is right.", "N/A: all is right", "[E1*]",
        "[E1", "No new lessons; all is right.", "Nothing new.",
        "There is nothing new to learn from these.", "None.\n\nAll the attempts are right.")},
    "an echoed id": (f"- [E1*] {ASK}", [("*", ASK)]),
    "a condition above bullets": (f"1. When angry:\n   - {ASK}\n   - {SAY}\n2. {REFUND}",
        [("*", f"When angry: {ASK}"), ("*", f"When angry: {SAY}"), ("*", REFUND)]),
    "a condition in an object": (f'[{{"condition": "When angry", "advice": "{ASK}"}}]',
        [("*", f"When angry: {ASK}")]),
    "bold among others": ("1. **Ask for the number**\n2. Say sorry.\n3. **Offer a refund**",
        [("*", "Ask for the number"), ("*", SAY), ("*", "Offer a refund")]),
    "None is how a lesson begins": ("None of the prices include tax: add it.",
        [("*", "None of the prices include tax: add it.")]),
    "Chinese": ("1、先问订单号。\n2、商品损坏时退款。",
        [("*", "先问订单号。"), ("*", "商品损坏时退款。")]),
    "numbers that belong to the lesson": ("3.5 percent is the fee.\n-5 is below zero.",
        [("*", "3.5 percent is the fee."), ("*", "-5 is below zero.")]),
    "JSON in a lesson": ('Reply in JSON: {"a": ["b"]}.\nReturn [] if in doubt.',
        [("*", 'Reply in JSON: {"a": ["b"]}.'), ("*", "Return [] if in doubt.")]),
    "JSON behind a bullet": (f'- Write ["a", "b"] for two.\n- {ASK}',
        [("*", 'Write ["a", "b"] for two.'), ("*", ASK)]),
    "a fence in a lesson": ("- Put code between ``` and ```, always.",
        [("*", "Put code between ``` and ```, always.")]),
    "JSON without a lesson": ('{"a": [1, {"b": null}]}', None),
}  # fmt: skip
"""Other contents of the field of lessons."""

ANSWERS: dict[str, tuple[str, Lessons | None]] = {
    "no end marker": (f"{WHY}{ASK}\n{REFUND}", BOTH),
    "a JSON list that is cut off": (f'{WHY}["{ASK}", "{REFUND}"', BOTH),
    "the whole answer in JSON, fenced": (
        f'Sure!\n```json\n{{"semantic_advantage": "x", "lessons": "{ASK}\\n{REFUND}"}}\n```',
        BOTH),
    "bold markers": (f"**Semantic advantage:** They asked.\n\n**Lessons:**\n1. {ASK}\n2. {REFUND}",
        BOTH),
    "plain markers": (f"semantic_advantage: They asked.\nlessons:\n{ASK}\n{REFUND}", BOTH),
    "damaged markers": (f"[[ ## semantic_advantage ]]\nx\n[[ ## lessons ]]\n{ASK}\n{REFUND}", BOTH),
    "thoughts first": (f"<think>\nHm. Ask for t\n</think>\n{WHY}{ASK}\n{REFUND}{DONE}", BOTH),
    "an apology": ("I am only a language model.", None),
    "the explanation only": ("[[ ## semantic_advantage ## ]]\nThey asked.\n", None),
}  # fmt: skip
"""Whole answers."""


def cases(said: Any, whole: Any, before: str) -> list[Any]:
    """Each case with its whole answer."""
    inside = [(name, f"{before}{text}{DONE}", meant) for name, (text, meant) in said.items()]
    others = [(name, text, meant) for name, (text, meant) in whole.items()]
    return [pytest.param(*case[1:], id=case[0]) for case in [*inside, *others]]


TWICE = {name: (text, BOTH) for name, text in SAID_TWICE.items()}


@pytest.mark.parametrize(("answer", "meant"), cases(TWICE | SAID, ANSWERS, WHY))
def test_lessons_are_read_as_they_are_meant(answer: str, meant: Lessons | None) -> None:
    found = answered(ExtractAdvantage(), answer)
    if meant is None:
        assert found is None
        return
    lessons = [read_lesson(line, PREDICTORS) for line in found.lessons]
    assert [(scope, text) for text, scope in lessons] == meant


PROPOSED: dict[str, tuple[str, Proposed | None]] = {
    "a JSON list": (f"[{AN_ADD}, {A_KEEP}]", [ADD, KEEP]),
    "one object": (f"{AN_ADD}", [ADD]),
    "objects of the same fields on lines": (f"{AN_ADD}\n{AN_ADD}", [ADD, ADD]),
    "a list of objects of the same fields": (f"1. {AN_ADD}\n2. {AN_ADD}\n- {AN_ADD}", [ADD] * 3),
    "an object around the list": (f'{{"operations": [{AN_ADD}]}}', [ADD]),
    "nulls for what is absent": (
        f'[{{"op": "ADD", "id": null, "text": "{SAY}", "scope": null, "lessons": [1]}}, '
        '{"op": "KEEP", "id": "E1", "text": null, "lessons": null}]',
        [ADD, KEEP]),
    "numbers as texts": (
        f'[{{"op": "ADD", "text": "{SAY}", "lessons": ["1", "Lesson 3", null, 2.0]}}]',
        [("ADD", "", SAY, None, [1, 3, 2])]),
    "numbers in a sentence": (f'[{{"op": "ADD", "text": "{SAY}", "lessons": "examples 1 and 2"}}]',
        [("ADD", "", SAY, None, [1, 2])]),
    "a number for an id": ('[{"op": "KEEP", "id": 1}]', [("KEEP", "1", "", None, [])]),
    "a fence": (f"```json\n[{AN_ADD}]\n```", [ADD]),
    "talk around the list": (f"I keep [E1] and add one:\n[{AN_ADD}]\nNothing else.", [ADD]),
    "trailing commas": (f'[{{"op": "ADD", "text": "{SAY}", "lessons": [1],}},]', [ADD]),
    "as Python writes it": (f"[{{'op': 'ADD', 'id': None, 'text': '{SAY}', 'lessons': [1]}}]",
        [ADD]),
    "unescaped quotes": ('[{"op": "ADD", "text": "Write "sorry" first.", "lessons": [1]}]',
        [("ADD", "", 'Write "sorry" first.', None, [1])]),
    "other names of fields": (f'[{{"operation": "add", "content": "{SAY}", "sources": [1]}}]',
        [ADD]),
    "lines": (f"- ADD: {SAY}\n- KEEP [E1]\n- MODIFY E2: Ask first.", None),
    "a scope": (f'[{{"op": "MODIFY", "id": "E1", "text": "{SAY}", "scope": "*"}}]',
        [("MODIFY", "E1", SAY, "*", [])]),
    "an empty list": ("[]", []),
    "None": ("None", []),
    "no operations": ("No operations are needed.", []),
    "nothing, which may be a mistake": ("", None),
    "null, which may be a mistake": ("null", None),
    "a name only": ('"ADD"', None),
    "talk only": ("The library looks good to me, well done.", None),
}  # fmt: skip
"""Contents of the field of operations."""

PROPOSALS: dict[str, tuple[str, Proposed | None]] = {
    "no plan": (f"[[ ## operations ## ]]\n[{AN_ADD}]{DONE}", [ADD]),
    "cut off": (f'{PLAN}[{AN_ADD}, {{"op": "KE', [ADD, ("KE", "", "", None, [])]),
    "the whole answer in JSON": (f'```json\n{{"plan": "x", "operations": [{AN_ADD}]}}\n```', [ADD]),
    "bold markers": (f"**Plan:** Add it.\n**Operations:**\n[{AN_ADD}]", [ADD]),
    "an apology": ("I am only a language model.", None),
}  # fmt: skip
"""Whole answers."""


@pytest.mark.parametrize(("answer", "meant"), cases(PROPOSED, PROPOSALS, PLAN))
def test_operations_are_read_as_they_are_meant(answer: str, meant: Proposed | None) -> None:
    found = answered(UpdateLibrary(), answer)
    if meant is None:
        assert found is None
        return
    names = ("op", "id", "text", "scope", "lessons")
    assert [tuple(op[name] for name in names) for op in found.operations] == meant


def test_one_operation_that_is_none_costs_itself_only() -> None:
    found = answered(UpdateLibrary(), f'{PLAN}["do harm", 7, {AN_ADD}]{DONE}')
    assert found.operations[:2] == ["do harm", 7]
    assert found.operations[2]["text"] == SAY
