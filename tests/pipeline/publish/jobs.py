"""Jobs whose rows in the topic can be told by their numbers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.shuffle import hash_keys
from pipeline.topics.record import decode
from tests.pipeline.event_log import START, event, specification
from tests.pipeline.publish.reading import committed
from tests.sample_folder import write_samples

SCHEMA = specification().event_schema
"""Of events, and of samples too: what matters here is which rows come, and in what order."""

PARTITIONS = 3
ROWS = 4000


def rows() -> list[dict[str, Any]]:
    """Events of 200 users, one a second."""
    return [event(f"e{n:05}", 1000 * n, (n * 7919) % 200, n) for n in range(ROWS)]


def write_folder(folder: Path) -> None:
    """Writes the rows as samples of two days in three parts."""
    table = pa.Table.from_pylist(rows(), SCHEMA)
    parts = (hash_keys(table["user_id"]) % 3).tolist()
    tables = {}
    for day, start in (("2026-01-01", 0), ("2026-01-02", ROWS // 2)):
        for part in range(3):
            chosen = [n for n in range(start, start + ROWS // 2) if parts[n] == part]
            tables[day, part] = table.take(pa.array(chosen))
    write_samples(folder, tables, row_group_size=500)


def write_logs(folder: Path) -> None:
    """Writes the rows as three files of JSON lines, in no order."""
    folder.mkdir(parents=True)
    shuffled = [row for start in range(7) for row in rows()[start::7]]
    for number in range(3):
        some = shuffled[number::3]
        text = "".join(f"{json.dumps(row)}\n" for row in some)
        (folder / f"{number}.jsonl").write_text(text)


def wanted() -> dict[int, list[int]]:
    """Returns the rows of each partition, by their numbers, in the order of time."""
    numbers = hash_keys(pa.array([row["user_id"] for row in rows()])) % PARTITIONS
    return {p: [n for n in range(ROWS) if numbers[n] == p] for p in range(PARTITIONS)}


def found(kafka: str, topic: str) -> dict[int, list[list[int]]]:
    """Returns the rows of each committed record of each partition, by their numbers."""
    return {
        number: [[(time - START) // 1000 for time in _times(record.value)] for record in records]
        for number, records in committed(kafka, topic).items()
    }


def _times(value: bytes) -> list[int]:
    times: list[int] = decode(value, schema=SCHEMA, where="here")["timestamp_ms"].to_pylist()
    return times


def options(folder: Path, kafka: str, topic: str, *, events: bool, **other: Any) -> dict[str, Any]:
    """Returns the options of a job that sends the rows that were written to a folder."""
    source = {"events": [str(folder)]} if events else {"directory": str(folder)}
    return {
        "bootstrap_servers": [kafka],
        "topic": topic,
        "create_partitions": PARTITIONS,
        "samples_per_record": 10,
        **source,
        **other,
    }
