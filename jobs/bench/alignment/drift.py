"""A SYNTHETIC stream whose users change their minds, in three topics of unequal age.

There are groups of users and blocks of items; a group likes one block, and another one after
`PHASE_HOURS`, another one again after those. `home` holds three days of that, its backlog; `search`
and `video` hold its last six hours. Each has eight partitions, by user.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from jobs.bench.archive import write_archive
from pipeline.publish import PublishConfig, publish
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
    specification = Specification.model_validate(SPECIFICATION)
    schema = specification.sample_schema
    for seed, (topic, hours) in enumerate(TOPICS.items()):
        count = samples if hours == HOURS else samples // 6
        drawn = _samples(count, hours, schema, np.random.default_rng(seed))
        write_archive(folder / topic, _parts(drawn), specification, day="2026-01-01")
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


def _parts(samples: pa.Table) -> Iterator[pa.Table]:
    """Yields the samples of each partition: users who are alike are spread over all of them."""
    parts = samples.column("user_id").to_numpy() // _GROUPS % PARTITIONS
    for part in range(PARTITIONS):
        yield samples.filter(pa.array(parts == part))
