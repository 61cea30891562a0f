"""What a store knows of whole runs: how far each came, what it has paid, why it ended."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, replace
from os import PathLike
from typing import Any

import dspy

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.errors import MissingRecordError, StoreError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.run.records import RunRecords
from tfgrpo_dspy.sampling.demos import Demo, with_demos
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.identity import digest, instance_identity
from tfgrpo_dspy.store.records import Record, Store, reading

logger = logging.getLogger(__name__)

LATEST_RUN = "latest:run"
LIMITS = frozenset(
    "epochs auto max_metric_calls max_lm_calls max_cost max_minutes max_errors "  # noqa: SIM905
    "num_threads rollout_timeout_s progress".split()
)
"""Settings that say how far and how fast a run goes, not which."""


class RunManifest:
    """Reads and writes what is known of this run; nothing without a store."""

    def __init__(self, settings: RunSettings, records: RunRecords, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._records = records
        self._run = ""

    def begin(
        self, student: Any, trainset: Sequence[Any], training: Sequence[int], valset: Sequence[Any]
    ) -> None:
        """Note that the run has begun, or go on with what the same run has paid."""
        if self._records.store is None:
            return
        self._run = f"run:{self._identity(student, [trainset[i] for i in training], valset)}"
        names = self._records.unseen.names
        if names and self._settings.version is None:
            logger.info(
                "known by name only, so that a change in them is not noticed (pass version=... "
                "when they change): %s",
                ", ".join(sorted(names)),
            )
        record = self._records.store.get(self._run)
        self._write(LATEST_RUN, {"run": self._run})
        if record is None:
            self.note(ExperienceLibrary.from_program(student), "")
        elif not self._settings.offline:
            with reading(self._run):
                self._ledger.n_paid, self._ledger.paid = record["paid"]

    def _identity(self, student: Any, trainset: Sequence[Any], valset: Sequence[Any]) -> str:
        """The digest of all that the run's result depends on, but for its limits."""
        records, settings = self._records, self._settings
        scalars = settings.result_scalars()
        return digest(
            [records.identity(each) for each in (student, settings.metric)],
            [records.identity(module) for module in settings.reflection.modules],
            [records.lm, records.adapter, records.reflection_lm],
            instance_identity(settings.gate, records.unseen),
            [[records.identity(example) for example in split] for split in (trainset, valset)],
            {k: v for k, v in scalars.items() if k not in LIMITS and v is not None},
            dspy.__version__,
        )

    def _write(self, key: str, record: Record) -> None:
        if self._records.store is not None and not self._settings.offline:
            self._records.store.replace(key, record)

    def note(
        self, library: ExperienceLibrary, ended_because: str, demos: Sequence[Demo] = ()
    ) -> None:
        """Note how far the run has come: what is best so far, and why it ended (if it did)."""
        bare = library.holding(replace(each, evidence=()) for each in library)  # evidence grows
        record = {
            "library": bare.to_dict(),
            "demos": [asdict(demo) for demo in demos],
            "paid": [self._ledger.n_paid, self._ledger.paid],
            "ended_because": ended_because,
        }
        self._write(self._run, record)

    def close(self) -> None:
        """Note what has been paid, however the run ended: the next start goes on from that."""
        record = self._recorded()
        if record is not None:
            self._write(self._run, {**record, "paid": [self._ledger.n_paid, self._ledger.paid]})

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
            reason = (
                "this run was not recorded there, or something that its records depend on has "
                "changed since (program, LMs, adapter, metric, examples, settings, version)"
            )
        elif not record["ended_because"]:
            reason = "the recorded run was not finished"
        else:
            reason = f"the recorded run did not come so far ({record['ended_because']})"
        return MissingRecordError(
            f"offline=True, and log_dir={str(self._settings.log_dir)!r} has no record of the "
            f"{stage} of {where}: {reason}. Run the same compile with offline=False first."
        )


def best_so_far(log_dir: str | PathLike[str], student: Any) -> Any:
    """The best program of the run that was begun last in this store, finished or not.

    Args:
        log_dir: the folder of the run store.
        student: the program that was compiled; a store holds text, no code.

    Raises:
        StoreError: the store cannot be read, or holds no run of this program.
    """
    store = Store.existing(log_dir)
    if store is None:
        raise StoreError(f"log_dir={str(log_dir)!r} is no run store; pass the one of a compile.")
    try:
        latest = store.get(LATEST_RUN)
        with reading(LATEST_RUN):
            record = store.get(latest["run"]) if latest else None
    finally:
        store.close()
    if record is None:
        raise StoreError(f"log_dir={str(log_dir)!r} holds no run yet.")
    with reading("run"):
        library = ExperienceLibrary.from_dict(record["library"])
        demos = [Demo(each["predictor"], dict(each["fields"])) for each in record["demos"]]
    try:
        return library.bake(with_demos(student, demos))
    except (KeyError, ValueError) as error:
        raise StoreError(
            f"the demos recorded in log_dir={str(log_dir)!r} are not of this program ({error}); "
            f"pass the student that was compiled."
        ) from error
