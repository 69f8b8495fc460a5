"""What the demo says of its own run: counters, protocol, facts, and the tables at the end."""

from __future__ import annotations

import datetime
import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any, Final

import pyarrow as pa
from rich.table import Table

from jobs.bench.report import machine
from jobs.demo import movielens
from jobs.demo.report import Method, Report, Stage
from models.evaluate import Questions
from pipeline.manifest import Manifest
from pipeline.schema import USER_ID

REPEATS: Final = (
    "Training is asynchronous and so not bit-reproducible: repeats of one seed differ by about"
    " 0.01 in HitRate@10 and 0.02 in HitRate@50; --seeds 3 gives mean and range."
)


def stages(manifest: Manifest, asked: Questions) -> list[Stage]:
    """Returns the pipeline's counters in the order in which the data passes."""
    counts = manifest.counts
    outcomes = [
        Stage(name="outcomes", count=count, remark=fate.replace("_", " "))
        for fate, count in manifest.outcomes.items()
        if count
    ]
    return [
        Stage(name="rows read", count=counts["events_read"], remark="logs before the cut"),
        Stage(name="rejected", count=sum(manifest.rejects.values()), remark="by reason, below"),
        Stage(name="duplicates", count=counts["duplicates"], remark="same event_id, dropped"),
        Stage(name="impressions", count=counts["impressions"]),
        *outcomes,
        Stage(
            name="training samples",
            count=counts["retrieval samples"],
            remark="impressions with a click",
        ),
        Stage(name="questions", count=len(asked.targets), remark="samples after the cut"),
    ]


def protocol(asked: Questions, training: pa.Table, *, cut_ms: int, num_seeds: int) -> list[str]:
    """Says how quality was measured."""
    cut = datetime.datetime.fromtimestamp(cut_ms / 1000, datetime.UTC)
    users = asked.samples.column(USER_ID).to_pylist()
    known = set(training.column(USER_ID).to_pylist())
    new = sum(user not in known for user in users) / max(1, len(users))
    return [
        f"80% of the ratings are before {cut:%Y-%m-%d %H:%M} UTC and train; each of the"
        f" {len(users):,} likes from then on is a question, {new:.0%} of them of users that"
        " training never saw.",
        f"Every one of the {asked.candidates.num_rows:,} items with a training sample is scored and"
        f" ranked; {(asked.targets < 0).sum():,} targets are not among them and count as misses.",
        "Items that the user had liked before a question's time are left out, for every method.",
        "A question's history may hold likes from after the cut, as in serving; parameters, and the"
        " counts that popularity ranks by, stop at the cut.",
        "Both trainings see the same samples in the same number of steps, from the same seed"
        + (f"; means over {num_seeds} seeds, with the range." if num_seeds > 1 else "."),
        REPEATS,
    ]


def facts(settings: Mapping[str, Any], seeds: Sequence[int]) -> list[tuple[str, str]]:
    """Says what was run, with what and where, as (name, value)."""
    train, model = settings["train"], settings["model"]
    here = machine()
    versions = ("headrace", "apache-beam", "tensorflow", "pyarrow", "polars")
    return [
        ("data", f"MovieLens-100K from {movielens.PACKAGE}, sha256 {movielens.SHA256[:12]}..."),
        (
            "model",
            f"two towers, hidden {list(model.hidden)}, dim {model.dim}, temperature"
            f" {model.temperature}, {model.optimizer} {model.learning_rate}",
        ),
        (
            "training",
            f"{train.source.archive.replays} replays, batch {train.batch_size},"
            f" {train.batches_per_range} batches a range, {train.cluster.parameter_servers}"
            f" parameter server, {train.cluster.workers} workers",
        ),
        ("seeds", ", ".join(map(str, seeds))),
        ("versions", ", ".join(f"{name} {_version(name)}" for name in versions)),
        (
            "machine",
            f"{here['processor']}, {here['cores']} cores, {here['system']},"
            f" Python {here['python']}",
        ),
    ]


def result_tables(report: Report) -> list[Table]:
    """Returns the tables that the demo prints."""
    quality = _table("Quality on the future", "method", "HitRate@10", "@50", "@100", "NDCG@10")
    quality.caption = REPEATS
    for method in report.methods:
        rates = [_rate(method, cutoff) for cutoff in (10, 50, 100)]
        quality.add_row(method.name, *rates, f"{method.ndcg(10):.3f}")
    rejected = _table("Rows rejected", "reason", "rows")
    for reason, count in report.rejects.items():
        rejected.add_row(reason, f"{count:,}")
    account = _table(
        "Accounting, by the ledger", "run", "samples x replays", "trained", "samples/s", ""
    )
    for run in report.runs:
        account.add_row(
            run.name,
            f"{run.expected_samples:,}",
            f"{run.totals['samples']:,}",
            f"{run.samples_per_second:,.0f}",
            "adds up" if run.adds_up else "DOES NOT ADD UP",
        )
    return [rejected, account, quality]


def _rate(method: Method, cutoff: int) -> str:
    mean = f"{method.hit_rate(cutoff):.3f}"
    if len(method.evaluations) == 1:
        return mean
    lowest, highest = method.range_of(cutoff)
    return f"{mean} ({lowest:.3f}-{highest:.3f})"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for number, column in enumerate(columns):
        table.add_column(column, justify="left" if number == 0 else "right")
    return table


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"
