"""The samples that `headrace bench stream` trains on, in files and in a broker."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from jobs.bench.archive import write_archive
from pipeline.publish import PublishConfig, publish
from pipeline.schema import InputError
from pipeline.specification import Specification

logger = logging.getLogger(__name__)

DIM: Final = 32
FREQUENCY: Final = {"buckets": 131_072}  # more than items
TOPIC: Final = "bench-stream"
EXAMPLE_TOPIC: Final = "bench-stream-example"
USERS: Final = 200_000
ITEMS: Final = 100_000
HISTORY: Final = 10
_PARTS = 4
SPECIFICATION: Final[dict[str, Any]] = {
    "name": "bench-stream",
    "scenarios": ["any"],
    "history": {"length": HISTORY},
    "tables": {
        "user": {"buckets": USERS, "dim": DIM},
        "item": {"buckets": ITEMS, "dim": DIM},
    },
    "features": {
        "query": [
            {"name": "user_id", "kind": "id", "table": "user"},
            {"name": "history_item_id", "kind": "ids", "table": "item"},
        ],
        "candidate": [{"name": "item_id", "kind": "id", "table": "item"}],
    },
}


def specification() -> Specification:
    """Returns what the samples of this benchmark are."""
    return Specification.model_validate(SPECIFICATION)


def write_samples(folder: Path, count: int, described: Specification | None = None) -> None:
    """Writes `count` samples as `headrace samples` would.

    Args:
        folder: To make.
        count: How many.
        described: What they are samples of, if its tables have other sizes than this benchmark's.
    """
    described = described or specification()
    parts = _parts(count // _PARTS, described.sample_schema)
    write_archive(folder, parts, described, day="2026-01-01", row_group_size=32_768)


def _parts(rows: int, schema: pa.Schema) -> Iterator[pa.Table]:
    random = np.random.default_rng(1)
    for _ in range(_PARTS):
        # Zipf with exponent 1.1, folded into the catalogue.
        items = (random.zipf(1.1, rows * (HISTORY + 1)) % ITEMS).astype(np.int64)
        history = pa.ListArray.from_arrays(
            np.arange(0, rows * HISTORY + 1, HISTORY, dtype=np.int32), items[rows:]
        )
        columns = {
            "event_id": pa.array(np.arange(rows)).cast(pa.string()),
            "timestamp_ms": np.arange(rows),
            "user_id": random.integers(0, USERS, rows),
            "item_id": items[:rows],
            "scenario": pa.array(["any"] * rows),
            "reward": np.ones(rows, np.float32),
            "history_item_id": history,
        }
        yield pa.table(columns, schema=schema)


def publish_samples(samples: Path, address: str, *, topic: str) -> None:
    """Publishes the written samples to TOPIC or EXAMPLE_TOPIC, as `headrace publish` would."""
    config = PublishConfig(
        bootstrap_servers=[address],
        directory=samples,
        topic=topic,
        create_partitions=_PARTS,
        value_format="example" if topic == EXAMPLE_TOPIC else "arrow",
        compression="lz4",
    )
    started = time.monotonic()
    counts = publish(config, specification().sample_schema).counts
    rate = sum(count.samples for count in counts) / (time.monotonic() - started)
    logger.info("published at %.0f samples/s", rate)


@contextlib.contextmanager
def broker(address: str | None) -> Iterator[str]:
    """Yields the address of a broker: the given one, or the tests' own, started for the while."""
    if address is not None:
        yield address
        return
    # Tests are not shipped, so their broker is a program that may be missing, not an import.
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kafka", "--port", "0"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        started = server.stdout.readline().strip() if server.stdout else ""
        if not started:
            said = server.stderr.read().strip().splitlines() if server.stderr else []
            raise InputError(
                "--kafka: found no broker; expected HOST:PORT, or a checkout after 'make kafka':"
                f" {said[-1] if said else 'it said nothing'}"
            )
        yield started
        server.communicate()
