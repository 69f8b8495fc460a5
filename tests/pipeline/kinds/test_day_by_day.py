"""Days built one after another, or a few together, are the days of one build of everything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.days import MS_PER_DAY, name_of
from pipeline.manifest import read_manifest
from pipeline.samples import DayRange, SamplesConfig, make_samples
from pipeline.specification import Specification
from tests.pipeline.event_log import START

LOCAL = PipelineOptions(["--runner=FnApiRunner"])
FIRST = START // MS_PER_DAY
DAYS = (0, 1, 3, 4)  # nothing happens on the third
WINDOW_SECONDS = 5 * 3600.0


def everything() -> Specification:
    """Two kinds with everything that they can have."""
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
                "retrieval": {},
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
                "corpus": {},
            },
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
        time = (FIRST + int(rng.choice(DAYS))) * MS_PER_DAY + int(rng.integers(MS_PER_DAY))
        rows.append(
            {
                "event_id": f"e{number}",
                "request_id": f"{user}-{item}-{rng.integers(2)}",
                "timestamp_ms": time // 600_000 * 600_000,  # to ten minutes: many ties
                "user_id": user,
                "item_id": item,
                "scenario": str(rng.choice(["feed", "video"])),
                "action": str(action),
                "play_seconds": 5.0 if action == "play" else None,
                "duration_seconds": float(rng.integers(5, 15)),
                "brand": rng.choice(["x", "y"]) if rng.random() < 0.7 else None,
                "tags": rng.integers(9, size=rng.integers(4)).tolist(),
            }
        )
    types = everything().event_schema
    for day in DAYS:
        found = [row for row in rows if row["timestamp_ms"] // MS_PER_DAY == FIRST + day]
        path = folder / "logs" / f"dt={name_of(FIRST + day)}" / "log.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(pa.Table.from_pylist(found, schema=types), path)
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


def build(folder: Path, name: str, days: DayRange | None = None, **settings) -> dict[str, str]:
    """Returns the hash of every file."""
    config = SamplesConfig(
        inputs=[f"{folder}/logs"],
        users=[f"{folder}/users.parquet"],
        items=[f"{folder}/items.parquet"],
        output=folder / name,
        join_window_seconds=WINDOW_SECONDS,
        num_parts=2,
        **settings,
    )
    make_samples(config, everything(), LOCAL, days=days)
    return {file.path: file.sha256 for file in read_manifest(folder / name).files}


RANGE = DayRange(name_of(FIRST), name_of(FIRST + 4))


@pytest.mark.slow
@pytest.mark.parametrize("lookback_days", [None, 1, 2])
@pytest.mark.parametrize("seed", [1, 2])
def test_day_by_day_equals_all_at_once(tmp_path, seed, lookback_days) -> None:
    write_world(tmp_path, seed=seed)
    expected = build(tmp_path, "all", lookback_days=lookback_days)
    assert build(tmp_path, "each", RANGE, lookback_days=lookback_days) == expected
    three = build(tmp_path, "three", RANGE, lookback_days=lookback_days, days_at_once=3)
    assert three == expected
    kinds = {path.split("/dt=")[0] for path in expected}
    assert kinds >= {"retrieval", "behaviour", "corpus", "facts/behaviours", "facts/positives"}


@pytest.mark.slow
def test_a_day_does_not_depend_on_those_that_are_not_near(tmp_path) -> None:
    """Without lookback beyond a day, logs of older days may be gone when a day is built again."""
    write_world(tmp_path, seed=3)
    expected = build(tmp_path, "all", RANGE, lookback_days=1)
    (tmp_path / "logs" / f"dt={name_of(FIRST)}" / "log.parquet").unlink()
    last = name_of(FIRST + 4)
    assert build(tmp_path, "all", DayRange(last, last, rebuild=True), lookback_days=1) == expected
