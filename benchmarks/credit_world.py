"""An agent with known critical steps, for `credit.py`. SIMULATED; NOTHING IS REAL.

**The agent** is a real `dspy.ReAct` with one tool, `act(option)`, and makes so many turns. A case
is of one of five kinds. In each kind one or two turns are critical: there one of three options is
right, and a case ends well if all its critical turns were right. With luck of .1, one case in ten
ends the other way. No result of a tool and no word of the metric says which turns are critical; the
agent shows that it knows by its answer only. Without advice it takes one option of each turn, which
depends on the kind, with a chance of .5, the others with .25; at a critical turn the right one with
a chance of .8 or .5. With advice on kind and turn it takes that option with .97. So the true value
of each state is known.

**Reflection** reads the attempts. Where a value is written below a step, it looks at the turn with
the largest change: if the score fell, the option was bad, and it advises that of another attempt;
if it rose, it advises the option. Where no value is written it chooses by chance one of the turns
where the best and the worst attempt differ, and advises the option of the best. In a quarter of the
lessons the option is another one. As a judge of pairs it compares how many critical turns are
right, and errs in a sixth of the pairs. It never sees the table of right options.
"""

import re
from collections.abc import Iterator, Sequence
from typing import Any

import dspy
from dspy import lm15
from simlm_texts import OutputFields, Prompt, output_fields, response, sections
from simlm_world import draw, pick

KINDS = ("amber", "cedar", "cobalt", "linen", "walnut")
OPTIONS = ("north", "south", "west")
USUAL, TOLD = 0.5, 0.97
WRONG, ERRS = 0.25, 1 / 6
N_TRAIN, N_VALIDATION = 30, 20
LESSON = re.compile(r"In cases of (\w+), take (\w+) at turn (\d+)\.")
TAKEN = re.compile(r'## tool_args_\d+ ## \]\]\n\{"option": "(\w+)"')  # in the agent's trajectory
SHOWN = re.compile(r'out next_tool_args: .*"option": "(\w+)"')  # in steps that were recorded
ATTEMPT = re.compile(r"^Attempt \d+ \(score (-?[\d.]+)[^\n]*\n(.*?)(?=^Attempt |\Z)", re.M | re.S)
STEP = re.compile(r"^Step (\d+), (.*?)(?=^Step \d|\Z)", re.M | re.S)
CHANGE = re.compile(r"after this step the [\w ]+ (fell|rose) from (-?[\d.]+) to (-?[\d.]+)")


def act(option: str) -> str:
    """Take an option: north, south or west."""
    return f"{option} is done"


class World:
    """The kinds, their critical turns, and the true value of each state."""

    def __init__(
        self, n_turns: int, n_critical: int, seed: int, usual: float = 0.8, luck: float = 0.0
    ) -> None:
        self.n_turns, self.n_critical, self.seed = n_turns, n_critical, seed
        self._usual = usual  # the chance of the right option at a critical turn, without advice
        self._badly, self._well = luck, 1 - luck
        self.right = {}
        for kind in KINDS:
            turns = sorted(range(n_turns), key=lambda t: draw("critical", seed, kind, t))
            for turn in turns[:n_critical]:
                self.right[kind, turn] = OPTIONS[pick(3, "right", seed, kind, turn)]

    def examples(self) -> list[dspy.Example]:
        n = N_TRAIN + N_VALIDATION
        cases = [f"Case {k} about {KINDS[k % len(KINDS)]}." for k in range(n)]
        return [dspy.Example(case=case, answer="well").with_inputs("case") for case in cases]

    def student(self) -> dspy.ReAct:
        return dspy.ReAct("case -> answer", tools=[act], max_iters=self.n_turns)

    def chances(self, kind: str, turn: int, advice: dict[tuple[str, int], str]) -> list[float]:
        """The chance of each option."""
        told = advice.get((kind, turn))
        right = self.right.get((kind, turn))
        chosen, share = OPTIONS[pick(3, "usual", self.seed, kind, turn)], USUAL
        if right or told:
            chosen, share = (told, TOLD) if told else (right, self._usual)
        return [share if option == chosen else (1 - share) / 2 for option in OPTIONS]

    def value(self, kind: str, taken: Sequence[str], advice: dict[tuple[str, int], str]) -> float:
        """The chance that a case comes out well after these options."""
        chance = 1.0
        for turn in range(self.n_turns):
            right = self.right.get((kind, turn))
            if right and turn < len(taken):
                chance *= taken[turn] == right
            elif right:
                chance *= self.chances(kind, turn, advice)[OPTIONS.index(right)]
        return self._badly + (self._well - self._badly) * chance

    def mean_value(self, instructions: str) -> float:
        """The exact mean score of a program with these instructions."""
        advice = advice_in(instructions)
        return sum(self.value(kind, (), advice) for kind in KINDS) / len(KINDS)

    @property
    def attainable(self) -> float:
        """The mean score with the right advice for every critical turn."""
        lines = [f"In cases of {k}, take {o} at turn {t + 1}." for (k, t), o in self.right.items()]
        return self.mean_value("\n".join(lines))

    def critical(self, kind: str, taken: Sequence[str]) -> set[int]:
        """The turns that truly changed the value by a fifth of its range or more."""
        values = [self.value(kind, taken[:n], {}) for n in range(len(taken) + 1)]
        least = 0.2 * (self._well - self._badly)
        return {t for t in range(len(taken)) if abs(values[t + 1] - values[t]) >= least}


def advice_in(text: str) -> dict[tuple[str, int], str]:
    """The advice on a kind and a turn; of several lines the first counts."""
    found: dict[tuple[str, int], str] = {}
    for kind, option, turn in LESSON.findall(text):
        found.setdefault((kind, int(turn) - 1), option)
    return found


def metric(example: Any, pred: Any, *_: Any) -> float:
    return float(pred.answer == example.answer)


class Attempt:
    """An attempt as the reflection LM reads it: its options by turn, its largest change."""

    def __init__(self, score: str, text: str) -> None:
        self.score = float(score)
        self.taken: dict[int, str] = {}
        self.change, self.turn, self.fell = 0.0, -1, False
        for number, body in STEP.findall(text):
            turn = (int(number) - 1) // 2  # a call of the predictor, and one of the tool
            if option := SHOWN.search(body):
                self.taken[turn] = option[1]
            if change := CHANGE.search(body):
                size = abs(float(change[2]) - float(change[3]))
                if size > self.change:
                    self.change, self.turn, self.fell = size, turn, change[1] == "fell"


class Engine:
    """Plays the policy LM and the reflection LM; a pure function of prompt and seed."""

    supported_params = frozenset({"temperature", "max_tokens", "seed"})

    def __init__(self, world: World) -> None:
        self.world = world

    def complete(self, request: lm15.Request) -> lm15.Response:
        prompt = Prompt.of(request, str(request.config.seed))
        fields = output_fields(prompt.system)
        text = fields.formatted(self._values(prompt, fields))
        return response(request, prompt, text)

    def _values(self, prompt: Prompt, fields: OutputFields) -> dict[str, Any]:
        if "next_tool_name" in fields.names:
            return self._turn(prompt)
        if "lessons" in fields.names:
            return dict.fromkeys(fields.names, "") | {"lessons": self._lessons(prompt)}
        if "operations" in fields.names:
            return {"plan": "", "operations": self._operations(prompt)}
        if "better" in fields.names:
            return {"reason": "so it seems", "better": self._better(prompt)}
        return dict.fromkeys(fields.names, "so") | {"answer": self._answer(prompt)}

    def _case(self, prompt: Prompt) -> tuple[str, list[str]]:
        """The kind of the case, and the options that were taken."""
        shown = sections(prompt.user)
        kind = next(kind for kind in KINDS if f"about {kind}" in shown["case"])
        return kind, (SHOWN if "steps_so_far" in shown else TAKEN).findall(prompt.user)

    def _turn(self, prompt: Prompt) -> dict[str, Any]:
        kind, taken = self._case(prompt)
        chances = self.world.chances(kind, len(taken), advice_in(prompt.system))
        luck = draw("turn", self.world.seed, prompt.user, prompt.sample)
        place = next((k for k in range(3) if luck < sum(chances[: k + 1])), 2)
        option = {"option": OPTIONS[place]}
        return {"next_thought": "so", "next_tool_name": "act", "next_tool_args": option}

    def _answer(self, prompt: Prompt) -> str:
        kind, taken = self._case(prompt)
        value = self.world.value(kind, taken, advice_in(prompt.system))
        luck = draw("end", self.world.seed, prompt.user, prompt.sample)
        return "well" if luck < value else "badly"

    def _lessons(self, prompt: Prompt) -> list[str]:
        shown = sections(prompt.user)
        found = re.findall(r"about (\w+)\.", shown.get("example", ""))
        parts = re.split(r"^Example \d+$", shown.get("attempts", ""), flags=re.M)[-len(found) :]
        return [line for kind, part in zip(found, parts, strict=False)
                for line in self._lesson(kind, part, prompt)]  # fmt: skip

    def _lesson(self, kind: str, text: str, prompt: Prompt) -> Iterator[str]:
        attempts = [Attempt(*found) for found in ATTEMPT.findall(text)]
        whole = [one for one in attempts if len(one.taken) == self.world.n_turns]
        if len(whole) < 2:
            return
        key = (self.world.seed, prompt.user, prompt.sample)
        best = sorted(attempts, key=lambda one: -one.score)
        valued = max(attempts, key=lambda one: one.change)
        if valued.change > 0:
            turn, option = valued.turn, valued.taken.get(valued.turn, "")
            if valued.fell:
                others = [one.taken[turn] for one in best if one.taken.get(turn, option) != option]
                option = others[0] if others else ""
        else:
            good, bad = (end(whole, key=lambda one: one.score).taken for end in (max, min))
            differ = [turn for turn in good if good[turn] != bad[turn]]
            turn = differ[pick(len(differ), "differ", *key)] if differ else 0
            option = good[turn] if differ else ""
        if option and draw("wrong", kind, *key) < WRONG:
            option = [each for each in OPTIONS if each != option][pick(2, "other", kind, *key)]
        if option:
            yield f"In cases of {kind}, take {option} at turn {turn + 1}."

    def _operations(self, prompt: Prompt) -> list[dict[str, Any]]:
        shown = sections(prompt.user)
        known = advice_in(shown.get("experiences", ""))
        made = []
        for number, found in enumerate(LESSON.finditer(shown.get("lessons", "")), start=1):
            kind, option, turn = found.groups()
            if known.get((kind, int(turn) - 1)) != option:
                made.append({"op": "ADD", "text": found[0], "lessons": [number]})
        return made

    def _better(self, prompt: Prompt) -> str:
        shown = sections(prompt.user)
        kind = next(kind for kind in KINDS if f"about {kind}" in shown["example"])
        n_right = [
            sum(self.world.right.get((kind, turn)) == option
                for turn, option in Attempt("0", shown[name]).taken.items())
            for name in ("attempt_1", "attempt_2")
        ]  # fmt: skip
        if n_right[0] == n_right[1]:
            return "0"
        errs = draw("judge", self.world.seed, prompt.user) < ERRS
        return "1" if (n_right[0] > n_right[1]) != errs else "2"
