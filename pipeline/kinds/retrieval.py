"""Retrieval samples: one for each positive, with what was known when it was shown.

The batch makes them of whole parts of the users, the live join (`pipeline.join.stream`) of what
closed: both by `assemble`.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.days import MS_PER_DAY
from pipeline.join.exposed import exposed_items, shown_items
from pipeline.join.labels import OUTCOME_TIME_MS
from pipeline.kinds.part import UserPart
from pipeline.known.history import recent_items
from pipeline.known.items import ItemDays
from pipeline.positions import IntArray
from pipeline.specification import Specification

STATISTICS: Final = (s.ITEM_IMPRESSIONS, s.ITEM_POSITIVES)
KNOWN: Final = (s.USER_ID, s.ITEM_ID, OUTCOME_TIME_MS, s.TIMESTAMP_MS, s.EVENT_ID)
"""What is kept of a positive to be history later."""


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
    positives = in_order(part.in_span(part.positives))
    length, beside = part.specification.exposed_negatives, None
    if length is not None:
        shown = shown_items(part.impressions, part.positive_rows)
        beside = exposed_items(positives, shown, window_ms=part.span.window_ms, length=length)
    since = part.facts.since(positives[s.TIMESTAMP_MS].to_numpy())
    return assemble(
        positives, part.known_positives, part.specification, exposed=beside, since=since
    )


def in_order(positives: pl.DataFrame) -> pl.DataFrame:
    """Returns positives as samples are sorted; the user settles what is left, an event_id twice."""
    return positives.sort(s.TIMESTAMP_MS, s.EVENT_ID, s.USER_ID)


def assemble(
    positives: pl.DataFrame,
    known: pl.DataFrame,
    specification: Specification,
    *,
    exposed: pa.ListArray | None = None,
    since: IntArray | None = None,
) -> pa.Table:
    """Returns sample columns of positives, all but their items' statistics.

    Two positives of a user that were decided at one time are ordered by (timestamp_ms, event_id).

    Args:
        positives: [num_samples] labelled impressions, `in_order`.
        known: Positives that histories are made of, with the columns of `KNOWN`; those of one
            outcome time in order.
        specification: Says which columns.
        exposed: [num_samples] values of `exposed_item_id`.
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
    if exposed is not None:
        table = table.append_column(s.EXPOSED_ITEM_ID, exposed)
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
    kind = specification.event_schema.field(s.ITEM_ID).type
    return recent_items(
        (
            known[s.USER_ID].to_arrow(),
            known[OUTCOME_TIME_MS].to_numpy(),
            known[s.ITEM_ID].to_arrow().cast(kind),
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
