"""Asks a reflection module: one question, one answer, and what it cost.

Nothing that a module does can end the run: what it raises is counted and costs its own answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dspy

from tfgrpo_dspy.budget import Meter, metered
from tfgrpo_dspy.pipeline.recorder import Recorder
from tfgrpo_dspy.reflection import as_input, describe_program
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.sampling import sampling_copy
from tfgrpo_dspy.settings import Settings

DEFAULT_OBJECTIVE = "Whatever raises the score on examples that are not seen here."


@dataclass(frozen=True, slots=True)
class Answer:
    """What a module answered (None: nothing that could be used), and what went wrong."""

    output: Any
    usage: Usage
    parse_failures: int = 0
    error: str = ""


class Asker:
    """Asks reflection modules for one run; `common` is what all of them are told."""

    def __init__(self, settings: Settings, student: Any, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lm = settings.reflection_lm or dspy.settings.lm
        self.common = {
            "program": describe_program(student),
            "objective": settings.objective or DEFAULT_OBJECTIVE,
            "max_words": settings.max_experience_words,
            "limits": (
                f"at most {settings.max_experiences} experiences of at most "
                f"{settings.max_experience_words} words each"
            ),
        }

    def ask(self, module: Any, output: str, rollout_id: int, **inputs: Any) -> Answer:
        """The module's output of that name: a text, a list, or None where it gave neither."""
        meter = Meter()
        lm = metered(sampling_copy(self._lm, rollout_id, None), meter)
        inputs = {k: as_input(v) if isinstance(v, str) else v for k, v in inputs.items()}
        try:
            with dspy.context(lm=lm, trace=[], disable_history=False):
                prediction = module(**inputs)
            given = getattr(prediction, output, None)
            given = given if given is None or isinstance(given, str) else list(given)
        except Exception as error:  # noqa: BLE001 - a user's own module may raise anything
            failure = meter.provider_failure
            message = failure.message if failure else f"{type(error).__name__}: {error}"
            return Answer(None, meter.usage, error=message)
        return Answer(given, meter.usage, getattr(prediction, "parse_failures", 0))

    def count(self, answers: Sequence[Answer]) -> None:
        """Add what the answers have cost, and what went wrong with them, to the report."""
        for answer in answers:
            self._recorder.usage["reflection"] += answer.usage
            self._recorder.count_failure("reflection error", answer.error, bool(answer.error))
            message = "an answer of the reflection LM did not parse"
            self._recorder.count_failure("reflection parse", message, answer.parse_failures)
