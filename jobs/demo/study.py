"""What the demo's trainings learned: quality on the future, the estimator's truth, an answer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf

from jobs.demo.report import Frequencies, QueryExample
from jobs.query import latest_history, retrieve_new
from models.bundle import CANDIDATES, QUERIES, read_manifest, resolve_version
from models.evaluate import Questions, questions
from models.index import latest_items
from pipeline.schema import HISTORY_ITEM_ID, ITEM_ID, SCENARIO, TIMESTAMP_MS, USER_ID
from pipeline.specification import Specification
from streaming.checkpoints.store import load_checkpoint
from streaming.config import TrainConfig
from streaming.servers.frequency import bucket_numbers, probability

_SMALL_POINT = 0.25  # of the median point's samples


def future_questions(
    samples: pa.Table, *, training: pa.Table, cut_ms: int, specification: Specification
) -> Questions:
    """Makes a question of every sample from the cut on.

    The corpus is every item that has a training sample. Items that the user had liked before a
    question's time, in the whole log, are no answers to it.

    Args:
        samples: All samples, of the past and the future, each with its history up to its time.
        training: Samples of the past, made from the logs of the past alone.
        cut_ms: Where the future starts.
        specification: Of both.
    """
    candidates = latest_items(training, specification)
    future = samples.filter(pc.greater_equal(samples.column(TIMESTAMP_MS), cut_ms))
    asked = questions(future, candidates=candidates, training=training, exclude_seen=False)
    seen = seen_before(future, samples, candidates)
    seen = seen.filter(pl.col("row") != pl.Series(asked.targets).gather(seen["sample"]))
    return dataclasses.replace(
        asked, seen_sample=seen["sample"].to_numpy(), seen_candidate=seen["row"].to_numpy()
    )


def seen_before(future: pa.Table, log: pa.Table, candidates: pa.Table) -> pl.DataFrame:
    """Finds what each sample's user had liked before it, at any time.

    Args:
        future: [num_samples] samples that ask.
        log: Samples of all time.
        candidates: [num_candidates] rows with `item_id`.

    Returns:
        Distinct pairs (sample, row in `candidates`), int64, by sample.
    """
    asked = _columns(future, USER_ID, TIMESTAMP_MS).with_row_index("sample")
    items = _columns(candidates, ITEM_ID).with_row_index("row")
    liked = _columns(log, USER_ID, ITEM_ID, TIMESTAMP_MS)
    return (
        asked.join(liked, on=USER_ID, suffix="_liked")
        .filter(pl.col(f"{TIMESTAMP_MS}_liked") < pl.col(TIMESTAMP_MS))
        .join(items, on=ITEM_ID)
        .select(pl.col("sample", "row").cast(pl.Int64))
        .unique()
        .sort("sample", "row")
    )


def read_metrics(path: Path) -> tuple[np.ndarray, float]:
    """Reads what a training run wrote about itself.

    Args:
        path: Its `metrics.jsonl`.

    Returns:
        [num_points, 2] samples trained and mean loss since the point before, without points of so
        few samples that they say nothing; and samples per second over all, from the first range
        handed out to the last one pushed.
    """
    points, total, seconds = [], 0, 0.0
    for line in path.read_text(encoding="utf-8").splitlines():
        entry = json.loads(line)
        if "train/loss" not in entry:
            continue
        trained = entry["stream/samples"]
        points.append((trained, entry["train/loss"]))
        seconds += (trained - total) / entry["stream/samples_per_second"]
        total = trained
    curve = np.array(points, np.float64).reshape(-1, 2)
    steps = np.diff(curve[:, 0], prepend=0.0)
    curve = curve[steps >= _SMALL_POINT * np.median(steps)] if len(steps) else curve
    return curve, total / seconds if seconds else 0.0


def frequencies(run: Path, training: pa.Table, config: TrainConfig) -> Frequencies:
    """Compares what the estimator of a run learned with the items' true frequencies.

    Of n samples of an item among N, a batch of B has at least one with probability
    1 - (1 - n/N)^B.

    Raises:
        ValueError: If the run had no estimator.
    """
    trained = load_checkpoint(run / "checkpoints")
    if (gaps := trained.gaps) is None:
        raise ValueError(f"{run}: expected a checkpoint with an estimator, found none in it")
    counts = _columns(training, ITEM_ID).group_by(ITEM_ID).len().sort(ITEM_ID)
    ids = tf.constant(counts[ITEM_ID].to_numpy())  # int64: an int32 7 hashes elsewhere
    held = tf.gather(gaps, bucket_numbers(ids, config.frequency))
    clock = tf.constant(trained.step, tf.int64)
    estimated = probability(held, config.frequency, clock=clock, unseen=0.0).numpy()
    share = counts["len"].to_numpy() / training.num_rows
    return Frequencies(true=1.0 - (1.0 - share) ** config.batch_size, estimated=estimated)


def example_user(model: Path) -> tuple[int, str]:
    """Returns the user with a whole history who was there last, and the scenario they were in."""
    users = pq.read_table(resolve_version(model) / QUERIES)
    frame = pl.DataFrame(pl.from_arrow(users)).with_columns(
        pl.col(HISTORY_ITEM_ID).list.len().alias("liked")
    )
    row = frame.sort("liked", TIMESTAMP_MS, USER_ID).row(-1, named=True)
    return int(row[USER_ID]), str(row[SCENARIO])


def ask(model: Path, user: int, scenario: str, *, num_answers: int = 10) -> QueryExample:
    """Asks an exported model for a user's new items, as `headrace query` does."""
    version = resolve_version(model)
    manifest = read_manifest(version)
    specification = Specification.model_validate(manifest.specification)
    users = pq.read_table(version / QUERIES)
    row = users.filter(pc.equal(users.column(USER_ID), user))
    answers = retrieve_new(version, specification, scenario=scenario, user=row)
    items = {
        item["item_id"]: item
        for name in manifest.scenarios
        for item in pq.read_table(
            version / "index" / name / CANDIDATES, columns=[ITEM_ID, "title", "genres"]
        ).to_pylist()
    }
    profile = row.to_pylist()[0]
    return QueryExample(
        user=f"User {user}, {profile['age']}, {profile['gender']}, {profile['occupation']}",
        scenario=scenario,
        history=[items[item]["title"] for item in latest_history(row) if item in items],
        answers=[
            (items[item]["title"], ", ".join(items[item]["genres"]), score)
            for item, score in answers[:num_answers]
        ],
    )


def _columns(table: pa.Table, *names: str) -> pl.DataFrame:
    return pl.DataFrame({name: pl.from_arrow(table.column(name)) for name in names})
