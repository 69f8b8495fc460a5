"""One part of the users: their events joined, and what earlier days know of them."""

from __future__ import annotations

import dataclasses
from functools import cached_property

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.days import MS_PER_DAY, Span, name_of
from pipeline.join.labels import IMPRESSION_ROW, OUTCOME_TIME_MS, find_positives, with_labels
from pipeline.join.step import FATE, FOREVER_MS, IDENTITY, Closed, JoinRule, JoinState, step
from pipeline.known.facts import (
    BEHAVIOURS,
    IMPRESSIONS,
    POSITIVES,
    SEEN,
    Facts,
    behaviours_schema,
    positives_schema,
    seen_schema,
)
from pipeline.known.tables import Tables, as_of
from pipeline.positions import IntArray
from pipeline.specification import Specification

DAY = "day"


@dataclasses.dataclass(frozen=True, kw_only=True)
class UserPart:
    """Everything that samples of some users are made of. Kinds read it and change nothing.

    Attributes:
        specification: What samples are made of.
        span: The days that are built.
        impressions: Closed impressions of the span and its margins, in no order that means
            anything: event columns, and those of tables with validity, as of their time.
        outcomes: Joined outcomes, with `impression`, a row number in `impressions`.
        positives: The impressions that are positives, with `reward` and `outcome_time_ms`.
        positive_rows: [num_positives] their row numbers in `impressions`.
        behaviours: Outcomes of the span and its margins, joined or not.
        facts: Of the days before the span.
        tables: With validity, of these users and their items.
        counts: Events of each day of the span by what became of them.
        outside: Events that were read for the margins alone, redeliveries left out.
        duplicates: Redeliveries.
    """

    specification: Specification
    span: Span
    impressions: pl.DataFrame
    outcomes: pl.DataFrame
    positives: pl.DataFrame
    positive_rows: IntArray
    behaviours: pl.DataFrame
    facts: Facts
    tables: Tables
    counts: dict[str, dict[str, int]]
    outside: int
    duplicates: int

    def in_span(self, rows: pl.DataFrame, time: str = s.TIMESTAMP_MS) -> pl.DataFrame:
        """Returns the rows whose time is in the days that are built."""
        start, end = self.span.bounds
        return rows.filter(pl.col(time).is_between(start, end, closed="left"))

    @cached_property
    def known_positives(self) -> pl.DataFrame:
        """All positives, of facts and of now, by when they became known; see `positives_schema`."""
        now = self.positives.select(self.facts.positives.columns)
        start, _ = self.span.bounds
        now = now.filter(pl.col(OUTCOME_TIME_MS) >= start)  # the others are facts already
        order = [OUTCOME_TIME_MS, s.TIMESTAMP_MS, s.EVENT_ID]
        return pl.concat([self.facts.positives, now], how="vertical_relaxed").sort(order)

    @cached_property
    def known_behaviours(self) -> pl.DataFrame:
        """All behaviours, of facts and of now, by (time, event_id); see `behaviours_schema`."""
        start, _ = self.span.bounds
        now = self.behaviours.filter(pl.col(s.TIMESTAMP_MS) >= start)
        now = now.select(self.facts.behaviours.columns)
        known = pl.concat([self.facts.behaviours, now], how="vertical_relaxed")
        return known.sort(s.TIMESTAMP_MS, s.EVENT_ID)

    def new_facts(self) -> dict[str, pl.DataFrame]:
        """Returns what became known in the days of the span, by kind of fact, with `day`."""
        types = self.specification
        made = {
            POSITIVES: (self.in_span(self.positives, OUTCOME_TIME_MS), positives_schema(types)),
        }
        if types.kinds.behaviour is not None:
            made[BEHAVIOURS] = (self.in_span(self.behaviours), behaviours_schema(types))
        facts = {}
        for kind, (rows, schema) in made.items():
            time = OUTCOME_TIME_MS if kind == POSITIVES else s.TIMESTAMP_MS
            rows = rows.sort(time, s.EVENT_ID)
            facts[kind] = rows.select(*schema.names, (pl.col(time) // MS_PER_DAY).alias(DAY))
        if types.kinds.scenario is not None or types.kinds.pair is not None:
            seen = self.in_span(self.impressions).group_by(
                s.USER_ID, s.SCENARIO, (pl.col(s.TIMESTAMP_MS) // MS_PER_DAY).alias(DAY)
            )
            counted = seen.agg(pl.len().cast(pl.Int64).alias(IMPRESSIONS))
            names = seen_schema(types).names
            facts[SEEN] = counted.select(*names, DAY).sort(s.USER_ID, s.SCENARIO)
        return facts


def make_part(
    events: pa.Table,
    specification: Specification,
    *,
    span: Span,
    rule: JoinRule,
    facts: Facts,
    tables: Tables,
) -> UserPart:
    """Joins all events of some users.

    Args:
        events: Validated events, redeliveries included, in the order of the input; those that the
            span does not read are left out.
        specification: Says how impressions are labelled.
        span: The days that are built.
        rule: How outcomes are joined.
        facts: What earlier days have left.
        tables: Columns that change with time.
    """
    start, end = span.reads
    read = pl.DataFrame(pl.from_arrow(events))
    wanted = read.filter(pl.col(s.TIMESTAMP_MS).is_between(start, end, closed="left"))
    closed, _ = step(JoinState(rule), wanted, FOREVER_MS)
    impressions = tables.attach(closed.impressions, specification)
    found = find_positives(impressions, closed.outcomes, specification)
    counts, inside = _count(closed, span)
    return UserPart(
        specification=specification,
        span=span,
        impressions=impressions,
        outcomes=closed.outcomes,
        positives=with_labels(impressions, found),
        positive_rows=found[IMPRESSION_ROW].cast(pl.Int64).to_numpy(),
        behaviours=_behaviours(wanted, impressions, closed, specification, tables),
        facts=facts,
        tables=tables,
        counts=counts,
        outside=len(read) - closed.num_duplicates - inside,
        duplicates=closed.num_duplicates,
    )


def _attach_properties(
    events: pl.DataFrame, specification: Specification, tables: Tables
) -> pl.DataFrame:
    """Returns outcomes, with what the items' table says of their items as of their own time."""
    rows = events.filter(pl.col(s.ACTION) != s.IMPRESSION)
    behaviour, validity = specification.kinds.behaviour, specification.items
    if behaviour is None or validity is None or tables.items is None:
        return rows
    names = [name for name in behaviour.properties if name in validity.columns]
    return as_of(rows, tables.items, key=s.ITEM_ID, time=s.TIMESTAMP_MS, columns=names)


def _behaviours(
    events: pl.DataFrame,
    impressions: pl.DataFrame,
    closed: Closed,
    specification: Specification,
    tables: Tables,
) -> pl.DataFrame:
    """Returns all outcomes; what a joined one does not say of its item, its impression does."""
    names = behaviours_schema(specification).names
    behaviour = specification.kinds.behaviour
    if behaviour is None:
        return events.clear().select(n for n in names if n in events.columns)
    unique = events.unique(IDENTITY, keep="first", maintain_order=True)
    rows = _attach_properties(unique, specification, tables)
    properties = [name for name in behaviour.properties if name in specification.columns]
    if not properties:
        return rows.select(names)
    row = pl.int_range(pl.len(), dtype=pl.UInt32).alias(IMPRESSION_ROW)
    joined = closed.outcomes.select(*IDENTITY, IMPRESSION_ROW)
    joined = joined.join(impressions.select(row, *properties), on=IMPRESSION_ROW, how="left")
    rows = rows.join(
        joined.drop(IMPRESSION_ROW), on=IDENTITY, how="left", suffix="_shown", maintain_order="left"
    )
    filled = [pl.coalesce(name, f"{name}_shown").alias(name) for name in properties]
    return rows.with_columns(filled).select(names)


def _count(closed: Closed, span: Span) -> tuple[dict[str, dict[str, int]], int]:
    """Returns counts by day and by what became of events, and how many events these are."""
    start, end = span.bounds
    day = (pl.col(s.TIMESTAMP_MS) // MS_PER_DAY).alias(DAY)
    shown = closed.impressions.filter(pl.col(s.ACTION) == s.IMPRESSION).select(
        s.TIMESTAMP_MS, pl.lit("impressions").alias(FATE)
    )
    rows = pl.concat([shown, closed.decided])
    rows = rows.filter(pl.col(s.TIMESTAMP_MS).is_between(start, end, closed="left"))
    counts: dict[str, dict[str, int]] = {}
    for number, fate, count in rows.group_by(day, FATE).len().iter_rows():
        counts.setdefault(name_of(number), {})[fate] = int(count)
    return counts, len(rows)


def days_of(part: UserPart) -> list[int]:
    """Returns the days of the span on which something was shown, or became known."""
    times = [
        part.in_span(part.impressions)[s.TIMESTAMP_MS],
        part.in_span(part.positives, OUTCOME_TIME_MS)[OUTCOME_TIME_MS],
        part.in_span(part.behaviours)[s.TIMESTAMP_MS],
    ]
    days = np.unique(np.concatenate([series.to_numpy() // MS_PER_DAY for series in times]))
    return [int(day) for day in days]
