"""The engine of `random_worlds.py`: plays policy and reflection LM of a world. NOTHING IS REAL.

The reflection side is that of `worlds_engine.py`, which answers every optimizer alike; a random
world adds errors of editors, paraphrases, and lines that hold for every case.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dspy
from random_world_model import FILLER, N_WRONG, USELESS, Line, World
from simlm import OutputFields, Prompt, draw, pick, sections
from tasks import in_gepas_form, seeded
from worlds_engine import REDRAWN, WorldEngine

BROAD_WRITES = 0.4
"""The chance that a call with evidence writes a line for every case, in worlds that have such."""
POLICY_TOKENS, REFLECTION_TOKENS = 300, 2000
UNWANTED = re.compile(r"dropped|harm|replaced|effect -|: -0")
"""What stands beside advice that a new text should not take over."""


class RandomEngine(WorldEngine):
    """What it answers is a function of the request alone: prompt and seed."""

    world: Any

    # ---- the policy
    def _act(self, prompt: Prompt, fields: OutputFields) -> dict[str, str]:
        world, shown = self.world, sections(prompt.user)
        case = world.cases_in(shown["request"])[0]
        lines, demos = world.found(prompt.system), world.cases_in(prompt.demos)
        key: tuple[Any, ...] = ("luck", world.seed, case, prompt.sample)
        if draw("redrawn", *key) < REDRAWN:
            key = (*key, *sorted(map(repr, lines)), len(demos))
        stage = self._stage_of(fields)
        is_clear = "unclear" not in prompt.user
        codes = []
        for slot, kind in enumerate(world.kinds(case)):
            is_right = is_clear
            if world.stage(kind) == stage:
                is_right = draw(slot, *key) < world.chance(case, slot, lines, demos)
            elif world.stage(kind) > stage:
                is_right = True
            told = [line.place for line in lines if line.what == "wrong" and line.kind == kind]
            wrong = told[0] if told else pick(N_WRONG, "mistake", slot, *key)
            codes.append(world.right[kind] if is_right else world.wrong[kind][wrong])
        is_all_right = tuple(codes) == world.truth(case)
        return self._written_out(fields, shown, codes, is_all_right, key)

    def _stage_of(self, fields: OutputFields) -> int:
        if "next_tool_name" in fields.names or not self.world.final_fields.isdisjoint(fields.names):
            return 0 if "next_tool_name" in fields.names else len(self.world.stages) - 1
        return 1 if "verdict" in fields.names else 0

    def _written_out(
        self,
        fields: OutputFields,
        shown: Mapping[str, str],
        codes: Sequence[str],
        is_right: bool,
        key: tuple[Any, ...],
    ) -> dict[str, str]:
        clear = "clear" if is_right else "unclear"
        if "next_tool_name" in fields.names:
            return self._turn(sum(name.startswith("observation") for name in shown), clear)
        if self.world.final_fields.isdisjoint(fields.names):
            return dict.fromkeys(fields.names, clear)
        neatness = f" /{pick(11, 'neat', *key)}" if self.world.traits.graded else ""
        values = self.world.written(codes)
        values[self.world.answer_fields[0]] += neatness
        return {name: values.get(name, "It follows from the text.") for name in fields.names}

    def _turn(self, n_done: int, clear: str) -> dict[str, str]:
        """An agent looks things up, decides with the last look, and finishes."""
        last = self.world.traits.n_turns - 2
        page = f'{{"page": "{clear if n_done == last else n_done}"}}'
        is_done = n_done > last
        return {
            "next_thought": "Go on.",
            "next_tool_name": "finish" if is_done else "look_up",
            "next_tool_args": "{}" if is_done else page,
        }

    # ---- the reflection side
    def _written(self, prompt: Prompt) -> list[Any]:
        world, traits, key = self.world, self.world.traits, self._key(prompt)
        evident, _ = world.evidence(prompt.user)
        is_seen = traits.writes * min(1.0, traits.attention / max(1, len(evident)))
        kinds = [kind for kind in evident if draw("lesson", kind, *key) < is_seen]
        written = [self._about(kind, evident[kind], key) for kind in kinds]
        if world.broad and evident and draw("broad", *key) < BROAD_WRITES:
            place = list(world.broad)[pick(len(world.broad), "line", *key)]
            written.append(Line(world.broad[place], place=place))
        if draw("idle", *key) < traits.useless:
            written.append(Line("useless", place=pick(len(USELESS), "useless", *key)))
        return written

    def _about(self, kind: int, cases: Sequence[int], key: tuple[Any, ...]) -> Any:
        traits, luck = self.world.traits, draw("which", kind, *key)
        if luck < traits.wrong:
            agreed = 0 if traits.agreeing else pick(N_WRONG, "code", kind, *key)
            return Line("wrong", kind, agreed)
        luck = (luck - traits.wrong) / max(1e-9, 1 - traits.wrong)
        own = [c for c in cases if c < traits.n_train and self.world.kinds(c)[0] == kind]
        if luck < traits.leaking and own:
            return Line("leak", kind, own[pick(len(own), "leak", kind, *key)])
        return Line("over" if luck > 1 - traits.overreaching else "right", kind)

    def _text(self, line: Line, prompt: Prompt) -> str:
        form = pick(self.world.traits.n_paraphrases, "form", line, *self._key(prompt))
        return str(self.world.text(line, form))

    def _additions(self, prompt: Prompt) -> list[str]:
        texts = []
        for line in self._written(prompt):
            text = self._text(line, prompt)
            if text in prompt.user:
                continue
            if self.world.cell.two and not line.is_broad:
                errs = draw("scope", line.kind, *self._key(prompt)) < self.world.traits.wrong
                stage = (self.world.stage(line.kind) + errs) % len(self.world.stages)
                text = f"[{self.world.stages[stage]}] {text}"
            texts.append(text)
        return texts

    def _value(self, name: str, type_: str, prompt: Prompt) -> Any:
        if name == "brief":  # of one predictor; advice that is said to do harm is left out
            shown = sections(prompt.user)
            advice = [t for t in shown["experiences"].splitlines() if not UNWANTED.search(t)]
            return self._instruction(
                prompt, "\n".join([shown["present"], *advice]), shown["predictor"].strip()
            )
        return super()._value(name, type_, prompt)

    def _instruction(self, prompt: Prompt, old: str = "", predictor: str = "") -> str:
        """A new instruction: the lines of the old one and new ones, but for the editor's errors.

        `predictor`: the one that it is for; other lines are left out, but for errors.
        """
        key, traits = self._key(prompt), self.world.traits
        kept = [
            found
            for found in dict.fromkeys(self.world.planted.findall(old or prompt.user))
            if draw("lost", found, *key) >= traits.deletes / 2
        ]
        for line in self._written(prompt):
            if predictor and len(self.world.stages) > 1 and not line.is_broad:
                errs = draw("scope", line.kind, *key) < traits.wrong
                own = self.world.stages[self.world.stage(line.kind)]
                if (own.split(".")[0] == predictor.split(".")[0]) == errs:
                    continue
            rival = self._rival(line, [self.world.lessons[text] for text in kept])
            if rival is not None and self._notices(line, prompt):
                if not self._keeps_new(line, rival, prompt):
                    continue
                kept = [text for text in kept if self.world.lessons[text] != rival]
            if kept and draw("overwrites", line, *key) < traits.overwrites:
                kept.pop(pick(len(kept), "which is lost", line, *key))
            kept.append(self._text(line, prompt))
        return "\n".join(["Answer the request.", *dict.fromkeys(kept)])

    def _operation(
        self, own: Any, scope: str, known: Mapping[Any, str], prompt: Prompt
    ) -> list[dict[str, Any]]:
        made = super()._operation(own, scope, known, prompt)
        key, ids = self._key(prompt), list(known.values())
        if (
            ids
            and made[0]["op"] == "ADD"
            and draw("overwrites", own, *key) < (self.world.traits.overwrites)
        ):
            made = [made[0] | {"op": "MODIFY", "id": ids[pick(len(ids), "lost", own, *key)]}]
        if ids and draw("deletes", own, *key) < self.world.traits.deletes:
            made.append({"op": "DELETE", "id": ids[pick(len(ids), "deleted", own, *key)]})
        return made


# ---------------------------------------------------------------- programs, metric, examples
class Pipeline(dspy.Module):
    """Two or three predictors, one after the other."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.sort = dspy.Predict("request -> group")
        if n == 3:
            self.check = dspy.Predict("request, group -> verdict")
        last = "verdict" if n == 3 else "group"
        self.reply = dspy.Predict(f"request, {last} -> answer")

    def forward(self, request: str) -> dspy.Prediction:
        given = dict(self.sort(request=request))
        if hasattr(self, "check"):
            given = dict(self.check(request=request, **given))
        return self.reply(request=request, **given)


class Rag(dspy.Module):
    """Searches, then answers with what was found, which is long."""

    def __init__(self) -> None:
        super().__init__()
        self.search = dspy.Predict("request -> query")
        self.reply = dspy.ChainOfThought("request, context, query -> answer")

    def forward(self, request: str) -> dspy.Prediction:
        query = self.search(request=request).query
        return self.reply(request=request, context=FILLER * 60, query=query)


def look_up(page: str) -> str:
    """Reads a page of the register."""
    return f"page {page}"


def student_of(world: World) -> dspy.Module:
    """The program of the world's shape."""
    traits = world.traits
    if traits.shape == "cot":
        return dspy.ChainOfThought("request -> answer")
    if traits.shape == "agent":
        return dspy.ReAct("request -> answer", tools=[look_up], max_iters=10)
    if traits.shape == "rag":
        return Rag()
    if traits.shape == "predict" and traits.n_predictors > 1:
        return Pipeline(traits.n_predictors)
    return dspy.Predict(f"request -> {', '.join(world.answer_fields)}")


def examples_of(world: World, cases: range) -> Iterator[dspy.Example]:
    """The cases as examples."""
    for case in cases:
        labels = world.written(world.labels(case))
        shown = labels if world.traits.has_labels else {}
        yield dspy.Example(request=world.request(case), **shown).with_inputs("request")


def lms_of(engine: RandomEngine) -> tuple[Any, Any]:
    """The policy and the reflection LM; samples of one prompt differ for every optimizer."""
    policy = dspy.LM("random/policy", engine=engine, temperature=0.0, max_tokens=POLICY_TOKENS)
    reflection = dspy.LM(
        "random/reflection", engine=engine, temperature=1.0, max_tokens=REFLECTION_TOKENS
    )
    return seeded(policy), seeded(reflection)


def metric_of(world: World) -> Any:
    """The metric: the share of slots that are right; graded worlds add a third that is luck.

    Where rules work together an answer is right or wrong as a whole, unless `partial`.
    """

    def judged(gold: Any, pred: Any) -> dspy.Prediction:
        case = world.cases_in(gold.request)[0]
        given = [str(getattr(pred, name, "") or "") for name in world.answer_fields]
        codes = [text.partition(" /")[0].strip() for text in given]
        if world.traits.together:
            codes = codes[0].split()
        pairs = list(itertools.zip_longest(codes, world.labels(case), fillvalue=""))
        wrong = [code for text, code in pairs if text != code]
        score = 1 - len(wrong) / len(pairs)
        if world.traits.together and not world.traits.partial:
            score = float(not wrong)
        if world.traits.graded:
            neatness = given[0].partition(" /")[2].strip()
            score = (2 * score + (int(neatness) / 10 if neatness.isdigit() else 0)) / 3
        if world.traits.noise:
            luck = sum(draw("judge", world.seed, case, n, *given) for n in range(12)) - 6
            score = min(1.0, max(0.0, score + world.traits.noise * luck))
        if not world.traits.has_feedback:
            return dspy.Prediction(score=score)
        feedback = f"Wrong: {', '.join(wrong)} expected." if wrong else "Right."
        return dspy.Prediction(score=score, feedback=feedback)

    return in_gepas_form(judged)
