"""The small tasks that tests compile on, and one `Run`: a compile with what came of it.

The polite task: say "please". An answer does so in nine of ten samples where the baked advice asks
for it, and in three of ten where it does not.
"""

import itertools
import json
import re
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import dspy
from scripted import EXTRACT, UPDATE, Prompt, Rule, chat, lessons, operations, scripted_lm
from small import grpo

from tfgrpo_dspy import ExperienceLibrary, NoGate, TrainingFreeGRPO
from tfgrpo_dspy.events import Proposal
from tfgrpo_dspy.rollout import rollout_id_for

ADVICE = "When a customer asks, say please."


def polite_answer(prompt: Prompt) -> str:
    chance = 0.9 if ADVICE in prompt.system else 0.3
    answer = "please" if prompt.random().random() < chance else "no"
    with_reasoning = {"reasoning": "hm"} if "`reasoning`" in prompt.text else {}
    return chat(**with_reasoning, answer=answer)


def polite_rules(advice: str = ADVICE, **operation: Any) -> list[Rule]:
    update = operations({"op": "ADD", "text": advice, "lessons": [1], **operation})
    return [(EXTRACT, lessons(advice)), (UPDATE, update), ("question", polite_answer)]


def polite_lm(advice: str = ADVICE, **kwargs: Any) -> dspy.LM:
    return scripted_lm(polite_rules(advice), **kwargs)


def is_polite(_example: Any, pred: Any, _trace: Any = None) -> dspy.Prediction:
    return dspy.Prediction(score=float(pred.answer == "please"), feedback="Say please.")


def questions(n: int, start: int = 0) -> list[dspy.Example]:
    return [
        dspy.Example(question=f"question {i}", answer="please").with_inputs("question")
        for i in range(start, start + n)
    ]


def optimizer_of(**settings: Any) -> TrainingFreeGRPO:
    epochs = 1 if settings.get("gate") else 2  # the default gate tries advice before it keeps it
    given = {"group_size": 4, "epochs": epochs, "num_threads": 4, "progress": False, **settings}
    return grpo(given.pop("metric", is_polite), **given)


def learned(student: Any = None, lm: Any = None, **settings: Any) -> Any:
    """The student after a compile on six examples, gated on twelve others."""
    student = student or dspy.Predict("question -> answer")
    with dspy.context(lm=lm or polite_lm()):
        return optimizer_of(**settings).compile(
            student, trainset=questions(6), valset=questions(12, start=100)
        )


def library_texts(program: Any) -> list[str]:
    return [experience.text for experience in ExperienceLibrary.from_program(program)]


def n_calls(program: Any, kind: str = "n_lm_calls") -> int:
    """How many calls the results report, over all roles."""
    return sum(getattr(usage, kind) for usage in program.detailed_results.usage.values())


def records(log_dir: Path, *stages: str) -> dict[str, Any]:
    """The records of these stages in a run store, by their keys; none where there is no store."""
    if not (log_dir / "tfgrpo_store.db").exists():
        return {}
    with closing(sqlite3.connect(log_dir / "tfgrpo_store.db")) as database:
        rows = database.execute("SELECT key, value FROM entries").fetchall()
    return {key: json.loads(text) for key, text in rows if key.partition(":")[0] in stages}


class AtCall:
    """Does something at the n-th call of an LM."""

    def __init__(self, n: int, act: Callable[[], None]) -> None:
        self.n, self.act = n, act
        self._calls = itertools.count(1)

    def __call__(self, _prompt: Prompt) -> None:
        if next(self._calls) == self.n:
            self.act()


def learned_in(results: Any) -> list[dict[str, Any]]:
    """The updates of a run, but for their calls, which include those that were tried again."""
    return [update | {"n_lm_calls": 0} for update in results.to_dict()["updates"]]


def untimed(results: Any) -> dict[str, Any]:
    """The results of a run, but for what may differ from run to run."""
    return {name: value for name, value in results.to_dict().items() if name != "wall_time_s"}


class Pair(dspy.Module):
    """Two predictors of one signature, one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dspy.Predict("question -> answer", temperature=1.0)
        self.second = dspy.Predict("question -> answer")

    def forward(self, question: str) -> dspy.Prediction:
        self.first(question=question)
        return self.second(question=question)


class Guesser(dspy.Module):
    """A program of another make: `question -> answer` by a predictor of another name."""

    def __init__(self) -> None:
        super().__init__()
        self.guess = dspy.Predict("question -> guess")

    def forward(self, question: str) -> dspy.Prediction:
        return dspy.Prediction(answer=self.guess(question=question).guess)


def predictor() -> dspy.Predict:
    return dspy.Predict("question -> answer")


def look_up(page: str) -> str:
    """Reads a page of the manual."""
    return f"page {page}"


def agent() -> dspy.ReAct:
    return dspy.ReAct("question -> answer", tools=[look_up], max_iters=3)


def agent_turn(prompt: Prompt) -> str:
    tools: list[tuple[str, dict[str, str]]] = [("look_up", {"page": "7"}), ("finish", {})]
    tool, arguments = tools[prompt.user.count("[[ ## observation_")]
    return chat(next_thought="go on", next_tool_name=tool, next_tool_args=arguments)


def agent_lm(**kwargs: Any) -> dspy.LM:
    extract, update, answer = polite_rules()
    return scripted_lm([extract, update, ("`next_tool_name`", agent_turn), answer], **kwargs)


UNPARSED = "I had rather not say."


def is_score(_: dspy.Example, pred: dspy.Prediction) -> float:
    """The answer is its own score."""
    return float(pred.answer)


def in_training(rows: Sequence[Sequence[Any]]) -> Callable[[Prompt], Any]:
    """Rollout `index` of training example `i` answers `rows[i][index]` in each of 3 epochs."""
    answers = {
        rollout_id_for(0, epoch, i, index, "training") % 2**31: answer
        for epoch in range(3)
        for i, row in enumerate(rows)
        for index, answer in enumerate(row)
    }

    def answer(prompt: Prompt) -> Any:
        given = answers.get(prompt.seed, "0.5")
        if isinstance(given, BaseException) or given == UNPARSED:
            return given
        return chat(answer=given)

    return answer


class Run:
    """One compile on scripted scores, and what came of it.

    By default one epoch, no gate, and an UpdateLibrary that adds lesson 1. `rules` go before the
    usual ones.
    """

    def __init__(
        self,
        rows: Sequence[Sequence[Any]],
        *rules: Rule,
        metric: Any = is_score,
        student: Any = None,
        trainset: list[dspy.Example] | None = None,
        valset: list[dspy.Example] | None = None,
        lm: dspy.LM | None = None,
        lm_arguments: dict[str, Any] | None = None,
        schedule: Callable[..., TrainingFreeGRPO] = grpo,
        **arguments: Any,
    ) -> None:
        usual: list[Rule] = [
            (EXTRACT, lessons("Be exact.")),
            (UPDATE, operations({"op": "ADD", "text": "Be exact.", "lessons": [1]})),
            ("question", in_training(rows)),
        ]
        self.lm = lm or scripted_lm([*rules, *usual], num_retries=0, **lm_arguments or {})
        defaults = {"gate": NoGate(), "epochs": 1, "group_size": len(rows[0]), "num_threads": 2}
        optimizer = schedule(metric, **defaults | {"progress": False} | arguments)
        with dspy.context(lm=self.lm):
            self.optimized = optimizer.compile(
                student or predictor(), trainset=trainset or questions(len(rows)), valset=valset
            )
        self.results = self.optimized.detailed_results
        self.library = ExperienceLibrary.from_program(self.optimized)

    def prompts(self, pattern: str) -> list[Prompt]:
        return [prompt for prompt in self.lm.engine.prompts if re.search(pattern, prompt.text)]

    def texts(self, pattern: str) -> list[str]:
        """The texts of the prompts that match, sorted."""
        return sorted(prompt.text for prompt in self.prompts(pattern))

    @property
    def uses(self) -> list[str]:
        """What each group of the first update was used as, by example."""
        groups = sorted(self.results.updates[0].groups, key=lambda group: group.example)
        return [group.used_as for group in groups]

    @property
    def refusals(self) -> list[str]:
        return [op.refused for update in self.results.updates for op in update.operations]


def add(text: str, *lessons_of: int, **more: Any) -> dict[str, Any]:
    """An ADD of UpdateLibrary by the lessons of these numbers."""
    return {"op": "ADD", "text": text, "lessons": list(lessons_of), **more}


def knowing(*texts: str, student: Any = None) -> Any:
    """A student with a library baked in, of ids E1, E2, ..."""
    return ExperienceLibrary.from_texts(texts).bake(student or predictor())


def section(prompt: str, name: str) -> str:
    """What stands in the last section of that name."""
    found = prompt.rpartition(f"[[ ## {name} ## ]]\n")[2]
    return re.split(r"\n\n(?:\[\[ ## |Respond with)", found)[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file in the folder, whatever made it."""
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Asked:
    """An `approve` that keeps the proposals and gives these answers, the last one again."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.proposals: list[Proposal] = []

    def __call__(self, proposal: Proposal) -> Any:
        self.proposals.append(proposal)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer(proposal) if callable(answer) else answer
