"""The records of one run: what the result of each stage depends on, and where it is kept.

Without a `log_dir` nothing is found and nothing is kept. What is known of whole runs is in
`manifest`.
"""

from collections.abc import Mapping
from typing import Any

import dspy

from tfgrpo_dspy.errors import MissingRecordError
from tfgrpo_dspy.redaction import cleaned, known_secrets, redacted
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings.checks import all_lms
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.identity import Unseen, digest, object_identity, without_addresses
from tfgrpo_dspy.store.records import Store, reading

NO_RESULT = ("provider", "timeout", "worker", "metric")
"""Failures that are not the program's: noted, never kept as results."""


class RunRecords:
    """Finds and keeps the records of one run.

    `lm`, `adapter` and `reflection_lm` are digests; `unseen` collects what is known by name only.
    Raises StoreError (the folder cannot be used), MissingRecordError (offline, there is no store).
    """

    def __init__(self, settings: RunSettings, student: Any) -> None:
        self._settings = settings
        self.unseen = Unseen()
        self._digests: dict[int, str] = {}
        self.lm = self.identity(dspy.settings.lm)
        self.adapter = self.identity(dspy.settings.adapter)
        self.reflection_lm = self.identity(settings.reflection_lm or dspy.settings.lm)
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

    def without_secrets(self, values: dict[str, Any]) -> dict[str, Any]:
        """JSON-like values without the secrets of the run's LMs and of the environment.

        What comes back from programs and LMs goes through this first of all, so that records,
        logs, reports and lessons are made of the same texts.
        """
        return dict(cleaned(values, self._redacted)) if self._secrets else values

    def _redacted(self, text: str) -> str:
        return redacted(text, self._secrets)

    def identity(self, value: Any) -> str:
        """The digest of an object that the run holds until its end; looked up once."""
        if id(value) not in self._digests:
            parts = _parts_of(value) if isinstance(value, dspy.Example) else value
            self._digests[id(value)] = digest(object_identity(parts, self.unseen))
        return self._digests[id(value)]

    def program(self, program: Any) -> str:
        """The digest of a program with its library."""
        return "" if self.store is None else digest(object_identity(program, self.unseen))

    def rollout_key(
        self, program: str, example: Any, metric: Any, rollout_id: int, temperature: float | None
    ) -> str:
        """The key of a rollout: all that its outputs and its score depend on."""
        if self.store is None:
            return ""
        parts = (program, self.lm, self.adapter, self.identity(example), self.identity(metric))
        return f"rollout:{digest(*parts, rollout_id, temperature, self._settings.version)}"

    def reflection_key(
        self, stage: str, module: Any, rollout_id: int, inputs: Mapping[str, Any]
    ) -> str:
        """The key of an answer: the module, its LM and adapter, all that it is shown."""
        if self.store is None:
            return ""
        parts = (self.identity(module), self.reflection_lm, self.adapter, dict(inputs))
        return f"{stage}:{digest(*parts, rollout_id, self._settings.version)}"

    def find(self, key: str) -> Mapping[str, Any] | None:
        """The record under a key; offline also what was only noted, because it was lost."""
        if self.store is None:
            return None
        record = self.store.get(key)
        if record is None and self._settings.offline:
            record = self.store.get(f"lost:{key}")
        return record

    def keep(self, key: str, record: Mapping[str, Any], is_lost: bool) -> Mapping[str, Any]:
        """Record a result; what is lost (a provider failed, say) is noted, to be tried again.

        Gives the record that stands: where another process was first, that is its record.
        """
        if self.store is None:
            return record
        if is_lost:
            self.store.replace(f"lost:{key}", record)
            return record
        return self.store.put(key, record) or record

    def find_rollout(self, key: str) -> Rollout | None:
        """The recorded rollout."""
        record = self.find(key)
        with reading(key):
            return None if record is None else Rollout.from_dict(record)

    def keep_rollout(self, key: str, rollout: Rollout) -> Rollout:
        """Record a rollout, without secrets; gives the one that stands."""
        if self.store is None and not self._secrets:
            return rollout
        is_lost = rollout.failure is not None and rollout.failure.kind in NO_RESULT
        record = self.keep(key, self.without_secrets(rollout.to_dict()), is_lost)
        with reading(key):
            return Rollout.from_dict(record)


def _parts_of(example: dspy.Example) -> list[Any]:
    """Inputs, labels, and all as text: of some the identity holds the type only, or nothing."""
    texts = [f"{name}: {without_addresses(text)}" for name, text in as_fields(example).items()]
    return [dict(example.inputs()), dict(example.labels()), texts]
