"""The results that a report is made of, from each form in which a user has them."""

from collections.abc import Mapping
from os import PathLike, fspath
from typing import Any

from pydantic import ValidationError

from tfgrpo_dspy.errors import SettingsError, StoreError
from tfgrpo_dspy.results import RunResults
from tfgrpo_dspy.store.runs import saved_runs

FORMS = "pass a RunResults, a program with detailed_results, or the log_dir of a run"


def run_of(results: Any) -> RunResults:
    """The results.

    Raises:
        SettingsError: they are none of `FORMS`.
        StoreError: the run directory cannot be read, or holds no run.
    """
    if isinstance(results, RunResults):
        return results
    if isinstance(results, str | PathLike):
        if runs := saved_runs(results):
            return runs[-1].results
        folder = fspath(results)
        raise StoreError(f"log_dir={folder!r} holds no run yet; compile with this log_dir first.")
    if isinstance(results, Mapping):
        try:
            return RunResults.from_dict(results)
        except ValidationError as error:
            first = error.errors()[0]
            fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
            raise SettingsError(f"results={{...}} is not of a run ({fault}); {FORMS}.") from error
    held = getattr(results, "detailed_results", None)
    if not isinstance(held, RunResults | Mapping):
        name = type(results).__name__
        raise SettingsError(f"results={name}(...) has no detailed_results of a run; {FORMS}.")
    return run_of(held)
