"""An emulation of the reference implementation's schedule: what it waits for, and what it calls.

Five stages a batch, each over a thread pool, each waiting for its slowest call: rollouts; a summary
of each rollout of a group with contrast; a critique of each such group; an update call for each;
one update call for the batch. It is a bare loop without store, budget, retries or records, and not
that project's code, whose agents, tracing and database cost time that is not measured here.

Rollout ids are ours, so with `speed_lm` it gets our answers after our latencies.
"""

import contextvars
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dspy
from speed_graph import Shape
from speed_lm import GROUP_SIZE

from tfgrpo_dspy.rollout import rollout_id_for
from tfgrpo_dspy.sampling import sampling_copy

TEMPERATURE = 0.7

SUMMARIZE = dspy.Signature("question, attempt -> summary", "Summarise the attempt.")
CRITIQUE = dspy.Signature(
    "question, expected, attempts, experiences -> semantic_advantage, lessons: list[str]",
    "Say why the better attempts beat the worse ones, and what to learn from it.",
)


class GroupUpdate(dspy.Signature):
    """Bring the lessons into the experiences."""

    experiences: str = dspy.InputField()
    lessons: str = dspy.InputField()
    operations: list[dict[str, Any]] = dspy.OutputField()


class BatchUpdate(dspy.Signature):
    """Make one plan of what the groups propose."""

    experiences: str = dspy.InputField()
    proposed: str = dspy.InputField()
    operations: list[dict[str, Any]] = dspy.OutputField()


class Reference:
    """One run of the emulated schedule; `run` gives the experiences."""

    def __init__(self, shape: Shape, program: Any, reflection_lm: Any, threads: int) -> None:
        self._shape = shape
        self._program = program
        self._policy = dspy.settings.lm
        self._reflection = reflection_lm
        self._summarize, self._critique = dspy.Predict(SUMMARIZE), dspy.Predict(CRITIQUE)
        self._group_update, self._batch_update = (
            dspy.Predict(GroupUpdate),
            dspy.Predict(BatchUpdate),
        )
        self._threads = threads
        self._experiences: list[str] = []

    def run(self, trainset: Sequence[dspy.Example], metric: Callable[..., Any]) -> list[str]:
        with ThreadPoolExecutor(self._threads) as pool:
            self._pool = pool
            for update, (epoch, examples) in enumerate(self._shape.batches()):
                self._batch(update, epoch, examples, trainset, metric)
        return self._experiences

    def _all(self, work: Callable[..., Any], items: Iterable[tuple[Any, ...]]) -> list[Any]:
        """One stage: all of them, waited for."""
        begun = [self._pool.submit(contextvars.copy_context().run, work, *item) for item in items]
        return [future.result() for future in begun]

    def _batch(
        self,
        update: int,
        epoch: int,
        examples: Sequence[int],
        trainset: Sequence[dspy.Example],
        metric: Callable[..., Any],
    ) -> None:
        program = self._baked()
        pairs = [(example, index) for example in examples for index in range(GROUP_SIZE)]

        def rollout(example: int, index: int) -> tuple[str, float]:
            case = trainset[example]
            prediction = self._asked(
                program, self._policy, epoch, example, index, "training", **case.inputs()
            )
            return prediction.answer, float(metric(case, prediction))

        done = dict(zip(pairs, self._all(rollout, pairs), strict=True))
        groups = {e: [done[e, index] for index in range(GROUP_SIZE)] for e in examples}
        taught = [e for e in examples if len({score for _, score in groups[e]}) > 1]
        lessons = self._lessons(epoch, taught, groups, trainset)
        self._update(update, epoch, lessons)

    def _lessons(
        self,
        epoch: int,
        taught: Sequence[int],
        groups: dict[int, list[tuple[str, float]]],
        trainset: Sequence[dspy.Example],
    ) -> list[str]:
        def summary(example: int, index: int) -> str:
            attempt = "Answer: {}. Score: {}".format(*groups[example][index])
            question = trainset[example].question
            own = {"question": question, "attempt": attempt}
            return self._reflect(self._summarize, epoch, example, index, "summary", **own).summary

        pairs = [(example, index) for example in taught for index in range(GROUP_SIZE)]
        summaries = dict(zip(pairs, self._all(summary, pairs), strict=True))

        def critique(example: int) -> str:
            attempts = "\n".join(summaries[example, index] for index in range(GROUP_SIZE))
            case = trainset[example]
            own = {"question": case.question, "expected": case.answer, "attempts": attempts}
            told = self._reflect(
                self._critique, epoch, example, 0, "lesson", experiences=self._known(), **own
            )
            return "\n".join(told.lessons)

        return self._all(critique, [(example,) for example in taught])

    def _update(self, update: int, epoch: int, lessons: Sequence[str]) -> None:
        def of_group(number: int, lesson: str) -> str:
            own = {"experiences": self._known(), "lessons": lesson}
            place = f"update/0/{number}"
            return str(self._reflect(self._group_update, epoch, update, 0, place, **own).operations)

        proposed = self._all(of_group, list(enumerate(lessons)))

        def of_batch(texts: str) -> list[dict[str, Any]]:
            own = {"experiences": self._known(), "proposed": texts}
            return self._reflect(
                self._batch_update, epoch, update, 0, "update/1/0", **own
            ).operations

        if proposed:
            (operations,) = self._all(of_batch, [("\n".join(proposed),)])
            self._experiences += [operation["text"] for operation in operations]

    def _reflect(
        self, ask: Any, epoch: int, example: int, index: int, purpose: str, **inputs: Any
    ) -> Any:
        return self._asked(ask, self._reflection, epoch, example, index, purpose, **inputs)

    def _asked(
        self,
        module: Any,
        lm: Any,
        epoch: int,
        example: int,
        index: int,
        purpose: str,
        **inputs: Any,
    ) -> Any:
        sample = rollout_id_for(self._shape.seed, epoch, example, index, purpose)
        temperature = TEMPERATURE if purpose == "training" else None
        with dspy.context(lm=sampling_copy(lm, sample, temperature)):
            return module(**inputs)

    def _known(self) -> str:
        return "\n".join(self._experiences) or "none yet"

    def _baked(self) -> Any:
        program = self._program.deepcopy()
        told = f"{program.ask.signature.instructions}\n{self._known()}"
        program.ask.signature = program.ask.signature.with_instructions(told)
        return program
