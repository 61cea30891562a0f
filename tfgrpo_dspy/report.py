"""What a run store tells without a run: the best program so far, and scores by another metric."""

import logging
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from os import PathLike
from typing import Any

import dspy

from tfgrpo_dspy.errors import MetricError, SettingsError, StoreError
from tfgrpo_dspy.experience.library import ExperienceLibrary
from tfgrpo_dspy.metric import Score, ScoringFunction, adapt_metric, wants_program_trace
from tfgrpo_dspy.rollout import Rollout
from tfgrpo_dspy.run.manifest import LATEST_RUN
from tfgrpo_dspy.sampling.demos import Demo, with_demos
from tfgrpo_dspy.sampling.fields import decode_fields, field_annotations
from tfgrpo_dspy.store import Store, reading

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rescored:
    """One stored rollout, scored anew; `library` is the hash of the library it was made with."""

    example: str
    rollout_id: int
    library: str
    score: float
    feedback: str


@dataclass(frozen=True, slots=True)
class RescoreReport:
    """What another metric says of all stored predictions.

    `n_failed_rollouts` have no prediction, `n_text_only` outputs or inputs that are stored as text
    only (or whose types only the student tells: pass it), `n_metric_failures` got no score.
    """

    rollouts: tuple[Rescored, ...]
    n_failed_rollouts: int
    n_text_only: int
    n_metric_failures: int

    @property
    def mean(self) -> float | None:
        """The mean score; None where there is none."""
        scores = [rollout.score for rollout in self.rollouts]
        return statistics.fmean(scores) if scores else None

    @property
    def mean_by_library(self) -> Mapping[str, float]:
        """The mean score of the rollouts made with each library (by its hash)."""
        scores: dict[str, list[float]] = {}
        for rollout in self.rollouts:
            scores.setdefault(rollout.library, []).append(rollout.score)
        return {library: statistics.fmean(values) for library, values in scores.items()}


def rescore(
    log_dir: str | PathLike[str], metric: Callable[..., Any], student: Any = None
) -> RescoreReport:
    """Score all predictions in a run store by a metric; nothing is learned, no program is run.

    An LM is called only if the metric calls one. Nothing is written.

    Args:
        log_dir: the folder of the run store.
        metric: see `TrainingFreeGRPO`; not one that takes a `program_trace`, which is not stored.
        student: the program, for outputs whose types are not those of JSON (dates, pydantic).

    Raises:
        StoreError: the store cannot be read.
        SettingsError: the metric cannot be called.
    """
    score = adapt_metric(metric)
    if wants_program_trace(metric):
        raise SettingsError(
            f"metric={metric!r} takes a program_trace, which only a running program has; pass one "
            f"that looks at example and prediction."
        )
    annotations = {} if student is None else field_annotations(student)
    counts: Counter[str] = Counter()
    rescored = []
    store = _existing(log_dir)
    try:
        examples = dict(store.records("example"))
        for _, record in store.records("rollout"):
            if record.get("is_rerun"):  # made again for another metric
                continue
            made = _prediction(record, examples, annotations, counts)
            found = None if made is None else _score(score, *made, counts)
            if found is not None:
                of_rollout = record["rollout"]["rollout_id"], record["library"]
                rescored.append(
                    Rescored(record["example"], *of_rollout, found.value, found.feedback)
                )
    finally:
        store.close()
    return RescoreReport(tuple(rescored), counts["failed"], counts["text only"], counts["metric"])


def _prediction(
    record: Mapping[str, Any],
    examples: Mapping[str, Any],
    annotations: Mapping[str, Any],
    counts: Counter[str],
) -> tuple[dspy.Example, dspy.Prediction] | None:
    """What a recorded rollout was asked and answered; None, and counted, where it is not there."""
    with reading("rollout"):
        rollout = Rollout.from_dict(record["rollout"])
        labelled = examples[f"example:{record['example']}"]
        fields, inputs = labelled["fields"], labelled["inputs"]
    if rollout.failure is not None:
        counts["failed"] += 1
        return None
    try:
        example = dspy.Example(**decode_fields(fields, annotations)).with_inputs(*inputs)
        return example, dspy.Prediction(**decode_fields(rollout.encoded, annotations))
    except ValueError:
        counts["text only"] += 1
        return None


def _score(
    score: ScoringFunction, example: Any, prediction: Any, counts: Counter[str]
) -> Score | None:
    """The score; None, and counted, where the metric fails; the first failure is logged."""
    try:
        return score(example, prediction, None)
    except MetricError as error:
        counts["metric"] += 1
        if counts["metric"] == 1:
            logger.warning("first failure of the metric: %s", error)
        return None


def best_so_far(log_dir: str | PathLike[str], student: Any) -> Any:
    """The best program of the run that was begun last in this store, finished or not.

    Args:
        log_dir: the folder of the run store.
        student: the program that was compiled; a store holds text, no code.

    Raises:
        StoreError: the store cannot be read, or holds no run of this program.
    """
    store = _existing(log_dir)
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
        demos = [Demo(each["predictor"], dict(each["fields"])) for each in record.get("demos", [])]
    try:
        return library.bake(with_demos(student, demos))
    except (KeyError, ValueError) as error:
        raise StoreError(
            f"the demos recorded in log_dir={str(log_dir)!r} are not of this program ({error}); "
            f"pass the student that was compiled."
        ) from error


def _existing(log_dir: str | PathLike[str]) -> Store:
    store = Store.existing(log_dir)
    if store is None:
        raise StoreError(f"log_dir={str(log_dir)!r} is no run store; pass the one of a compile.")
    return store
