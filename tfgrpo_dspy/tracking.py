"""Shows a compile in MLflow, where `mlflow.dspy.autolog(log_compiles=True)` is on.

MLflow is not imported here unless the user has imported it.
"""

import contextlib
import json
import logging
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tfgrpo_dspy.errors import described
from tfgrpo_dspy.events import Event, RunEnded, UpdateDecided
from tfgrpo_dspy.listeners.boards import end_figures, update_figures
from tfgrpo_dspy.listeners.listening import PATIENCE_S
from tfgrpo_dspy.redaction import known_secrets, redacted
from tfgrpo_dspy.report import html
from tfgrpo_dspy.results.rows import RolloutRow, as_columns
from tfgrpo_dspy.settings.schedule import RunSettings
from tfgrpo_dspy.tasks.caller import in_own_thread

logger = logging.getLogger(__name__)

N_COMPILES = "tfgrpo.n_compiles"  # a tag of a run of MLflow
_NOT_IN_NAMES = re.compile(r"[^\w\-. /]")
LONGEST_PARAMETER = 500  # characters, which every store of MLflow takes


@contextlib.contextmanager
def tracked(settings: RunSettings) -> Iterator[RunSettings]:
    """The settings with a listener to this compile's run of MLflow, which may be a new one."""
    mlflow = autologging()
    with contextlib.ExitStack() as opened:
        trackers: tuple[MlflowListener, ...] = ()
        try:
            run = mlflow and (mlflow.active_run() or opened.enter_context(_run_of_its_own(mlflow)))
            trackers = (MlflowListener(mlflow, run.info.run_id, settings),) if run else ()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whatever the tracking server brings about
            logger.warning("this compile is not shown in MLflow: %s", _described(error))
        yield replace(settings, trackers=trackers)


@contextlib.contextmanager
def _run_of_its_own(mlflow: Any) -> Iterator[Any]:
    """A run of MLflow, which is ended as the compile was; that it cannot be ended ends nothing.

    MLflow asks its server in this thread, so it is looked before whether that answers.
    """
    logger.info(
        "mlflow.dspy.autolog() was called before tfgrpo_dspy was imported, so MLflow shows no "
        "child runs; call it after the imports."
    )
    client = mlflow.MlflowClient()
    in_own_thread(lambda: client.search_experiments(max_results=1)).result(PATIENCE_S)
    status, run = "FAILED", mlflow.start_run()
    try:
        yield run
        status = "FINISHED"
    finally:
        try:
            in_own_thread(lambda: client.get_run(run.info.run_id)).result(PATIENCE_S)
            mlflow.end_run(status)
        except Exception as error:  # noqa: BLE001 - as above
            logger.warning("the run of MLflow could not be ended: %s", _described(error))


def _described(error: BaseException) -> str:
    return redacted(described(error), known_secrets([]))


def autologging() -> Any:
    """The module `mlflow` if its autologging of DSPy's compiles is on, else None."""
    utils = sys.modules.get("mlflow.utils.autologging_utils")
    if utils is None or utils.autologging_is_disabled("dspy"):
        return None
    is_on = utils.get_autologging_config("dspy", "log_compiles", False)
    return sys.modules["mlflow"] if is_on else None


class MlflowListener:
    """Logs what a run tells to one MLflow run, in the listener's own thread.

    MLflow's functions know the active run in the thread of the compile only, so a client logs. It
    is made in that thread: a new client tries an import, and MLflow's evaluations hold a lock that
    every import waits for while they import themselves. The second compile in a run logs under
    names that begin with "compile_2.", and so on.
    """

    def __init__(self, mlflow: Any, run_id: str, settings: RunSettings | None = None) -> None:
        self._mlflow, self._run_id, self._settings = mlflow, run_id, settings
        self._client = mlflow.MlflowClient()
        self._rollouts: list[RolloutRow] = []
        self._prefix, self._is_begun = "", False

    def __call__(self, event: Event) -> None:
        """Log what the event tells."""
        if not self._is_begun:
            self._begin()
        if isinstance(event, UpdateDecided):
            self._log_update(event)
        elif isinstance(event, RunEnded):
            self._log_end(event)

    def _begin(self) -> None:
        self._is_begun = True
        n_before = int(self._client.get_run(self._run_id).data.tags.get(N_COMPILES, 0))
        self._client.set_tag(self._run_id, N_COMPILES, n_before + 1)
        self._prefix = f"compile_{n_before + 1}." if n_before else ""
        if settings := self._settings:
            self._log_parameters({**settings.result_scalars(), **settings.schedule})

    def _log_parameters(self, values: Mapping[str, Any]) -> None:
        """The names have a prefix: `mlflow.dspy` logs the arguments of `compile` as they are."""
        begin = f"{self._prefix}tfgrpo."
        parameters = [
            self._mlflow.entities.Param(f"{begin}{name}", str(value)[:LONGEST_PARAMETER])
            for name, value in values.items()
            if value is not None
        ]
        self._client.log_batch(self._run_id, params=parameters)

    def _log_metrics(self, step: int, values: Mapping[str, float]) -> None:
        now, named = int(time.time() * 1000), self._mlflow.entities.Metric
        metrics = [
            named(self._prefix + _NOT_IN_NAMES.sub("_", name), value, now, step)
            for name, value in values.items()
        ]
        self._client.log_batch(self._run_id, metrics=metrics)

    def _log_update(self, event: UpdateDecided) -> None:
        record = event.record
        self._rollouts += event.rollouts
        self._log_metrics(record.update, update_figures(event))
        text = json.dumps(event.library.to_dict(), ensure_ascii=False, indent=2)
        self._log_text(text, f"library/update_{record.update:04}.json")

    def _log_end(self, event: RunEnded) -> None:
        results = event.results
        last = len(results.updates)
        if self._settings is None:
            self._log_parameters({**results.settings, **results.schedule})
        for step, figures in zip((0, last), end_figures(event), strict=True):
            self._log_metrics(step, figures)
        self._log_text(str(results), "summary.txt")
        self._log_text(html(results), "report.html")
        if rows := as_columns([*self._rollouts, *event.rollouts]):
            columns = {name: [row[name] for row in rows] for name in rows[0]}
            self._client.log_table(self._run_id, columns, self._path("rollouts.json"))

    def _log_text(self, text: str, path: str) -> None:
        self._client.log_text(self._run_id, text, self._path(path))

    def _path(self, path: str) -> str:
        return f"{self._prefix.replace('.', '/')}{path}"
