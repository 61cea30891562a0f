"""What a store knows of whole runs: what each was made of, how far it came, why it ended.

So a run can say what has changed since the one before, and offline why a piece is not there.
"""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import dspy

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.errors import MissingRecordError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.run.records import RunRecords
from tfgrpo_dspy.sampling.demos import Demo
from tfgrpo_dspy.settings import RunSettings
from tfgrpo_dspy.store import Store, callable_identity, digest, program_identity, reading

logger = logging.getLogger(__name__)

LATEST_RUN = "latest:run"
OF_SPLIT = ("the training set", "the validation set")
LIMITS = frozenset(
    "version epochs auto max_metric_calls max_lm_calls max_cost max_minutes max_errors "  # noqa: SIM905
    "num_threads rollout_timeout_s progress".split()
)
"""Settings that say how far and how fast a run goes, not which."""


class RunManifest:
    """Reads and writes what is known of whole runs; nothing without a store."""

    def __init__(self, settings: RunSettings, records: RunRecords, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._records = records
        self._components: dict[str, str] = {}
        self._run = ""

    @property
    def _store(self) -> Store | None:
        return self._records.store

    def begin(
        self, student: Any, trainset: Sequence[Any], training: Sequence[int], valset: Sequence[Any]
    ) -> None:
        """Log what has changed since the run before; note that this one has begun."""
        if self._store is None:
            return
        self._components = self._components_of(student, [trainset[i] for i in training], valset)
        self._run = f"run:{digest(self._components)}"
        self._say_what_is_unseen()
        if self._settings.offline:
            return
        for name in self._changes() or ():
            logger.info("%s changed since a run in this log_dir; what it affects is new", name)
        self._store.replace(LATEST_RUN, {"run": self._run})
        record = self._store.get(self._run)
        if record is None:
            self.note(ExperienceLibrary.from_program(student), 0, "")
        else:
            with reading(self._run):
                self._ledger.resume(*record["paid"])

    def _components_of(
        self, student: Any, trainset: Sequence[Any], valset: Sequence[Any]
    ) -> dict[str, str]:
        """The digest of each thing that a run's result depends on."""
        records, settings = self._records, self._settings
        apart = ("seed", "temperature", "group_size", *LIMITS)
        schedule = {
            k: v for k, v in settings.result_scalars().items() if k not in apart and v is not None
        }
        return {
            "the program": digest(program_identity(student, records.unseen)),
            "the policy LM": records.lm,
            "the adapter": records.adapter,
            "the metric": digest(records.metric_identity(settings.metric)),
            "the version": digest(settings.version),
            "the gate": digest(callable_identity(settings.gate, records.unseen)),
            "the reflection LM": records.reflection_lm,
            "the reflection modules": digest(
                [records.module(module) for module in settings.reflection.modules]
            ),
            "the training set": digest([records.example(example) for example in trainset]),
            "the validation set": digest([records.example(example) for example in valset]),
            "the seed": digest(settings.seed),
            "the temperature": digest(settings.temperature),
            "the group size": digest(settings.group_size),
            "the schedule": digest(schedule),
            "DSPy": digest(dspy.__version__),
        }

    def _say_what_is_unseen(self) -> None:
        names = self._records.unseen.names
        if names and self._settings.version is None:
            logger.info(
                "known by name only, so that a change in them is not noticed (pass version=... "
                "when they change): %s",
                ", ".join(sorted(names)),
            )

    def _changes(self) -> list[str] | None:
        """What differs from the recorded run that is most like this one; None: there is none."""
        if self._store is None:
            return None
        with reading("run"):
            differences = [
                [name for name, own in self._components.items() if run["components"][name] != own]
                for _, run in self._store.records("run")
            ]
        changes = min(differences, key=len, default=None)
        if changes and "the seed" in changes:  # which splits the data otherwise
            return [name for name in changes if name not in OF_SPLIT]
        return changes

    def note(
        self,
        library: ExperienceLibrary,
        n_updates: int,
        ended_because: str,
        demos: Sequence[Demo] = (),
    ) -> None:
        """Note how far the run has come: what is best so far, and why it ended (if it did).

        Its evidence, which grows with every update, is not noted again at each.
        """
        if self._store is None or self._settings.offline:
            return
        without_evidence = library.holding(replace(each, evidence=()) for each in library)
        self._store.replace(
            self._run,
            {
                "components": self._components,
                "library": without_evidence.to_dict(),
                "demos": [asdict(demo) for demo in demos],
                "n_updates": n_updates,
                "paid": [self._ledger.n_paid, self._ledger.paid],
                "ended_because": ended_because,
            },
        )

    def close(self) -> None:
        """Note what has been paid, however the run ended: the next start goes on from that."""
        if self._store is None or self._settings.offline or not self._run:
            return
        record = self._store.get(self._run)
        if record is not None:
            paid = [self._ledger.n_paid, self._ledger.paid]
            self._store.replace(self._run, {**record, "paid": paid})

    def ended_because(self) -> str:
        """Why the recorded run with these components ended; "" if it did not, or there is none."""
        record = self._store.get(self._run) if self._store is not None else None
        with reading(self._run):
            return str(record["ended_because"]) if record else ""

    def was_cut_short(self) -> str:
        """The budget that ended the recorded run with these components; "" if none did."""
        ended = self.ended_because()
        return ended if ended.startswith("max_") else ""

    def missing(self, stage: str, where: str) -> MissingRecordError:
        """The error that says, offline, which piece is not there, and the likely reason."""
        changes = self._changes()
        if changes is None:
            reason = "no run was recorded in this log_dir"
        elif changes:
            reason = f"since the recorded run {', '.join(changes)} changed"
        elif not self.ended_because():
            reason = "the recorded run was not finished"
        else:
            reason = f"the recorded run did not come so far ({self.ended_because()})"
        return MissingRecordError(
            f"offline=True, and log_dir={str(self._settings.log_dir)!r} has no record of the "
            f"{stage} of {where}: {reason}. Run the same compile with offline=False first."
        )
