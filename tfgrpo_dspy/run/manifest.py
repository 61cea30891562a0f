"""What a store knows of whole runs: what each was made of, how far it came, why it ended.

So a run can say what has changed since the one before, and offline why a piece is not there.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import dspy

from tfgrpo_dspy.budget import Ledger
from tfgrpo_dspy.errors import MissingRecordError
from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.run.records import RunRecords
from tfgrpo_dspy.sampling import Demo
from tfgrpo_dspy.settings import RunSettings
from tfgrpo_dspy.store import callable_identity, digest, program_identity, reading
from tfgrpo_dspy.store.program_text import sketch_of

logger = logging.getLogger(__name__)

CONSEQUENCES = {
    "the program": "its rollouts are new records beside the old ones; nothing can be reused",
    "the policy LM": "its rollouts are new records beside the old ones; nothing can be reused",
    "the adapter": "rollouts and reflections are new records beside the old ones",
    "the version": "all that depends on program or metric is new",
    "the metric": "stored predictions are scored again, without running the program, up to the "
    "first update that differs (outputs that are kept as text only are made again)",
    "the gate": "rollouts are reused up to the first update that differs",
    "the reflection LM": "rollouts are reused up to the first update that differs",
    "the reflection modules": "rollouts are reused up to the first update that differs",
    "the training set": "what was recorded for examples that stand at the same place is reused",
    "the validation set": "what was recorded for examples that stand at the same place is reused",
    "the seed": "its rollouts are fresh samples beside the old ones, on another split of the data",
    "the temperature": "training rollouts are new; validation and test scores are reused",
    "the group size": "the rollouts that both have are reused, up to the first update that differs",
    "the schedule": "rollouts are reused up to the first update that differs",
    "DSPy": "prompts may differ from the recorded ones; recorded answers are used all the same",
}
"""What a change means for the records of an earlier run."""
APART = {"seed": "the seed", "temperature": "the temperature", "group_size": "the group size"}
OF_SPLIT = ("the training set", "the validation set")
LATEST_RUN = "latest:run"
LIMITS = frozenset(
    (
        "version",
        "epochs",
        "auto",
        "max_metric_calls",
        "max_lm_calls",
        "max_cost",
        "max_minutes",
        "max_errors",
        "num_threads",
        "rollout_timeout_s",
        "progress",
    )
)
"""Settings that say how far and how fast a run goes, not which."""


class RunManifest:
    """Reads and writes the notes on runs; without a store there are none."""

    def __init__(self, settings: RunSettings, archive: RunRecords, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._archive = archive
        self._store = archive.store
        self._components: dict[str, str] = {}
        self._run = ""
        self._sketch: dict[str, str] | None = None

    def begin(
        self, student: Any, trainset: Sequence[Any], training: Sequence[int], valset: Sequence[Any]
    ) -> None:
        """Say in the log what has changed since the run before; note that this one has begun."""
        if self._store is None:
            return
        archive, settings = self._archive, self._settings
        modules = [archive.module(module) for module in settings.reflection.modules]
        gate = settings.gate
        given = settings.of_result().items()
        schedule = {k: v for k, v in given if k not in (*LIMITS, *APART) and v is not None}
        self._components = {
            "the program": digest(program_identity(student, archive.unseen)),
            "the policy LM": archive.lm,
            "the adapter": archive.adapter,
            "the metric": digest(archive.metric_identity(settings.metric)),
            "the version": digest(settings.version),
            "the gate": digest(callable_identity(gate, archive.unseen)),
            "the reflection LM": archive.reflection_lm,
            "the reflection modules": digest(modules),
            "the training set": self._digest_of_set(trainset[i] for i in training),
            "the validation set": self._digest_of_set(valset),
            **{name: digest(getattr(settings, key)) for key, name in APART.items()},
            "the schedule": digest(schedule),
            "DSPy": digest(dspy.__version__),
        }
        self._run = f"run:{digest(self._components)}"
        self._sketch = sketch_of(student)
        self._say_what_is_unseen()
        if not self._settings.offline:
            changes = self._changes()
            for name in changes or ():
                logger.info("%s changed since a run in this log_dir: %s", name, CONSEQUENCES[name])
            self._store.replace(LATEST_RUN, {"run": self._run})
            record = self._store.get(self._run)
            if record is None:
                self.note(ExperienceLibrary.from_program(student), 0, "")
            else:
                with reading(self._run):
                    self._ledger.resume(*record["paid"])

    def _digest_of_set(self, examples: Iterable[Any]) -> str:
        """The digest of a set. Each example is read once, and recorded only when it is used."""
        whole = hashlib.blake2b(digest_size=16)
        for example in examples:
            try:
                values = dict(example.items())
                text = json.dumps([values, sorted(example.inputs().keys())], sort_keys=True)
            except (TypeError, ValueError, RecursionError):  # JSON does not have such a value
                text = json.dumps(self._archive.example(example))
            whole.update(text.encode())
        return whole.hexdigest()

    def _say_what_is_unseen(self) -> None:
        names = self._archive.unseen.names
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
        runs = [record for _, record in self._store.records(self._store.keys("run"))]
        if not runs:
            return None
        with reading("run"):
            differences = [
                [
                    name
                    for name, own in self._components.items()
                    if run["components"].get(name) != own
                ]
                for run in runs
            ]
        changes = min(differences, key=len)
        if "the seed" in changes:  # which splits the data otherwise
            changes = [name for name in changes if name not in OF_SPLIT]
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
        bare = [replace(experience, evidence=()) for experience in library]
        self._store.replace(
            self._run,
            {
                "components": self._components,
                "program": self._sketch,
                "library": ExperienceLibrary(bare, next_number=library.next_number).to_dict(),
                "demos": [demo.to_dict() for demo in demos],
                "limits": self._limits(),
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
            others = self._other_limits()
            reason += f"; it had {', '.join(others)}" if others else ""
        return MissingRecordError(
            f"offline=True, and log_dir={str(self._settings.log_dir)!r} has no record of the "
            f"{stage} of {where}: {reason}. Run the same compile with offline=False first."
        )

    def _limits(self) -> dict[str, Any]:
        return {k: v for k, v in self._settings.of_result().items() if k in LIMITS}

    def _other_limits(self) -> list[str]:
        """How far and fast the recorded run was to go, where this one differs."""
        record = self._store.get(self._run) if self._store is not None else None
        recorded = record.get("limits", {}) if record else {}
        now = self._limits()
        return [f"{k}={v!r}" for k, v in recorded.items() if v != now.get(k) and k != "progress"]
