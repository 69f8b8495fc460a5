"""A SYNTHETIC stream whose users change their minds, in three topics of unequal age.

There are groups of users and blocks of items; a group likes one block, and another one after
`PHASE_HOURS`, another one again after those. `home` holds three days of that, its backlog; `search`
and `video` hold its last six hours. Each has eight partitions, by user.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest import MANIFEST_NAME, Manifest, OutputFile
from pipeline.publish import PublishConfig, publish
from pipeline.schema import schema_fingerprint
from pipeline.specification import Specification

HOUR_MS: Final = 3_600_000
START_MS: Final = 1_767_225_600_000  # 2026-01-01
HOURS: Final = 72
FRESH_HOURS: Final = 6
PHASE_HOURS: Final = 12
PARTITIONS: Final = 8
TOPICS: Final = {"home": HOURS, "search": FRESH_HOURS, "video": FRESH_HOURS}
_USERS, _GROUPS, _ITEMS, _BLOCKS = 320, 20, 400, 40
_FAITHFUL = 0.8  # the rest of the samples is noise
_SAMPLES_PER_RECORD = 250
DIM: Final = 16
SPECIFICATION: Final[dict[str, Any]] = {
    "name": "bench-alignment",
    "scenarios": ["any"],
    "tables": {
        "user": {"buckets": 4 * _USERS, "dim": DIM},
        "item": {"buckets": 4 * _ITEMS, "dim": DIM},
    },
    "features": {
        "query": [{"name": "user_id", "kind": "id", "table": "user"}],
        "candidate": [{"name": "item_id", "kind": "id", "table": "item"}],
    },
}


def publish_topics(folder: Path, address: str, *, samples: int) -> None:
    """Publishes the three topics: `samples` to the one with the backlog, a sixth to each other."""
    schema = Specification.model_validate(SPECIFICATION).sample_schema
    for seed, (topic, hours) in enumerate(TOPICS.items()):
        count = samples if hours == HOURS else samples // 6
        _write(folder / topic, _samples(count, hours, schema, np.random.default_rng(seed)))
        config = PublishConfig(
            bootstrap_servers=[address],
            directory=folder / topic,
            topic=topic,
            create_partitions=PARTITIONS,
            samples_per_record=_SAMPLES_PER_RECORD,
        )
        publish(config, schema)


def _samples(count: int, hours: int, schema: pa.Schema, random: np.random.Generator) -> pa.Table:
    """Returns samples of the last hours, in the order of time."""
    end = START_MS + HOURS * HOUR_MS
    times = np.sort(random.integers(end - hours * HOUR_MS, end, count))
    users = random.integers(0, _USERS, count)
    phase = (times - START_MS) // (PHASE_HOURS * HOUR_MS)
    # Every phase takes each group to a block of its own, a third of the blocks further on.
    block = (users % _GROUPS * 2 + phase * 13) % _BLOCKS
    size = _ITEMS // _BLOCKS
    liked = block * size + random.integers(0, size, count)
    items = np.where(random.random(count) < _FAITHFUL, liked, random.integers(0, _ITEMS, count))
    columns = {
        "event_id": pa.array(np.arange(count)).cast(pa.string()),
        "timestamp_ms": times,
        "user_id": users,
        "item_id": items,
        "scenario": pa.array(["any"] * count),
        "reward": np.ones(count, np.float32),
    }
    return pa.table({name: columns[name] for name in schema.names}, schema=schema)


def _write(folder: Path, samples: pa.Table) -> None:
    """Writes samples as `headrace samples` would, but all as one day."""
    day = "2026-01-01"
    (folder / f"dt={day}").mkdir(parents=True)
    parts = samples.column("user_id").to_numpy() // _GROUPS % PARTITIONS
    files = []
    for part in range(PARTITIONS):
        table = samples.filter(pa.array(parts == part))
        path = f"dt={day}/part-{part:05}.parquet"
        pq.write_table(table, folder / path)
        files.append(OutputFile(path=path, day=day, part=part, rows=table.num_rows, sha256=""))
    manifest = Manifest(
        sample_schema=schema_fingerprint(samples.schema),
        config="",
        specification="",
        watermark_ms=None,
        num_parts=PARTITIONS,
        counts={},
        rejects={},
        outcomes={},
        inputs=[],
        files=files,
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())
