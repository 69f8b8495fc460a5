"""The rows of a record as bytes: one Arrow batch, or single Examples or JSON objects."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.publish.config import PublishConfig
from pipeline.schema import TIMESTAMP_MS
from pipeline.topics.record import FORMAT_HEADER, JSON_FORMAT, Headers, encode

RAW: Final = "headrace-raw"
"""A hidden column of rows that are sent as they are: the bytes; null in rows that are events."""

_JSON_HEADERS: Final[Headers] = [(FORMAT_HEADER, JSON_FORMAT)]

Encoded = tuple[bytes, Headers, int | None]
"""Value, headers, and event time in milliseconds of a Kafka record."""


def encoded(config: PublishConfig, rows: pa.Table) -> Iterator[Encoded]:
    """Yields what the rows of one record become: one Kafka record, or one of each row."""
    if config.value_format == "arrow":
        value, headers = encode(rows)
        timed = TIMESTAMP_MS in rows.column_names
        yield value, headers, pc.max(rows[TIMESTAMP_MS]).as_py() if timed else None
        return
    if config.value_format == "json":
        headers, values = _JSON_HEADERS, json_lines(rows)
    else:
        # TFX's codec takes a while to import.
        from pipeline.topics.example import HEADERS, encode_examples

        headers, values = HEADERS, encode_examples(rows)
    timed = TIMESTAMP_MS in rows.column_names
    times = rows[TIMESTAMP_MS].to_pylist() if timed else [None] * rows.num_rows
    for value, time_ms in zip(values, times, strict=True):
        yield value, headers, time_ms


def json_lines(events: pa.Table) -> list[bytes]:
    """Returns a JSON object for each row, all columns in it; what is in `RAW` stands as it is."""
    raw = events[RAW].to_pylist() if RAW in events.column_names else [None] * events.num_rows
    events = events.select([name for name in events.column_names if name != RAW])
    frame = pl.DataFrame(pl.from_arrow(events))
    lines = frame.write_ndjson().encode().split(b"\n")[: events.num_rows]
    return [line if bytes_ is None else bytes_ for line, bytes_ in zip(lines, raw, strict=True)]
