"""The journal of a run: what it has paid for, found and kept by key; and the run itself.

An entry is written once, as soon as its result is there; so to resume or to replay a run is to
start it again. The run is the outermost entry: what it is of, under which limits, its best program
so far and, at its end, what it reports. A start under the same limits finds all of it; one under
larger limits goes on with its schedule.
"""

import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Annotated, Any, TypeVar

import dspy
from pydantic import Field, PlainSerializer, PlainValidator, TypeAdapter

from tfgrpo_dspy.budget.ledger import Ledger
from tfgrpo_dspy.errors import MissingRecordError, StoreError
from tfgrpo_dspy.experience.library import ExperienceLibrary, library_in
from tfgrpo_dspy.experience.programs import named_predictors
from tfgrpo_dspy.identity import digest
from tfgrpo_dspy.redaction import cleaned, known_secrets, redacted, secret_variables
from tfgrpo_dspy.reflection.guard import task_text
from tfgrpo_dspy.results import RunResults
from tfgrpo_dspy.results.records import Row, UpdateRecord
from tfgrpo_dspy.sampling.additions import Additions, Demo
from tfgrpo_dspy.sampling.fields import as_fields
from tfgrpo_dspy.settings.checks import all_lms
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.store.database import Store, reading
from tfgrpo_dspy.store.keys import Keys

logger = logging.getLogger(__name__)

LOST, RUN, UPDATE = "lost:", "run:", "decided:"  # how keys begin; of what was lost, its own follows
END = "end"  # stands in a key for the number of an update
Kept = TypeVar("Kept")
Count = Annotated[int, Field(ge=0, lt=2**53)]
Spent = tuple[Count, Annotated[float, Field(ge=0, lt=1e15)]]  # LM calls and dollars
Library = Annotated[
    ExperienceLibrary,
    PlainValidator(ExperienceLibrary.from_dict),
    PlainSerializer(ExperienceLibrary.to_dict),
]


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """A run under its limits."""

    begun: str
    parts: dict[str, str]
    limits: dict[str, float | None]
    schedule: dict[str, Count]
    n_test: Count
    library: Library  # the best so far, as `demos`; no evidence, which grows
    demos: tuple[Demo, ...]
    paid: Spent
    lost: Spent = (0, 0.0)  # what of that came to nothing, of a run that is finished
    ended_because: str = ""  # "": it is not finished
    cut_because: str = ""  # what refused or stopped something
    results: dict[str, Any] | None = None

    @property
    def key(self) -> str:
        """The name by which it is known."""
        return key_of(self.parts, self.limits)


ENTRIES = TypeAdapter(RunEntry)


def key_of(parts: Mapping[str, str], limits: Mapping[str, float | None]) -> str:
    """The key of the run with these parts and limits."""
    return f"{RUN}{digest(parts, limits)}"


def entries_and_faults(store: Store) -> tuple[list[RunEntry], list[StoreError]]:
    """The runs, that begun last comes last, and why others are not read. Raises StoreError."""
    entries, faults = list[RunEntry](), list[StoreError]()
    for key in store.keys(RUN):
        try:
            with reading(key):
                entries.append(ENTRIES.validate_python(store.get(key)))
        except StoreError as error:  # the others can be read
            faults.append(error)
    return entries, faults


class Journal:
    """Finds and keeps what a run pays for, without secrets, in memory alone without a `log_dir`.

    Raises StoreError, MissingRecordError.
    """

    def __init__(self, settings: RunSettings, student: Any, examples: Iterable[Any] = ()) -> None:
        self._settings, self.keys = settings, Keys(settings)
        self.store: Store | None = None
        self.is_over, self.cut_because = False, ""
        """True if the run had ended under its budget: what was lost then stays lost, and of what
        is not recorded something was refused for this reason."""
        self.asked: list[Row] = []  # of the reflection LM, until its update is recorded
        self._run: RunEntry | None = None
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

    # ------------------------------------------------------------------ what was paid for

    def cleaned(self, value: Kept, kind: TypeAdapter[Kept]) -> Kept:
        """A value from outside, as from traces and strategies, without secrets."""
        return kind.validate_python(self._written(value, kind)) if self._secrets else value

    def _written(self, value: Kept, kind: TypeAdapter[Kept]) -> Any:
        values = kind.dump_python(value, warnings=False)
        return cleaned(values, self.redacted) if self._secrets else values

    def redacted(self, text: str) -> str:
        """The text without the secrets that are known."""
        return redacted(text, self._secrets)

    def find(self, key: str, kind: TypeAdapter[Kept]) -> Kept | None:
        """The recorded result; of a run that is over, and offline, also that of a loss."""
        if self.store is None:
            return None
        record = self.store.get(key)
        if record is None and (self.is_over or self._settings.offline):
            record = self.store.get(f"{LOST}{key}")
        with reading(key):
            return None if record is None else kind.validate_python(record)

    def keep(self, key: str, result: Kept, kind: TypeAdapter[Kept], is_lost: bool) -> Kept:
        """Record a result (or a loss), without secrets; gives the one that stands."""
        if self.store is None and not self._secrets:
            return result
        record = self._written(result, kind)
        if self.store is not None and is_lost:
            self.store.replace(f"{LOST}{key}", record)
        elif self.store is not None:
            record = self.store.put(key, record) or record
        with reading(key):
            return kind.validate_python(record)

    # ------------------------------------------------------------------ the run itself

    def continued(
        self, student: Any, sets: Mapping[str, Sequence[Any]], recorded: Any
    ) -> RunSettings:
        """The settings, with the schedule of a recorded run if this one goes on with it.

        So it does if that run is the same but for what is derived, and had no larger limits. A
        finished run whose limits are the same plans nothing else: what a test set takes comes on
        top.
        """
        settings = self._settings
        if self.store is None:
            return settings
        parts = self.keys.parts_of_run(settings, student, sets, recorded)
        same = self._same_with_less(parts)
        if same is None:
            return settings
        names, data = settings.derived - {"epochs"}, settings.data
        if same.ended_because and same.limits == self._limits:
            names |= {"reserve", "n_validation"}
            if data.is_test_on_top and settings.max_lm_calls:
                n_calls = 2 * (data.n_test - same.n_test) * data.calls_per_rollout
                settings = replace(settings, max_lm_calls=settings.max_lm_calls - n_calls)
            settings = replace(settings, data=replace(data, n_test=same.n_test))
        figures: dict[str, Any] = {name: same.schedule[name] for name in names}
        if changed := [name for name in sorted(names) if getattr(settings, name) != figures[name]]:
            logger.info("this run goes on with a recorded one, by its %s", ", ".join(changed))
        self._settings = replace(settings, **figures)
        self.keys.parts_of_run(self._settings, student, sets, recorded)
        return self._settings

    @property
    def _limits(self) -> dict[str, float | None]:
        limits = {**self._settings.learning_limits, "epochs": self._settings.epochs}
        return {name: None if limit is None else float(limit) for name, limit in limits.items()}

    def _same_with_less(self, parts: Mapping[str, str]) -> RunEntry | None:
        """The run to go on with; of several, one with the same limits before the last of others."""
        assert self.store is not None  # noqa: S101 - whoever asks has looked
        entries, _ = entries_and_faults(self.store)
        derived, limits = self._settings.derived, self._limits
        for entry in sorted(reversed(entries), key=lambda entry: entry.limits != limits):
            names = {*entry.parts, *parts} - derived
            is_same = all(entry.parts.get(name) == parts.get(name) for name in names)
            is_whole = entry.schedule.keys() == self._settings.schedule.keys()  # nobody changed it
            if is_same and is_whole and _reach(entry.limits, self._settings.learning_limits):
                return entry
        return None

    def begin(self, student: Any, ledger: Ledger) -> None:
        """Note that the run has begun, or go on with what it has paid for."""
        if self.store is None:
            return
        parts, settings = self.keys.parts, self._settings
        key = key_of(parts, self._limits)
        with reading(key):
            record = self.store.get(key)
            earlier = None if record is None else ENTRIES.validate_python(record)
        names = self.keys.identities.by_name
        if names and settings.version is None:
            (logger.info if earlier is None else logger.warning)(
                "known by name only, so that a change in them is not noticed (pass version=... "
                "when they change): %s",
                ", ".join(sorted(names)),
            )
        if earlier is None:
            if others := self._differences():
                logger.warning(
                    "log_dir=%r holds no run of this compile; from the nearest one it differs in "
                    "%s",
                    str(settings.log_dir),
                    others,
                )
            earlier = RunEntry(
                begun=datetime.now(UTC).isoformat(timespec="seconds"),
                parts=parts,
                limits=self._limits,
                schedule=settings.schedule,
                n_test=settings.data.n_test,
                library=library_in(student),
                demos=(),
                paid=(0, 0.0),
            )
        elif earlier.ended_because:
            budget = (settings.max_lm_calls, settings.max_metric_calls, settings.max_cost)
            self.is_over = any(limit is not None for limit in budget)
            self.cut_because = earlier.cut_because * (self.is_over or settings.offline)
            if self.is_over:
                ledger.spend(*earlier.lost)
        self._write(earlier)

    def _write(self, entry: RunEntry) -> None:
        self._run = entry
        self._put(entry.key, ENTRIES.dump_python(entry, mode="json"))

    def _put(self, key: str, record: dict[str, Any]) -> None:
        if self.store is not None and not self._settings.offline:
            self.store.replace(key, record)

    def note_update(
        self, best: Additions, update: UpdateRecord, rollouts: Sequence[Row], ledger: Ledger
    ) -> None:
        """Record a decided update, what was made and asked for it, and the best program so far."""
        if self._run is None:
            return
        self._put_rows(f"{self._run.key}:{update.update}", rollouts, update)
        if not self._run.ended_because:
            self._write(replace(self._run, **_program(best), paid=(ledger.n_lm_calls, ledger.cost)))

    def note_end(
        self,
        best: Additions,
        ended_because: str,  # "": it may go on
        results: RunResults,
        rollouts: Sequence[Row],
        ledger: Ledger,
    ) -> None:
        """Record the program of the run, what it reports, and the rollouts of the final choice."""
        if self._run is None or (self._run.ended_because and not ended_because):
            return
        self._put_rows(f"{self._run.key}:{END}", rollouts)
        program = _program(best) if ended_because else {}
        entry = replace(
            self._run,
            **program,
            paid=(ledger.n_lm_calls, ledger.cost),
            lost=ledger.lost,
            ended_because=ended_because,
            cut_because=ledger.refused_because,
            results=replace(results, updates=()).to_dict(),
        )
        self._write(entry)

    def _put_rows(
        self, place: str, rollouts: Sequence[Row], update: UpdateRecord | None = None
    ) -> None:
        asked = [row for row in self.asked if update is None or row["update"] == update.update]
        self.asked = [row for row in self.asked if row not in asked]
        rows = {"rollouts": [*rollouts], "reflections": asked}
        self._put(f"{UPDATE}{place}", {"update": update and asdict(update), **rows})

    @property
    def origin(self) -> dict[str, str]:
        """The run and its folder; empty without a store."""
        if self.store is None or self._run is None:
            return {}
        run, folder = self._run.key.removeprefix(RUN), str(self.store.folder)
        return {"run": run, "begun": self._run.begun, "log_dir": folder}

    def close(self) -> None:
        """Close the store, and note what has become of program and metric meanwhile."""
        if self.keys.is_used:
            self.keys.identities.leave()
        if self.store is not None:
            self.store.close()

    def missing(self, name: str) -> MissingRecordError:
        """The error that says, offline, which record is not there, and what may be the reason."""
        assert self.store is not None  # noqa: S101 - offline, there is one
        reason = "this run was not recorded there"
        if (others := self._differences()) is None:
            reason = "the recorded run did not come so far"
        elif others:
            reason += f"; from the nearest one that was, it differs in: {others}"
        return MissingRecordError(
            f"offline=True, and log_dir={str(self._settings.log_dir)!r} has no record of the "
            f"{name}: {reason}. Run the same compile with offline=False first."
        )

    def _differences(self) -> str | None:
        """The parts in which the nearest recorded run, of several the last, differs.

        "": there is no run; None: it differs in nothing but its limits.
        """
        assert self.store is not None  # noqa: S101 - whoever asks has looked
        entries, _ = entries_and_faults(self.store)
        parts, derived = self.keys.parts, self._settings.derived
        differing = [
            [name for name in {**parts, **entry.parts} if parts.get(name) != entry.parts.get(name)]
            for entry in reversed(entries)
        ]
        if [] in differing:
            return None
        nearest = min(differing, key=len, default=[])
        return ", ".join(f"{name} (derived)" if name in derived else name for name in nearest)


def _program(best: Additions) -> dict[str, Any]:
    bare = (replace(experience, evidence=()) for experience in best.library)
    return {"library": best.library.holding(bare), "demos": best.demos}


def _reach(before: Mapping[str, float | None], now: Mapping[str, float | None]) -> bool:
    """True if no limit is lower than it was; None: there is none."""
    limits = ((before.get(name), now[name]) for name in now)
    return all((math.inf if b is None else b) >= (a or math.inf) for a, b in limits)


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
