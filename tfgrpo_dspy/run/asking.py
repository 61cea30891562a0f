"""Asks reflection modules: a question in, an answer out, replayed where it is recorded.

Nothing that a module does can end the run: what it raises is counted and costs its own answer.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import dspy
from pydantic import TypeAdapter

from tfgrpo_dspy.budget import CallWatcher, Meter, metered
from tfgrpo_dspy.errors import RunStopped, described
from tfgrpo_dspy.experience.programs import copy_program, language_models
from tfgrpo_dspy.reflection.texts import as_input, describe_program, encodable
from tfgrpo_dspy.rollout import Failure, Usage
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.loop import Priority, TimedOutError
from tfgrpo_dspy.sampling.models import sampling_copy
from tfgrpo_dspy.store import reading

DEFAULT_OBJECTIVE = "Whatever raises the score on examples that are not seen here."
ASKED_ONCE = dspy.ChatAdapter(use_json_adapter_fallback=False)
"""DSPy's default adapter asks again in JSON, held to a schema, where an answer does not parse: then
whatever an LM rambles is a lesson. The modules ask again themselves, and show the error."""
MAX_HALVINGS = 4
"""How often what is shown is cut to half where the LM says that the prompt is too long."""
STAGES = {
    "draft": ("draft", "lessons"),
    "summary": ("summarize", "summary"),
    "lesson": ("extract", "lessons"),
    "update": ("update", "operations"),
}
"""The module of `Reflection` that each stage asks, and the output that is wanted of it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What the module of a stage is asked; `about` says in words what it is about, for errors."""

    stage: str
    rollout_id: int
    about: str
    inputs: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Answer:
    """What a module answered (None: nothing that could be used), and what went wrong.

    `explanation` is what an extraction gives beside its lessons. `is_too_long`: the prompt was, for
    the model; `is_lost`: the provider or the clock failed.
    """

    output: Any
    usage: Usage = field(default_factory=Usage)
    parse_failures: int = 0
    error: str = ""
    is_too_long: bool = False
    is_lost: bool = False
    explanation: str = ""

    @property
    def is_unread(self) -> bool:
        """Whether nothing could be read of it, or the module was not asked at all."""
        return self.output is None and not self.error


ANSWERS = TypeAdapter(Answer)


class ReflectionClient:
    """Asks reflection modules for one run; `common` holds the inputs that all of them get."""

    def __init__(self, run: RunContext) -> None:
        settings = run.settings
        self.run = run
        self._lm = settings.reflection_lm or dspy.settings.lm
        self._adapter = dspy.settings.adapter or ASKED_ONCE
        max_words = settings.reflection.max_experience_words
        self.common = {
            "program": describe_program(run.student),
            "objective": settings.objective or DEFAULT_OBJECTIVE,
            "max_words": max_words,
            "limits": (
                f"at most {settings.max_experiences} experiences of at most {max_words} words each"
            ),
        }

    async def ask_all(
        self, questions: Iterable[Question], priority: Priority, update: int
    ) -> list[Answer]:
        """The answer to each question, in order; they are asked at once."""
        spawn = self.run.loop.spawn
        tasks = [spawn(self.ask(question, priority, update)) for question in questions]
        return [await task for task in tasks]

    async def ask_shorter(
        self, question_of: Callable[[int], Question], priority: Priority, update: int
    ) -> Answer:
        """The answer to `question_of(0)` or, where that is too long for the LM, a shorter one.

        `question_of(n)` shows as much as fits into a prompt that was halved n times.
        """
        answer = await self.ask(question_of(0), priority, update)
        for halving in range(1, MAX_HALVINGS + 1):
            if answer.is_too_long:
                answer = await self.ask(question_of(halving), priority, update)
        return answer

    async def ask(self, question: Question, priority: Priority, update: int) -> Answer:
        """The answer; a recorded one is not asked for again.

        Raises:
            RunStopped: the run has ended.
            MissingRecordError: offline, and the answer is not recorded.
        """
        run = self.run
        module, output = STAGES[question.stage]
        module = getattr(run.settings.reflection, module)
        key = run.records.reflection_key(
            question.stage, module, question.rollout_id, question.inputs
        )

        def count(answer: Answer) -> None:
            run.report.count_reflection(
                question.stage, update, answer.usage, answer.error, answer.parse_failures
            )

        record = run.records.find(key)
        if record is not None:
            answer = _answer_of(record)
            run.ledger.spend(answer.usage.n_lm_calls, answer.usage.cost_usd)
            run.report.replayed[question.stage] += 1
            count(answer)
            return answer
        if run.settings.offline:
            run.stop_for_missing_record(question.stage, question.about)

        def keep(answer: Answer | TimedOutError) -> Answer:
            if isinstance(answer, TimedOutError):
                answer = Answer(None, error=f"the reflection {answer}", is_lost=True)
            record = run.records.without_secrets(asdict(answer))
            answer = _answer_of(run.records.keep(key, record, answer.is_lost))
            count(answer)
            lost = Failure("provider", answer.error) if answer.is_lost else None
            run.report.check_errors(lost)
            return answer

        def work() -> Answer:
            return self._answer(question, module, output)

        return await run.loop.submit(work, priority, keep)

    def _answer(self, question: Question, module: Any, output: str) -> Answer:
        """Ask the module, in this thread; its LMs are metered like all others."""
        meter = Meter(self.run.ledger, self.run.settings.execution.prices)

        def own_copy(lm: Any) -> Any:
            return metered(sampling_copy(lm, question.rollout_id, None), meter)

        if held := language_models(module):
            module = copy_program(module, {id(lm): own_copy(lm) for lm in held})
        inputs = {k: as_input(v) if isinstance(v, str) else v for k, v in question.inputs.items()}
        try:
            with dspy.context(
                lm=own_copy(self._lm),
                adapter=self._adapter,
                trace=[],
                disable_history=False,
                callbacks=[*(dspy.settings.callbacks or []), *self._watchers(meter)],
            ):
                prediction = module(**inputs)
            found = _plain(getattr(prediction, output, None))
        except (RunStopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - a user's own module may raise anything
            meter.check()
            lost = meter.provider_failure
            message = lost.message if lost else described(error)
            return Answer(
                None, meter.usage, 0, message, meter.is_too_long, is_lost=lost is not None
            )
        meter.check()
        n_unparsed = int(getattr(prediction, "parse_failures", 0))
        return Answer(found, meter.usage, n_unparsed, explanation=_explanation(prediction))

    def _watchers(self, meter: Meter) -> list[CallWatcher]:
        """For LMs that a module calls but does not hold; a callback costs time at every call."""
        return [CallWatcher(meter)] if self.run.ledger.limits_lm_calls else []


def _answer_of(record: Mapping[str, Any]) -> Answer:
    with reading("answer"):
        answer: Answer = ANSWERS.validate_python(record)
        return answer


def _explanation(prediction: Any) -> str:
    """Why the lessons hold, as the LM gave it before them."""
    found = (getattr(prediction, name, None) for name in ("semantic_advantage", "critique"))
    return next((encodable(text) for text in found if isinstance(text, str) and text), "")


def _plain(given: Any) -> Any:
    """An output as JSON holds it: a text, or a list of texts and mappings."""
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        return [_plain_item(given)]
    return [_plain_item(item) for item in given]


def _plain_item(item: Any) -> Any:
    if hasattr(item, "model_dump"):
        return item.model_dump(mode="json")
    if isinstance(item, Mapping):
        return {str(name): _plain_item(value) for name, value in item.items()}
    if isinstance(item, list | tuple):
        return [_plain_item(value) for value in item]
    return item if item is None or isinstance(item, bool | int | float | str) else str(item)
