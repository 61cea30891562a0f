"""The score of a run against its LM calls, as SVG that needs no style sheet and no network."""

import functools
import math
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined, Template

from tfgrpo_dspy.results.records import UNBOUNDED, Scale, ScoreSummary, UpdateRecord

N_TICKS = 4  # about as many on an axis
LEAST_RANGE = 0.1  # of the scores on the vertical axis


class Point(NamedTuple):
    """A mean score after so many LM calls, with the bounds of its 95 % interval."""

    n_lm_calls: int
    score: float
    low: float
    high: float

    @classmethod
    def of(cls, score: ScoreSummary | None, n_lm_calls: int = 0) -> "Point | None":
        """The point of a score; None: it has no mean."""
        if score is None or score.mean is None:
            return None
        low, high = (score.mean if end is None else end for end in (score.low, score.high))
        return cls(n_lm_calls, score.mean, low, high)


def scale_of(updates: Sequence[UpdateRecord]) -> Scale:
    """The lowest and the highest training score of the run."""
    scores = [score for update in updates for score in update.scores]
    return (min(scores), max(scores)) if scores else UNBOUNDED


def points(updates: Sequence[UpdateRecord]) -> list[Point]:
    """The mean training score of each update that has scores."""
    scale = scale_of(updates)
    every = (Point.of(ScoreSummary.of(each.scores, scale), each.n_lm_calls) for each in updates)
    return [point for point in every if point]


def curve(run: Any) -> str:
    """The training scores, and those of student and result, with intervals; "": there are none."""
    training, sets = points(run.updates), {"validation": (run.student, run.best)}
    sets |= {"test": (run.test.student, run.test.best)} if run.test else {}
    pairs = {name: [*map(Point.of, pair)] for name, pair in sets.items()}
    pairs = {name: pair for name, pair in pairs.items() if any(pair)}
    drawn = [*training, *(point for pair in pairs.values() for point in pair if point)]
    if not drawn:
        return ""
    low, high = min(point.low for point in drawn), max(point.high for point in drawn)
    middle, half = (low + high) / 2, max(high - low, LEAST_RANGE) / 2
    calls = ticks(0, max(1, *(point.n_lm_calls for point in drawn)))
    macros: Any = template_in("tfgrpo_dspy.results", "curve.svg.jinja").module
    return str(macros.curve(training, pairs, ticks(middle - half, middle + half), calls)).strip()


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, at equal distances of 1, 2 or 5.

    `(0.13, 0.48) -> [0.1, 0.2, 0.3, 0.4, 0.5]`
    """
    rough = (high - low) / N_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


@functools.cache
def template_in(package: str, file: str, **settings: Any) -> Template:
    """The template in a file of this package; `settings` are those of its environment."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, **settings
    )
    return environment.from_string(resources.files(package).joinpath(file).read_text("utf-8"))
