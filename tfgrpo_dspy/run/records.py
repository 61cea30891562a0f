"""The records of one run: what the result of each stage depends on, and where it lies.

Without a `log_dir` nothing is found and nothing is kept. What is known of whole runs is in `notes`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import dspy

from tfgrpo_dspy.errors import MissingRecordError
from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.metric import wants_program_trace
from tfgrpo_dspy.redaction import cleaned, known_secrets, redacted
from tfgrpo_dspy.rollout import Rollout, Usage
from tfgrpo_dspy.sampling import encode_fields, field_annotations
from tfgrpo_dspy.settings import RunSettings
from tfgrpo_dspy.settings.checks import all_lms
from tfgrpo_dspy.store import (
    Store,
    Unseen,
    callable_identity,
    digest,
    object_identity,
    program_identity,
    reading,
)

NO_RESULT = ("provider", "timeout", "worker")
"""Failures that are not the program's: noted, never kept as results."""


@dataclass(frozen=True, slots=True)
class CachedRollout:
    """A recorded rollout; `needs_score` where this metric has not scored it."""

    key: str
    rollout: Rollout
    needs_score: bool
    can_be_scored: bool


class RunRecords:
    """Finds and keeps the records of one run.

    `lm`, `adapter` and `reflection_lm` are digests of those that the run was started with; `unseen`
    collects what is known by name only.

    Raises:
        StoreError: the folder cannot be used.
        MissingRecordError: offline, and there is no store.
    """

    def __init__(self, settings: RunSettings, student: Any) -> None:
        self._settings = settings
        self.unseen = Unseen()
        self._annotations = field_annotations(student)
        self._examples: dict[int, str] = {}
        self._programs: dict[tuple[int, ExperienceLibrary], str] = {}
        self._libraries: dict[ExperienceLibrary, str] = {}
        self.lm = self._identity(dspy.settings.lm)
        self.adapter = self._identity(dspy.settings.adapter)
        self.reflection_lm = self._identity(settings.reflection_lm or dspy.settings.lm)
        self._modules: dict[int, str] = {}
        self._metrics: dict[int, str] = {}
        self._inputs: dict[int, str] = {}
        self.store: Store | None = None
        self._secrets = known_secrets([*all_lms(settings, student), dspy.settings.lm])
        if settings.log_dir is not None and settings.offline:
            self.store = Store.existing(settings.log_dir)
            if self.store is None:
                raise MissingRecordError(
                    f"offline=True, and log_dir={str(settings.log_dir)!r} is no run store: run the "
                    f"same compile with offline=False first."
                )
        elif settings.log_dir is not None:
            self.store = Store(settings.log_dir, self._redacted if self._secrets else str)

    def close(self) -> None:
        """Close the store."""
        if self.store is not None:
            self.store.close()

    def together(self) -> AbstractContextManager[None]:
        """What is kept within it is on disk when it ends, in one transaction."""
        if self.store is None or self._settings.offline:
            return nullcontext()
        return self.store.together()

    def without_secrets(self, values: dict[str, Any]) -> dict[str, Any]:
        """JSON-like values without the secrets of the run's LMs and of the environment.

        What comes back from programs and LMs goes through this first of all, so that records,
        logs, reports and lessons are made of the same texts.
        """
        if not self._secrets:
            return values
        return dict(cleaned(values, self._redacted))

    def _redacted(self, text: str) -> str:
        return redacted(text, self._secrets)

    def cleaned_rollout(self, rollout: Rollout) -> Rollout:
        """The rollout without those secrets."""
        if not self._secrets:
            return rollout
        return Rollout.from_dict(self.without_secrets(rollout.to_dict()))

    def _identity(self, value: Any) -> str:
        return digest(object_identity(value, self.unseen))

    # ------------------------------------------------------------------ identities

    def metric(self, metric: Any) -> str:
        """The digest of a metric."""
        if id(metric) not in self._metrics:
            identity = self.metric_identity(metric)
            self._metrics[id(metric)] = digest(identity, self._settings.version)
        return self._metrics[id(metric)]

    def metric_identity(self, metric: Any) -> Any:
        """What a metric is known by."""
        return None if metric is None else callable_identity(metric, self.unseen)

    def module(self, module: Any) -> str:
        """The digest of a reflection module."""
        if id(module) not in self._modules:
            self._modules[id(module)] = digest(program_identity(module, self.unseen))
        return self._modules[id(module)]

    def example(self, example: Any) -> str:
        """The digest of an example, with its labels."""
        if id(example) not in self._examples:
            encoded = encode_fields(example, self._annotations)
            inputs = sorted(example.inputs().keys())
            key = digest(encoded, inputs, self._unread(example, encoded))
            self._examples[id(example)] = key
            if self.store is not None and not self._settings.offline:
                self.store.put((f"example:{key}", {"fields": encoded, "inputs": inputs}))
        return self._examples[id(example)]

    def _unread(self, values: Any, encoded: Mapping[str, Any]) -> Any:
        """What the text of a value does not tell, such as the content of media."""
        kept_as_text = {name: values[name] for name, value in encoded.items() if "text" in value}
        return object_identity(kept_as_text, self.unseen)

    def _program(self, student: Any, library: ExperienceLibrary, program: Any) -> str:
        known = (id(student), library)
        if known not in self._programs:
            identity = program_identity(program, self.unseen)
            self._programs[known] = digest(identity, self._settings.version)
            if self.store is not None and not self._settings.offline:
                self.store.put((f"library:{self._library(library)}", library.to_dict()))
        return self._programs[known]

    def _library(self, library: ExperienceLibrary) -> str:
        if library not in self._libraries:
            contents = [experience.content for experience in library]
            self._libraries[library] = digest(contents, library.next_number)
        return self._libraries[library]

    # ------------------------------------------------------------------ rollouts

    def rollout_key(
        self,
        student: Any,
        library: ExperienceLibrary,
        program: Any,
        example: Any,
        rollout_id: int,
        temperature: float | None,
    ) -> str:
        """The key of a rollout: the program, its LM and adapter, the inputs, the sample.

        `program` is the student with the library; a run may have two students, one with demos.
        """
        if id(example) not in self._inputs:
            inputs = example.inputs()
            encoded = encode_fields(inputs, self._annotations)
            self._inputs[id(example)] = digest(encoded, self._unread(inputs, encoded))
        return "rollout:" + digest(
            self._program(student, library, program),
            self.lm,
            self.adapter,
            self._inputs[id(example)],
            rollout_id,
            temperature,
        )

    def find_rollout(self, key: str, metric: Any, example: Any) -> CachedRollout | None:
        """The recorded rollout, with the score that this metric gave it, if it did."""
        if self.store is None:
            return None
        record = self.store.get(key)
        if record is None:
            return self._found_lost(key)
        with reading(key):
            rollout = Rollout.from_dict(record["rollout"])
        if rollout.failure is not None or metric is None:
            return CachedRollout(key, rollout, False, False)
        can_be_scored = not rollout.is_text_only and not wants_program_trace(metric)
        if not can_be_scored:
            rerun = self.store.get(self._rerun_key(key, metric))
            with reading(key):
                rollout = rollout if rerun is None else Rollout.from_dict(rerun["rollout"])
        score_key = self._score_key(key, metric, example, rollout)
        score = self.store.get(score_key)
        if score is None:
            return self._found_lost(score_key) or CachedRollout(key, rollout, True, can_be_scored)
        with reading(score_key):
            scored = replace(
                rollout,
                score=float(score["score"]),
                feedback=str(score["feedback"]),
                metric_usage=Usage.from_dict(score["metric_usage"]),
            )
        return CachedRollout(key, scored, False, False)

    def _found_lost(self, key: str) -> CachedRollout | None:
        """What was lost to a provider, the clock or the metric: tried again, but for offline."""
        if self.store is None or not self._settings.offline:
            return None
        record = self.store.get(f"lost:{key}")
        with reading(key):
            return (
                None
                if record is None
                else CachedRollout(key, Rollout.from_dict(record), False, False)
            )

    def keep_rollout(
        self,
        key: str,
        rollout: Rollout,
        metric: Any,
        example: Any,
        library: ExperienceLibrary,
        is_rerun: bool = False,
    ) -> CachedRollout:
        """Record a rollout and its score; gives the one that stands.

        What is no result of the program is only noted. Where another process was first, its
        rollout stands, so that the two runs have one history; this metric may have to score it.
        """
        own = CachedRollout(key, rollout, False, False)
        if self.store is None:
            return own
        failure = rollout.failure
        score_key = self._score_key(key, metric, example, rollout)
        if failure is not None and failure.kind in NO_RESULT:
            self.store.replace(f"lost:{key}", rollout.to_dict())
            return own
        bare = rollout
        if failure is None or failure.kind == "metric":
            bare = replace(rollout, score=None, feedback="", failure=None, metric_usage=Usage())
        record = {
            "rollout": bare.to_dict(),
            "example": self.example(example),
            "library": self._library(library),
            "is_rerun": is_rerun,
        }
        rows: list[tuple[str, Mapping[str, Any]]] = []
        rows.append((self._rerun_key(key, metric) if is_rerun else key, record))
        if failure is not None and failure.kind == "metric":
            rows.append((f"lost:{score_key}", rollout.to_dict()))
        elif rollout.score is not None:
            score = {
                "score": rollout.score,
                "feedback": rollout.feedback,
                "metric_usage": rollout.metric_usage.to_dict(),
                "rollout": key,
            }
            rows.append((score_key, score))
        theirs = self.store.put(*rows)[0]
        if theirs is None or is_rerun or theirs["rollout"] == record["rollout"]:
            return own
        found = self.find_rollout(key, metric, example)
        return own if found is None or (found.needs_score and not found.can_be_scored) else found

    def _score_key(self, key: str, metric: Any, example: Any, rollout: Rollout) -> str:
        """Scores belong to outputs: of two processes' rollouts only one stands under a key."""
        outputs = digest(rollout.encoded)
        return "score:" + digest(key, outputs, self.metric(metric), self.example(example), self.lm)

    def _rerun_key(self, key: str, metric: Any) -> str:
        """Where outputs that had to be made again for this metric lie."""
        return "rollout:" + digest(key, self.metric(metric))

    # ------------------------------------------------------------------ reflections

    def reflection_key(
        self, stage: str, module: Any, rollout_id: int, inputs: Mapping[str, Any]
    ) -> str:
        """The key of an answer: the module, its LM and adapter, all that it is shown."""
        own = digest(
            self.module(module),
            self.reflection_lm,
            self.adapter,
            rollout_id,
            dict(inputs),
            self._settings.version,
        )
        return f"{stage}:{own}"

    def find_answer(self, key: str) -> Mapping[str, Any] | None:
        """The recorded answer of a reflection module."""
        if self.store is None:
            return None
        record = self.store.get(key)
        if record is None and self._settings.offline:
            record = self.store.get(f"lost:{key}")
        return record

    def keep_answer(
        self, key: str, record: Mapping[str, Any], is_lost: bool
    ) -> Mapping[str, Any] | None:
        """Record an answer; one that the provider lost is only noted.

        Gives the one that stands, where another process was first.
        """
        if self.store is None:
            return None
        if is_lost:
            self.store.replace(f"lost:{key}", record)
            return None
        return self.store.put((key, record))[0]
