"""What became known in a day, kept for later days: a build reads it in place of old events.

A positive belongs to the day of the outcome that made it one, not of its impression: before, nobody
knew. So facts of a day never change by what comes after it, and a build of one day gives what a
build of all days gives.

    facts/positives    the positives, with the columns that features look back to
    facts/behaviours   the outcomes of any kind, if behaviour samples are declared
    facts/seen         how often a user was shown something, by scenario
    facts/items        impressions and positives of an item, by scenario; its newest columns
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema as s
from pipeline.days import MS_PER_DAY, parse_day, since_lookback
from pipeline.join.labels import OUTCOME_TIME_MS
from pipeline.positions import IntArray
from pipeline.specification import Specification

POSITIVES: Final = "facts/positives"
BEHAVIOURS: Final = "facts/behaviours"
SEEN: Final = "facts/seen"
ITEMS: Final = "facts/items"

IMPRESSIONS: Final = "impressions"
POSITIVE_COUNT: Final = "positives"
NEWEST_MS: Final = "newest_ms"
NEWEST_ID: Final = "newest_event_id"


def positives_schema(specification: Specification) -> pa.Schema:
    """Columns of a positive that later samples look back to; (time, event_id) settles ties."""
    types = specification.column_types
    columns = {
        name: types[name] for name in (s.EVENT_ID, s.TIMESTAMP_MS, s.USER_ID, s.ITEM_ID, s.SCENARIO)
    }
    columns |= {OUTCOME_TIME_MS: "int64"}
    columns |= {name: types[name] for name in specification.scenario_views.preferences}
    return s.arrow_schema(columns)


def behaviours_schema(specification: Specification) -> pa.Schema:
    """Columns of a behaviour: an outcome of any kind, whether it was joined or not."""
    types = specification.column_types
    names = [s.EVENT_ID, s.TIMESTAMP_MS, s.USER_ID, s.ITEM_ID, s.SCENARIO, s.ACTION]
    if specification.kinds.behaviour is not None:
        names += specification.kinds.behaviour.properties
    return s.arrow_schema({name: types[name] for name in dict.fromkeys(names)})


def seen_schema(specification: Specification) -> pa.Schema:
    """Columns of how often a user was shown something in a scenario."""
    types = specification.column_types
    columns = {name: types[name] for name in (s.USER_ID, s.SCENARIO)}
    return s.arrow_schema(columns | {IMPRESSIONS: "int64"})


def items_schema(specification: Specification) -> pa.Schema:
    """Columns of what became known of an item in a scenario: counts, the newest impression's."""
    types = specification.column_types
    columns = {s.SCENARIO: "string", s.ITEM_ID: types[s.ITEM_ID]}
    columns |= {IMPRESSIONS: "int64", POSITIVE_COUNT: "int64"}
    columns |= {NEWEST_MS: "int64", NEWEST_ID: "string"}
    columns |= {name: types[name] for name in event_item_columns(specification)}
    return s.arrow_schema(columns)


def event_item_columns(specification: Specification) -> list[str]:
    """Columns that say what an item is and come with its impressions, not from its table."""
    return [name for name in specification.item_columns if name in specification.event_types]


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """Facts of one part of the users, of all days that a build looks back to.

    Attributes:
        positives: See `positives_schema`.
        behaviours: See `behaviours_schema`.
        seen: See `seen_schema`; a row for each day, whose first millisecond is `timestamp_ms`.
        lookback_days: How many days before its own a sample looks back; None for all.
    """

    positives: pl.DataFrame
    behaviours: pl.DataFrame
    seen: pl.DataFrame
    lookback_days: int | None = None

    def since(self, times: IntArray) -> IntArray | None:
        """Returns where the lookback of each sample begins; see `since_lookback`.

        A build of all days has older facts at hand than one of a single day, and must not use them.
        """
        return since_lookback(times, self.lookback_days)


def read_facts(
    paths: Sequence[tuple[str, str]],
    specification: Specification,
    *,
    lookback_days: int | None = None,
) -> Facts:
    """Reads the facts of one part of the users.

    Args:
        paths: (kind, path) of the files.
        specification: Says which columns they have.
        lookback_days: How many days before its own a sample looks back; None for all.
    """
    return Facts(
        positives=_read(paths, POSITIVES, positives_schema(specification)),
        behaviours=_read(paths, BEHAVIOURS, behaviours_schema(specification)),
        seen=_read_seen(paths, specification),
        lookback_days=lookback_days,
    )


def _read(paths: Sequence[tuple[str, str]], kind: str, schema: pa.Schema) -> pl.DataFrame:
    tables = [read_parquet(Path(path)) for name, path in paths if name == kind]
    return pl.DataFrame(pl.from_arrow(pa.concat_tables([schema.empty_table(), *tables])))


def _read_seen(paths: Sequence[tuple[str, str]], specification: Specification) -> pl.DataFrame:
    tables = [
        seen_schema(specification)
        .empty_table()
        .append_column(s.TIMESTAMP_MS, pa.array([], pa.int64()))
    ]
    for kind, path in paths:
        if kind == SEEN:
            table = read_parquet(Path(path))
            day = parse_day(Path(path).parent.name.removeprefix("dt="), where=path)
            times = pa.array(np.full(table.num_rows, day * MS_PER_DAY))
            tables.append(table.append_column(s.TIMESTAMP_MS, times))
    return pl.DataFrame(pl.from_arrow(pa.concat_tables(tables)))


def read_parquet(path: Path) -> pa.Table:
    """Returns a file's rows, without a column made of `dt=` in its path."""
    with pq.ParquetFile(path) as file:
        return file.read()


def newest(columns: Iterable[str]) -> list[pl.Expr]:
    """Aggregates the newest row's values, by (newest_ms, newest_event_id); null rows are oldest."""
    order = [pl.col(NEWEST_MS), pl.col(NEWEST_ID)]
    return [
        pl.col(name).sort_by(order, nulls_last=False).last()
        for name in (NEWEST_MS, NEWEST_ID, *columns)
    ]
