"""Three public logs as training samples and questions, cut by time.

A sample is a user's *first* positive on an item, with the items of their last positives before it:
the pipeline's own (`pipeline.kinds.retrieval.assemble`), in the order of time. The first 80%
of them train, the others ask. Of the first 80%, the last eighth is the validation cut, on which
settings are chosen; the test period is never looked at for that.

A question counts if its user has a history at that time and its item has a training sample: the
corpus is every item of the training samples. Items that the user had before are no answers.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from jobs.demo import movielens
from jobs.demo.study import seen_before
from models.evaluate import Questions, questions
from models.index import latest_items
from pipeline import schema as s
from pipeline.join.labels import OUTCOME_TIME_MS
from pipeline.kinds.retrieval import assemble
from pipeline.schema import InputError
from pipeline.specification import Specification

TRAIN_SHARE: Final = 0.8
VALIDATION_SHARE: Final = 0.7
_QUESTION_SEED: Final = 1
_SCENARIO: Final = "any"


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """One log, whole, as samples.

    Attributes:
        name: As the command line knows it.
        specification: Of the samples and of the model's features.
        samples: All samples, oldest first.
        validation_ms: Samples from here to `test_ms` choose settings.
        test_ms: Samples from here on are the test.
    """

    name: str
    specification: Specification
    samples: pa.Table
    validation_ms: int
    test_ms: int


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Split:
    """What one side of a cut learns from, and what the other side asks.

    Attributes:
        training: Samples before the cut, oldest first.
        asked: Questions after it; see the module's docstring.
        num_later: Samples after the cut, before any was left out.
    """

    training: pa.Table
    asked: Questions
    num_later: int


def load_movielens(cache: Path) -> Dataset:
    """MovieLens-100K: a rating of 4 or 5 is a positive; candidates have genres.

    Raises:
        SourceUnavailableError: If it is not in the cache and cannot be fetched.
    """
    rated = movielens.ratings(movielens.fetch(cache))
    liked = rated.filter(pl.col("rating") >= movielens.CLICK_RATING)
    positives = liked.select(s.USER_ID, s.ITEM_ID, s.TIMESTAMP_MS, "genres")
    return make_dataset("movielens", positives, buckets=8192)


def load_parquet(name: str, folder: Path) -> Dataset:
    """Taobao or RetailRocket: every behaviour is a positive.

    Raises:
        InputError: If the file is not there.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise InputError(f"{path}: found no such file; expected it there, or --data DIR")
    events = pl.read_parquet(path)
    positives = events.select(
        pl.col(s.USER_ID, s.ITEM_ID).cast(pl.Int64),
        (pl.col("timestamp_seconds") * 1000).alias(s.TIMESTAMP_MS),
    )
    return make_dataset(name, positives, buckets=131_072)


LOADERS: Final[Mapping[str, Callable[[Path, Path], Dataset]]] = {
    "movielens": lambda _, cache: load_movielens(cache),
    "taobao": lambda data, _: load_parquet("taobao", data),
    "retailrocket": lambda data, _: load_parquet("retailrocket", data),
}


def make_dataset(name: str, positives: pl.DataFrame, *, buckets: int) -> Dataset:
    """Makes samples of positives; see the module's docstring.

    Args:
        name: Of the data set.
        positives: user_id, item_id, timestamp_ms, perhaps genres; in any order, repeats allowed.
        buckets: Rows of the item table; several per item, so that few share one.
    """
    first = positives.sort(s.TIMESTAMP_MS, s.USER_ID, s.ITEM_ID, maintain_order=True).unique(
        [s.USER_ID, s.ITEM_ID], keep="first", maintain_order=True
    )
    rows = first.with_columns(
        pl.format("{}-{}", s.USER_ID, s.ITEM_ID).alias(s.EVENT_ID),
        pl.lit(_SCENARIO).alias(s.SCENARIO),
        pl.lit(1.0, pl.Float32).alias(s.REWARD),
        pl.col(s.TIMESTAMP_MS).alias(OUTCOME_TIME_MS),
    )
    known = rows.sort(OUTCOME_TIME_MS, s.TIMESTAMP_MS, s.EVENT_ID)
    described = specification(name, genres="genres" in positives.columns, buckets=buckets)
    times = rows[s.TIMESTAMP_MS]
    return Dataset(
        name=name,
        specification=described,
        samples=assemble(rows, known, described),
        validation_ms=int(times[int(VALIDATION_SHARE * len(times))]),
        test_ms=int(times[int(TRAIN_SHARE * len(times))]),
    )


def specification(name: str, *, genres: bool, buckets: int) -> Specification:
    """Returns the features: the last 20 items ask; item id, and genres if there are any, answer.

    No user id: on the validation cut it made every variant worse, and after a few passes much worse
    (Taobao, 4 passes, HitRate@50 .018 with and .035 without): users are few and have few samples.
    """
    tables: dict[str, Any] = {"item": {"buckets": buckets}}
    candidate = [{"name": s.ITEM_ID, "kind": "id", "table": "item"}]
    if genres:
        tables["genre"] = {"buckets": 256}
        candidate.append({"name": "genres", "kind": "ids", "table": "genre"})
    return Specification.model_validate(
        {
            "name": name,
            "scenarios": [_SCENARIO],
            "columns": {"genres": "list<string>"} if genres else {},
            "history": {"length": 20},
            "tables": tables,
            "features": {
                "query": [{"name": s.HISTORY_ITEM_ID, "kind": "ids", "table": "item"}],
                "candidate": candidate,
            },
        }
    )


def split(
    dataset: Dataset, *, cut_ms: int, until_ms: int | None = None, max_questions: int
) -> Split:
    """Cuts a data set at a time.

    Args:
        dataset: What to cut.
        cut_ms: Samples before it train, samples from it on ask.
        until_ms: Samples from here on are left out altogether; None keeps all.
        max_questions: Of more questions, so many are drawn, always the same.
    """
    samples = dataset.samples
    times = samples.column(s.TIMESTAMP_MS)
    if until_ms is not None:
        samples = samples.filter(pc.less(times, until_ms))
        times = samples.column(s.TIMESTAMP_MS)
    training = samples.filter(pc.less(times, cut_ms))
    later = samples.filter(pc.greater_equal(times, cut_ms))
    candidates = latest_items(training, dataset.specification)
    has_history = pc.greater(pc.list_value_length(later.column(s.HISTORY_ITEM_ID)), 0)
    known = pc.is_in(later.column(s.ITEM_ID), candidates.column(s.ITEM_ID).combine_chunks())
    future = later.filter(pc.and_(has_history, known))
    if future.num_rows > max_questions:
        random = np.random.default_rng(_QUESTION_SEED)
        future = future.take(np.sort(random.permutation(future.num_rows)[:max_questions]))
    asked = questions(future, candidates=candidates, training=training, exclude_seen=False)
    seen = seen_before(future, samples, candidates)
    seen = seen.filter(pl.col("row") != pl.Series(asked.targets).gather(seen["sample"]))
    asked = dataclasses.replace(
        asked, seen_sample=seen["sample"].to_numpy(), seen_candidate=seen["row"].to_numpy()
    )
    return Split(training=training, asked=asked, num_later=later.num_rows)


def test_split(dataset: Dataset, *, max_questions: int) -> Split:
    """Trains on everything before the test period."""
    return split(dataset, cut_ms=dataset.test_ms, max_questions=max_questions)


def validation_split(dataset: Dataset, *, max_questions: int) -> Split:
    """Trains on what is before the validation cut, and asks of it alone."""
    return split(
        dataset,
        cut_ms=dataset.validation_ms,
        until_ms=dataset.test_ms,
        max_questions=max_questions,
    )
