"""The demo's report: one HTML file that needs no network, made of numbers that were measured.

`Report` holds what is shown; `figures` draws it; the page's text and style are in
`templates/report.html.j2`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure

from jobs.report.page import INK, page_style, svg, write_page
from models.evaluate import Evaluation

_POPULARITY, _PLAIN, _LOGQ = "#8a8f98", "#d98032", "#2f7fd1"
_DECILE_CUTOFF: Final = 50


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Method:
    """One way to recommend, evaluated once per seed.

    Attributes:
        name: Shown to readers.
        colour: Of its marks in figures.
        evaluations: One per seed; one in all for a method without chance.
    """

    name: str
    colour: str
    evaluations: Sequence[Evaluation]

    def hit_rate(self, cutoff: int) -> float:
        """Returns the mean over seeds."""
        return float(np.mean([each.overall.hit_rate[cutoff] for each in self.evaluations]))

    def ndcg(self, cutoff: int) -> float:
        """Returns the mean over seeds."""
        return float(np.mean([each.overall.ndcg[cutoff] for each in self.evaluations]))

    def range_of(self, cutoff: int) -> tuple[float, float]:
        """Returns the lowest and the highest hit rate over seeds."""
        found = [each.overall.hit_rate[cutoff] for each in self.evaluations]
        return min(found), max(found)

    def decile_hit_rates(self, cutoff: int) -> list[float]:
        """Returns the hit rate per decile of item popularity, the mean over seeds."""
        rows = [[part.hit_rate[cutoff] for part in each.by_decile] for each in self.evaluations]
        return [float(value) for value in np.mean(rows, axis=0)]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainingRun:
    """What one `headrace train` did.

    Attributes:
        name: Shown to readers.
        colour: Of its marks in figures.
        curve: [num_points, 2] samples trained, and the loss there.
        samples_per_second: Over the whole run.
        expected_samples: Samples in the files, times replays.
        totals: The ledger's own totals, from the last checkpoint.
    """

    name: str
    colour: str
    curve: np.ndarray
    samples_per_second: float
    expected_samples: int
    totals: Mapping[str, int]

    @property
    def adds_up(self) -> bool:
        """Whether every sample was trained on once, and none was rejected, lost or torn."""
        bad = sum(self.totals.get(name, 0) for name in ("rejects", "lost", "torn"))
        return self.totals["samples"] == self.expected_samples and bad == 0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Frequencies:
    """The estimator's answers beside the truth, one entry per item of the training samples.

    Attributes:
        true: [num_items] probability to be in a batch, from the item's count in all samples.
        estimated: [num_items] what the parameter servers learned from the stream.
    """

    true: np.ndarray
    estimated: np.ndarray

    @property
    def correlation(self) -> float:
        """Pearson's correlation of the logarithms."""
        return float(np.corrcoef(np.log(self.true), np.log(self.estimated))[0, 1])

    def median_ratio(self, *, at_least: float = 0.0) -> float:
        """Returns the median of estimated / true over items with `true >= at_least`."""
        chosen = self.true >= at_least
        return float(np.median(self.estimated[chosen] / self.true[chosen]))


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QueryExample:
    """One served answer.

    Attributes:
        user: Who asked, in words.
        scenario: Where.
        history: Titles of the user's last positives, newest first.
        answers: One row per item: title, genres, score.
    """

    user: str
    scenario: str
    history: Sequence[str]
    answers: Sequence[tuple[str, str, float]]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One bar of the funnel: what is counted, how many, and a remark."""

    name: str
    count: int
    remark: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """Everything that the page shows.

    Attributes:
        popularity, plain, logq: The three methods.
        runs: The training runs, seed by seed.
        frequencies: Of the first run with logQ.
        stages: The pipeline's counters, in the order of the data.
        rejects: Rejected rows per reason.
        query: A served answer, or None.
        facts: What was run, on what, as (name, value).
        protocol: How quality was measured, one sentence each.
        planted: Malformed rows that the demo put into the logs.
        workers: Worker processes.
        config: The configuration file's text.
        seconds: Wall-clock time per step of the demo.
    """

    popularity: Method
    plain: Method
    logq: Method
    runs: Sequence[TrainingRun]
    frequencies: Frequencies
    stages: Sequence[Stage]
    rejects: Mapping[str, int]
    query: QueryExample | None
    facts: Sequence[tuple[str, str]]
    protocol: Sequence[str]
    planted: int
    workers: int
    config: str
    seconds: Mapping[str, float]

    @property
    def methods(self) -> tuple[Method, Method, Method]:
        """The three methods, in the order of the tables."""
        return self.popularity, self.plain, self.logq

    def best(self, cutoff: int) -> float:
        """Returns the highest hit rate of the three."""
        return max(method.hit_rate(cutoff) for method in self.methods)


COLOURS: Final = {"popularity": _POPULARITY, "plain": _PLAIN, "logq": _LOGQ}


def write_report(report: Report, path: Path) -> None:
    """Writes the page."""
    folder = Path(__file__).parent / "templates"
    write_page(path, folder / "report.html.j2", report=report, figures=figures(report))


def figures(report: Report) -> dict[str, Markup]:
    """Draws every figure; returns inline SVG by name."""
    with page_style():
        return {
            "loss": svg(_loss_curves(report.runs), "Training loss over samples"),
            "frequency": svg(
                _frequency_scatter(report.frequencies), "Estimated against true frequency"
            ),
            "deciles": svg(_decile_bars(report.methods), "Hit rate by decile of popularity"),
        }


def _loss_curves(runs: Sequence[TrainingRun]) -> Figure:
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    axes = figure.subplots()
    for run in runs:
        samples, loss = run.curve[:, 0], run.curve[:, 1]
        axes.plot(samples / 1e3, loss, ".-", color=run.colour, linewidth=1.6, label=run.name)
    axes.set_xlabel("samples trained, thousands")
    axes.set_ylabel("mean loss since the point before")
    axes.grid(alpha=0.15)
    axes.legend(frameon=False)
    return figure


def _frequency_scatter(frequencies: Frequencies) -> Figure:
    figure = Figure(figsize=(4.6, 3.9), layout="constrained")
    axes = figure.subplots()
    lowest = min(frequencies.true.min(), frequencies.estimated.min())
    axes.plot([lowest, 1], [lowest, 1], color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.scatter(
        frequencies.true,
        frequencies.estimated,
        s=9,
        color=_LOGQ,
        alpha=0.45,
        linewidths=0,
    )
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("true probability to be in a batch")
    axes.set_ylabel("estimated from the stream")
    axes.grid(alpha=0.15)
    return figure


def _decile_bars(methods: Sequence[Method]) -> Figure:
    figure = Figure(figsize=(9.2, 3.1), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / len(methods)
    for number, method in enumerate(methods):
        rates = np.nan_to_num(method.decile_hit_rates(_DECILE_CUTOFF))
        places = np.arange(1, len(rates) + 1) + (number - (len(methods) - 1) / 2) * width
        axes.bar(places, rates, width * 0.92, color=method.colour, label=method.name)
    axes.set_xticks(range(1, 11))
    axes.set_xlabel("tenth of the items, most popular first")
    axes.set_ylabel(f"HitRate@{_DECILE_CUTOFF}")
    axes.grid(axis="y", alpha=0.15)
    axes.legend(frameon=False)
    return figure
