"""Retrieval samples: one for each positive, with what was known when it was shown."""

from __future__ import annotations

import dataclasses
from typing import Final

import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.history import recent_items
from pipeline.join.exposed import exposed_items, shown_items
from pipeline.join.labels import IMPRESSION_ROW, OUTCOME_TIME_MS, find_positives, with_labels
from pipeline.join.step import FOREVER_MS, JoinRule, JoinState, OrphanRule, step
from pipeline.specification import Specification

KNOWN: Final = (s.USER_ID, s.ITEM_ID, OUTCOME_TIME_MS, s.TIMESTAMP_MS, s.EVENT_ID)
"""What is kept of a positive to be history later."""


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
    events: pa.Table,
    specification: Specification,
    *,
    window_ms: int,
    orphans: OrphanRule,
    exposed: int | None = None,
) -> UserPart:
    """Turns all events of some users into their retrieval samples.

    A sample's time is its impression's; nothing in it but the label is younger.

    Args:
        events: Validated events, redeliveries included, in the order of the input.
        specification: Says which columns a sample has and how it is labelled.
        window_ms: See `pipeline.join.step.JoinRule`.
        orphans: See `pipeline.join.step.JoinRule`.
        exposed: At most how many items `exposed_item_id` has; None: no such column.
    """
    rule = JoinRule(window_ms=window_ms, orphans=orphans)
    closed, _ = step(JoinState(rule), events, FOREVER_MS)
    found = find_positives(closed.impressions, closed.outcomes, specification)
    positives = in_order(with_labels(closed.impressions, found))
    beside = None
    if exposed is not None:
        shown = shown_items(closed, found[IMPRESSION_ROW].cast(pl.Int64).to_numpy())
        beside = exposed_items(positives, shown, window_ms=window_ms, length=exposed)
    samples = add_history(positives, specification, exposed=beside)
    item_log = pa.schema([specification.event_schema.field(n) for n in (s.ITEM_ID, s.TIMESTAMP_MS)])
    counts = {
        "events_accepted": closed.num_accepted,
        "duplicates": closed.num_duplicates,
        "impressions": closed.num_shown,
        "samples": samples.num_rows,
    }
    outcome_log = positives.select(s.ITEM_ID, pl.col(OUTCOME_TIME_MS).alias(s.TIMESTAMP_MS))
    return UserPart(
        samples=samples,
        impressions=closed.impressions.select(item_log.names).to_arrow().cast(item_log),
        positives=outcome_log.to_arrow().cast(item_log),
        counts=counts,
        outcomes=closed.fates,
    )


def in_order(positives: pl.DataFrame) -> pl.DataFrame:
    """Returns positives as samples are sorted; the user settles what is left, an event_id twice."""
    return positives.sort(s.TIMESTAMP_MS, s.EVENT_ID, s.USER_ID)


def add_history(
    positives: pl.DataFrame,
    specification: Specification,
    *,
    earlier: pl.DataFrame | None = None,
    exposed: pa.ListArray | None = None,
) -> pa.Table:
    """Returns the positives with the sample schema's columns, but item statistics.

    Two positives of a user that were decided at one time are ordered by (timestamp_ms, event_id).

    Args:
        positives: Labelled, `in_order`.
        specification: Says which columns a sample has.
        earlier: Other positives that may be history too, with the columns of `KNOWN`; none of
            `positives` is among them.
        exposed: [num_positives] values of `exposed_item_id`.
    """
    wanted = without_statistics(specification.sample_schema)
    derived = {s.HISTORY_ITEM_ID: None, s.EXPOSED_ITEM_ID: exposed}
    columns = pa.schema([field for field in wanted if field.name not in derived])
    # Polars gives large strings and lists; samples have Arrow's plain ones.
    table = positives.select(columns.names).to_arrow().cast(columns)
    names = wanted.names
    if s.HISTORY_ITEM_ID in names:
        history = _histories(positives, earlier, specification)
        table = table.append_column(s.HISTORY_ITEM_ID, history)
    if exposed is not None:
        table = table.append_column(s.EXPOSED_ITEM_ID, exposed)
        names = list(dict.fromkeys([*names, s.EXPOSED_ITEM_ID]))
    return table.select(names)


def _histories(
    positives: pl.DataFrame, earlier: pl.DataFrame | None, specification: Specification
) -> pa.ListArray:
    log = positives.select(KNOWN)
    if earlier is not None and len(earlier):
        log = in_order(pl.concat([earlier.select(KNOWN), log]))
    kind = specification.event_schema.field(s.ITEM_ID).type
    # In one type: polars' strings are Arrow's large ones.
    users = log[s.USER_ID].to_arrow()
    asked = positives.select(s.USER_ID, s.TIMESTAMP_MS)
    return recent_items(
        (users, log[OUTCOME_TIME_MS].to_numpy(), log[s.ITEM_ID].to_arrow().cast(kind)),
        (asked[s.USER_ID].to_arrow(), asked[s.TIMESTAMP_MS].to_numpy()),
        length=specification.history.length,
    )


def without_statistics(schema: pa.Schema) -> pa.Schema:
    """Returns a sample schema without the columns that need a shuffle by item."""
    derived = (s.ITEM_IMPRESSIONS, s.ITEM_POSITIVES)
    return pa.schema([field for field in schema if field.name not in derived])
