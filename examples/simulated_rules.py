"""The rules of the simulated LM (`simulated.py`): what it answers as program and as reflection LM.

Both sides know no more than their prompt shows. Each is a function of the prompt and its seed.
"""

import json
import random
import re
from dataclasses import dataclass
from typing import Any

from dspy import lm15

CONCLUSIONS = (  # what the reflection LM makes of a wrong answer or of an error
    (r"Expected '(\d+)', given '[^'\d]+\1\b[^']*'", "Give the number alone."),
    (r"Expected '(\d+)', given '\1(?:00)'", "Amounts are stored in cents: divide them by 100."),
    (r"Unknown namespace prefix", "Declare each prefix with PREFIX before SELECT."),
    (r"found 'COUNT'", "Write a count in brackets with a name: (COUNT(?x) AS ?n)."),
    (
        r"Attempt 1 \(score 1[^\n]*\n(?:(?!Attempt 2)[\s\S])*I read the signature of each tool",
        "Before a call, read the signature of the tool.",
    ),
    (r"found no rows", "Names have a language: compare STR(?label) with the name."),
)
FEEDBACK = re.compile(r'feedback(?: on (\w+))?(?:"?: "?|\n)([^"\n]+)', re.IGNORECASE)
ADVICE = re.compile(r"(?!Good|Expected|Execution)[A-Z].*\.|(?!回答|应选)\W*\w.*。")
HABITS = {  # of a reply: words of the advice, and what it then says
    "[Ss]orry": "We are sorry for the trouble.",
    "order number": "Could you please send us your order number?",
    "refund": "We will send a refund or a replacement.",
    "Brightwell": "Your team at Brightwell.",
}
REFLECTION = {"operations", "lessons", "brief", "module_advice", "new_instruction"}
"""Who asks for one of these output fields is an optimizer; all others are programs."""
PADDING = " ".join(["We read every letter with care, and we value each one of them."] * 6)


@dataclass(frozen=True)
class Prompt:
    """A request: `told` is the system message with the answers of demos."""

    told: str
    user: str
    outputs: dict[str, str]  # the output fields that are asked for, with their types
    seed: int | None

    @classmethod
    def of(cls, request: lm15.Request) -> "Prompt":
        system = request.system or ""
        if not isinstance(system, str):
            system = "".join(part.text for part in system)
        *before, last = request.messages
        demos = [message.text or "" for message in before if message.role == "assistant"]
        asked = system.partition("output fields are:")[2].partition("All interactions")[0]
        outputs = dict(re.findall(r"`(\w+)` \((.+?)\):", asked))
        return cls("\n".join([system, *demos]), last.text or "", outputs, request.config.seed)

    @property
    def inputs(self) -> dict[str, str]:
        text = self.user.partition("\n\nRespond with")[0]
        return dict(re.findall(r"\[\[ ## (\w+) ## \]\]\n(.*?)(?=\n+\[\[ ##|\Z)", text, re.DOTALL))

    def luck(self, about: str) -> random.Random:
        return random.Random(f"{about}/{self.seed}/{self.told}/{self.user}")


@dataclass(frozen=True)
class ProgramSide:
    """Does what advice asks for by chance `unaided`, and by chance `obedient` if it is told to."""

    unaided: float
    obedient: float

    def answer(self, prompt: Prompt, name: str) -> Any:
        given, type_ = prompt.inputs, prompt.outputs[name]
        if name == "reply":
            said = [text for advice, text in HABITS.items() if self._does(prompt, advice)]
            padding = [] if self._does(prompt, "60 words") else [PADDING]
            return " ".join(
                [*said, *padding, "We wish you a good day, and thank you for your letter."]
            )
        if name.startswith("next_"):
            return self._tool_call(prompt)[name]
        if type_.startswith("Literal"):
            return self._choice(prompt, name, re.findall(r"'(\w+)'", type_))
        if name == "answer" and "trajectory" in given:
            return re.findall(r"\d+", given["observation_0"])[-1]
        if name == "answer":
            boxes, each, gone = map(int, re.findall(r"\d+", given["question"])[:3])
            total = boxes * each - gone
            return str(total) if self._does(prompt, "number alone") else f"It is {total} in all."
        return " ".join(given.values())

    def _does(self, prompt: Prompt, advice: str) -> bool:
        chance = self.obedient if re.search(advice, prompt.told) else self.unaided
        return prompt.luck(advice).random() < chance

    def _choice(self, prompt: Prompt, name: str, choices: list[str]) -> str:
        advice = re.findall(rf"When [^\n,]*?(\w+), the {name} is (\w+)", prompt.told)
        told = [choice for word, choice in advice if word in prompt.user and choice in choices]
        luck = prompt.luck(name)
        return told[0] if told and luck.random() < self.obedient else luck.choice(choices)

    def _tool_call(self, prompt: Prompt) -> dict[str, Any]:
        tool, sql = "finish", ""
        if "observation_0" not in prompt.inputs:
            tool = "query"
            *_, subject = re.findall(r"\w+", prompt.inputs["question"])
            amount = "amount / 100" if self._does(prompt, "cents") else "amount"
            paid = " AND status = 'paid'" if self._does(prompt, "status 'paid'") else ""
            sql = f"SELECT {amount} FROM orders WHERE id = {subject}"
            if not subject.isdigit():
                sql = f"SELECT count(*) FROM orders WHERE customer = '{subject}'{paid}"
        arguments = {"sql": sql} if sql else {}
        thought = "The database knows."
        return {"next_thought": thought, "next_tool_name": tool, "next_tool_args": arguments}


def lessons(prompt: Prompt, attentive: float) -> list[tuple[str, str]]:
    """Predictor ("" for all) and text of each lesson that it notices, by chance `attentive`."""
    found = []
    for scope, feedback in FEEDBACK.findall(prompt.user):
        sentences = re.split(r"(?<=\.)\s+|(?<=。)", feedback)
        found += [(scope, sentence) for sentence in sentences if ADVICE.fullmatch(sentence)]
    found += [("", text) for wrong, text in CONCLUSIONS if re.search(wrong, prompt.user)]
    luck = prompt.luck("lessons")
    noticed = [each for each in dict.fromkeys(found) if luck.random() < attentive]
    return [*noticed, ("", "Think before you answer.")] if luck.random() < 0.2 else noticed


def operations(shown: dict[str, str]) -> list[dict[str, Any]]:
    """An ADD of each lesson that is neither in the library nor was dropped before."""
    numbers: dict[tuple[str, str], list[int]] = {}
    line = re.compile(r"^(\d+)\. (.+?)(?: \(for (\w+)\))?$", re.MULTILINE)
    for number, text, scope in line.findall(shown["lessons"]):
        if text not in shown["experiences"] + shown["dropped"]:
            numbers.setdefault((text, scope), []).append(int(number))
    return [
        {"op": "ADD", "text": text, "lessons": n} | ({"scope": scope} if scope else {})
        for (text, scope), n in numbers.items()
    ]


def reflection(prompt: Prompt, name: str, attentive: float) -> Any:
    """The value of an output field that the optimizers of the examples ask for."""
    if name == "operations":
        return operations(prompt.inputs)
    if name == "brief":  # it writes single lines only
        return prompt.inputs["present"]
    noticed = lessons(prompt, attentive)
    if name == "module_advice":  # SIMBA asks for advice to each predictor
        advice = "\n".join(text for _, text in noticed)
        return dict.fromkeys(json.loads(prompt.inputs["module_names"]), advice)
    if name == "new_instruction":  # GEPA asks for a better one
        instruction = prompt.inputs["current_instruction"]
        return "\n".join([instruction, *(text for _, text in noticed if text not in instruction)])
    if name == "lessons":
        return "\n".join(f"[{scope}] {text}" if scope else text for scope, text in noticed)
    return "The feedback says what was missing."
