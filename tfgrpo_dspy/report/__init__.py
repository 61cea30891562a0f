"""A run as one HTML page that needs no network, no other file and no script.

Every text of a user or an LM is escaped; characters that would hide or turn text are shown by
their code points.
"""

import functools
from collections.abc import Mapping
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from jinja2 import Template
from pydantic import ValidationError

from tfgrpo_dspy.errors import SettingsError, StoreError, described
from tfgrpo_dspy.files import write_text
from tfgrpo_dspy.outside import printable
from tfgrpo_dspy.report.view import view_of
from tfgrpo_dspy.results import RunResults, page
from tfgrpo_dspy.results.curve import template_in, value_curve
from tfgrpo_dspy.results.records import CHANGES_IN_WORDS, bounds_text, interval
from tfgrpo_dspy.store.runs import saved_runs
from tfgrpo_dspy.wording import counted

LONGEST_TEXT = 3000  # characters of one text on the page
FORMS = "pass a RunResults, a program with detailed_results, or the log_dir of a run"


def write_html(results: Any, path: str | PathLike[str]) -> Path:
    """Write the report of a run to this file, and return its path.

    Args:
        results: a `RunResults`; a program with `detailed_results`, also one that was saved and
            loaded; the dict that `RunResults.to_dict` gives; or a run directory (`log_dir`), whose
            last run is shown, finished or not.
        path: the HTML file; one that exists is replaced.

    Raises:
        SettingsError: `results` is none of these.
        StoreError: the run directory cannot be read, or holds no run.
        OSError: the file cannot be written; it is as it was.
    """
    write_text(path, html(results))
    return Path(path)


def html(results: Any) -> str:
    """The report as text; arguments and errors are those of `write_html`.

    The same results always give the same page.
    """
    run = run_of(results)
    try:
        return _template().render(run=run, view=view_of(run))
    except Exception as error:  # values of the right types that no run gives
        fault = f"results: the values do not fit together ({described(error)})"
        raise SettingsError(f"{fault}; {FORMS}.") from error


def plain(value: Any) -> Any:
    """A text as it can be shown: what nobody sees stands as escapes; long ones are shortened."""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # this page's own HTML
        return value
    text = value.replace("\r\n", "\n")
    if len(text) > LONGEST_TEXT:
        n_more = len(text) - LONGEST_TEXT
        text = f"{text[:LONGEST_TEXT]} ... ({n_more:,} more characters)"
    return printable(text)


def run_of(results: Any) -> RunResults:
    """The results; arguments and errors are those of `write_html`."""
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


@functools.cache
def _template() -> Template:
    template = template_in("tfgrpo_dspy.report", "report.html.jinja", finalize=plain)
    template.globals.update(page=page, counted=counted, interval=interval, bounds_text=bounds_text)
    template.globals.update(value_curve=value_curve, in_words=CHANGES_IN_WORDS)
    return template
