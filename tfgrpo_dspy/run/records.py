"""The records of one run: what the result of each stage depends on, and where it lies.

Without a `log_dir` nothing is found and nothing is kept. What is known of whole runs is in
`manifest`.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import dspy

from tfgrpo_dspy.errors import MissingRecordError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.metric import wants_program_trace
from tfgrpo_dspy.redaction import cleaned, known_secrets, redacted
from tfgrpo_dspy.rollout import Rollout, Usage
from tfgrpo_dspy.sampling.fields import encode_fields, field_annotations
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
    """A recorded rollout; None: it is not recorded.

    `needs_work`: it has to be made, or to be scored by this metric where `can_be_scored`.
    """

    key: str
    rollout: Rollout | None = None
    needs_work: bool = True
    can_be_scored: bool = False


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
        self._digests: dict[tuple[str, int], str] = {}
        self.lm = self._identity(dspy.settings.lm)
        self.adapter = self._identity(dspy.settings.adapter)
        self.reflection_lm = self._identity(settings.reflection_lm or dspy.settings.lm)
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
        return nullcontext() if self._writable is None else self._writable.together()

    @property
    def _writable(self) -> Store | None:
        return None if self._settings.offline else self.store

    def without_secrets(self, values: dict[str, Any]) -> dict[str, Any]:
        """JSON-like values without the secrets of the run's LMs and of the environment.

        What comes back from programs and LMs goes through this first of all, so that records,
        logs, reports and lessons are made of the same texts.
        """
        return dict(cleaned(values, self._redacted)) if self._secrets else values

    def _redacted(self, text: str) -> str:
        return redacted(text, self._secrets)

    def cleaned_rollout(self, rollout: Rollout) -> Rollout:
        """The rollout without those secrets."""
        if not self._secrets:
            return rollout
        return Rollout.from_dict(self.without_secrets(rollout.to_dict()))

    # ------------------------------------------------------------------ identities

    def _identity(self, value: Any) -> str:
        return digest(object_identity(value, self.unseen))

    def _once(self, kind: str, value: Any, make: Callable[[], str]) -> str:
        """A digest of something that the run holds until its end, looked up once."""
        if (kind, id(value)) not in self._digests:
            self._digests[kind, id(value)] = make()
        return self._digests[kind, id(value)]

    def metric(self, metric: Any) -> str:
        """The digest of a metric."""
        version = self._settings.version
        return self._once("metric", metric, lambda: digest(self.metric_identity(metric), version))

    def metric_identity(self, metric: Any) -> Any:
        """What a metric is known by."""
        return None if metric is None else callable_identity(metric, self.unseen)

    def module(self, module: Any) -> str:
        """The digest of a reflection module."""
        return self._once("module", module, lambda: digest(program_identity(module, self.unseen)))

    def example(self, example: Any) -> str:
        """The digest of an example, with its labels."""
        return self._once("example", example, lambda: self._kept_example(example))

    def _kept_example(self, example: Any) -> str:
        encoded = encode_fields(example, self._annotations)
        inputs = sorted(example.inputs().keys())
        key = digest(encoded, inputs, self._unread(example, encoded))
        if self._writable is not None:
            self._writable.put((f"example:{key}", {"fields": encoded, "inputs": inputs}))
        return key

    def _inputs(self, example: Any) -> str:
        inputs = example.inputs()
        encoded = encode_fields(inputs, self._annotations)
        return digest(encoded, self._unread(inputs, encoded))

    def _unread(self, values: Any, encoded: Mapping[str, Any]) -> Any:
        """What the text of a value does not tell, such as the content of media."""
        kept_as_text = {name: values[name] for name, value in encoded.items() if "text" in value}
        return object_identity(kept_as_text, self.unseen)

    def program(self, program: Any, library: ExperienceLibrary) -> str:
        """The digest of a program with this library; the library is recorded."""
        if self.store is None:
            return ""
        if self._writable is not None:
            self._writable.put((f"library:{_library_digest(library)}", library.to_dict()))
        return digest(program_identity(program, self.unseen), self._settings.version)

    # ------------------------------------------------------------------ rollouts

    def rollout_key(
        self, program: str, example: Any, rollout_id: int, temperature: float | None
    ) -> str:
        """The key of a rollout: the program's digest, LM and adapter, the inputs, the sample."""
        if self.store is None:
            return ""
        inputs = self._once("inputs", example, lambda: self._inputs(example))
        parts = (program, self.lm, self.adapter, inputs, rollout_id, temperature)
        return "rollout:" + digest(*parts)

    def find_rollout(self, key: str, metric: Any, example: Any) -> CachedRollout:
        """The recorded rollout, with the score that this metric gave it, if it did."""
        record = None if self.store is None else self.store.get(key)
        if self.store is None or record is None:
            return self._find_lost(key) or CachedRollout(key)
        with reading(key):
            rollout = Rollout.from_dict(record["rollout"])
        if rollout.failure is not None or metric is None:
            return CachedRollout(key, rollout, needs_work=False)
        can_be_scored = not rollout.is_text_only and not wants_program_trace(metric)
        if not can_be_scored and (rerun := self.store.get(self._rerun_key(key, metric))):
            with reading(key):
                rollout = Rollout.from_dict(rerun["rollout"])
        score_key = self._score_key(key, metric, example, rollout)
        score = self.store.get(score_key)
        if score is None:
            lost = self._find_lost(score_key)
            return lost or CachedRollout(key, rollout, can_be_scored=can_be_scored)
        with reading(score_key):
            scored = replace(
                rollout,
                score=float(score["score"]),
                feedback=str(score["feedback"]),
                metric_usage=Usage.from_dict(score["metric_usage"]),
            )
        return CachedRollout(key, scored, needs_work=False)

    def _find_lost(self, key: str) -> CachedRollout | None:
        """What was lost to a provider, the clock or the metric: tried again, but for offline."""
        if self.store is None or not self._settings.offline:
            return None
        record = self.store.get(f"lost:{key}")
        if record is None:
            return None
        with reading(key):
            return CachedRollout(key, Rollout.from_dict(record), needs_work=False)

    def keep_rollout(
        self,
        key: str,
        rollout: Rollout,
        metric: Any,
        example: Any,
        library: ExperienceLibrary,
        is_rerun: bool = False,
    ) -> Rollout:
        """Record a rollout and its score; gives the one that stands.

        What is no result of the program is only noted. Where another process was first, its
        rollout stands, if it has this metric's score, so that the two runs have one history.
        """
        failure = rollout.failure
        if self.store is None:
            return rollout
        if failure is not None and failure.kind in NO_RESULT:
            self.store.replace(f"lost:{key}", rollout.to_dict())
            return rollout
        unscored = rollout
        if failure is None or failure.kind == "metric":
            unscored = replace(rollout, score=None, feedback="", failure=None, metric_usage=Usage())
        record = {
            "rollout": unscored.to_dict(),
            "example": self.example(example),
            "library": _library_digest(library),
            "is_rerun": is_rerun,
        }
        score_key = self._score_key(key, metric, example, rollout)
        rows: list[tuple[str, Mapping[str, Any]]] = [
            (self._rerun_key(key, metric) if is_rerun else key, record)
        ]
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
        earlier = self.store.put(*rows)[0]
        if earlier is None or is_rerun or earlier["rollout"] == record["rollout"]:
            return rollout
        found = self.find_rollout(key, metric, example)
        return rollout if found.rollout is None or found.needs_work else found.rollout

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
        if self.store is None:
            return ""
        parts = (self.module(module), self.reflection_lm, self.adapter, rollout_id, dict(inputs))
        return f"{stage}:{digest(*parts, self._settings.version)}"

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


@lru_cache(maxsize=256)
def _library_digest(library: ExperienceLibrary) -> str:
    contents = [(each.id, each.text, each.scope) for each in library]
    return digest(contents, library.next_number)
