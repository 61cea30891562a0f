"""Notes the programs that an optimizer holds for its best while it runs, and what each has cost.

Needed for two things: what counts where the budget ends an optimizer that hands nothing back, and
the learning curve. What an optimizer tells of itself is all that is used:

- MIPROv2, few-shot bootstrapping, COPRO, InferRules: each evaluation of a whole validation set, by
  DSPy's evaluation callback; best is the highest score, the first of equals, as they choose too;
- GEPA: its `on_valset_evaluated` callback, which says whether the candidate is the best;
- TrainingFreeGRPO: each decision of its gate, which it is given in a form that tells of them.

SIMBA tells of nothing before its end. Nothing here calls an LM.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import dspy
from compare_budget import Account
from dspy.utils.callback import BaseCallback

from tfgrpo_dspy import Decision, ExperienceLibrary


@dataclass(frozen=True)
class Candidate:
    """The best program after so many LM calls."""

    n_calls: int
    program: Any


class Observer(BaseCallback):
    """One for each run of an optimizer; put it into `dspy.context(callbacks=[...])`.

    Args:
        account: what the run is counted by.
        student: the program that it starts from.
    """

    def __init__(self, account: Account, student: Any) -> None:
        self.candidates: list[Candidate] = []
        self._account = account
        self._student = student
        self._open: dict[str, Any] = {}
        self._best_score = float("-inf")
        self._library = ExperienceLibrary()
        self._validation: list[Any] | None = None

    def watch(self, validation: Sequence[Any]) -> None:
        """Evaluations on exactly these examples are those by which the optimizer chooses."""
        self._validation = list(validation)

    @property
    def best(self) -> Any | None:
        """The best program so far; None: nothing was told."""
        return self.candidates[-1].program if self.candidates else None

    def on_evaluate_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        if (inputs.get("devset") or instance.devset) == self._validation:
            self._open[call_id] = inputs["program"]

    def on_evaluate_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        program = self._open.pop(call_id, None)
        if program is not None and exception is None and outputs.score > self._best_score:
            self._best_score = outputs.score
            self.note(program.deepcopy())

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        """GEPA's event."""
        if event["is_best_program"]:
            program = self._student.deepcopy()
            for name, predictor in program.named_predictors():
                text = event["candidate"][name]
                predictor.signature = predictor.signature.with_instructions(text)
            self.note(program)

    def watched(self, gate: Any) -> Any:
        """The gate, which decides as before, in a class that also tells of its decisions.

        A gate that is no dataclass cannot be copied so, and comes back as it is: no curve then.
        """
        if not is_dataclass(gate):
            return gate
        note = self._note_library

        class Watched(type(gate)):  # type: ignore[misc]
            def next(self, evidence: Any) -> Any:
                answer = super().next(evidence)
                if isinstance(answer, Decision):
                    exported = answer.exported
                    note(answer.library if exported is None else exported)
                return answer

        copy = object.__new__(Watched)
        for own in fields(gate):
            object.__setattr__(copy, own.name, getattr(gate, own.name))
        return copy

    def _note_library(self, library: ExperienceLibrary) -> None:
        if library != self._library:
            self._library = library
            self.note(library.bake(self._student))

    def note(self, program: Any) -> None:
        """This program is the best from now on."""
        self.candidates.append(Candidate(self._account.n_calls, program))


def prompt_words(program: dspy.Module) -> int:
    """Words of instructions and demos, which every later call pays."""
    words = 0
    for _, predictor in program.named_predictors():
        words += len(predictor.signature.instructions.split())
        words += sum(
            len(str(value).split()) for demo in predictor.demos for value in dict(demo).values()
        )
    return words
