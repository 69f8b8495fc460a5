"""What `headrace bench staleness` leaves: tables, a JSON file, and what they say to do."""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from jobs.bench.report import write_json
from jobs.bench.staleness.measure import CUTOFF, OVERLAP, SIMULATED, Point

AIM = 0.02
"""Quality at 8 workers is to be within this of one worker's."""


def reference(points: Sequence[Point], *, kind: str, dataset: str) -> float:
    """Returns the mean quality of one worker that is never stale, or as little as was measured.

    A worker whose pulls overlap its pushes is stale by its own ranges; so all clusters are measured
    by one whose pulls do not, where there is such a point.
    """
    real = kind != SIMULATED
    alone = [
        p
        for p in points
        if (p.kind != SIMULATED) == real and (p.dataset, p.workers) == (dataset, 1)
    ]
    if not alone:
        return math.nan
    least = min((p.kind == OVERLAP, p.batches) for p in alone)
    return statistics.fmean(p.hit_rate for p in alone if (p.kind == OVERLAP, p.batches) == least)


def quality_table(points: Sequence[Point], *, kind: str, dataset: str) -> Table:
    """Returns quality relative to one worker's, by workers and way, over batches per exchange."""
    mine = [p for p in points if (p.kind, p.dataset) == (kind, dataset)]
    base = reference(points, kind=kind, dataset=dataset)
    batches = sorted({p.batches for p in mine})
    table = Table(
        title=f"{dataset}, {kind}: HitRate@{CUTOFF} over one worker's {base:.4f}"
        + (", samples/s" if kind != SIMULATED else ""),
        title_justify="left",
    )
    table.add_column("workers", justify="right")
    table.add_column("merge")
    for each in batches:
        table.add_column(f"every {each}", justify="right")
    for workers, way in dict.fromkeys((p.workers, p.way) for p in mine):
        cells = []
        for each in batches:
            here = [p for p in mine if (p.workers, p.way, p.batches) == (workers, way, each)]
            cells.append(_cell(here, base))
        table.add_row(str(workers), way if workers > 1 else "", *cells)
    return table


def _cell(here: Sequence[Point], base: float) -> str:
    if not here:
        return ""
    text = f"{statistics.fmean(p.hit_rate for p in here) / base:.3f}"
    if len(here) > 1:
        text += f" ±{statistics.stdev(p.hit_rate for p in here) / base:.3f}"
    if not math.isnan(here[0].samples_per_second):
        text += f", {here[0].samples_per_second:,.0f}/s"
    return text


@dataclasses.dataclass(frozen=True, slots=True)
class Choice:
    """The best way at some number of workers, over all data sets.

    Attributes:
        workers: How many.
        batches: Mini-batches between exchanges.
        way: Whose worst data set is the best there.
        worst: That data set's quality over one worker's.
        within: Whether it is within the aim.
    """

    workers: int
    batches: int
    way: str
    worst: float
    within: bool


def choices(points: Sequence[Point]) -> list[Choice]:
    """Returns the best way for each number of workers and of mini-batches, of the simulations."""
    simulated = [p for p in points if p.kind == SIMULATED]
    datasets = sorted({p.dataset for p in simulated})
    found = []
    for workers, batches in sorted({(p.workers, p.batches) for p in simulated if p.workers > 1}):
        worst: dict[str, float] = {}
        for p in simulated:
            if (p.workers, p.batches) != (workers, batches):
                continue
            shares = []
            for dataset in datasets:
                here = [
                    q.hit_rate
                    for q in simulated
                    if (q.dataset, q.way, q.workers, q.batches)
                    == (dataset, p.way, workers, batches)
                ]
                base = reference(simulated, kind=SIMULATED, dataset=dataset)
                shares.append(statistics.fmean(here) / base if here else 0.0)
            worst[p.way] = min(shares)
        best = max(worst, key=lambda way: worst[way])
        found.append(Choice(workers, batches, best, worst[best], worst[best] >= 1.0 - AIM))
    return found


def agreement(points: Sequence[Point]) -> Table:
    """Returns how close the simulation came to clusters, where both were measured."""
    table = Table(title="simulation against cluster, relative to one worker", title_justify="left")
    for heading in ("data set", "cluster", "workers", "merge", "every", "real", "simulated"):
        table.add_column(heading, justify="right")
    for p in points:
        if p.kind == SIMULATED:
            continue
        key = (p.dataset, p.workers, p.way, p.batches)
        twins = [
            q.hit_rate
            for q in points
            if q.kind == SIMULATED and (q.dataset, q.workers, q.way, q.batches) == key
        ]
        if twins:
            ours = p.hit_rate / reference(points, kind=p.kind, dataset=p.dataset)
            other = statistics.fmean(twins) / reference(points, kind=SIMULATED, dataset=p.dataset)
            cells = (p.dataset, p.kind, str(p.workers), p.way, str(p.batches))
            table.add_row(*cells, f"{ours:.3f}", f"{other:.3f}")
    return table


def show(points: Sequence[Point]) -> None:
    """Prints all tables."""
    console = Console(width=150)
    for dataset, kind in dict.fromkeys((p.dataset, p.kind) for p in points):
        console.print(quality_table(points, kind=kind, dataset=dataset))
    best = Table(title=f"the best way; aim: within {AIM:.0%}", title_justify="left")
    for heading in ("workers", "every", "merge", "worst data set", "within"):
        best.add_column(heading, justify="right")
    for choice in choices(points):
        worst, within = f"{choice.worst:.3f}", "yes" if choice.within else "no"
        best.add_row(str(choice.workers), str(choice.batches), choice.way, worst, within)
    for table in (agreement(points), best):
        if table.row_count:
            console.print(table)


def write(points: Sequence[Point], out: Path, *, skipped: dict[str, str]) -> None:
    """Writes everything as JSON."""
    content = {
        "skipped": skipped,
        "points": [dataclasses.asdict(point) for point in points],
        "choices": [dataclasses.asdict(choice) for choice in choices(points)],
    }
    write_json("staleness", content, out)
