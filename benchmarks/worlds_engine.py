"""The engine of `worlds.py`: plays policy and reflection LM of a world. NOTHING IS REAL.

Prompts are read only by texts that the world itself planted (cases, answers, lessons), by ids such
as E3 and numbers before a lesson, and by the field markers of DSPy's adapters.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dspy
from dspy import lm15
from simlm import OutputFields, Prompt, draw, output_fields, pick, response, sections
from worlds_model import N_TRAIN, N_WRONG, USELESS_LINES, Lesson, World

REDRAWN = 0.3
"""The share of cases whose luck is drawn again with other lessons in the prompt."""
WRITES, ATTENTION, IDLE, MERGES = 0.6, 5, 0.1, 0.5
"""Reflection: the chance of a lesson about a kind with evidence; of how many kinds at once it can
write; the chance of a useless line; the chance that two texts that conflict are noticed."""


class BudgetSpentError(BaseException):
    """The engine takes no more calls: not an Exception, so that no optimizer goes on."""


class WorldEngine:
    """Policy and reflection LM, told apart by the output fields asked for; counts its calls.

    What it answers is a function of the request alone: prompt and seed.

    Args:
        world: the hidden truth.
        limit: a call above it raises BudgetSpentError; None: no limit.
    """

    supported_params = frozenset({"temperature", "max_tokens", "seed"})

    def __init__(self, world: World, limit: int | None = None) -> None:
        self.world, self.limit = world, limit
        self.calls: Counter[str] = Counter()
        self.fingerprint = f"worlds {world.cell} {world.seed}"
        self._stage = re.compile("|".join(map(re.escape, world.stages)))

    def __deepcopy__(self, memo: dict[int, Any]) -> "WorldEngine":
        return self

    def complete(self, request: lm15.Request) -> lm15.Response:
        """The answer, in the format that the prompt asks for."""
        if self.limit is not None and self.calls.total() >= self.limit:
            raise BudgetSpentError
        prompt = Prompt.of(request, f"{request.config.temperature and request.config.seed}")
        fields = output_fields(prompt.system)
        is_policy = not self.world.policy_fields.isdisjoint(fields.names)
        self.calls["policy" if is_policy else "reflection"] += 1
        if is_policy:
            answer = fields.formatted(self._act(prompt, fields))
        else:
            answer = self._reflect(prompt, fields)
        return response(request, prompt, answer)

    # ---- the policy
    def _act(self, prompt: Prompt, fields: OutputFields) -> dict[str, str]:
        world, shown = self.world, sections(prompt.user)
        case = world.cases_in(shown["request"])[0]
        kind, lessons = world.kind(case), world.found(prompt.system)
        key: tuple[Any, ...] = ("luck", world.seed, case, prompt.sample)
        if draw("redrawn", *key) < REDRAWN:
            key = (*key, *sorted(map(repr, lessons)))
        is_right = draw(*key) < world.chance(case, lessons)
        if world.cell.two and world.stages[world.stage(case)] != (
            "sort" if "group" in fields.names else "reply"
        ):
            is_right = shown.get("group", "").strip() != "unclear"
        if "group" in fields.names:
            return dict.fromkeys(fields.names, "clear" if is_right else "unclear")
        told = [own.place for own in lessons if own.what == "wrong" and own.kind == kind]
        wrong = world.wrong[kind][told[0] if told else pick(N_WRONG, "mistake", *key)]
        code = world.right[kind] if is_right else wrong
        neatness = f" /{pick(11, 'neat', *key)}" if world.cell.graded else ""
        return {name: code + neatness if name == "answer" else "" for name in fields.names}

    # ---- the reflection side
    def _reflect(self, prompt: Prompt, fields: OutputFields) -> str:
        if not fields.names:  # a prompt of no adapter: the whole answer is the new instruction
            return f"```\n{self._instruction(prompt)}\n```"
        pairs = zip(fields.names, fields.types, strict=True)
        values = {name: self._value(name, type_, prompt) for name, type_ in pairs}
        return fields.formatted(values)

    def _value(self, name: str, type_: str, prompt: Prompt) -> Any:
        is_list = type_.startswith("list")
        if "operation" in name:
            made = self._operations(prompt)
            return made if is_list else json.dumps(made, ensure_ascii=False)
        if "instruction" in name:
            return self._instruction(prompt)
        if is_list or "lesson" in name:
            lines = self._additions(prompt)
            return lines if is_list else "\n".join(lines) or "None"
        if type_.startswith("dict"):
            return self._advice(prompt)
        if type_ != "str":
            return 0
        return "The better attempts gave what was expected."

    def _key(self, prompt: Prompt) -> tuple[Any, ...]:
        """What a call's draws depend on: the same for prompts that differ in wording only."""
        world = self.world
        _, codes = world.evidence(prompt.user)
        known = [world.lessons[line] for line in world.planted.findall(prompt.user)]
        return (world.seed, prompt.sample, *world.cases_in(prompt.user), *codes, *known)

    def _written(self, prompt: Prompt) -> list[Lesson]:
        """The lessons that this call writes."""
        world, cell, key = self.world, self.world.cell, self._key(prompt)
        evident, _ = world.evidence(prompt.user)
        written = []
        if cell.n_right is not None:
            if evident and draw("broad", *key) < WRITES:
                line = pick(10, "line", *key)
                written.append(Lesson(f"broad {world.broad[line]}", place=line))
        else:
            is_seen = WRITES * min(1.0, ATTENTION / max(1, len(evident)))
            kinds = [kind for kind in evident if draw("lesson", kind, *key) < is_seen]
            written += [self._about(kind, evident[kind], key) for kind in kinds]
        if draw("idle", *key) < IDLE:
            written.append(Lesson("useless", place=pick(len(USELESS_LINES), "useless", *key)))
        return written

    def _about(self, kind: int, cases: Sequence[int], key: tuple[Any, ...]) -> Lesson:
        cell, luck = self.world.cell, draw("which", kind, *key)
        if luck < cell.wrong:
            return Lesson("wrong", kind, 0 if cell.agree else pick(N_WRONG, "code", kind, *key))
        if luck < cell.wrong + cell.leaking and cases[0] < N_TRAIN:
            return Lesson("leak", kind, cases[pick(len(cases), "leak", kind, *key)])
        return Lesson("right", kind)

    def _additions(self, prompt: Prompt) -> list[str]:
        """New lessons, as lines; with two predictors, mostly named for the right one."""
        lines = []
        for own in self._written(prompt):
            line = self.world.text(own)
            if line in prompt.user:
                continue
            if self.world.cell.two and own.kind >= 0:
                errs = draw("scope", own.kind, *self._key(prompt)) < self.world.cell.wrong
                line = f"[{self.world.stages[self.world.stage(own.kind) ^ errs]}] {line}"
            lines.append(line)
        return lines

    def _advice(self, prompt: Prompt) -> dict[str, str]:
        """New lessons by module, as SIMBA asks for them; without a scope they are for every one."""
        shown = sections(prompt.user).get("module_names", "[]")
        scoped = [re.fullmatch(r"(?:\[([^]]+)\] )?(.*)", each) for each in self._additions(prompt)]
        return {
            name: "\n".join(m[2] for m in scoped if m and name.startswith(m[1] or name))
            for name in re.findall(r"[«\"']([\w.]+)[»\"']", shown)
        }

    def _instruction(self, prompt: Prompt) -> str:
        """A new instruction: the lessons of the old one, and new ones."""
        lessons = list(self.world.found(prompt.user))
        for own in self._written(prompt):
            rival = self._rival(own, lessons)
            if rival is not None and self._notices(own, prompt):
                keeps_new = self._keeps_new(own, rival, prompt)
                lessons = [other for other in lessons if other != rival or not keeps_new]
                if not keeps_new:
                    continue
            lessons.append(own)
        lines = [self.world.text(own) for own in dict.fromkeys(lessons)]
        return "\n".join(["Answer the request.", *lines])

    @staticmethod
    def _rival(own: Lesson, others: Iterable[Lesson]) -> Lesson | None:
        """Of two texts about a kind, one right and one wrong, the other."""
        opposite = {"right": "wrong", "wrong": "right"}.get(own.what)
        return next((o for o in others if o.kind == own.kind and o.what == opposite), None)

    def _notices(self, own: Lesson, prompt: Prompt) -> bool:
        return draw("notices", own, *self._key(prompt)) < MERGES

    def _keeps_new(self, own: Lesson, rival: Lesson, prompt: Prompt) -> bool:
        errs = draw("errs", own, rival, *self._key(prompt)) < self.world.cell.wrong
        return (own.what == "right") != errs

    def _operations(self, prompt: Prompt) -> list[dict[str, Any]]:
        """What is done with the lessons in the prompt; of what conflicts, one may go."""
        shown = sections(prompt.user)
        present = self._lines(shown.get("experiences", prompt.user))
        known = {own: id_ for own, id_, *_ in present if id_}
        if "lessons" in shown:
            new = {(own, scope): n for own, _, n, scope in self._lines(shown["lessons"])}
        else:
            new = {(own, ""): 0 for own in self._written(prompt)}
        made: list[dict[str, Any]] = []
        for place, ((own, scope), number) in enumerate(new.items(), start=1):
            sources = {"lessons": [number or place]} if self.world.cell.named else {}
            made += [one | sources for one in self._operation(own, scope, known, prompt)]
        return made

    def _operation(
        self, own: Lesson, scope: str, known: Mapping[Lesson, str], prompt: Prompt
    ) -> list[dict[str, Any]]:
        if own in known:
            return [{"op": "KEEP", "id": known[own]}]
        add = {"op": "ADD", "text": self.world.text(own)} | ({"scope": scope} if scope else {})
        rival = self._rival(own, known)
        if rival is None or not self._notices(own, prompt):
            return [add]
        if not self._keeps_new(own, rival, prompt):
            return [{"op": "KEEP", "id": known[rival]}]
        if draw("modifies", own, rival, *self._key(prompt)) < 0.5:
            return [add | {"op": "MODIFY", "id": known[rival]}]
        return [{"op": "DELETE", "id": known[rival]}, add]

    def _lines(self, text: str) -> list[tuple[Lesson, str, int, str]]:
        """Each planted line: its id ("": none), its number (0: none), the predictor named there."""
        lines = []
        for found in self.world.planted.finditer(text):
            before = text[text.rfind("\n", 0, found.start()) + 1 : found.start()]
            rest = before + text[found.end() :].partition("\n")[0]
            id_, number = re.search(r"\bE\d+", before), re.search(r"\d+", before)
            scope = self._stage.search(rest) if self.world.cell.two else None
            lines.append(
                (
                    self.world.lessons[found[0]],
                    id_[0] if id_ else "",
                    int(number[0]) if number else 0,
                    scope[0] if scope else "",
                )
            )
        return lines


def lms_of(engine: WorldEngine) -> tuple[Any, Any]:
    """The policy and the reflection LM."""
    policy = dspy.LM("worlds/policy", engine=engine, temperature=0.0, max_tokens=4000)
    reflection = dspy.LM("worlds/reflection", engine=engine, temperature=1.0, max_tokens=32000)
    return policy, reflection
