"""The samples of a counting run: what there is to know of them without TensorFlow."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa


def specification(rows: int) -> dict[str, Any]:
    """Returns the specification of a model with one counter per sample."""
    return {
        "name": "counting",
        "scenarios": ["any"],
        "tables": {"counter": {"buckets": rows, "dim": 1}},
        "features": {
            "query": [{"name": "user_id", "kind": "id", "table": "counter"}],
            "candidate": [{"name": "item_id", "kind": "id", "table": "counter"}],
        },
    }


def numbered(numbers: np.ndarray, schema: pa.Schema) -> pa.Table:
    """Returns samples whose item ids are their numbers."""
    columns = {
        "event_id": [f"e{number}" for number in numbers],
        "timestamp_ms": numbers,
        "user_id": np.zeros_like(numbers),
        "item_id": numbers,
        "scenario": ["any"] * len(numbers),
        "reward": np.ones(len(numbers), np.float32),
    }
    return pa.table(columns, schema=schema)
