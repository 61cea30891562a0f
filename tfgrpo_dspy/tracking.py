"""Shows a compile in MLflow, where `mlflow.dspy.autolog(log_compiles=True)` is on.

MLflow is not imported here unless the user has imported it.
"""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.events import Event, RunEnded, UpdateDecided
from tfgrpo_dspy.report import html
from tfgrpo_dspy.results import RunResults
from tfgrpo_dspy.results.records import ScoreSummary
from tfgrpo_dspy.settings.schedule import RunSettings

logger = logging.getLogger(__name__)

LONGEST_PARAMETER = 500  # characters, which every store of MLflow takes


@contextlib.contextmanager
def tracked(settings: RunSettings) -> Iterator[RunSettings]:
    """The settings with a listener that logs to the MLflow run of this compile, if there is one.

    Where MLflow made none (`autolog` was called before this package was imported), a run is made.
    """
    mlflow = _autologging()
    if mlflow is None:
        yield settings
        return
    with contextlib.ExitStack() as opened:
        run = mlflow.active_run()
        if run is None:
            logger.info(
                "mlflow.dspy.autolog() was called before tfgrpo_dspy was imported, so MLflow shows "
                "no child runs; call it after the imports."
            )
            run = opened.enter_context(mlflow.start_run())
        listener = _MlflowListener(mlflow, run.info.run_id, settings)
        yield replace(settings, on_event=listener)


def _autologging() -> Any:
    """The module `mlflow` if its autologging of DSPy's compiles is on, else None."""
    utils = sys.modules.get("mlflow.utils.autologging_utils")
    if utils is None or utils.autologging_is_disabled("dspy"):
        return None
    is_on = utils.get_autologging_config("dspy", "log_compiles", False)
    return sys.modules["mlflow"] if is_on else None


class _MlflowListener:
    """Logs what a run tells to one MLflow run, then tells the user's own listener.

    MLflow's functions know the active run in the thread of the compile only, so a client logs.
    """

    def __init__(self, mlflow: Any, run_id: str, settings: RunSettings) -> None:
        self._client, self._entities = mlflow.MlflowClient(), mlflow.entities
        self._run_id = run_id
        self._next = settings.on_event
        self._log_parameters({**settings.result_scalars(), **settings.schedule})

    def __call__(self, event: Event) -> None:
        try:
            if isinstance(event, UpdateDecided):
                self._log_update(event)
            elif isinstance(event, RunEnded):
                self._log_end(event.results)
        finally:
            if self._next is not None:
                self._next(event)

    def _log_parameters(self, values: Mapping[str, Any]) -> None:
        """The names have a prefix: `mlflow.dspy` logs the arguments of `compile` as they are."""
        parameters = [
            self._entities.Param(f"tfgrpo.{name}", str(value)[:LONGEST_PARAMETER])
            for name, value in values.items()
            if value is not None
        ]
        self._client.log_batch(self._run_id, params=parameters)

    def _log_metrics(self, step: int, values: Mapping[str, float | None]) -> None:
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(name, value, now, step)
            for name, value in values.items()
            if value is not None
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _log_update(self, event: UpdateDecided) -> None:
        record = event.record
        scores = record.scores
        values = {
            "training_score": sum(scores) / len(scores) if scores else None,
            "experiences": record.library_size,
            "lm_calls": record.n_lm_calls,
            "cost_usd": record.cost_usd,
        }
        self._log_metrics(record.update, values)
        text = json.dumps(event.library.to_dict(), ensure_ascii=False, indent=2)
        self._client.log_text(self._run_id, text, f"library/update_{record.update:04}.json")

    def _log_end(self, results: RunResults) -> None:
        last = len(results.updates)
        measured: dict[str, tuple[ScoreSummary | None, ScoreSummary | None]]
        measured = {"validation_score": (results.student, results.best)}
        if results.test:
            measured["test_score"] = (results.test.student, results.test.best)
        for name, (student, best) in measured.items():
            self._log_metrics(0, {name: student.mean if student else None})
            self._log_metrics(last, {name: best.mean if best else None})
        self._client.log_text(self._run_id, str(results), "summary.txt")
        self._client.log_text(self._run_id, html(results), "report.html")
