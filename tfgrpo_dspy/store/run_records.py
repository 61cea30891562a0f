"""What a run with a `log_dir` finds and keeps: the records of its stages, without secrets."""

import logging
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import dspy
from pydantic import TypeAdapter

from tfgrpo_dspy.errors import MissingRecordError
from tfgrpo_dspy.experience.programs import named_predictors
from tfgrpo_dspy.redaction import cleaned, known_secrets, redacted, secret_variables
from tfgrpo_dspy.reflection.guard import task_text
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings.checks import all_lms
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.database import Store, reading
from tfgrpo_dspy.store.keys import Keys

logger = logging.getLogger(__name__)

LOST = "lost:"  # before the key of what was lost
Kept = TypeVar("Kept")


class RunRecords:
    """Finds and keeps a run's records by its `keys`. Raises StoreError, MissingRecordError."""

    def __init__(self, settings: RunSettings, student: Any, examples: Iterable[Any] = ()) -> None:
        self._settings = settings
        self.keys = Keys(settings)
        self.store: Store | None = None
        self.losses_stand = False
        """Whether lost results stay lost: the run has ended, and its budget may pay for no more."""
        visible = "\n".join(_own_texts(student, examples))
        lms = [*all_lms(settings, student), dspy.settings.lm]
        self._secrets = known_secrets(lms, visible)
        self.plain = [secret for secret in known_secrets(lms) if secret in visible]
        _log_variables(self._secrets, bool(self.plain))
        if settings.log_dir is not None and settings.offline:
            self.store = Store.existing(settings.log_dir)
            if self.store is None:
                raise MissingRecordError(
                    f"offline=True, and log_dir={str(settings.log_dir)!r} is no run store: run the "
                    f"same compile with offline=False first."
                )
        elif settings.log_dir is not None:
            self.store = Store(settings.log_dir, self.redacted if self._secrets else str)

    def close(self) -> None:
        """Close the store, and note what has become of program and metric meanwhile."""
        if self.keys.is_used:
            self.keys.identities.leave()
        if self.store is not None:
            self.store.close()

    def cleaned(self, value: Kept, kind: TypeAdapter[Kept]) -> Kept:
        """A value from outside, as from traces and strategies, without secrets (see `_written`)."""
        return kind.validate_python(self._written(value, kind)) if self._secrets else value

    def _written(self, value: Kept, kind: TypeAdapter[Kept]) -> Any:
        """The value as JSON has it, without secrets: records, logs and lessons have its texts."""
        values = kind.dump_python(value, warnings=False)
        return cleaned(values, self.redacted) if self._secrets else values

    def redacted(self, text: str) -> str:
        """The text without these secrets."""
        return redacted(text, self._secrets)

    def find(self, key: str, kind: TypeAdapter[Kept]) -> Kept | None:
        """The recorded result; offline, and where losses stand, also the note of a loss."""
        if self.store is None:
            return None
        record = self.store.get(key)
        if record is None and (self.losses_stand or self._settings.offline):
            record = self.store.get(f"{LOST}{key}")
        with reading(key):
            return None if record is None else kind.validate_python(record)

    def keep(self, key: str, result: Kept, kind: TypeAdapter[Kept], is_lost: bool) -> Kept:
        """Record a result (a note of what is lost), without secrets; gives the one that stands."""
        if self.store is None and not self._secrets:
            return result
        record = self._written(result, kind)
        if self.store is not None and is_lost:
            self.store.replace(f"{LOST}{key}", record)
        elif self.store is not None:
            record = self.store.put(key, record) or record
        with reading(key):
            return kind.validate_python(record)


def _own_texts(student: Any, examples: Iterable[Any]) -> Iterator[str]:
    """The user's own texts: those of the program, demos of the student, inputs and labels."""
    yield task_text(student)
    for _, predictor in named_predictors(student):
        yield predictor.signature.instructions
        for demo in predictor.demos:
            yield from as_fields(demo).values()
    for example in examples:
        yield from as_fields(example).values()


def _log_variables(secrets: list[str], is_any_plain: bool) -> None:
    variables = secret_variables()
    if names := sorted(name for name, value in variables.items() if value in secrets):
        logger.info("kept out of records, logs and reports: the values of %s", ", ".join(names))
    if is_any_plain:
        names = sorted(name for name, value in variables.items() if value not in secrets)
        logger.warning(
            "not kept out, as it stands in the examples or the program: the value of %s",
            ", ".join(names or ["an argument of an LM, such as its api_key"]),
        )
