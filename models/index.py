"""What a served model needs beyond its parameters: candidates, users' queries, and vectors of both.

The candidates and queries are collected from the samples themselves, so that what is served was
computed by the same code as what was trained on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import polars as pl
import pyarrow as pa
import tensorflow as tf

from models.contract import Tensors
from models.features import arrow_features
from models.two_tower import TwoTower
from pipeline.schema import HISTORY_ITEM_ID, ITEM_ID, SCENARIO, TIMESTAMP_MS, USER_ID
from pipeline.specification import Specification

Parameters = Mapping[str, np.ndarray]
Side = Literal["query", "candidate"]

# Column of `index/SCENARIO/candidates.parquet` beside the item's id and title.
VECTOR = "vector"


def split_parameters(model: TwoTower, parameters: Parameters) -> tuple[Tensors, Tensors]:
    """Returns a model's tables and weights as tensors, by name.

    Raises:
        ValueError: If one is missing or of another shape: the parameters are of another model.
    """
    tables = {table.name: (table.buckets, table.dim) for table in model.tables}
    weights = {weight.name: weight.shape for weight in model.weights}
    problems = []
    for name, shape in (tables | weights).items():
        found = None if name not in parameters else parameters[name].shape
        if found != shape:
            problems.append(f"parameter {name!r}: expected shape {shape}, found {found}")
    if problems:
        raise ValueError("\n".join(problems))
    return (
        {name: tf.constant(parameters[name], tf.float32) for name in tables},
        {name: tf.constant(parameters[name], tf.float32) for name in weights},
    )


def vectors(
    model: TwoTower,
    parameters: Parameters,
    rows: pa.Table,
    *,
    side: Side,
    batch_size: int = 8192,
) -> np.ndarray:
    """Applies one tower to rows of raw features.

    Args:
        model: The model.
        parameters: Values of its tables and weights.
        rows: [num_rows] rows with that tower's feature columns.
        side: Which tower.
        batch_size: Rows at a time, which bounds the memory.

    Returns:
        [num_rows, dim] float32.
    """
    tables, weights = split_parameters(model, parameters)
    inputs, tower = (
        (model.query_inputs, model.query)
        if side == "query"
        else (model.candidate_inputs, model.candidate)
    )
    parts = [np.zeros((0, model.config.dim), np.float32)]
    for start in range(0, rows.num_rows, batch_size):
        features = arrow_features(rows.slice(start, batch_size), inputs)
        parts.append(tower(model.encode(features), tables=tables, weights=weights).numpy())
    return np.concatenate(parts)


def collect_candidates(samples: pa.Table, specification: Specification) -> dict[str, pa.Table]:
    """Finds the items of each scenario, each with its latest features.

    An item belongs to a scenario in which it has a sample; its features are those of its latest
    sample in any scenario.

    Args:
        samples: Retrieval samples.
        specification: Names the candidate features and the titles.

    Returns:
        Per scenario that has samples, in the specification's order: `item_id`, the other candidate
        features, and the title column if there is one; one row per item, ordered by id.
    """
    names = [feature.name for feature in specification.candidate_features]
    if specification.titles is not None and specification.titles not in names:
        names.append(specification.titles)
    frame = _frame(samples)
    latest = (
        frame.sort(TIMESTAMP_MS, maintain_order=True)
        .unique(ITEM_ID, keep="last", maintain_order=True)
        .select([ITEM_ID, *(name for name in names if name != ITEM_ID)])
        .sort(ITEM_ID)
    )
    members = frame.select(SCENARIO, ITEM_ID).unique()
    found = {}
    for scenario in specification.scenarios:
        items = members.filter(pl.col(SCENARIO) == scenario)
        if items.height:
            found[scenario] = _arrow(latest.join(items.select(ITEM_ID), on=ITEM_ID, how="semi"))
    return found


def collect_queries(samples: pa.Table, specification: Specification) -> pa.Table:
    """Finds each user's latest query features, brought up to now.

    A sample's history ends before its own event; now that event is past, so its item (and those of
    the same millisecond) is appended, and the oldest cut off.

    Args:
        samples: Retrieval samples.
        specification: Names the query features and the length of the history.

    Returns:
        `user_id`, `timestamp_ms` of the latest sample, `history_item_id`, and the other query
        features; one row per user, ordered by id.
    """
    frame = _frame(samples)
    names = [feature.name for feature in specification.query_features]
    kept = [name for name in names if name not in (USER_ID, TIMESTAMP_MS, HISTORY_ITEM_ID)]
    latest_time = pl.col(TIMESTAMP_MS) == pl.col(TIMESTAMP_MS).max().over(USER_ID)
    if HISTORY_ITEM_ID not in frame.columns:
        history = pl.col(ITEM_ID).sort_by(TIMESTAMP_MS)
    else:
        before = pl.col(HISTORY_ITEM_ID).filter(pl.col("is_latest")).last()
        history = before.list.concat(pl.col(ITEM_ID).filter(pl.col("is_latest")).implode())
    queries = (
        frame.with_columns(latest_time.alias("is_latest"))
        .sort(TIMESTAMP_MS, maintain_order=True)
        .group_by(USER_ID)
        .agg(
            pl.col(TIMESTAMP_MS).max(),
            history.alias(HISTORY_ITEM_ID),
            *(pl.col(name).last() for name in kept),
        )
        .with_columns(pl.col(HISTORY_ITEM_ID).list.tail(specification.history.length))
        .sort(USER_ID)
    )
    return _arrow(queries)


def _frame(samples: pa.Table) -> pl.DataFrame:
    frame = pl.from_arrow(samples)
    return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()


def _arrow(frame: pl.DataFrame) -> pa.Table:
    """Returns an Arrow table of the small types (`string`, `list`) that the schema names."""
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    fields = [pa.field(field.name, _small(field.type)) for field in table.schema]
    return table.cast(pa.schema(fields))


def _small(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_large_list(kind):
        return pa.list_(_small(kind.value_type))
    return kind
