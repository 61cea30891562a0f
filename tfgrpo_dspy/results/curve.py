"""The score of a run against its LM calls, as SVG that needs no style sheet and no network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from tfgrpo_dspy.results.records import (
    UNBOUNDED,
    HeldOut,
    Scale,
    ScoreSummary,
    UpdateRecord,
    counted,
    interval,
)

WIDTH, HEIGHT = 480, 300  # in units of the picture, like all that follows
LEFT, RIGHT, TOP, BOTTOM = 44, 12, 58, 48  # margins of the plot
SET_WIDTH = 74  # of the column of a set of examples, to the right of training
RADIUS = 5
N_TICKS = 4  # about as many on an axis
LEAST_RANGE = 0.1  # of the scores on the vertical axis


@dataclass(frozen=True, slots=True)
class Point:
    """A mean score after so many LM calls, with the bounds of its 95 % interval."""

    n_lm_calls: int
    score: float
    low: float
    high: float


def scale_of(updates: Sequence[UpdateRecord]) -> Scale:
    """The lowest and the highest training score of the run."""
    scores = [score for update in updates for score in update.scores]
    return (min(scores), max(scores)) if scores else UNBOUNDED


Pair = tuple[str, Sequence[Point | None]]
"""A set of examples, and what student and result score on it."""


def points(updates: Sequence[UpdateRecord]) -> list[Point]:
    """The mean training score of each update that has scores."""
    found, scale = [], scale_of(updates)
    for update in updates:
        if scores := update.scores:
            mean = sum(scores) / len(scores)
            low, high = interval(scores, scale) or (mean, mean)
            found.append(Point(update.n_lm_calls, mean, low, high))
    return found


def curve(
    updates: Sequence[UpdateRecord],
    student: ScoreSummary | None = None,
    best: ScoreSummary | None = None,
    test: HeldOut | None = None,
) -> str:
    """The training score of each update, and at the right those of student and result.

    All with their intervals; "" where nothing was scored. Colours are those of the text around it.
    """
    training = points(updates)
    sets = {"validation": (student, best)}
    sets |= {"test": (test.student, test.best)} if test else {}
    measured = [(name, [_point(one) for one in pair]) for name, pair in sets.items()]
    pairs = [(name, pair) for name, pair in measured if any(pair)]
    shown = [*training, *(point for _, pair in pairs for point in pair if point)]
    if not shown:
        return ""
    return ElementTree.tostring(_Picture(training, pairs, shown).drawn(), encoding="unicode")


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from at most `low` to at least `high`, at equal distances of 1, 2 or 5.

    `(0.13, 0.48) -> [0.1, 0.2, 0.3, 0.4, 0.5]`
    """
    rough = (high - low) / N_TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(f * power for f in (1, 2, 5, 10) if f * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 12) for k in range(first, last + 1)]


def _point(score: ScoreSummary | None) -> Point | None:
    if score is None or score.mean is None:
        return None
    if score.low is None or score.high is None:
        return Point(0, score.mean, score.mean, score.mean)
    return Point(0, score.mean, score.low, score.high)


def value_curve(values: Sequence[tuple[str, float]], measure: str) -> str:
    """The values of a `records.Attempt` along its rollout, as SVG; `measure`: what they are."""
    scores = [value for _, value in values]
    high, scale = max(scores), 48 / max(LEAST_RANGE, max(scores) - min(scores))
    step = 228 / max(1, len(scores) - 1)
    places = [f"{6 + step * k:.1f} {6 + scale * (high - y):.1f}" for k, y in enumerate(scores)]
    told = ", ".join(f"{name} {value:.2f}" for name, value in values)
    svg = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": "0 0 240 60", "role": "img",
         "aria-label": f"{measure} along the rollout: {told}.",
         "style": "max-width: 24rem; width: 100%"},
    )  # fmt: skip
    style = {"fill": "none", "stroke": "currentColor", "stroke-linecap": "round"}
    for d, width in (("M" + "L".join(places), "2"), ("M" + "h0M".join(places) + "h0", "7")):
        ElementTree.SubElement(svg, "path", {"d": d, "stroke-width": width} | style)
    return ElementTree.tostring(svg, encoding="unicode")


class _Picture:
    """The axes, and what is drawn on them."""

    def __init__(
        self, training: Sequence[Point], pairs: Sequence[Pair], shown: Sequence[Point]
    ) -> None:
        low, high = min(p.low for p in shown), max(p.high for p in shown)
        middle, half = (low + high) / 2, max(high - low, LEAST_RANGE) / 2
        self._training, self._pairs = training, pairs
        self._scores = ticks(middle - half, middle + half)
        self._calls = ticks(0, max(1, *(point.n_lm_calls for point in shown)))
        self._right = WIDTH - RIGHT - SET_WIDTH * len(pairs)  # the end of the training axis
        self._svg = ElementTree.Element(
            "svg",
            {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}",
             "role": "img", "aria-label": self._in_words(),
             "style": "max-width: 35rem; width: 100%; font: 13px sans-serif"},
        )  # fmt: skip

    def drawn(self) -> ElementTree.Element:
        """The whole picture."""
        self._draw_legend()
        self._draw_axes()
        self._draw_training()
        for index, (name, pair) in enumerate(self._pairs):
            self._draw_pair(self._right + SET_WIDTH * index, name, pair)
        return self._svg

    def _in_words(self) -> str:
        """What somebody is told who does not see the picture."""
        parts = []
        if self._training:
            first, last = self._training[0], self._training[-1]
            parts.append(
                f"training {first.score:.3f} in the first update, {last.score:.3f} in the last of "
                f"{counted(len(self._training), 'update')}, after {last.n_lm_calls:,} LM calls"
            )
        for name, pair in self._pairs:
            known = zip(("student", "result"), pair, strict=True)
            scores = (f"{who} {point.score:.3f}" for who, point in known if point)
            parts.append(f"{name} {', '.join(scores)}")
        return f"Mean score against LM calls: {'; '.join(parts)}."

    def _x(self, n_lm_calls: float) -> float:
        return round(LEFT + (self._right - LEFT - 12) * n_lm_calls / self._calls[-1], 1)

    def _y(self, score: float) -> float:
        low, high = self._scores[0], self._scores[-1]
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - score) / (high - low), 1)

    def _draw_legend(self) -> None:
        self._text(4, 14, "mean score, with its 95 % interval", anchor="start")
        x = LEFT
        entries = ["training update", *(["student", "result"] if self._pairs else [])]
        for name, radius in zip(entries, (2.5, RADIUS, RADIUS), strict=False):
            self._circle(x, 34, radius, is_filled=name != "student")
            self._text(x + 10, 38, name, anchor="start")
            x += 28 + 7 * len(name)

    def _draw_axes(self) -> None:
        bottom = HEIGHT - BOTTOM
        for score in self._scores:
            self._path(f"M{LEFT} {self._y(score)}H{WIDTH - RIGHT}", opacity="0.15")
            digits = max(1, -math.floor(math.log10(self._scores[1] - self._scores[0]) + 1e-9))
            self._text(LEFT - 6, self._y(score) + 4, f"{score:.{digits}f}", anchor="end")
        if not self._training:
            return
        for n_lm_calls in self._calls:
            if n_lm_calls == int(n_lm_calls):
                self._path(f"M{self._x(n_lm_calls)} {bottom}v4", opacity="0.6")
                self._text(self._x(n_lm_calls), bottom + 18, f"{n_lm_calls:,.0f}")
        self._text((LEFT + self._right) / 2, bottom + 38, "LM calls in training")

    def _draw_training(self) -> None:
        if not self._training:
            return
        places = [(self._x(point.n_lm_calls), point) for point in self._training]
        bars = (f"M{x} {self._y(point.low)}V{self._y(point.high)}" for x, point in places)
        self._path("".join(bars), opacity="0.35")
        self._path("M" + "L".join(f"{x} {self._y(point.score)}" for x, point in places))
        dots = (f"M{x} {self._y(point.score)}h0" for x, point in places)
        self._path("".join(dots), width="5", cap="round")

    def _draw_pair(self, left: float, name: str, pair: Sequence[Point | None]) -> None:
        bottom = HEIGHT - BOTTOM
        self._path(f"M{left} {TOP}V{bottom}", opacity="0.4", dashes="3 3")
        self._text(left + SET_WIDTH / 2, bottom + 18, name)
        for point, share, is_filled in zip(pair, (0.3, 0.7), (False, True), strict=True):
            if point:
                x, y = round(left + SET_WIDTH * share, 1), self._y(point.score)
                for end, other in ((point.low, y + RADIUS), (point.high, y - RADIUS)):
                    if abs(self._y(end) - y) > RADIUS:
                        self._path(f"M{x} {self._y(end)}V{other:.1f}", width="2")
                self._circle(x, y, RADIUS, is_filled)

    def _circle(self, x: float, y: float, radius: float, is_filled: bool) -> None:
        style = {"fill": "currentColor" if is_filled else "none", "stroke": "currentColor"}
        place = {"cx": str(x), "cy": str(y), "r": str(radius), "stroke-width": "2"}
        ElementTree.SubElement(self._svg, "circle", place | style)

    def _path(
        self, d: str, opacity: str = "1", width: str = "1", cap: str = "butt", dashes: str = "none"
    ) -> None:
        style = {"fill": "none", "stroke": "currentColor", "stroke-opacity": opacity}
        style |= {"stroke-width": width, "stroke-linecap": cap, "stroke-dasharray": dashes}
        ElementTree.SubElement(self._svg, "path", {"d": d} | style)

    def _text(self, x: float, y: float, text: str, anchor: str = "middle") -> None:
        where = {"x": str(x), "y": str(y), "text-anchor": anchor, "fill": "currentColor"}
        ElementTree.SubElement(self._svg, "text", where).text = text
