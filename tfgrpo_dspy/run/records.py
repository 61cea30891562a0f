"""What a run finds and keeps in its store: records of its stages, and how far the run came.

Without a `log_dir` nothing is found and nothing is kept.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any, TypeVar

import dspy
from pydantic import TypeAdapter

from tfgrpo_dspy.budget.account import LIMITS as PAID
from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.errors import MissingRecordError, StoreError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.experience.programs import copy_program, language_models, named_predictors
from tfgrpo_dspy.redaction import cleaned, known_secrets, redacted, secret_variables
from tfgrpo_dspy.results import RunResults
from tfgrpo_dspy.results.records import UpdateRecord
from tfgrpo_dspy.rollout import Rollout, Usage
from tfgrpo_dspy.sampling.additions import Additions
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings.checks import all_lms
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.identity import (
    Unseen,
    digest,
    instance_identity,
    object_identity,
    without_addresses,
)
from tfgrpo_dspy.store.records import Record, Store, reading

logger = logging.getLogger(__name__)

LATEST_RUN = "latest:run"
RUN, DECIDED, RESULTS = "run:", "decided:", "results:"  # how keys begin
LOST = "lost:"  # before the key of what was lost
LIMITS = frozenset((*PAID, "epochs", "auto", "max_minutes", "max_errors",
                    "num_threads", "rollout_timeout_s", "progress"))  # fmt: skip
"""Settings that say how far and how fast a run goes, not which."""
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
        self._task = ""  # what answers of a person are about; known when the run begins
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
        self, student: Any, sets: Mapping[str, Sequence[Any]], recorded: Any
    ) -> dict[str, str]:
        """By name, the digest of each part that the result of a run depends on; no limits."""
        settings, identity = self._settings, self.identity
        lms = [identity(lm) for lm in language_models(student)]
        scalars = {k: v for k, v in settings.result_scalars().items() if k not in LIMITS}
        parts: dict[str, Any] = {
            "program": program_digest(student, self.unseen),
            "metric": identity(settings.metric),
            **{f"{name} examples": [*map(identity, each)] for name, each in sets.items()},
            "traces": recorded and [[each.to_dict() for each in group] for group in recorded],
            "LM": [self._lm, lms],
            "adapter": self._adapter,
            "DSPy": DSPY,
            "reflection LM": self._reflection_lm,
            "reflection modules": [identity(module) for module in settings.reflection.modules],
            "gate": instance_identity(settings.gate, self.unseen),
            "strategies": [instance_identity(each, self.unseen) for each in settings.strategies],
            **{name: value for name, value in sorted(scalars.items()) if value is not None},
        }
        of_task = [parts[name] for name in parts if name in TASK or name.endswith(" examples")]
        self._task = digest(of_task, settings.version)
        return {name: digest(part) for name, part in parts.items()}

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


def notes_of(store: Store) -> Iterator[tuple[str, Record]]:
    """Keys and notes of the runs in the store; first the one that was begun last.

    Raises StoreError: the next note is damaged.
    """
    latest = (store.get(LATEST_RUN) or {}).get("run")
    for key in sorted(reversed(store.keys(RUN)), key=lambda key: key != latest):
        yield key, store.get(key) or {}


class RunManifest:
    """Reads and writes what is known of this run; nothing without a store."""

    def __init__(self, settings: RunSettings, records: RunRecords, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._records = records
        self._run, self._parts = "", dict[str, str]()
        self._is_finished = False
        self._begun = datetime.now(UTC).isoformat(timespec="seconds")

    def begin(
        self,
        student: Any,
        training: Sequence[Any],
        valset: Sequence[Any],
        recorded: Sequence[Sequence[Rollout]] | None,
    ) -> None:
        """Note that the run has begun, or go on with what the same run has paid."""
        if self._records.store is None:
            return
        sets = {"training": training, "validation": valset}
        self._parts = self._records.parts_of_run(student, sets, recorded)
        self._run = f"{RUN}{digest(self._parts)}"
        names = self._records.unseen.names
        if names and self._settings.version is None:
            logger.info(
                "known by name only, so that a change in them is not noticed (pass version=... "
                "when they change): %s",
                ", ".join(sorted(names)),
            )
        record = self._records.store.get(self._run)
        if record is None and (others := self._differences()):
            logger.warning(
                "log_dir=%r holds no run of this compile; from the nearest one it differs in %s",
                str(self._settings.log_dir),
                others,
            )
        self._write(LATEST_RUN, {"run": self._run})
        if record is None:
            self.note(Additions(ExperienceLibrary.from_program(student)), "")
        elif not self._settings.offline:
            with reading(self._run):
                self._begun = record["begun"]
                self._ledger.n_paid, self._ledger.paid = record["paid"]
                self._ledger.n_lost, self._ledger.lost = record["lost"]
                self._is_finished = bool(record["ended_because"])
                has_budget = any(getattr(self._settings, name) is not None for name in PAID)
                self._records.losses_stand = self._is_finished and has_budget

    def _differences(self) -> str:
        """The names of the parts in which the nearest recorded run is another; "": none is there.

        Of runs that are as near, the one that was begun last counts.
        """
        assert self._records.store is not None  # noqa: S101 - whoever asks has looked
        differing: list[list[str]] = []
        with suppress(StoreError):  # of a damaged note; whoever reads that run says so
            for _, note in notes_of(self._records.store):
                parts = note.get("parts") or {}
                names = {**self._parts, **parts} if parts else {}
                differing.append([n for n in names if self._parts.get(n) != parts.get(n)])
        nearest = sorted((names for names in differing if names), key=len)
        return ", ".join(nearest[0] if nearest else ())

    def _write(self, key: str, record: Record) -> None:
        if self._records.store is not None and not self._settings.offline:
            self._records.store.replace(key, record)

    def note(self, best: Additions, ended_because: str) -> None:
        """Note how far the run has come: what is best so far, and why it ended (if it did)."""
        if self._is_finished and not ended_because:
            return  # the recorded best is that of a race
        library = best.library
        bare = library.holding(replace(each, evidence=()) for each in library)  # evidence grows
        record = {
            "library": bare.to_dict(),
            "demos": [asdict(demo) for demo in best.demos],
            "paid": [self._ledger.n_paid, self._ledger.paid],
            "lost": [self._ledger.n_lost, self._ledger.lost],
            "ended_because": ended_because,
            "begun": self._begun,
            "parts": self._parts,
        }
        self._write(self._run, record)

    def note_update(self, update: UpdateRecord) -> None:
        """Record a decided update, for reports."""
        self._write(f"{DECIDED}{self._run}:{update.update}", asdict(update))

    def note_results(self, results: RunResults) -> None:
        """Record what the run reports, but for its updates."""
        self._write(f"{RESULTS}{self._run}", replace(results, updates=()).to_dict())

    def close(self, unfinished: Usage) -> None:
        """Note what was paid and, unless the run is finished, what of it was lost."""
        record = self._recorded()
        if record is not None:
            changes = {"paid": [self._ledger.n_paid, self._ledger.paid]}
            if not record.get("ended_because"):
                changes["lost"] = [unfinished.n_lm_calls, unfinished.cost_usd]
            self._write(self._run, {**record, **changes})

    def _recorded(self) -> Record | None:
        return None if self._records.store is None else self._records.store.get(self._run)

    def was_cut_short(self) -> str:
        """The budget that ended this run when it was recorded; "" if none did."""
        record = self._recorded()
        with reading(self._run):
            ended = str(record["ended_because"]) if record else ""
        return ended if ended.startswith("max_") else ""

    def missing(self, stage: str, where: str) -> MissingRecordError:
        """The error that says, offline, which record is not there, and what may be the reason."""
        record = self._recorded()
        if record is None:
            others = self._differences()
            reason = "this run was not recorded there"
            reason += f"; from the nearest one that was, it differs in: {others}" if others else ""
        elif not record["ended_because"]:
            reason = "the recorded run was not finished"
        else:
            reason = f"the recorded run did not come so far ({record['ended_because']})"
        return MissingRecordError(
            f"offline=True, and log_dir={str(self._settings.log_dir)!r} has no record of the "
            f"{stage} of {where}: {reason}. Run the same compile with offline=False first."
        )
