"""Forms in which LMs of 1B to 70B parameters answer, and what they mean.

Each answer goes through the real module, DSPy's ChatAdapter and an LM on a scripted engine, as in
a run; the engine gives the same answer when it is asked again.
"""

import dspy
import pytest
from scripted import scripted_lm

from tfgrpo_dspy import ExtractAdvantage, UpdateLibrary
from tfgrpo_dspy.reflection import read_lesson

PREDICTORS = ["understand", "reply.predict"]
ASKED_ONCE = dspy.ChatAdapter(use_json_adapter_fallback=False)
ASK, REFUND = "Ask for the order number.", "When goods are damaged, offer a refund."
BOTH = [("*", ASK), ("*", REFUND)]
WHY = "[[ ## semantic_advantage ## ]]\nThe better ones asked.\n\n[[ ## lessons ## ]]\n"
DONE = "\n\n[[ ## completed ## ]]"


def drawn(answer: str) -> list[tuple[str, str]] | None:
    """Scope and text of each lesson that is read; None: the answer is not read."""
    lm = scripted_lm([("", answer)])
    with dspy.context(lm=lm, adapter=ASKED_ONCE):
        found = ExtractAdvantage()(
            program="p",
            objective="o",
            max_words=40,
            experiences="(none yet)",
            example="e",
            expected="x",
            attempts="a",
        )
    if found.parse_failures == 2:
        return None
    lessons = [read_lesson(line, PREDICTORS, ()) for line in found.lessons]
    return [(lesson.scope, lesson.text) for lesson in lessons]


LESSONS: dict[str, tuple[str, list[tuple[str, str]] | None]] = {
    "a line each": (f"{WHY}{ASK}\n{REFUND}{DONE}", BOTH),
    "no end marker": (f"{WHY}{ASK}\n{REFUND}", BOTH),
    "empty lines between": (f"{WHY}{ASK}\n\n\n{REFUND}{DONE}", BOTH),
    "hyphens": (f"{WHY}- {ASK}\n- {REFUND}{DONE}", BOTH),
    "asterisks": (f"{WHY}* {ASK}\n* {REFUND}{DONE}", BOTH),
    "round bullets": (f"{WHY}\u2022 {ASK}\n\u2022{REFUND}{DONE}", BOTH),
    "numbers": (f"{WHY}1. {ASK}\n2. {REFUND}{DONE}", BOTH),
    "numbers in brackets": (f"{WHY}(1) {ASK}\n2) {REFUND}{DONE}", BOTH),
    "numbers on one line": (f"{WHY}1. {ASK} 2. {REFUND}{DONE}", BOTH),
    "labelled": (f"{WHY}Lesson 1: {ASK}\nLesson 2: {REFUND}{DONE}", BOTH),
    "labelled in bold": (f"{WHY}**Lesson 1:** {ASK}\n**Lesson 2:** {REFUND}{DONE}", BOTH),
    "bold lines": (f"{WHY}1. **{ASK}**\n2. **{REFUND}**{DONE}", BOTH),
    "bold lines without a full stop": (
        f"{WHY}1. **Ask for the number**\n2. **Offer a refund**{DONE}",
        [("*", "Ask for the number"), ("*", "Offer a refund")],
    ),
    "bold openings": (
        f"{WHY}- **Orders**: {ASK}\n- **Damage**: {REFUND}{DONE}",
        [("*", f"Orders: {ASK}"), ("*", f"Damage: {REFUND}")],
    ),
    "bold headings above bullets": (
        f"{WHY}**Orders**\n- {ASK}\n\n**Damage**\n- {REFUND}{DONE}",
        BOTH,
    ),
    "numbered headings above bullets": (
        f"{WHY}1. **Orders:**\n   - {ASK}\n2. **Damage:**\n   - {REFUND}{DONE}",
        BOTH,
    ),
    "explanations below lessons": (
        f"{WHY}1. {ASK}\n   - Attempt 2 did not, and failed.\n2. {REFUND}\n   Why: it is policy."
        f"{DONE}",
        BOTH,
    ),
    "markdown headings": (f"{WHY}### Lessons\n\n- {ASK}\n- {REFUND}\n\n---{DONE}", BOTH),
    "wrapped lines": (
        f"{WHY}1. When goods are\n   damaged, offer a refund.\n2. Ask for the order\nnumber.{DONE}",
        [BOTH[1], BOTH[0]],
    ),
    "talk before and after": (
        f"{WHY}Here are the lessons I found:\n\n1. {ASK}\n2. {REFUND}\n\nI hope they help!{DONE}",
        BOTH,
    ),
    "talk without a colon": (f"{WHY}Sure, here they are.\n{ASK}\n{REFUND}{DONE}", BOTH),
    "a line that goes on": (f"{WHY}When goods are damaged,\noffer a refund.{DONE}", [BOTH[1]]),
    "a JSON list behind a heading": (f'{WHY}Lessons learned: ["{ASK}", "{REFUND}"]{DONE}', BOTH),
    "a heading without bullets": (f"{WHY}The lessons are:\n{ASK}\n{REFUND}{DONE}", BOTH),
    "a fence": (f"{WHY}```\n{ASK}\n{REFUND}\n```{DONE}", BOTH),
    "other bullets": (f"{WHY}\u2705 {ASK}\n\u2705 {REFUND}{DONE}", BOTH),
    "letters": (f"{WHY}a) {ASK}\nb) {REFUND}{DONE}", BOTH),
    "a label without a number": (f"{WHY}Lesson: {ASK}\nLesson: {REFUND}{DONE}", BOTH),
    "quotes": (f'{WHY}"{ASK}"\n"{REFUND}"{DONE}', BOTH),
    "quotes and commas": (f'{WHY}"{ASK}",\n"{REFUND}",{DONE}', BOTH),
    "tags": (f"{WHY}<lesson>{ASK}</lesson>\n<lesson>{REFUND}</lesson>{DONE}", BOTH),
    "a JSON list": (f'{WHY}["{ASK}", "{REFUND}"]{DONE}', BOTH),
    "a JSON list on lines": (f'{WHY}[\n  "{ASK}",\n  "{REFUND}",\n]{DONE}', BOTH),
    "a JSON list in a fence": (f'{WHY}```json\n["{ASK}", "{REFUND}"]\n```{DONE}', BOTH),
    "talk and a JSON list": (f'{WHY}My lessons:\n["{ASK}", "{REFUND}"]\nThat is all.{DONE}', BOTH),
    "a Python list": (
        f"{WHY}['{ASK}', \"Don't shout.\"]{DONE}",
        [BOTH[0], ("*", "Don't shout.")],
    ),
    "a JSON list that is cut off": (f'{WHY}["{ASK}", "{REFUND}"', BOTH),
    "objects": (f'{WHY}[{{"lesson": "{ASK}"}}, {{"lesson": "{REFUND}"}}]{DONE}', BOTH),
    "objects with a predictor": (
        f'{WHY}[{{"predictor": "understand", "lesson": "{ASK}"}}]{DONE}',
        [("understand", ASK)],
    ),
    "an object around lines": (f'{WHY}{{"lessons": "{ASK}\\n{REFUND}"}}{DONE}', BOTH),
    "an object with numbers": (f'{WHY}{{"1": "{ASK}", "2": "{REFUND}"}}{DONE}', BOTH),
    "the whole answer in JSON": (
        f'{{"semantic_advantage": "They asked.", "lessons": ["{ASK}", "{REFUND}"]}}',
        BOTH,
    ),
    "the whole answer in JSON, fenced": (
        f'Sure!\n```json\n{{"semantic_advantage": "x", "lessons": "{ASK}\\n{REFUND}"}}\n```',
        BOTH,
    ),
    "no explanation": (f"[[ ## lessons ## ]]\n{ASK}\n{REFUND}{DONE}", BOTH),
    "bold markers": (
        f"**Semantic advantage:** They asked.\n\n**Lessons:**\n1. {ASK}\n2. {REFUND}",
        BOTH,
    ),
    "markdown markers": (
        f"## Semantic Advantage\nThey asked.\n\n## Lessons\n- {ASK}\n- {REFUND}",
        BOTH,
    ),
    "plain markers": (f"semantic_advantage: They asked.\nlessons:\n{ASK}\n{REFUND}", BOTH),
    "damaged markers": (f"[[ ## semantic_advantage ]]\nx\n[[ ## lessons ]]\n{ASK}\n{REFUND}", BOTH),
    "thoughts first": (f"<think>\nHm. {ASK[:9]}\n</think>\n{WHY}{ASK}\n{REFUND}{DONE}", BOTH),
    "a predictor": (f"{WHY}[understand] {ASK}\n{REFUND}{DONE}", [("understand", ASK), BOTH[1]]),
    "a predictor behind a bullet": (f"{WHY}- [understand]: {ASK}{DONE}", [("understand", ASK)]),
    "a predictor in bold": (f"{WHY}1. **[understand]** {ASK}{DONE}", [("understand", ASK)]),
    "half a predictor's name": (f"{WHY}[reply] {ASK}{DONE}", [("reply.predict", ASK)]),
    "all predictors": (f"{WHY}[all] {ASK}\n[*] {REFUND}{DONE}", BOTH),
    "brackets that are no predictor": (
        f"{WHY}[URL] fields need a scheme.{DONE}",
        [("*", "[URL] fields need a scheme.")],
    ),
    "None": (f"{WHY}None{DONE}", []),
    "none, as a bullet": (f"{WHY}- None.{DONE}", []),
    "no lessons": (f"{WHY}No new lessons.{DONE}", []),
    "there are none": (f"{WHY}There are no new lessons from these attempts.{DONE}", []),
    "N/A": (f"{WHY}N/A{DONE}", []),
    "null": (f"{WHY}null{DONE}", []),
    "nothing": (f"{WHY}{DONE}", []),
    "an empty list": (f"{WHY}[]{DONE}", []),
    "none, in Chinese": (f"{WHY}\u65e0\u3002{DONE}", []),
    "None is how a lesson begins": (
        f"{WHY}None of the prices include tax: add it.{DONE}",
        [("*", "None of the prices include tax: add it.")],
    ),
    "Chinese": (
        f"{WHY}1\u3001\u5148\u95ee\u8ba2\u5355\u53f7\u3002\n2\u3001\u5546\u54c1\u635f\u574f\u65f6"
        f"\u9000\u6b3e\u3002{DONE}",
        [("*", "\u5148\u95ee\u8ba2\u5355\u53f7\u3002"),
         ("*", "\u5546\u54c1\u635f\u574f\u65f6\u9000\u6b3e\u3002")],
    ),
    "German": (
        f"{WHY}- Frage nach der Bestellnummer.\n- Gib 10 Euro zur\u00fcck.{DONE}",
        [("*", "Frage nach der Bestellnummer."), ("*", "Gib 10 Euro zur\u00fcck.")],
    ),
    "numbers that belong to the lesson": (
        f"{WHY}3.5 percent is the fee.\n-5 is below zero.{DONE}",
        [("*", "3.5 percent is the fee."), ("*", "-5 is below zero.")],
    ),
    "a colon in the middle": (f"{WHY}Reply in two parts: apology, offer.{DONE}",
                              [("*", "Reply in two parts: apology, offer.")]),
    "JSON in a lesson": (f'{WHY}Reply in JSON: {{"a": ["b"]}}.\nReturn [] if in doubt.{DONE}',
                         [("*", 'Reply in JSON: {"a": ["b"]}.'), ("*", "Return [] if in doubt.")]),
    "JSON behind a bullet": (f'{WHY}- Write ["a", "b"] for two.\n- {ASK}{DONE}',
                             [("*", 'Write ["a", "b"] for two.'), BOTH[0]]),
    "a fence in a lesson": (f"{WHY}- Put code between ``` and ```, always.{DONE}",
                            [("*", "Put code between ``` and ```, always.")]),
    "a number": (f"{WHY}7{DONE}", []),
    "code in a lesson": (f"{WHY}Write `x[0]` and not `x.first`.{DONE}",
                         [("*", "Write `x[0]` and not `x.first`.")]),
    "an apology": ("I am only a language model.", None),
    "an empty answer": ("", None),
    "the explanation only": ("[[ ## semantic_advantage ## ]]\nThey asked.\n", None),
    "JSON without a lesson": (f'{WHY}{{"a": [1, {{"b": null}}]}}{DONE}', None),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "meant"), LESSONS.values(), ids=LESSONS)
def test_lessons_are_read_as_they_are_meant(
    answer: str, meant: list[tuple[str, str]] | None
) -> None:
    assert drawn(answer) == meant


PLAN = "[[ ## plan ## ]]\nLesson 1 is new.\n\n[[ ## operations ## ]]\n"
SAY = "Say sorry."
ADD = ("ADD", "", SAY, None, [1])
KEEP = ("KEEP", "E1", "", None, [])
Proposed = list[tuple[str, str, str, str | None, list[int]]]


def proposed(answer: str) -> Proposed | None:
    """Op, id, text, scope and lessons of each operation that is read; None: not read."""
    lm = scripted_lm([("", answer)])
    with dspy.context(lm=lm, adapter=ASKED_ONCE):
        found = UpdateLibrary()(
            program="p", objective="o", limits="l", experiences="e", dropped="d", lessons="1. x"
        )
    if found.parse_failures == 2:
        return None
    return [(op.op, op.id, op.text, op.scope, op.lessons) for op in found.operations]


OPERATIONS: dict[str, tuple[str, Proposed | None]] = {
    "a JSON list": (
        f'{PLAN}[{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}, {{"op": "KEEP", "id": "E1"}}]'
        f"{DONE}",
        [ADD, KEEP],
    ),
    "no plan": (
        f'[[ ## operations ## ]]\n[{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}]{DONE}',
        [ADD],
    ),
    "one object": (f'{PLAN}{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}{DONE}', [ADD]),
    "objects on lines": (
        f'{PLAN}{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}\n{{"op": "KEEP", "id": "E1"}}'
        f"{DONE}",
        [ADD, KEEP],
    ),
    "numbered objects": (
        f'{PLAN}1. {{"op": "ADD", "text": "{SAY}", "lessons": [1]}}\n'
        f'2. {{"op": "KEEP", "id": "E1"}}{DONE}',
        [ADD, KEEP],
    ),
    "an object around the list": (
        f'{PLAN}{{"operations": [{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}]}}{DONE}',
        [ADD],
    ),
    "nulls for what is absent": (
        f'{PLAN}[{{"op": "ADD", "id": null, "text": "{SAY}", "scope": null, "reason": null, '
        f'"lessons": [1]}}, {{"op": "KEEP", "id": "E1", "text": null, "lessons": null}}]{DONE}',
        [ADD, KEEP],
    ),
    "null in the list": (
        f'{PLAN}[null, {{"op": "ADD", "text": "{SAY}", "lessons": [1]}}]{DONE}',
        [ADD],
    ),
    "a number for a list": (
        f'{PLAN}[{{"op": "ADD", "text": "{SAY}", "lessons": 1}}]{DONE}',
        [ADD],
    ),
    "numbers as texts": (
        f'{PLAN}[{{"op": "ADD", "text": "{SAY}", "lessons": ["1", "Lesson 3", null, 2.0]}}]{DONE}',
        [("ADD", "", SAY, None, [1, 3, 2])],
    ),
    "numbers in a sentence": (
        f'{PLAN}[{{"op": "ADD", "text": "{SAY}", "lessons": "examples 1 and 2"}}]{DONE}',
        [("ADD", "", SAY, None, [1, 2])],
    ),
    "a number for an id": (
        f'{PLAN}[{{"op": "KEEP", "id": 1}}]{DONE}',
        [("KEEP", "1", "", None, [])],
    ),
    "an id in brackets": (
        f'{PLAN}[{{"op": "KEEP", "id": "[E1*]"}}]{DONE}',
        [("KEEP", "[E1*]", "", None, [])],
    ),
    "a fence": (
        f'{PLAN}```json\n[{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}]\n```{DONE}',
        [ADD],
    ),
    "talk around the list": (
        f'{PLAN}I keep [E1] and add one:\n[{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}]\n'
        f"Nothing else.{DONE}",
        [ADD],
    ),
    "trailing commas": (
        f'{PLAN}[{{"op": "ADD", "text": "{SAY}", "lessons": [1],}},]{DONE}',
        [ADD],
    ),
    "as Python writes it": (
        f"{PLAN}[{{'op': 'ADD', 'id': None, 'text': '{SAY}', 'lessons': [1]}}]{DONE}",
        [ADD],
    ),
    "unescaped quotes": (
        f'{PLAN}[{{"op": "ADD", "text": "Write "sorry" first.", "lessons": [1]}}]{DONE}',
        [("ADD", "", 'Write "sorry" first.', None, [1])],
    ),
    "cut off": (f'{PLAN}[{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}, {{"op": "KE',
                [ADD, ("KE", "", "", None, [])]),
    "other names of fields": (
        f'{PLAN}[{{"operation": "add", "content": "{SAY}", "sources": [1]}}]{DONE}',
        [ADD],
    ),
    "operations by their name": (
        f'{PLAN}[{{"ADD": {{"text": "{SAY}", "lessons": [1]}}}}, {{"KEEP": {{"id": "E1"}}}}]{DONE}',
        [("ADD", "", SAY, None, [1]), KEEP],
    ),
    "lines": (
        f"{PLAN}- ADD: {SAY}\n- KEEP [E1]\n- MODIFY E2: Ask first.{DONE}",
        [("ADD", "", SAY, None, []), KEEP, ("MODIFY", "E2", "Ask first.", None, [])],
    ),
    "lines in bold": (
        f"{PLAN}1. **ADD**: {SAY}\n2. **DELETE** E1{DONE}",
        [("ADD", "", SAY, None, []), ("DELETE", "E1", "", None, [])],
    ),
    "a scope": (
        f'{PLAN}[{{"op": "MODIFY", "id": "E1", "text": "{SAY}", "scope": "*"}}]{DONE}',
        [("MODIFY", "E1", SAY, "*", [])],
    ),
    "the whole answer in JSON": (
        f'```json\n{{"plan": "x", "operations": [{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}'
        f"]}}\n```",
        [ADD],
    ),
    "bold markers": (
        f'**Plan:** Add it.\n**Operations:**\n[{{"op": "ADD", "text": "{SAY}", "lessons": [1]}}]',
        [ADD],
    ),
    "an empty list": (f"{PLAN}[]{DONE}", []),
    "None": (f"{PLAN}None{DONE}", []),
    "no operations": (f"{PLAN}No operations are needed.{DONE}", []),
    "nothing, which may be a mistake": (f"{PLAN}{DONE}", None),
    "null, which may be a mistake": (f"{PLAN}null{DONE}", None),
    "a name only": (f'{PLAN}"ADD"{DONE}', None),
    "talk only": (f"{PLAN}The library looks good to me, well done.{DONE}", None),
    "an apology": ("I am only a language model.", None),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "meant"), OPERATIONS.values(), ids=OPERATIONS)
def test_operations_are_read_as_they_are_meant(answer: str, meant: Proposed | None) -> None:
    assert proposed(answer) == meant


def test_one_operation_that_is_none_costs_itself_only() -> None:
    lm = scripted_lm([("", f'{PLAN}["do harm", 7, {{"op": "ADD", "text": "{SAY}"}}]{DONE}')])
    with dspy.context(lm=lm, adapter=ASKED_ONCE):
        found = UpdateLibrary()(
            program="p", objective="o", limits="l", experiences="e", dropped="d", lessons="1. x"
        )
    assert found.operations[:2] == ["do harm", 7]
    assert found.operations[2].text == SAY
