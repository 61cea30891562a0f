"""Asks reflection modules: questions in, answers out, each replayed, asked or lost on its own.

Nothing that a module does can end the run: what it raises is counted and costs its own answer.
"""

import functools
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import dspy
from pydantic import TypeAdapter

from tfgrpo_dspy.budget import CallWatcher, Meter, metered
from tfgrpo_dspy.errors import RunStopped, described
from tfgrpo_dspy.experience import copy_program, language_models
from tfgrpo_dspy.reflection import as_input, describe_program, encodable
from tfgrpo_dspy.rollout import Failure, Usage
from tfgrpo_dspy.run.context import RunContext
from tfgrpo_dspy.run.loop import Priority, TimedOutError
from tfgrpo_dspy.sampling import sampling_copy
from tfgrpo_dspy.store import reading

DEFAULT_OBJECTIVE = "Whatever raises the score on examples that are not seen here."
ASKED_ONCE = dspy.ChatAdapter(use_json_adapter_fallback=False)
"""DSPy's default adapter asks again in JSON, held to a schema, where an answer does not parse: then
whatever an LM rambles is a lesson. The modules ask again themselves, and show the error."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a module is asked: `output` is the field wanted, `stage` one of `REFLECTIONS`.

    `about` says in words what it is about, for errors.
    """

    stage: str
    module: Any
    output: str
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

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON has it."""
        own = {name: getattr(self, name) for name in self.__slots__}
        return {**own, "usage": self.usage.to_dict()}


ANSWERS = TypeAdapter(Answer)


class ReflectionClient:
    """Asks reflection modules for one run; `common` is what all of them are told."""

    def __init__(self, run: RunContext) -> None:
        settings = run.settings
        self._run = run
        self._lm = settings.reflection_lm or dspy.settings.lm
        self._adapter = dspy.settings.adapter or ASKED_ONCE
        self._held = {id(own): language_models(own) for own in settings.reflection.modules}
        self.common = {
            "program": describe_program(run.student),
            "objective": settings.objective or DEFAULT_OBJECTIVE,
            "max_words": settings.reflection.max_experience_words,
            "limits": (
                f"at most {settings.max_experiences} experiences of at most "
                f"{settings.reflection.max_experience_words} words each"
            ),
        }

    async def ask(
        self, questions: Sequence[Question], order: Priority, update: int
    ) -> list[Answer]:
        """The answer to each question of an update, in order; recorded ones are not asked again.

        Raises:
            RunStopped: the run has ended; answers that came before are recorded.
            MissingRecordError: offline, and one of them is not recorded.
        """
        answers: dict[int, Answer] = {}
        try:
            for handle in self._begun(answers, questions, order):
                await handle
        finally:  # what was answered counts, also where the run ends here
            for index in sorted(answers):
                self._count(questions[index].stage, answers[index], update)
        return [answers[index] for index in range(len(questions))]

    def _begun(
        self, answers: dict[int, Answer], questions: Sequence[Question], order: Priority
    ) -> list[Awaitable[None]]:
        """Put what is recorded into `answers`; ask the rest, which comes there when it is done."""
        run = self._run
        keys = [self._key(question) for question in questions]
        open_ones = []
        for index, key in enumerate(keys):
            record = run.archive.find_answer(key)
            if record is None:
                open_ones.append(index)
            else:
                answers[index] = self._replayed(questions[index].stage, record)
        if open_ones and run.settings.offline:
            run.lacking(questions[open_ones[0]].stage, questions[open_ones[0]].about)

        def keep(index: int, answer: Any) -> None:
            if isinstance(answer, TimedOutError):
                answer = Answer(None, error=f"the reflection {answer}", is_lost=True)
            record = run.archive.without_secrets(answer.to_dict())
            theirs = run.archive.keep_answer(keys[index], record, answer.is_lost)
            answer = answers[index] = _answer_of(theirs or record)
            lost = Failure("provider", answer.error) if answer.is_lost else None
            run.recorder.check_errors(run.ledger, lost)

        return [
            run.loop.submit(
                functools.partial(self._answer, questions[index]),
                order,
                functools.partial(keep, index),
            )
            for index in open_ones
        ]

    def _key(self, question: Question) -> str:
        if self._run.archive.store is None:
            return ""
        return self._run.archive.reflection_key(
            question.stage, question.module, question.rollout_id, question.inputs
        )

    def _replayed(self, stage: str, record: Mapping[str, Any]) -> Answer:
        answer = _answer_of(record)
        self._charge(answer.usage)
        self._run.recorder.replayed[stage] += 1
        return answer

    def _answer(self, question: Question) -> Answer:
        """Ask one: a text, a list, or None where the module gave neither."""
        meter = Meter(self._run.ledger, self._run.settings.execution.prices)
        lm = self._own(self._lm, question, meter)
        held = self._held[id(question.module)]
        module = question.module
        if held:  # LMs of the module's own are metered like all others
            module = copy_program(module, {id(h): self._own(h, question, meter) for h in held})
        inputs = {k: as_input(v) if isinstance(v, str) else v for k, v in question.inputs.items()}
        try:
            with dspy.context(
                lm=lm,
                adapter=self._adapter,
                trace=[],
                disable_history=False,
                **self._watched(meter),
            ):
                prediction = module(**inputs)
            output = _plain(getattr(prediction, question.output, None))
        except (RunStopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - a user's own module may raise anything
            meter.check_refused()
            lost = meter.provider_failure
            message = lost.message if lost else described(error)
            too_long = meter.is_too_long
            return Answer(None, meter.usage, 0, message, too_long, is_lost=lost is not None)
        meter.check_refused()
        n_unparsed = int(getattr(prediction, "parse_failures", 0))
        return Answer(output, meter.usage, n_unparsed, explanation=_explanation(prediction))

    def _charge(self, usage: Usage) -> None:
        self._run.ledger.spend(usage.n_lm_calls, usage.cost_usd)

    def _own(self, lm: Any, question: Question, meter: Meter) -> Any:
        return metered(sampling_copy(lm, question.rollout_id, None), meter)

    def _watched(self, meter: Meter) -> dict[str, Any]:
        """For LMs that a module calls but does not hold; a callback costs time at every call."""
        if not self._run.ledger.limits_lm_calls:
            return {}
        return {"callbacks": [*(dspy.settings.callbacks or []), CallWatcher(meter)]}

    def _count(self, stage: str, answer: Answer, update: int) -> None:
        """Add what the answer has cost, and what went wrong with it, to the report."""
        recorder = self._run.recorder
        recorder.usage[stage] += answer.usage
        recorder.reflection_usage[update] += answer.usage
        recorder.count_failure("reflection error", answer.error, bool(answer.error))
        message = "an answer of the reflection LM did not parse"
        recorder.count_failure("reflection parse", message, answer.parse_failures)


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
