"""How many samples were dropped, and why, on the way from a kind's function to the manifest.

The counts travel with the table of those that were made, in its schema's metadata: whoever only
wants the table needs to know nothing of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Final

import pyarrow as pa

from pipeline.manifest import Report, merge_reports

_KEY: Final = b"headrace.dropped"

Dropped = dict[str, dict[str, int]]
"""Counts by reason, by day (YYYY-MM-DD)."""


def with_dropped(table: pa.Table, dropped: Mapping[str, Mapping[str, int]]) -> pa.Table:
    """Returns the table with counts of what is not in it."""
    return table.replace_schema_metadata({_KEY: json.dumps(dropped)}) if dropped else table


def take_dropped(table: pa.Table) -> tuple[pa.Table, Dropped]:
    """Returns the table without metadata, and the counts that `with_dropped` gave it."""
    found = (table.schema.metadata or {}).get(_KEY)
    return table.replace_schema_metadata(None), {} if found is None else json.loads(found)


def report_dropped(kind: str, dropped: Dropped) -> Report:
    """Returns the counts as the manifest has them, each named after the kind."""
    days = {
        day: {f"{kind} {reason}": count for reason, count in counts.items()}
        for day, counts in dropped.items()
    }
    total = merge_reports(Report(counts=counts) for counts in days.values())
    return Report(counts=total.counts, days=days)
