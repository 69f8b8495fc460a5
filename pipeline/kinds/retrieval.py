"""Retrieval samples: one for each positive, with what was known when it was shown."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.days import MS_PER_DAY
from pipeline.join import OUTCOME_TIME_MS
from pipeline.kinds.part import UserPart
from pipeline.known.history import recent_items
from pipeline.known.items import ItemDays
from pipeline.shuffle import IntArray
from pipeline.specification import Specification

STATISTICS = (s.ITEM_IMPRESSIONS, s.ITEM_POSITIVES)


def schema(specification: Specification) -> pa.Schema:
    """See `Specification.sample_schema`."""
    return specification.sample_schema


def needs_items(specification: Specification) -> bool:
    """Says whether a sample has statistics of its item."""
    return bool(set(STATISTICS) & set(specification.sample_schema.names))


def make(part: UserPart) -> pa.Table:
    """Returns the samples of the span's days, by (timestamp_ms, event_id), without statistics.

    A sample's time is its impression's; nothing in it is younger but the label, and exposed
    negatives, which are labels too.
    """
    positives = part.in_span(part.positives).sort(s.TIMESTAMP_MS, s.EVENT_ID)
    since = part.facts.since(positives[s.TIMESTAMP_MS].to_numpy())
    return assemble(positives, part.known_positives, part.specification, since=since)


def assemble(
    positives: pl.DataFrame,
    known: pl.DataFrame,
    specification: Specification,
    *,
    since: IntArray | None = None,
) -> pa.Table:
    """Returns sample columns of positives, all but their items' statistics.

    Args:
        positives: [num_samples] labelled impressions.
        known: Positives that histories are made of, by (outcome_time_ms, timestamp_ms, event_id).
        specification: Says which columns.
        since: [num_samples] times; what was known earlier is no history. None: all is.
    """
    wanted = schema(specification)
    computed = (s.HISTORY_ITEM_ID, s.EXPOSED_ITEM_ID, *STATISTICS)
    columns = pa.schema([field for field in wanted if field.name not in computed])
    # Polars gives large strings and lists; samples have Arrow's plain ones.
    table = positives.select(columns.names).to_arrow().cast(columns)
    if s.HISTORY_ITEM_ID in wanted.names:
        items = histories(positives, known, specification, since=since)
        table = table.append_column(s.HISTORY_ITEM_ID, items)
    return table.select([name for name in wanted.names if name in table.column_names])


def histories(
    rows: pl.DataFrame,
    known: pl.DataFrame,
    specification: Specification,
    *,
    since: IntArray | None = None,
) -> pa.ListArray:
    """Returns [num_rows, (0 to length)] items of the last positives before each row.

    Args:
        rows: [num_rows] users and times.
        known: See `assemble`.
        specification: Says how many.
        since: See `assemble`.
    """
    return recent_items(
        (
            known[s.USER_ID].to_arrow(),
            known[OUTCOME_TIME_MS].to_numpy(),
            known[s.ITEM_ID].to_arrow().cast(specification.event_schema.field(s.ITEM_ID).type),
        ),
        (rows[s.USER_ID].to_arrow(), rows[s.TIMESTAMP_MS].to_numpy()),
        length=specification.history.length,
        since=since,
    )


def with_items(samples: pa.Table, specification: Specification, items: ItemDays) -> pa.Table:
    """Adds the counts of each sample's item in the days before; 0 for an item not seen yet."""
    return add_statistics(samples, items).select(schema(specification).names)


def add_statistics(samples: pa.Table, items: ItemDays) -> pa.Table:
    """Returns samples with `item_impressions` and `item_positives` of the days before each."""
    counts = {name: np.zeros(samples.num_rows, np.int64) for name in STATISTICS}
    ids = pl.Series(pl.from_arrow(samples[s.ITEM_ID]))
    days = samples[s.TIMESTAMP_MS].to_numpy() // MS_PER_DAY
    for day in np.unique(days):
        asked = np.flatnonzero(days == day)
        totals = items.before(int(day)).totals(ids.gather(asked), STATISTICS)
        for name in STATISTICS:
            counts[name][asked] = totals[name]
    for name, values in counts.items():
        samples = samples.append_column(name, pa.array(values))
    return samples
