"""Charts as HTML: shapes in inline SVG that stretches, labels in HTML that does not. In: numbers. Out: text.

So a chart fills a phone or a screen and its words keep their size. Knows nothing of datasets.
"""

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from megagpt.data.report_style import NUM_COLOURS

_WIDTH, _HEIGHT = 1000.0, 300.0  # of the stretched SVG's own coordinates


class Tick(NamedTuple):
    """A label at `place`, 0 to 1 along its axis."""

    place: float
    label: str


class Shape(NamedTuple):
    """A bar or band: fractions of the plot from its lower left corner; `title` is shown under the pointer."""

    left: float
    bottom: float
    width: float
    height: float
    colour: int
    title: str


class Line(NamedTuple):
    """A line through (x, y) points, fractions of the plot from its lower left corner."""

    points: Sequence[tuple[float, float]]
    colour: int
    title: str


class Chart(NamedTuple):
    """A chart: what is drawn, its ticks, what the axes mean, and a sentence for those who cannot see it."""

    shapes: Sequence[Shape]
    lines: Sequence[Line]
    x_ticks: Sequence[Tick]
    y_ticks: Sequence[Tick]
    x_meaning: str
    summary: str
    marks: Sequence[Tick] = ()  # vertical lines; the label is shown under the pointer


def draw(chart: Chart, height_pixels: int = 240) -> str:
    """The chart's HTML."""
    parts = ['<g class="grid">']
    parts += [f'<line x1="0" x2="{_WIDTH:g}" y1="{_y(t.place)}" y2="{_y(t.place)}"/>' for t in chart.y_ticks if t.place]
    parts.append("</g>")
    for shape in chart.shapes:
        parts.append(
            f'<rect x="{_x(shape.left)}" y="{_y(shape.bottom + shape.height)}" width="{_x(shape.width)}" '
            f'height="{shape.height * _HEIGHT:.2f}" fill="{colour(shape.colour)}">'
            f"<title>{escape(shape.title)}</title></rect>"
        )
    for line in chart.lines:
        points = " ".join(f"{_x(x)},{_y(y)}" for x, y in line.points)
        parts.append(
            f'<polyline class="line" points="{points}" stroke="{colour(line.colour)}">'
            f"<title>{escape(line.title)}</title></polyline>"
        )
    for mark in chart.marks:
        parts.append(
            f'<line class="mark" x1="{_x(mark.place)}" x2="{_x(mark.place)}" y1="0" y2="{_HEIGHT:g}">'
            f"<title>{escape(mark.label)}</title></line>"
        )
    return (
        f'<div class="chart" role="img" aria-label="{escape(chart.summary)}"><div class="frame">'
        f'<div class="y" style="height:{height_pixels}px">{"".join(map(_y_label, chart.y_ticks))}</div>'
        f'<div class="plot" style="height:{height_pixels}px"><svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" '
        f'preserveAspectRatio="none">{"".join(parts)}</svg></div>'
        f'<div class="x">{"".join(map(_x_label, chart.x_ticks))}</div></div>'
        f'<div class="axis">{escape(chart.x_meaning)}</div></div>'
    )


def legend(entries: Sequence[tuple[int, str]]) -> str:
    """Colours and what they stand for."""
    items = "".join(f'<li><i style="background:{colour(number)}"></i>{escape(text)}</li>' for number, text in entries)
    return f'<ul class="legend">{items}</ul>'


def bar(share: float, number: int) -> str:
    """A bar filled to `share` of its width."""
    return f'<div class="bar"><i style="width:{100 * min(share, 1):.2f}%;background:{colour(number)}"></i></div>'


def colour(number: int) -> str:
    """The CSS colour of series `number`; the palette begins again where it ends."""
    return f"var(--c{number % NUM_COLOURS})"


def nice_ticks(highest: float, most: int = 5) -> list[float]:
    """Round values from 0 to at least `highest`, at most `most` steps of 1, 2, 2.5 or 5 times a power of ten."""
    if highest <= 0:
        return [0.0, 1.0]
    power = 10.0 ** math.floor(math.log10(highest / most))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10, 20) if factor * power * most >= highest * (1 - 1e-9))
    return [step * number for number in range(math.ceil(highest / step - 1e-9) + 1)]


def _x(place: float) -> str:
    return f"{place * _WIDTH:.2f}"


def _y(place: float) -> str:
    return f"{(1 - place) * _HEIGHT:.2f}"


def _y_label(tick: Tick) -> str:
    return f'<span style="bottom:{100 * tick.place:.2f}%">{escape(tick.label)}</span>'


def _x_label(tick: Tick) -> str:
    place = ' class="first"' if tick.place < 0.02 else ' class="last"' if tick.place > 0.98 else ""
    return f'<span{place} style="left:{100 * tick.place:.2f}%">{escape(tick.label)}</span>'
