"""The score of a run against its LM calls, as SVG that needs no style sheet and no network."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree

from tfgrpo_dspy.results.records import ScoreSummary, UpdateRecord, interval

WIDTH, HEIGHT = 640, 240  # in pixels, like the four margins
LEFT, RIGHT, TOP, BOTTOM = 48, 112, 16, 40
N_TICKS = 4
LEAST_RANGE = 0.1  # of the scores on the vertical axis


@dataclass(frozen=True, slots=True)
class Point:
    """A mean score after so many LM calls, with the bounds of its 95 % interval."""

    n_lm_calls: int
    score: float
    low: float
    high: float


def points(updates: Sequence[UpdateRecord]) -> list[Point]:
    """The mean training score of each update that has scores."""
    found = []
    for update in updates:
        if scores := update.scores:
            mean = sum(scores) / len(scores)
            low, high = interval(scores) or (mean, mean)
            found.append(Point(update.n_lm_calls, mean, low, high))
    return found


def curve(
    updates: Sequence[UpdateRecord],
    student: ScoreSummary | None = None,
    best: ScoreSummary | None = None,
) -> str:
    """The training score of each update with its interval; at the right student and result.

    "" where nothing was scored. Colours are those of the text around it.
    """
    training = points(updates)
    last = max((point.n_lm_calls for point in training), default=0)
    ends = [("student", student), ("result", best)]
    final = [
        (name, Point(last, one.mean, *_bounds(one)))
        for name, one in ends
        if one is not None and one.mean is not None
    ]
    shown = [*training, *(point for _, point in final)]
    if not shown:
        return ""
    return ElementTree.tostring(_picture(training, final, shown), encoding="unicode")


def _bounds(score: ScoreSummary) -> tuple[float, float]:
    mean = score.mean or 0.0
    return (mean, mean) if score.low is None or score.high is None else (score.low, score.high)


def _picture(
    training: Sequence[Point], final: Sequence[tuple[str, Point]], shown: Sequence[Point]
) -> ElementTree.Element:
    low, high = min(p.low for p in shown), max(p.high for p in shown)
    middle, half = (low + high) / 2, max(high - low, LEAST_RANGE) / 2
    low, high = middle - half, middle + half
    most = max(1, *(point.n_lm_calls for point in shown))

    def x_of(n_lm_calls: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * n_lm_calls / most, 1)

    def y_of(score: float) -> float:
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (high - score) / (high - low), 1)

    svg = ElementTree.Element(
        "svg",
        {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {HEIGHT}", "role": "img",
         "style": f"max-width: {WIDTH}px; width: 100%; font: 12px sans-serif"},
    )  # fmt: skip
    title = ElementTree.SubElement(svg, "title")
    title.text = "Mean score against LM calls, with 95 % intervals"
    for k in range(N_TICKS + 1):
        score = low + (high - low) * k / N_TICKS
        _line(svg, LEFT, y_of(score), WIDTH - RIGHT, y_of(score), opacity="0.15")
        _text(svg, LEFT - 6, y_of(score) + 4, f"{score:.2f}", anchor="end")
        _text(svg, x_of(most * k / N_TICKS), HEIGHT - BOTTOM + 16, f"{most * k / N_TICKS:,.0f}")
    _text(svg, (LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "LM calls in training")
    path = " ".join(f"{x_of(p.n_lm_calls)},{y_of(p.score)}" for p in training)
    ElementTree.SubElement(
        svg, "polyline", {"points": path, "fill": "none", "stroke": "currentColor"}
    )
    for point in training:
        x = x_of(point.n_lm_calls)
        _line(svg, x, y_of(point.low), x, y_of(point.high), opacity="0.4")
    for k, (name, point) in enumerate(final, start=1):
        x = WIDTH - RIGHT + 16 * k
        _line(svg, x, y_of(point.low), x, y_of(point.high), width="3")
        circle = {"cx": str(x), "cy": str(y_of(point.score)), "r": "5", "fill": "currentColor"}
        ElementTree.SubElement(svg, "circle", circle)
        _text(svg, WIDTH - RIGHT + 44, y_of(point.score) + 4, f"{name} {point.score:.2f}", "start")
    return svg


def _line(
    svg: ElementTree.Element,
    x1: float,
    y1: float,
    x2: float,
    y2: float,
    opacity: str = "1",
    width: str = "1",
) -> None:
    ends = {"x1": str(x1), "y1": str(y1), "x2": str(x2), "y2": str(y2)}
    style = {"stroke": "currentColor", "stroke-opacity": opacity, "stroke-width": width}
    ElementTree.SubElement(svg, "line", ends | style)


def _text(svg: ElementTree.Element, x: float, y: float, text: str, anchor: str = "middle") -> None:
    where = {"x": str(x), "y": str(y), "text-anchor": anchor, "fill": "currentColor"}
    ElementTree.SubElement(svg, "text", where).text = text
