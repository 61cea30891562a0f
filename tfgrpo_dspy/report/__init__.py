"""A run as one HTML page that needs no network, no other file and no script.

Every text of a user or an LM is escaped; characters that would hide or turn text are shown by
their code points.
"""

import functools
import re
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined, Template

from tfgrpo_dspy.errors import SettingsError, described
from tfgrpo_dspy.files import write_text
from tfgrpo_dspy.outside import UNSEEN
from tfgrpo_dspy.report.source import FORMS, run_of
from tfgrpo_dspy.report.view import view_of
from tfgrpo_dspy.results import page
from tfgrpo_dspy.results.curve import value_curve
from tfgrpo_dspy.results.records import CHANGES_IN_WORDS, bounds_text, interval
from tfgrpo_dspy.wording import counted

LONGEST_TEXT = 3000  # characters of one text on the page
_HIDDEN = re.compile(rf"(?!\r\n){UNSEEN.pattern}|[\ud800-\udfff\ufffe\uffff]")


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
        UnsavedError: the file cannot be replaced; it is as it was.
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
    """A text as it can be shown: `a\\u202eb` becomes `a[U+202E]b`; long ones are shortened."""
    if not isinstance(value, str) or hasattr(value, "__html__"):  # this page's own HTML
        return value
    text = value.replace("\r\n", "\n")
    if len(text) > LONGEST_TEXT:
        n_more = len(text) - LONGEST_TEXT
        text = f"{text[:LONGEST_TEXT]} ... ({n_more:,} more characters)"
    return _HIDDEN.sub(lambda match: f"[U+{ord(match[0]):04X}]", text)


@functools.cache
def _template() -> Template:
    source = resources.files("tfgrpo_dspy.report").joinpath("report.html.jinja")
    environment = Environment(
        autoescape=True,
        finalize=plain,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {"page": page, "counted": counted, "interval": interval}
    environment.globals |= {
        "value_curve": value_curve,
        "in_words": CHANGES_IN_WORDS,
        "bounds_text": bounds_text,
    }
    return environment.from_string(source.read_text(encoding="utf-8"))
