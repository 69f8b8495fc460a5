"""A small world in which everything meets: few users and items, all kinds, tables, bad rows."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.days import MS_PER_DAY, name_of
from pipeline.specification import Specification
from tests.pipeline.event_log import START

FIRST = START // MS_PER_DAY
DAYS = (0, 1, 3, 4)  # nothing happens on the third
WINDOW_SECONDS = 5 * 3600.0
NUM_BAD = 3


def everything() -> Specification:
    """All kinds, each with everything that it can have."""
    ids = {"kind": "id", "table": "t"}
    return Specification.model_validate(
        {
            "name": "everything",
            "user_id": "string",
            "columns": {"brand": "string", "tags": "list<int64>"},
            "users": {"columns": {"level": "int64"}},
            "items": {"columns": {"price": "float32"}},
            "scenarios": ["feed", "video"],
            "labels": {"video": {"play_share": 0.5}},
            "history": {"length": 3},
            "kinds": {
                "retrieval": {"exposed_negatives": 3},
                "behaviour": {
                    "length": 4,
                    "properties": ["brand", "tags", "price"],
                    "idle_share": 0.6,
                    "tasks": {
                        "ctr": {"action": "click"},
                        "grade": {"grades": {"click": 1, "cart": 3}},
                        "tags": {"column": "tags"},
                    },
                },
                "scenario": {"negatives": 2},
                "pair": {},
                "corpus": {},
            },
            "scenario_views": {"history": 3, "preferences": {"brand": 2, "price": 1}},
            "tables": {"t": {"buckets": 8}},
            "features": {
                "query": [
                    {"name": "user_id", **ids},
                    {"name": "history_item_id", "kind": "ids", "table": "t"},
                    {"name": "level", **ids},
                ],
                "candidate": [
                    {"name": "item_id", **ids},
                    {"name": "tags", "kind": "ids", "table": "t"},
                    {"name": "price", "kind": "number"},
                    {"name": "item_impressions", "kind": "number"},
                    {"name": "item_positives", "kind": "number"},
                ],
                "context": [{"name": "scenario", **ids}],
            },
        }
    )


def write_world(folder: Path, *, seed: int, num_events: int = 1500) -> None:
    """Writes logs and tables: few users and items, so that everything meets."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(num_events):
        user, item = f"u{rng.integers(12)}", int(rng.integers(15))
        action = rng.choice(["impression", "impression", "click", "cart", "play"])
        shown = action == "impression"
        time = (FIRST + int(rng.choice(DAYS))) * MS_PER_DAY + int(rng.integers(MS_PER_DAY))
        rows.append(
            {
                "event_id": f"e{number}",
                "request_id": f"{user}-{rng.integers(5)}",
                "timestamp_ms": time // 600_000 * 600_000,  # to ten minutes: many ties
                "user_id": user,
                "item_id": item,
                "scenario": str(rng.choice(["feed", "video"])),
                "action": str(action),
                "play_seconds": 5.0 if action == "play" else None,
                "duration_seconds": float(rng.integers(5, 15)),
                "brand": str(rng.choice(["x", "y"])) if shown or rng.random() < 0.5 else None,
                "tags": rng.integers(9, size=rng.integers(4)).tolist(),
            }
        )
    types = everything().event_schema
    for day in DAYS:
        found = [row for row in rows if row["timestamp_ms"] // MS_PER_DAY == FIRST + day]
        path = folder / "logs" / f"dt={name_of(FIRST + day)}" / "log.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(found, schema=types), path)
    lines = [json.dumps(row | {"action": "look", "event_id": "x"}) for row in rows[:NUM_BAD]]
    bad = folder / "logs" / f"dt={name_of(FIRST)}" / "bad.jsonl"
    bad.write_text("\n".join(lines) + "\n")
    write_table(folder / "users.parquet", "user_id", [f"u{n}" for n in range(12)], "level", rng)
    write_table(folder / "items.parquet", "item_id", list(range(15)), "price", rng)


def write_table(path: Path, key: str, ids: list, column: str, rng: np.random.Generator) -> None:
    rows = []
    for name in ids:
        for start in np.unique(rng.integers(-1, 6 * MS_PER_DAY, 3)):
            ends = start + rng.integers(MS_PER_DAY) if rng.random() < 0.3 else None
            value = int(rng.integers(100))
            rows.append((name, int(start) + FIRST * MS_PER_DAY, ends, value))
    names, starts, ends, values = zip(*rows, strict=True)
    kind = pa.float32() if column == "price" else pa.int64()
    table = pa.table(
        {
            key: list(names),
            "valid_from_ms": list(starts),
            "valid_to_ms": pa.array(
                [None if end is None else end + FIRST * MS_PER_DAY for end in ends], pa.int64()
            ),
            column: pa.array(values, kind),
        }
    )
    pq.write_table(table, path)
