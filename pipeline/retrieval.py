"""Retrieval samples: one for each positive, with what was known when it was shown."""

from __future__ import annotations

import dataclasses

import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.history import recent_items
from pipeline.join import OUTCOME_TIME_MS, OrphanRule, deduplicate, join_outcomes, label
from pipeline.specification import Specification


@dataclasses.dataclass(frozen=True, slots=True)
class UserPart:
    """What one part of the users gave.

    Attributes:
        samples: Sample columns but the item statistics, sorted by (timestamp_ms, event_id).
        impressions: item_id and timestamp_ms of every impression, for item statistics.
        positives: item_id and outcome time (as timestamp_ms) of every positive, for the same.
        counts: accepted events, duplicates, impressions, samples.
        outcomes: Number of outcomes per fate.
    """

    samples: pa.Table
    impressions: pa.Table
    positives: pa.Table
    counts: dict[str, int]
    outcomes: dict[str, int]


def make_user_part(
    events: pa.Table, specification: Specification, *, window_ms: int, orphans: OrphanRule
) -> UserPart:
    """Turns all events of some users into their retrieval samples.

    A sample's time is its impression's; nothing in it but the label is younger.

    Args:
        events: Validated events, redeliveries included, in the order of the input.
        specification: Says which columns a sample has and how it is labelled.
        window_ms: See `pipeline.join.join_outcomes`.
        orphans: See `pipeline.join.join_outcomes`.
    """
    unique, num_duplicates = deduplicate(pl.DataFrame(pl.from_arrow(events)))
    impressions, outcomes, fates = join_outcomes(unique, window_ms=window_ms, orphans=orphans)
    positives = label(impressions, outcomes, specification).sort(s.TIMESTAMP_MS, s.EVENT_ID)
    samples = add_history(positives, specification)
    item_log = pa.schema([specification.event_schema.field(n) for n in (s.ITEM_ID, s.TIMESTAMP_MS)])
    counts = {
        "events_accepted": len(unique),
        "duplicates": num_duplicates,
        "impressions": len(unique) - sum(fates.values()),
        "samples": samples.num_rows,
    }
    outcome_log = positives.select(s.ITEM_ID, pl.col(OUTCOME_TIME_MS).alias(s.TIMESTAMP_MS))
    return UserPart(
        samples=samples,
        impressions=impressions.select(item_log.names).to_arrow().cast(item_log),
        positives=outcome_log.to_arrow().cast(item_log),
        counts=counts,
        outcomes=fates,
    )


def add_history(positives: pl.DataFrame, specification: Specification) -> pa.Table:
    """Returns the positives with the sample schema's columns, but item statistics.

    Two positives of a user that were decided at one time are ordered by (timestamp_ms, event_id).
    """
    wanted = without_statistics(specification.sample_schema)
    columns = pa.schema(
        [field for field in wanted if field.name != s.HISTORY_ITEM_ID]
        + [pa.field(OUTCOME_TIME_MS, pa.int64())]
    )
    # Polars gives large strings and lists; samples have Arrow's plain ones.
    table = positives.select(columns.names).to_arrow().cast(columns)
    if s.HISTORY_ITEM_ID in wanted.names:
        users, items = table[s.USER_ID], table[s.ITEM_ID].combine_chunks()
        history = recent_items(
            (users, table[OUTCOME_TIME_MS].to_numpy(), items),
            (users, table[s.TIMESTAMP_MS].to_numpy()),
            length=specification.history.length,
        )
        table = table.append_column(s.HISTORY_ITEM_ID, history)
    return table.select(wanted.names)


def without_statistics(schema: pa.Schema) -> pa.Schema:
    """Returns a sample schema without the columns that need a shuffle by item."""
    derived = (s.ITEM_IMPRESSIONS, s.ITEM_POSITIVES)
    return pa.schema([field for field in schema if field.name not in derived])
