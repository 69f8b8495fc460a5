"""What `headrace bench retrieval` leaves: tables, a JSON file and pictures."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

mpl.use("Agg")

from matplotlib import pyplot as plt

from jobs.bench.report import write_json
from jobs.bench.retrieval.claims import verdicts
from jobs.bench.retrieval.measure import Result, Run
from models.evaluate import CUTOFFS, NUM_DECILES, Evaluation

Moment = Callable[[Run], Evaluation | None]
MOMENTS: dict[str, Moment] = {
    "fixed number of passes": lambda run: run.fixed,
    "equal processor time": lambda run: run.equal_time,
    "after one pass": lambda run: run.first_pass,
}
_DECILE_K = 50


def show(results: Sequence[Result]) -> None:
    """Prints all tables of all data sets."""
    console = Console(width=150)
    for result in results:
        sizes = ", ".join(f"{name} {value:,}" for name, value in result.sizes.items())
        console.print(f"[bold]{result.dataset}[/bold]: {sizes}")
        for moment in MOMENTS:
            if any(MOMENTS[moment](run) is not None for run in result.runs):
                console.print(quality_table(result, moment))
        console.print(decile_table(result))
    verdict_table = Table(title="directions: claimed, measured", title_justify="left")
    for heading in ("data set", "claim", "measured", "holds"):
        verdict_table.add_column(heading)
    for result in results:
        for verdict in verdicts(result):
            verdict_table.add_row(*dataclasses.astuple(verdict))
    if verdict_table.row_count:
        console.print(verdict_table)


def variants_of(result: Result) -> list[str]:
    """Returns the variants' names in the order of their runs."""
    return list(dict.fromkeys(run.variant for run in result.runs))


def quality_table(result: Result, moment: str) -> Table:
    """Returns mean and spread (standard deviation over seeds) of each variant at a moment."""
    table = Table(title=f"{result.dataset}, {moment}: mean ± spread", title_justify="left")
    table.add_column("variant")
    for name in ("temperature", "rate", "seconds"):
        table.add_column(name, justify="right")
    for name in ("HitRate", "NDCG"):
        for cutoff in CUTOFFS:
            table.add_column(f"{name}@{cutoff}", justify="right")
    popular = result.popularity.overall
    cells = [f"{v:.4f}" for v in (*popular.hit_rate.values(), *popular.ndcg.values())]
    table.add_row("popularity", "", "", "", *cells)
    for name in variants_of(result):
        runs = [run for run in result.runs if run.variant == name]
        found = [each for run in runs if (each := MOMENTS[moment](run)) is not None]
        if not found:
            continue
        temperature, rate = result.settings[name]
        seconds = statistics.fmean(run.seconds for run in runs)
        cells = [_spread([each.overall.hit_rate[k] for each in found]) for k in CUTOFFS]
        cells += [_spread([each.overall.ndcg[k] for each in found]) for k in CUTOFFS]
        table.add_row(name, f"{temperature:g}", f"{rate:g}", f"{seconds:.1f}", *cells)
    return table


def decile_table(result: Result) -> Table:
    """Returns HitRate@50 by the item's popularity in training, most popular tenth first."""
    table = Table(
        title=f"{result.dataset}, HitRate@{_DECILE_K} by decile of training popularity",
        title_justify="left",
    )
    table.add_column("variant")
    for number in range(1, NUM_DECILES + 1):
        table.add_column(str(number), justify="right")
    popular = result.popularity.by_decile
    table.add_row("questions", *(f"{quality.num_samples:,}" for quality in popular))
    table.add_row("popularity", *(f"{quality.hit_rate[_DECILE_K]:.3f}" for quality in popular))
    for name in variants_of(result):
        table.add_row(name, *(f"{value:.3f}" for value in decile_means(result, name)))
    return table


def decile_means(result: Result, variant: str) -> list[float]:
    """Returns a variant's mean HitRate@50 per decile, after the fixed number of passes."""
    runs = [run.fixed for run in result.runs if run.variant == variant]
    return [
        statistics.fmean(run.by_decile[decile].hit_rate[_DECILE_K] for run in runs)
        for decile in range(NUM_DECILES)
    ]


def _spread(values: Sequence[float]) -> str:
    spread = statistics.stdev(values) if len(values) > 1 else float("nan")
    return f"{statistics.fmean(values):.4f} ±{spread:.4f}"


def write(results: Sequence[Result], out: Path, *, skipped: dict[str, str]) -> None:
    """Writes everything as JSON, and a picture per data set beside it (`OUT-DATASET.png`)."""
    content: dict[str, Any] = {
        "skipped": skipped,
        "results": [dataclasses.asdict(result) for result in results],
        "verdicts": [dataclasses.asdict(each) for result in results for each in verdicts(result)],
    }
    write_json("retrieval", content, out)
    for result in results:
        plot(result, out.with_name(f"{out.stem}-{result.dataset}.png"))


def plot(result: Result, path: Path) -> None:
    """Draws HitRate by K, and HitRate@50 by popularity decile."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 5))
    names = variants_of(result)
    for name in names:
        runs = [run.fixed.overall for run in result.runs if run.variant == name]
        means = [statistics.fmean(run.hit_rate[k] for run in runs) for k in CUTOFFS]
        left.plot(CUTOFFS, means, marker="o", label=name)
        right.plot(range(1, NUM_DECILES + 1), decile_means(result, name), marker="o", label=name)
    popular = result.popularity
    style = {"color": "black", "linestyle": "--", "label": "popularity"}
    left.plot(CUTOFFS, list(popular.overall.hit_rate.values()), **style)
    deciles = [quality.hit_rate[_DECILE_K] for quality in popular.by_decile]
    right.plot(range(1, NUM_DECILES + 1), deciles, **style)
    left.set(xlabel="K", ylabel="HitRate@K", xscale="log", title=result.dataset)
    right.set(
        xlabel="decile of training popularity (1: most popular)",
        ylabel=f"HitRate@{_DECILE_K}",
        title=f"{len(result.runs) // len(names)} seeds, {result.sizes['passes']} passes",
    )
    left.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
