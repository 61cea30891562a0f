"""The world of `gate_model.py` as text: requests, lessons, and an LM that reads both.

Ten kinds of request to an agent, most of them those of `concern.py`. What a lesson does is said by
`gate_model.Lessons`; here it is a sentence, 'When <condition of the kind>, <advice>.': the right
one, one that is wrong, or one that points to the answer of the case it was drawn from. The policy
reads the lessons that are baked into its prompt; the reflection side writes one about the kind of
the case that it is shown, with the chance of the model, and adds to the library what it is given.
Every answer is a pure function of the request and its seed. NOTHING IS REAL.
"""

import random
import re
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy
from concern import INTENTS, SLOTS
from dspy import lm15
from gate_model import LIMITS, Lessons, World
from simlm_texts import OutputFields, Prompt, output_fields, sections

from tfgrpo_dspy.experience import Add, Experience, ExperienceLibrary
from tfgrpo_dspy.gate.concern import condition_of

MORE_INTENTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "hotel": (
        "When a hotel room is to be reserved, ask for the dates of arrival and departure first.",
        (
            "Reserve a double room in {city} from {day} on.",
            "Find me a hotel near the station of {city2}, {n} nights.",
            "I need a place to stay in {city} on {day}.",
            "Change my hotel booking in {city2} to {day}.",
            "Which hotel in {city} has rooms for {n} guests? Take the cheapest.",
        ),
    ),
    "translation": (
        "When a text has to be translated, keep names and numbers as they are.",
        (
            "Translate the manual of the {item} into Spanish.",
            "How do you say '{item}' in Japanese?",
            "I need page {n} of the contract in French.",
            "Put this note on {topic} into plain German.",
            "The letter from {city2} is in Portuguese, translate it.",
        ),
    ),
}
KINDS = [*INTENTS.values(), *MORE_INTENTS.values()]
WRONG_ADVICE = "answer at once and call no tool"
LEAKED_ADVICE = "give the answer that case {} has"
FIRST_VALIDATION = 1000
"""Numbers of validation cases begin here."""
REFLECTS = 0.6
"""The chance that reflection on a group writes a lesson, as in the model."""

_KNOWN = re.compile(r"^\s*\[E\d+\*?\] (.+)$", re.MULTILINE)
_CASE = re.compile(r"^case: (\d+)$", re.MULTILINE)
_NUMBERED = re.compile(r"^(\d+)\. (.+?)(?: \(from \d+ groups\))?$", re.MULTILINE)


def lesson_text(name: str) -> str:
    """The sentence for a name of the model's: 'right 3', 'wrong 3' or 'leak 3 17'."""
    what, kind, *source = name.split()
    right = KINDS[int(kind)][0]
    advice = LEAKED_ADVICE.format(*source) if what == "leak" else WRONG_ADVICE
    return right if what == "right" else f"When {condition_of(right)}, {advice}."


class CaseWorld:
    """The cases of one seed, and what lessons do to them.

    Args:
        world: what there is to learn; it must have as many kinds as there are texts for.
        seed: of the chances and the wording.
    """

    def __init__(self, world: World, seed: int) -> None:
        if world.n_kinds != len(KINDS):
            message = f"n_kinds={world.n_kinds}: there are texts for {len(KINDS)} kinds."
            raise ValueError(message)
        self.world = world
        self.seed = seed
        self.lessons = Lessons(world, seed)
        self._validation = Lessons(world, -seed)
        kinds = range(world.n_kinds)
        names = [f"{what} {kind}" for what in ("right", "wrong") for kind in kinds]
        names += [f"leak {kind} {case}" for case, kind in enumerate(self.lessons.kind)]
        self.name_of = {lesson_text(name): name for name in names}
        self._read: dict[frozenset[str], tuple[ExperienceLibrary, ExperienceLibrary]] = {}

    def named(self, library: ExperienceLibrary) -> ExperienceLibrary:
        """The library with the model's names in place of sentences."""
        return _library(self.name_of[own.text] for own in library)

    def held_out(self, library: ExperienceLibrary) -> float:
        """The exact accuracy with this library on cases that no lesson was drawn from."""
        return self.lessons.held_out(self.named(library))

    def n_harmful(self, library: ExperienceLibrary) -> int:
        """How many lessons of the library are wrong or leak."""
        return sum(self.lessons.is_harmful(own.text) for own in self.named(library))

    def chance(self, texts: frozenset[str], case: int) -> float:
        """Of a right answer to the case, with these sentences in the prompt."""
        if texts not in self._read:
            names = sorted(self.name_of[text] for text in texts)
            elsewhere = {re.sub(r"leak (\d+) \d+", r"wrong \1", name) for name in names}
            self._read[texts] = _library(names), _library(sorted(elsewhere))
        on_training, on_validation = self._read[texts]
        if case < FIRST_VALIDATION:
            return self.lessons.chance(on_training, case)
        return self._validation.chance(on_validation, case - FIRST_VALIDATION)

    def answer(self, case: int) -> str:
        """The right answer, which nobody can guess."""
        return str(random.Random(f"answer/{self.seed}/{case}").randrange(1000, 10_000))

    def examples(self, n: int, first: int = 0) -> list[dspy.Example]:
        """Cases from this number on, the kinds in turn, each with its own words."""
        return [self._example(case) for case in range(first, first + n)]

    def _example(self, case: int) -> dspy.Example:
        draw = random.Random(f"request/{self.seed}/{case}")
        _, templates = KINDS[(case % FIRST_VALIDATION) % len(KINDS)]
        slots = {name: draw.choice(values) for name, values in SLOTS.items()}
        request = draw.choice(templates).format(**slots, n=draw.randrange(10, 60))
        example = dspy.Example(case=case, request=request, answer=self.answer(case))
        return example.with_inputs("case", "request")

    def written(self, case: int, draw: random.Random) -> list[str]:
        """The lessons that reflection on a group of this case writes: one, or none."""
        if draw.random() >= REFLECTS:
            return []
        kind, luck = self.lessons.kind[case], draw.random()
        if luck < self.world.wrong:
            return [lesson_text(f"wrong {kind}")]
        if luck < self.world.wrong + self.world.leaking:
            return [lesson_text(f"leak {kind} {case}")]
        return [lesson_text(f"right {kind}")]


def _library(names: Any) -> ExperienceLibrary:
    return ExperienceLibrary().apply([Add(name) for name in names], LIMITS)


@dataclass(frozen=True)
class MeasuredConcern:
    """Says what lessons concern as well, and as badly, as the signal that was measured."""

    cases: CaseWorld

    def __call__(
        self,
        experiences: Sequence[Experience],
        inputs: Sequence[str],  # noqa: ARG002 - the protocol's
        domains: Sequence[str] = (),  # noqa: ARG002
    ) -> Mapping[str, frozenset[int]]:
        found = {
            own.id: self.cases.lessons.concerned(replace(own, text=self.cases.name_of[own.text]))
            for own in experiences
        }
        return {id_: concerned for id_, concerned in found.items() if concerned}


class LessonEngine:
    """Policy and reflection side as a DSPy engine, told apart by the output fields asked for.

    `calls` counts by role: "policy", "lesson", "update".
    """

    supported_params = frozenset({"temperature", "max_tokens", "seed"})

    def __init__(self, cases: CaseWorld) -> None:
        self.calls: Counter[str] = Counter()
        self._cases = cases
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict[int, Any]) -> "LessonEngine":
        return self

    @property
    def n_calls(self) -> int:
        """All calls so far."""
        with self._lock:
            return sum(self.calls.values())

    def complete(self, request: lm15.Request) -> lm15.Response:
        """The answer to a request."""
        prompt = Prompt.of(request, str(request.config.seed))
        fields = output_fields(prompt.system)
        role = self._role(fields)
        with self._lock:
            self.calls[role] += 1
        text = fields.formatted(getattr(self, f"_{role}")(prompt))
        usage = lm15.Usage(input_tokens=prompt.n_words, output_tokens=text.count(" ") + 1)
        message = lm15.Message.assistant([lm15.TextPart(text)])
        return lm15.Response(
            id=None, model=request.model, message=message, finish_reason="stop", usage=usage
        )

    def _role(self, fields: OutputFields) -> str:
        known = {"answer": "policy", "lessons": "lesson", "operations": "update"}
        return next(role for name, role in known.items() if name in fields.names)

    def _policy(self, prompt: Prompt) -> dict[str, Any]:
        """One luck for a case and a seed, whatever the library: trials come in pairs."""
        case = int(sections(prompt.user)["case"])
        texts = frozenset(_KNOWN.findall(prompt.system))
        luck = random.Random(f"luck/{self._cases.seed}/{case}/{prompt.sample}").random()
        is_right = luck < self._cases.chance(texts, case)
        return {"answer": self._cases.answer(case) if is_right else "unknown"}

    def _lesson(self, prompt: Prompt) -> dict[str, Any]:
        found = _CASE.search(sections(prompt.user)["example"])
        if found is None:
            raise AssertionError(prompt.user)
        draw = random.Random(f"lesson/{self._cases.seed}/{found[1]}/{prompt.sample}")
        lessons = self._cases.written(int(found[1]), draw)
        return {"semantic_advantage": "The better ones did as it says.", "lessons": lessons}

    def _update(self, prompt: Prompt) -> dict[str, Any]:
        numbered = _NUMBERED.findall(sections(prompt.user)["lessons"])
        adds = [{"op": "ADD", "text": text, "lessons": [int(n)]} for n, text in numbered]
        return {"operations": adds}


def program() -> dspy.Module:
    """The student."""
    does = "Do what the request asks for, and give the code of what was done."
    return dspy.Predict(dspy.Signature("case: int, request: str -> answer: str", does))


def is_exact(gold: Any, pred: Any, trace: Any = None) -> float:  # noqa: ARG001 - DSPy's form
    """The metric: right or wrong, without feedback."""
    return float(gold.answer == getattr(pred, "answer", None))
