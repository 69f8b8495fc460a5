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
import pyarrow.compute as pc
import tensorflow as tf

from models.contract import Tensors
from models.features import arrow_features
from models.two_tower import TwoTower
from pipeline.schema import HISTORY_ITEM_ID, ITEM_ID, SCENARIO, TIMESTAMP_MS, USER_ID
from pipeline.specification import Specification

Parameters = Mapping[str, np.ndarray | tf.Tensor]
Side = Literal["query", "candidate"]


def check_parameters(model: TwoTower, parameters: Parameters) -> None:
    """Checks that parameters are a model's.

    Raises:
        ValueError: If one is missing or of another shape; it lists all of them.
    """
    shapes: dict[str, tuple[int, ...]] = {each.name: each.shape for each in model.weights}
    shapes |= {table.name: (table.buckets, table.dim) for table in model.tables}
    problems = []
    for name, shape in shapes.items():
        found = parameters[name].shape if name in parameters else None
        if found != shape:
            problems.append(f"parameter {name!r}: found shape {found}; expected {shape}")
    if problems:
        raise ValueError("\n".join(problems))


def split_parameters(model: TwoTower, parameters: Parameters) -> tuple[Tensors, Tensors]:
    """Returns a model's tables and weights as tensors, by name.

    Raises:
        ValueError: If the parameters are not the model's.
    """
    check_parameters(model, parameters)
    tables = {each.name: tf.constant(parameters[each.name], tf.float32) for each in model.tables}
    weights = {each.name: tf.constant(parameters[each.name], tf.float32) for each in model.weights}
    return tables, weights


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


def latest_items(samples: pa.Table, specification: Specification) -> pa.Table:
    """Finds every item, with the features of its latest sample.

    Args:
        samples: Retrieval samples.
        specification: Names the candidate features and the titles.

    Returns:
        `item_id`, the other candidate features, and the title column if there is one; one row per
        item, ordered by id.
    """
    names = [ITEM_ID, *(feature.name for feature in specification.candidate_features)]
    if specification.titles is not None:
        names.append(specification.titles)
    latest = (
        _frame(samples)
        .sort(TIMESTAMP_MS, maintain_order=True)
        .unique(ITEM_ID, keep="last", maintain_order=True)
        .sort(ITEM_ID)
        .select(list(dict.fromkeys(names)))
    )
    return _arrow(latest)


def collect_candidates(samples: pa.Table, specification: Specification) -> dict[str, pa.Table]:
    """Finds the items of each scenario: those with a sample in it.

    Args:
        samples: Retrieval samples.
        specification: Names the scenarios; see `latest_items`.

    Returns:
        Rows of `latest_items`, per scenario that has samples, in the specification's order.
    """
    latest = latest_items(samples, specification)
    scenarios, items = samples.column(SCENARIO), samples.column(ITEM_ID)
    found = {}
    for scenario in specification.scenarios:
        members = pc.unique(items.filter(pc.equal(scenarios, scenario)))
        if len(members):
            found[scenario] = latest.filter(pc.is_in(latest.column(ITEM_ID), members))
    return found


def collect_queries(samples: pa.Table, specification: Specification) -> pa.Table:
    """Finds each user's latest query features, with the history brought up to now.

    A sample's history ends before its own event; now all of them are past. So a user's history is
    that of the earliest sample, then the items of all samples, and the oldest are cut off.

    Args:
        samples: Retrieval samples.
        specification: Names the query features and the length of the history.

    Returns:
        `user_id`, `timestamp_ms` of the latest sample, `history_item_id`, and the other query
        features; one row per user, ordered by id.
    """
    frame = _frame(samples)
    names = [feature.name for feature in specification.query_features]
    history = pl.col(ITEM_ID).implode()
    if HISTORY_ITEM_ID in frame.columns:
        before = pl.col(HISTORY_ITEM_ID).first().fill_null([])
        history = before.list.concat(history)
    queries = (
        frame.sort(TIMESTAMP_MS, maintain_order=True)
        .group_by(USER_ID)
        .agg(
            pl.col(TIMESTAMP_MS).last(),
            history.list.tail(specification.history.length).alias(HISTORY_ITEM_ID),
            *(
                pl.col(name).last()
                for name in names
                if name not in (USER_ID, TIMESTAMP_MS, HISTORY_ITEM_ID)
            ),
        )
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
