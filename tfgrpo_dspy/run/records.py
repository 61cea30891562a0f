"""What a run finds and keeps in its store: the records of its stages, and what they depend on.

Without a `log_dir` nothing is found and nothing is kept.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import dspy
from pydantic import TypeAdapter

from tfgrpo_dspy.errors import MissingRecordError
from tfgrpo_dspy.experience.programs import copy_program, language_models, named_predictors
from tfgrpo_dspy.gate.protocol import Gate
from tfgrpo_dspy.redaction import cleaned, known_secrets, redacted, secret_variables
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings.checks import all_lms
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.database import Store, reading
from tfgrpo_dspy.store.identity import (
    Unseen,
    digest,
    instance_identity,
    object_identity,
    without_addresses,
)
from tfgrpo_dspy.strategies.base import Strategy

logger = logging.getLogger(__name__)

LOST = "lost:"  # before the key of what was lost
TASK = ("program", "metric", "traces")  # and the examples: what an approval is about
DSPY = ".".join(dspy.__version__.split(".")[:2])  # a minor version may write other prompts
Kept = TypeVar("Kept")


class RunRecords:
    """Finds and keeps the records of one run.

    `unseen` collects what identities know by name only.
    Raises StoreError (the folder cannot be used), MissingRecordError (offline, there is no store).
    """

    def __init__(self, settings: RunSettings, student: Any, examples: Iterable[Any] = ()) -> None:
        self._settings = settings
        self.unseen = Unseen()
        self._digests: dict[int, str] = {}
        self._lm = self.identity(dspy.settings.lm)
        self._adapter = self.identity(dspy.settings.adapter or dspy.ChatAdapter())
        self._reflection_lm = self.identity(settings.reflection_lm or dspy.settings.lm)
        self._versions = DSPY, settings.version
        self._task = ""  # what answers of a person are about; known by `parts_of_run`
        self.parts = dict[str, str]()
        self.store: Store | None = None
        self.losses_stand = False  # in a finished run, whose budget may not pay for what follows
        own = "\n".join(_own_texts(student, examples))
        lms = [*all_lms(settings, student), dspy.settings.lm]
        self._secrets = known_secrets(lms, own)
        self.plain = [secret for secret in known_secrets(lms) if secret in own]
        _log_variables(own, bool(self.plain))
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

    def cleaned(self, rollout: Rollout) -> Rollout:
        """A rollout that was made elsewhere, without secrets."""
        return Rollout.from_dict(self.without_secrets(rollout.to_dict()))

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
        self,
        program: str,
        example: Any,
        metric: Any,
        rollout_id: int,
        temperature: float | str | None,
    ) -> str:
        """The key of a rollout: all that its outputs and its score depend on."""
        if self.store is None:
            return ""
        parts = (program, self._lm, self._adapter, self.identity(example), self.identity(metric))
        return f"rollout:{digest(*parts, rollout_id, temperature, self._versions)}"

    def reflection_key(
        self, stage: str, module: Any, rollout_id: int, inputs: Mapping[str, Any]
    ) -> str:
        """The key of an answer: the module, its LM and adapter, all that it is shown."""
        if self.store is None:
            return ""
        parts = (self.identity(module), self._reflection_lm, self._adapter, dict(inputs))
        return f"{stage}:{digest(*parts, rollout_id, self._versions)}"

    def approval_key(self, shown: Any) -> str:
        """The key of a person's answer: program, metric, data, and what was shown."""
        return "" if self.store is None else f"approval:{digest(self._task, shown)}"

    def parts_of_run(
        self, settings: RunSettings, student: Any, sets: Mapping[str, Sequence[Any]], recorded: Any
    ) -> dict[str, str]:
        """By name, the digest of each part that the result of a run depends on; no limits."""
        identity = self.identity
        arguments = settings.identifying
        lms = [identity(lm) for lm in language_models(student)]
        parts: dict[str, Any] = {
            "program": program_digest(student, self.unseen),
            "metric": identity(arguments.pop("metric")),
            **{f"{name} examples": [*map(identity, each)] for name, each in sets.items()},
            "traces": recorded and [[each.to_dict() for each in group] for group in recorded],
            "LM": [self._lm, lms],
            "adapter": self._adapter,
            "DSPy": DSPY,
            "reflection LM": self._reflection_lm,
            "reflection modules": [identity(module) for module in settings.reflection.modules],
        }
        modules = {id(module) for module in settings.reflection.modules}
        for name, value in sorted(arguments.items()):
            if value is not None and name != "reflection_lm" and id(value) not in modules:
                parts[name] = _argument_identity(value, self.unseen)
        of_task = [parts[name] for name in parts if name in TASK or name.endswith(" examples")]
        self._task = digest(of_task, settings.version)
        self.parts = {name: digest(part) for name, part in parts.items()}
        return self.parts

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
        """Record a result, without secrets; what is lost (a provider failed, say) is only noted.

        Gives the result that stands: where another process was first, that is its result.
        """
        if self.store is None and not self._secrets:
            return result
        record = self.without_secrets(kind.dump_python(result, warnings=False))
        if self.store is not None and is_lost:
            self.store.replace(f"{LOST}{key}", record)
        elif self.store is not None:
            record = self.store.put(key, record) or record
        with reading(key):
            return kind.validate_python(record)


def _argument_identity(value: Any, unseen: Unseen) -> Any:
    """The identity of an argument; of a gate and of strategies all that they hold."""
    if isinstance(value, tuple):
        return [_argument_identity(each, unseen) for each in value]
    is_whole = isinstance(value, Gate | Strategy)
    return (instance_identity if is_whole else object_identity)(value, unseen)


def _own_texts(student: Any, examples: Iterable[Any]) -> Iterator[str]:
    """The user's own texts: instructions and demos of the student, inputs and labels."""
    for _, predictor in named_predictors(student):
        yield predictor.signature.instructions
        for demo in predictor.demos:
            yield from as_fields(demo).values()
    for example in examples:
        yield from as_fields(example).values()


def _log_variables(own: str, is_any_plain: bool) -> None:
    variables = secret_variables()
    if names := sorted(name for name, value in variables.items() if value not in own):
        logger.info("kept out of records, logs and reports: the values of %s", ", ".join(names))
    if is_any_plain:
        names = sorted(name for name, value in variables.items() if value in own)
        logger.warning(
            "not kept out, as it stands in the examples or instructions: the value of %s",
            ", ".join(names or ["an argument of an LM, such as its api_key"]),
        )


def program_digest(program: Any, unseen: Unseen) -> str:
    """The digest of a program with its library, whatever its LMs are."""
    bare = copy_program(program, {id(lm): None for lm in language_models(program)})
    return digest(object_identity(bare, unseen))


def _parts_of(example: dspy.Example) -> list[Any]:
    """Inputs, labels, and all as text: of some the identity holds the type only, or nothing."""
    texts = [f"{name}: {without_addresses(text)}" for name, text in as_fields(example).items()]
    return [dict(example.inputs()), dict(example.labels()), texts]
