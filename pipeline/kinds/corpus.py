"""The corpus: the items of each scenario, as of the end of a day.

For index building, uniform negatives, and mutual information of features. An item is in a scenario
from its first impression or positive there on, as far as `samples.lookback_days` goes back.
"""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.days import MS_PER_DAY
from pipeline.specification import Specification

COUNTS = (
    s.ITEM_SCENARIO_IMPRESSIONS,
    s.ITEM_SCENARIO_POSITIVES,
    s.ITEM_IMPRESSIONS,
    s.ITEM_POSITIVES,
)


def schema(specification: Specification) -> pa.Schema:
    """Time (the last millisecond of the day), scenario, item, what it is, and its counts."""
    types = specification.column_types
    names = [s.TIMESTAMP_MS, s.SCENARIO, s.ITEM_ID, *specification.item_columns]
    columns = {name: types[name] for name in names}
    return s.arrow_schema(columns | dict.fromkeys(COUNTS, "int64"))


def make(items: pl.DataFrame, specification: Specification, day: int) -> pa.Table:
    """Returns the corpus of one part of the items, by (scenario, item).

    Args:
        items: One row for each scenario and item as of the end of the day, with totals and
            columns; see `pipeline.known.items`.
        specification: Says what an item is.
        day: The day.
    """
    wanted = schema(specification)
    rows = items.with_columns(
        pl.lit((day + 1) * MS_PER_DAY - 1, pl.Int64).alias(s.TIMESTAMP_MS)
    ).sort(s.SCENARIO, s.ITEM_ID)
    return rows.select(wanted.names).to_arrow().cast(wanted)
