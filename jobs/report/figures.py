"""The pictures of the data checks' report."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jobs.report.page import INK
from pipeline.checks.drift import group_counts
from pipeline.checks.profile import Column, Numbers, bin_bounds

COLOURS: Final = ("#2f7fd1", "#d98032", "#3f9d6b", "#a763c4", "#c4423a", "#8a8f98", "#b39b2d")
SEVERITIES: Final = {"warn": "#d98032", "fail": "#c4423a"}
_WIDTH: Final = 9.2
_MAX_TICKS: Final = 16
_MAX_WRITTEN_DAYS: Final = 16
_MAX_PARTS: Final = len(COLOURS)
_NUM_BARS: Final = 24
# Opacity of a zero, which is not to look like no number; at the limit; far beyond it.
_PALE, _CALM, _STRONG = 0.04, 0.45, 0.85

Cells = Mapping[str, Sequence[float | None]]
FloatArray = npt.NDArray[np.floating[Any]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """One column of a day, and of the good days before it."""

    title: str
    unit: str
    now: Column
    then: Column


def draw_rows(
    days: Sequence[str],
    rows: Mapping[str, Sequence[int | None]],
    flagged: Collection[tuple[str, str]],
) -> Figure:
    """Draws a line per kind, with a ring where the checks found too few or too many rows."""
    figure = Figure(figsize=(_WIDTH, 3.1), layout="constrained")
    axes = figure.subplots()
    for number, (kind, counts) in enumerate(rows.items()):
        colour = COLOURS[number % len(COLOURS)]
        # On a logarithmic axis a day without rows has no place: a gap.
        heights = [count or math.nan for count in counts]
        axes.plot(heights, ".-", color=colour, linewidth=1.6, label=kind)
        rings = [place for place, day in enumerate(days) if (kind, day) in flagged]
        axes.plot(
            rings,
            [heights[place] for place in rings],
            "o",
            markersize=11,
            fillstyle="none",
            color=SEVERITIES["fail"],
        )
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", alpha=0.15)
    _name_days(axes, days)
    _legend(axes)
    return figure


def draw_stack(days: Sequence[str], counts: Mapping[str, Sequence[int]]) -> Figure:
    """Draws stacked bars per day, the largest parts by name and the others as one."""
    figure = Figure(figsize=(_WIDTH, 2.8), layout="constrained")
    axes = figure.subplots()
    parts = list(counts.items())
    if len(parts) > _MAX_PARTS:
        others = np.sum([found for _, found in parts[_MAX_PARTS - 1 :]], axis=0).tolist()
        parts = [*parts[: _MAX_PARTS - 1], ("others", others)]
    below = np.zeros(len(days))
    for number, (part, found) in enumerate(parts):
        axes.bar(range(len(days)), found, 0.75, below, color=COLOURS[number], label=part)
        below += found
    axes.yaxis.set_major_formatter(FuncFormatter(_short))
    axes.grid(axis="y", alpha=0.15)
    _name_days(axes, days)
    _legend(axes)
    return figure


def draw_heat(
    days: Sequence[str],
    values: Cells,
    marked: Mapping[tuple[str, str], str],
    *,
    limit: float | None,
) -> Figure:
    """Draws features x days as cells, the checks' findings with a frame.

    Args:
        days: The columns.
        values: By feature: a number per day, None for no cell.
        marked: Severity by feature and day.
        limit: Where the colour turns; None for shares.
    """
    figure = Figure(figsize=(_WIDTH, 0.55 + 0.3 * len(values)), layout="constrained")
    axes = figure.subplots()
    for row, (name, cells) in enumerate(values.items()):
        for place, value in enumerate(cells):
            if value is None:
                continue
            colour, opacity = _heat(value, limit)
            cell = Rectangle((place - 0.5, row - 0.5), 1, 1, color=colour, alpha=opacity, lw=0)
            axes.add_patch(cell)
            severity = marked.get((name, days[place]))
            if severity is not None:
                _frame(axes, place, row, SEVERITIES[severity])
            if len(days) <= _MAX_WRITTEN_DAYS:
                text = f"{value:.2f}" if limit is not None else f"{value:.1%}"
                axes.text(place, row, text, ha="center", va="center", fontsize=8)
    axes.set_xlim(-0.5, len(days) - 0.5)
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set_yticks(range(len(values)), list(values))
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    _name_days(axes, days, cells=True)
    return figure


def draw_pairs(pairs: Sequence[Pair]) -> Figure:
    """Draws distributions: grey bars are the good days, the line is the day."""
    num_rows = math.ceil(len(pairs) / 2)
    figure = Figure(figsize=(_WIDTH, 2.6 * num_rows), layout="constrained")
    grid = figure.subplots(num_rows, 2, squeeze=False)
    for axes, pair in zip(grid.flat, pairs, strict=False):
        if pair.now.numbers is not None and pair.then.numbers is not None:
            edges, then, now = _histogram(pair.then.numbers, pair.now.numbers)
            axes.set_xlabel(pair.unit)
        else:
            edges, then, now = _buckets(pair.then, pair.now)
            axes.set_xlabel("groups of ids, by their hash")
            axes.set_xticks([])
        axes.stairs(then, edges, fill=True, color=COLOURS[5], alpha=0.45, label="good days")
        axes.stairs(now, edges, color=COLOURS[0], linewidth=1.8, label="the day")
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.3g}%"))
        axes.set_title(pair.title, fontsize=10, loc="left")
        axes.grid(axis="y", alpha=0.15)
    for axes in grid.flat[len(pairs) :]:
        axes.set_visible(False)
    grid.flat[0].legend(frameon=False)
    return figure


def _histogram(then: Numbers, now: Numbers) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns edges, and the shares between them then and now, over where nearly all values are."""
    spans = [_span(then), _span(now)]
    low, high = min(span[0] for span in spans), max(span[1] for span in spans)
    edges = np.linspace(low, high, _NUM_BARS + 1)
    return edges, _spread(then, edges), _spread(now, edges)


def _span(numbers: Numbers) -> tuple[float, float]:
    """Returns the bounds of the middle 99 % of the values, by their bins."""
    bounds = np.array([bin_bounds(number) for number in numbers.bins])
    held = np.cumsum(list(numbers.bins.values())) / numbers.count
    first, last = np.searchsorted(held, [0.005, 0.995])
    return float(bounds[first, 0]), float(bounds[last, 1])


def _spread(numbers: Numbers, edges: FloatArray) -> FloatArray:
    """Spreads every bin evenly over its width; what lies outside of the edges is not drawn."""
    bounds = np.array([bin_bounds(number) for number in numbers.bins])
    counts = np.array(list(numbers.bins.values()), np.float64)
    widths = bounds[:, 1] - bounds[:, 0]
    inside = np.clip((edges[:, None] - bounds[:, 0]) / widths, 0, 1)
    return np.asarray(np.diff(inside @ counts) / counts.sum())


def _buckets(then: Column, now: Column) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Returns the groups that the index compares, the most frequent first; new values last."""
    found, usual = (
        np.array(column.ids.buckets if column.ids is not None else [0]) for column in (now, then)
    )
    day, reference = group_counts(found, usual, ordered=False)
    order = np.argsort(-reference, kind="stable")
    edges: FloatArray = np.arange(len(order) + 1) - 0.5
    return edges, reference[order] / usual.sum(), day[order] / found.sum()


def _heat(value: float, limit: float | None) -> tuple[str, float]:
    if limit is None:
        # By the root: of shares of nulls, a hundredth is to be seen.
        return COLOURS[0], max(math.sqrt(min(max(value, 0.0), 1.0)) * _STRONG, _PALE)
    if value <= limit:
        return COLOURS[0], max(_CALM * value / limit if limit else 0.0, _PALE)
    beyond = min(value / limit / 10, 1.0) if limit else 1.0
    colour = SEVERITIES["warn"] if value <= 2.5 * limit else SEVERITIES["fail"]
    return colour, _CALM + (_STRONG - _CALM) * beyond


def _frame(axes: Axes, place: int, row: int, colour: str) -> None:
    corner = (place - 0.46, row - 0.44)
    axes.add_patch(Rectangle(corner, 0.92, 0.88, fill=False, edgecolor=colour, lw=1.8))


def _name_days(axes: Axes, days: Sequence[str], *, cells: bool = False) -> None:
    step = max(1, math.ceil(len(days) / _MAX_TICKS))
    # From the newest day backwards: that one is always named.
    places = list(range(len(days) - 1, -1, -step))[::-1]
    axes.set_xticks(places, [days[place][5:] for place in places], fontsize=9)
    if not cells:
        axes.set_xlim(-0.6, len(days) - 0.4)


def _legend(axes: Axes) -> None:
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0), labelcolor=INK)


def _short(value: float, _: int) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{unit}"
    return f"{value:g}"
