"""The run store: the journal of what runs have paid for, the keys of that, and the runs themselves.

It is a SQLite database of JSON texts under keys, that outlives any crash; nothing is unpickled. An
entry is written once, as soon as its result is there; so to resume or to replay a run is to start
it again. The run is the outermost entry: what it is of, under which limits, its best program so far
and, at its end, what it reports. A start under the same limits finds all of it; one under larger
limits goes on with its schedule.
"""

import contextlib
import json
import logging
import math
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, TypeVar

import dspy
from pydantic import Field, PlainSerializer, TypeAdapter

from tfgrpo_dspy import user_code
from tfgrpo_dspy.budget import Amount, Entry, Ledger
from tfgrpo_dspy.errors import MissingRecordError, StoreError, described, sentence, text_of
from tfgrpo_dspy.experience import ExperienceLibrary
from tfgrpo_dspy.gate.bayesian import Gate
from tfgrpo_dspy.reflection.lessons import task_text
from tfgrpo_dspy.reflection.modules import Answer
from tfgrpo_dspy.results import NOT_FINISHED, Row, RunResults, UpdateRecord
from tfgrpo_dspy.rollout import Usage
from tfgrpo_dspy.sampling.examples import Additions, Demo, as_fields
from tfgrpo_dspy.settings import RunSettings
from tfgrpo_dspy.settings.preparation import all_lms
from tfgrpo_dspy.strategies.base import Strategy
from tfgrpo_dspy.text import cleaned, known_secrets, redacted, secret_variables
from tfgrpo_dspy.user_code import Identities, copy_program, digest, without_addresses

logger = logging.getLogger(__name__)

DATABASE, FORMAT = "tfgrpo_store.db", 7
BUSY_S = 60.0  # how long a process waits for another one that writes to the same store
MAKING = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, value TEXT NOT NULL);
PRAGMA user_version = {FORMAT};
COMMIT;
"""
ENTRY = "INTO entries VALUES (?, ?)"
INTACT = "Nothing is lost. Fix this and run the same compile again."
TO_MEND = "restore its folder from a copy, or take another log_dir."

Record = dict[str, Any]


@contextmanager
def reading(key: str) -> Iterator[None]:
    """Within it, a record that has not the form of its stage is damaged. Raises StoreError."""
    try:
        yield
    except StoreError:
        raise
    except Exception as error:  # a record that was changed may hold anything
        why = sentence(text_of(error) if isinstance(error, ValueError) else described(error))
        raise StoreError(f"The record {key!r} is damaged: {why} To go on, {TO_MEND}") from error


@contextmanager
def _faults(doing: str, folder: str | PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError, RuntimeError) as error:
        if isinstance(error, StoreError):
            raise
        is_damaged = type(error) is sqlite3.DatabaseError or "UTF-8" in str(error)
        raise StoreError(
            f"Cannot {doing} the run store log_dir={str(folder)!r}: {described(error)}. "
            f"{f'The database is damaged: {TO_MEND}' if is_damaged else INTACT}"
        ) from error


class Store:
    """The records in one folder; several processes may have it open at once.

    Keys are `stage:hash`. What was put outlives the process, even if it is killed at once (a power
    failure may cost the last records). With `is_read_only` the folder may be one that cannot be
    written to. Raises StoreError: the folder cannot be made, written or read, or is of another
    format.
    """

    def __init__(self, folder: str | PathLike[str], is_read_only: bool = False) -> None:
        with _faults("open", folder):
            self.folder = Path(folder).expanduser().absolute()
            self._lock, file, how = threading.Lock(), self.folder / DATABASE, "mode=rwc"
            if is_read_only:  # no file is changed, unless a killed run left rows in the log
                log = file.with_name(f"{DATABASE}-wal")
                how = "mode=ro" if log.exists() and log.stat().st_size else "immutable=1"
            else:
                self.folder.mkdir(parents=True, exist_ok=True)
            connection = self._connection = sqlite3.connect(
                f"{file.as_uri()}?{how}",
                BUSY_S,
                isolation_level=None,
                check_same_thread=False,
                uri=True,
            )
            try:
                # the tables first: another process may make them now, together with the version
                ((n_tables,),) = connection.execute("SELECT count(*) FROM sqlite_master")
                ((version,),) = connection.execute("PRAGMA user_version")
                is_new = not (version or n_tables or is_read_only)
                if version != FORMAT and not is_new:
                    raise StoreError(
                        f"log_dir={str(self.folder)!r} is a run store of format {version}; this "
                        f"version of tfgrpo_dspy reads format {FORMAT}: take another folder, or "
                        "the version that wrote it."
                    )
                if not is_read_only:
                    try:  # SQLite does not wait for a process that changes the mode, too
                        connection.execute("PRAGMA journal_mode = WAL").fetchall()
                    except sqlite3.OperationalError as error:
                        if "locked" not in str(error):
                            raise
                    connection.execute("PRAGMA synchronous = NORMAL")
                if is_new:
                    connection.executescript(MAKING)
            except BaseException:
                connection.close()
                raise

    @classmethod
    def existing(cls, folder: str | PathLike[str]) -> "Store | None":
        """The store in a folder that has one, to read; one that is empty is none."""
        with _faults("open", folder):  # it may be in a folder that cannot be looked into
            file = Path(folder).expanduser().absolute() / DATABASE
            is_there = file.exists() and file.stat().st_size > 0
        return cls(folder, is_read_only=True) if is_there else None

    def _run(self, doing: str, statement: str, *values: Any) -> tuple[list[Any], int]:
        with self._lock, _faults(doing, self.folder):
            cursor = self._connection.execute(statement, values)
            return cursor.fetchall(), cursor.rowcount

    def get(self, key: str) -> Record | None:
        """The record under that key, or None. Raises StoreError where it is damaged."""
        rows, _ = self._run("read", "SELECT value FROM entries WHERE key = ?", key)
        with reading(key):
            return dict(json.loads(rows[0][0]).items()) if rows else None

    def keys(self, beginning: str) -> list[str]:
        """The keys that begin so, in the order in which they were last written."""
        query = "SELECT key FROM entries WHERE substr(key, 1, ?) = ? ORDER BY rowid"
        rows, _ = self._run("read", query, len(beginning), beginning)
        return [key for (key,) in rows]

    def put(self, key: str, record: Mapping[str, Any]) -> Record | None:
        """Write a record; gives the one that stood there already, and then stays."""
        _, n_new = self._run("write", f"INSERT OR IGNORE {ENTRY}", key, json.dumps(record))
        return None if n_new else self.get(key)

    def replace(self, key: str, record: Mapping[str, Any]) -> None:
        """Write a record, as the last, in place of the one that stands there."""
        self._run("write", f"INSERT OR REPLACE {ENTRY}", key, json.dumps(record))

    def close(self) -> None:
        """Close the database; records stay."""
        with self._lock, _faults("close", self.folder):
            self._connection.close()


TASK = ("program", "metric", "traces")  # and the examples: what an approval is about
DSPY = ".".join(dspy.__version__.split(".")[:2])  # a minor version may write other prompts
LOST, RUN, UPDATE = "lost:", "run:", "decided:"  # how keys begin; of what was lost, its own follows
END = "end"  # stands in a key for the number of an update
BY_NAME = (
    "known by name only, so that a change in them is not noticed (pass version=... when they "
    "change): %s"
)
Kept = TypeVar("Kept")
Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True, kw_only=True)
class RunEntry:
    """A run under its limits, with what it reports, and its best program so far."""

    begun: str
    parts: dict[str, str]
    limits: dict[str, float | None]
    schedule: dict[str, Count]
    n_test: Count
    results: Annotated[RunResults, PlainSerializer(RunResults.to_dict)]  # without updates
    demos: tuple[Demo, ...] = ()  # of the best program, whose library the results have
    cut_because: str = ""  # what refused or stopped something

    @property
    def key(self) -> str:
        """The name by which it is known."""
        return f"{RUN}{digest(self.parts, self.limits)}"


RUNS = TypeAdapter(RunEntry)


def unfinished(library: ExperienceLibrary, spent: Usage) -> RunResults:
    """The results of a run that goes on; of its library no evidence, which grows."""
    bare = library.holding(replace(experience, evidence=()) for experience in library)
    return RunResults(
        student=None, best=None, updates=(), usage={"rollout": spent}, failures={},
        ended_because=NOT_FINISHED, nothing_learned="", wall_time_s=0.0, library=bare.to_dict(),
    )  # fmt: skip


def _runs_of(store: Store) -> list[RunEntry]:
    runs = list[RunEntry]()
    for key in store.keys(RUN):
        with _leaving_out(), reading(key):
            runs.append(RUNS.validate_python(store.get(key)))
    return runs


@contextmanager
def _leaving_out() -> Iterator[None]:
    """Within it, a run of which a record is damaged is left out: the others can be read."""
    try:
        yield
    except StoreError as fault:
        logger.warning("a run is left out: %s", fault)


class Keys:
    """The keys of one run ("" without a store); `identities`: what they are made of."""

    def __init__(self, settings: RunSettings) -> None:
        self.is_used = settings.log_dir is not None
        self.identities = Identities()
        self.parts = dict[str, str]()
        """By name, the digest of each part that the result of the run depends on."""
        self._digests: dict[int, str] = {}
        self._versions = DSPY, settings.version
        self._lm = self._identity(dspy.settings.lm)
        self._adapter = self._identity(dspy.settings.adapter or dspy.ChatAdapter())
        self._reflection_lm = self._identity(settings.reflection_lm or dspy.settings.lm)
        self._task = ""  # what answers of a person are about; known by `parts_of_run`

    def _identity(self, value: Any) -> str:
        """The digest of an object that the run holds until its end; looked up once."""
        if self.is_used and id(value) not in self._digests:
            parts = value
            if isinstance(value, dspy.Example):  # fields as text, too: of some the name counts only
                texts = [f"{n}: {without_addresses(x)}" for n, x in as_fields(value).items()]
                parts = [dict(value.inputs()), dict(value.labels()), texts]
            self._digests[id(value)] = digest(self.identities.of(parts))
        return self._digests.get(id(value), "")

    def _key(self, stage: str, *parts: Any) -> str:
        return f"{stage}:{digest(*parts, self._versions)}" if self.is_used else ""

    def program(self, program: Any) -> str:
        """The digest of a program with its library."""
        return digest(self.identities.of(program)) if self.is_used else ""

    def rollout(
        self, program: str, example: Any, metric: Any, number: int, temperature: float | str | None
    ) -> str:
        """The key of a rollout: all that its outputs and its score depend on."""
        scored = self._identity(example), self._identity(metric)
        return self._key("rollout", program, self._lm, self._adapter, scored, number, temperature)

    def reflection(self, stage: str, module: Any, number: int, inputs: Mapping[str, Any]) -> str:
        """The key of an answer: the module, its LM and adapter, all that it is shown."""
        asked = self._identity(module), self._reflection_lm, self._adapter
        return self._key(stage, asked, dict(inputs), number)

    def approval(self, shown: Any) -> str:
        """The key of a person's answer: program, metric, data, and what was shown."""
        return self._key("approval", self._task, shown)

    def parts_of_run(
        self, settings: RunSettings, student: Any, sets: Mapping[str, Sequence[Any]], recorded: Any
    ) -> dict[str, str]:
        """By name, the digest of each part that the result of a run depends on; no limits."""
        identity = self._identity
        arguments = settings.identifying
        lms = [identity(lm) for lm in user_code.language_models(student)]
        parts: dict[str, Any] = {
            "program": program_digest(student, self.identities),
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
                parts[name] = self._argument(value)
        of_task = [parts[name] for name in parts if name in TASK or name.endswith(" examples")]
        self._task = digest(of_task)
        self.parts = {name: digest(part) for name, part in parts.items()}
        return self.parts

    def _argument(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return [self._argument(each) for each in value]
        is_whole = isinstance(value, Gate | Strategy)
        return self.identities.whole(value) if is_whole else self.identities.of(value)


def program_digest(program: Any, identities: Identities) -> str:
    """The digest of a program with its library, whatever its LMs are."""
    user_code.named_predictors(program)  # refuses what is no program
    return digest(identities.of(copy_program(program, lambda _lm: None)))


class Journal:
    """Finds and keeps what a run pays for, without secrets, in memory alone without a `log_dir`.

    `entries` are all that it has used, in the order in which they came: what it has cost, what was
    replayed and what failed is counted from them.

    Raises StoreError, MissingRecordError.
    """

    def __init__(self, settings: RunSettings, student: Any, examples: Iterable[Any] = ()) -> None:
        self._settings, self.keys = settings, Keys(settings)
        self.store: Store | None = None
        self.is_over, self.cut_because = False, ""
        """True if the run had ended under its budget: what was lost then stays lost, and of what
        is not recorded something was refused for this reason."""
        self.entries: list[Entry] = []
        self._n_updates = 0  # that are recorded
        self._run: RunEntry | None = None
        self._runs: list[RunEntry] = []  # that the store held at the start
        visible = "\n".join(_own_texts(student, examples))
        lms = [*all_lms(settings, student), dspy.settings.lm]
        self._secrets = known_secrets(lms, visible)
        self.plain = [secret for secret in known_secrets(lms) if secret in visible]
        _log_variables(self._secrets, bool(self.plain))
        log_dir = settings.log_dir
        if log_dir is not None:
            self.store = Store.existing(log_dir) if settings.offline else Store(log_dir)
            if self.store is None:
                raise MissingRecordError(
                    f"offline=True, and log_dir={str(log_dir)!r} is no run store: run the same "
                    f"compile with offline=False first."
                )

    # ------------------------------------------------------------------ what was paid for

    def cleaned(self, value: Kept, kind: TypeAdapter[Kept]) -> Kept:
        """A value from outside, as from traces and strategies, without secrets."""
        return kind.validate_python(self._written(value, kind)) if self._secrets else value

    def _written(self, value: Kept, kind: TypeAdapter[Kept]) -> Any:
        values = kind.dump_python(value, warnings=False)
        return cleaned(values, self.redacted) if self._secrets else values

    def of(self, update: int) -> list[Any]:
        """The rollouts and the answers that an update pays for."""
        return [entry.value for entry in self.entries if entry.update == update]

    def charge(self, answer: Any, update: int) -> None:
        """Let an answer be paid for by the first update that needs it."""
        for entry in self.entries:
            if entry.value is answer and entry.update is not None:
                entry.update = min(entry.update, update)

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

        So it does if that run is the same but for what is derived, and had no larger limits; one
        with the same limits comes before the last of others. A finished run whose limits are the
        same plans nothing else: what a test set takes comes on top.
        """
        settings, data = self._settings, self._settings.data
        if self.store is None:
            return settings
        self._runs = _runs_of(self.store)
        parts = self.keys.parts_of_run(settings, student, sets, recorded)
        names, limits = settings.derived - {"epochs"}, settings.learning_limits

        def is_same_with_less(run: RunEntry) -> bool:
            is_whole = run.schedule.keys() == settings.schedule.keys()  # nobody changed it
            differing = {n for n in {*run.parts, *parts} if run.parts.get(n) != parts.get(n)}
            had = ((run.limits.get(name) or math.inf, limit) for name, limit in limits.items())
            return (
                is_whole
                and differing <= settings.derived
                and all(limit is None or before <= limit for before, limit in had)
            )

        latest_first = sorted(reversed(self._runs), key=lambda run: run.limits != self._limits)
        same = next(filter(is_same_with_less, latest_first), None)
        if same is None:
            return settings
        if same.results.is_finished and same.limits == self._limits:
            names |= {"reserve", "n_validation"}
            if data.is_test_on_top and settings.max_lm_calls:
                n_calls = 2 * (data.n_test - same.n_test) * data.calls_per_rollout
                settings = replace(settings, max_lm_calls=settings.max_lm_calls - n_calls)
            settings = replace(settings, data=replace(data, n_test=same.n_test))
        figures: dict[str, Any] = {name: same.schedule[name] for name in names}
        self._settings = replace(settings, **figures)
        self.keys.parts_of_run(self._settings, student, sets, recorded)
        return self._settings

    @property
    def _limits(self) -> dict[str, float | None]:
        limits = {**self._settings.learning_limits, "epochs": self._settings.epochs}
        return {name: None if limit is None else float(limit) for name, limit in limits.items()}

    def begin(self, student: Any, ledger: Ledger) -> None:
        """Note that the run has begun, or go on with what it has paid for."""
        if self.store is None:
            return
        settings = self._settings
        run = RunEntry(
            begun=datetime.now(UTC).isoformat(timespec="seconds"),
            parts=self.keys.parts,
            limits=self._limits,
            schedule=settings.schedule,
            n_test=settings.data.n_test,
            results=unfinished(ExperienceLibrary.from_program(student), Usage()),
        )
        with reading(run.key):
            record = self.store.get(run.key)
            run = run if record is None else RUNS.validate_python(record)
        names = self.keys.identities.by_name
        if names and settings.version is None:
            level = logging.INFO if record is None else logging.WARNING
            logger.log(level, BY_NAME, ", ".join(sorted(names)))
        if record is None and (others := self._differences()):
            logger.warning(
                "log_dir=%r holds no run of this compile; from the nearest one it differs in %s",
                str(settings.log_dir),
                others,
            )
        elif run.results.is_finished:
            budget = (settings.max_lm_calls, settings.max_metric_calls, settings.max_cost)
            self.is_over = any(limit is not None for limit in budget)
            self.cut_because = run.cut_because * (self.is_over or settings.offline)
            if self.is_over:
                lost = run.results.usage.get("unfinished", Usage())
                ledger.spend(Amount(lost.n_lm_calls, cost=lost.cost_usd))
        self._write(run)

    def _write(self, run: RunEntry, **changes: Any) -> None:
        self._run = replace(run, **changes)
        self._put(run.key, RUNS.dump_python(self._run, mode="json"))

    def _put(self, key: str, record: dict[str, Any]) -> None:
        if self.store is not None and not self._settings.offline:
            self.store.replace(key, cleaned(record, self.redacted) if self._secrets else record)

    def note_update(
        self, best: Additions, update: UpdateRecord, rollouts: Sequence[Row], ledger: Ledger
    ) -> None:
        """Record a decided update, what was made and asked for it, and the best program so far."""
        if self._run is None:
            return
        n, asked = update.update, [e for e in self._asked if e.update == update.update]
        self._put_rows(f"{UPDATE}{self._run.key}:{n}", rollouts, asked, asdict(update))
        self._n_updates = n + 1
        if not self._run.results.is_finished:
            spent = Usage(int(ledger.taken.n_lm_calls), cost_usd=ledger.taken.cost)
            self._write(self._run, results=unfinished(best.library, spent), demos=best.demos)

    def note_end(
        self,
        best: Additions,
        ended_because: str,  # "": it may go on
        results: RunResults,
        rollouts: Sequence[Row],
        ledger: Ledger,
    ) -> None:
        """Record the program of the run, what it reports, and the rollouts of the final choice."""
        if self._run is None or (self._run.results.is_finished and not ended_because):
            return
        asked = [e for e in self._asked if (e.update or 0) >= self._n_updates]
        self._put_rows(f"{UPDATE}{self._run.key}:{END}", rollouts, asked)
        ended = replace(results, updates=(), ended_because=ended_because or NOT_FINISHED)
        why = ledger.stopped_because or ledger.cut_because
        self._write(self._run, results=ended, demos=best.demos, cut_because=why)

    @property
    def _asked(self) -> list[Entry]:
        return [entry for entry in self.entries if isinstance(entry.value, Answer)]

    def _put_rows(
        self, key: str, rollouts: Sequence[Row], asked: list[Entry], update: Row | None = None
    ) -> None:
        rows = [entry.row for entry in asked]
        self._put(key, {"update": update, "rollouts": [*rollouts], "reflections": rows})
        for entry in asked:
            entry.asked = ""

    @property
    def origin(self) -> dict[str, str]:
        """The run and its folder; empty without a store."""
        return _origin(self.store, self._run) if self.store and self._run else {}

    def close(self) -> None:
        """Close the store."""
        if self.store is not None:
            self.store.close()

    def missing(self, name: str) -> MissingRecordError:
        """The error that says, offline, which record is not there, and what may be the reason."""
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
        parts, derived = self.keys.parts, self._settings.derived
        differing = [
            [name for name in {**parts, **run.parts} if parts.get(name) != run.parts.get(name)]
            for run in reversed(self._runs)
        ]
        nearest = min(differing, key=len, default=None)
        if nearest == []:
            return None
        return ", ".join(f"{n} (derived)" if n in derived else n for n in nearest or ())


def _own_texts(student: Any, examples: Iterable[Any]) -> Iterator[str]:
    yield task_text(student)
    predictors = [predictor for _, predictor in user_code.named_predictors(student)]
    yield from (predictor.signature.instructions for predictor in predictors)
    demos = (demo for predictor in predictors for demo in predictor.demos)
    yield from (text for each in (*demos, *examples) for text in as_fields(each).values())


def _log_variables(secrets: list[str], is_any_plain: bool) -> None:
    hidden, plain = list[str](), list[str]()
    for name, value in sorted(secret_variables().items()):
        (hidden if value in secrets else plain).append(name)
    if hidden:
        logger.info("kept out of records, logs and reports: the values of %s", ", ".join(hidden))
    if is_any_plain:
        logger.warning(
            "not kept out, as it stands in the examples or the program: the value of %s",
            ", ".join(plain or ["an argument of an LM, such as its api_key"]),
        )


# ---------------------------------------------------------------------- the runs of a store

UPDATES = TypeAdapter(UpdateRecord)
ROWS = TypeAdapter(list[dict[str, Any]])


def saved_runs(log_dir: str | PathLike[str]) -> list[RunResults]:
    """The runs in the run store of this folder; the one that was begun last stands last.

    Their `origin` says which they are. One that was not finished has no scores of student and
    result. One of which a record is damaged is left out, which the log says. Raises StoreError: the
    store cannot be read, or the folder has none.
    """
    runs = list[RunResults]()
    with _store_in(log_dir) as store:
        for entry in _runs_of(store):
            with _leaving_out():
                runs.append(_saved(store, entry))
    return runs


def best_so_far(log_dir: str | PathLike[str], student: Any) -> Any:
    """The best program of the last run of this student in this store, finished or not.

    It has `detailed_results`, like the result of a compile.

    Args:
        log_dir: the folder of the run store.
        student: the program that was compiled; a store holds text, no code.

    Raises:
        StoreError: the store cannot be read, or holds no run of this program.
        LibraryError: the student is no program.
    """
    folder, wanted = str(log_dir), digest(program_digest(student, Identities()))
    with _store_in(log_dir) as store:
        runs = _runs_of(store)
        of_student = [run for run in runs if run.parts.get("program") == wanted]
        if not of_student:
            raise StoreError(
                f"log_dir={folder!r} holds no run of this program, of {len(runs)} in all; pass "
                f"the student that was compiled, with its code as it was then. `tfgrpo runs "
                f"{folder}` lists them all."
            )
        results = _saved(store, of_student[-1])
    program = Additions(results.experiences, of_student[-1].demos).bake(student)
    program.detailed_results = results
    return program


def saved_rows(run: RunResults, name: str) -> list[Any]:
    """The "rollouts" or the "reflections" of a run, in their order. Raises StoreError."""
    with _store_in(run.origin["log_dir"]) as store:
        return [row for _, record in _updates(store, run.origin["run"])
                for row in ROWS.validate_python(record[name])]  # fmt: skip


def _updates(store: Store, run: str) -> Iterator[tuple[str, Record]]:
    beginning = f"{UPDATE}{RUN}{run}:"
    places = [key.removeprefix(beginning) for key in store.keys(beginning)]
    for place in sorted(places, key=lambda place: (place == END, len(place), place)):
        with reading(f"{beginning}{place}"):
            yield place, store.get(f"{beginning}{place}") or {}


def _store_in(log_dir: str | PathLike[str]) -> contextlib.closing[Store]:
    store = Store.existing(log_dir)
    if store is None:
        raise StoreError(f"log_dir={str(log_dir)!r} is no run store; pass the one of a compile.")
    return contextlib.closing(store)


def _saved(store: Store, entry: RunEntry) -> RunResults:
    origin = _origin(store, entry)
    records = [record for place, record in _updates(store, origin["run"]) if place != END]
    with reading(entry.key):
        updates = tuple(UPDATES.validate_python(record["update"]) for record in records)
    return replace(entry.results, updates=updates, origin=origin)


def _origin(store: Store, run: RunEntry) -> dict[str, str]:
    return {"run": run.key.removeprefix(RUN), "begun": run.begun, "log_dir": str(store.folder)}
