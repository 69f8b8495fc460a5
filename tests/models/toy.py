"""A small world for the tests of models and of what is exported from them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from models.config import TwoTowerConfig
from models.two_tower import TwoTower
from pipeline.specification import Specification

NUM_USERS, NUM_ITEMS = 8, 12


def specification(*, ids: str = "int64") -> Specification:
    """Every kind of feature, two scenarios, titles, item ids and history in one table."""
    return Specification.model_validate(
        {
            "name": "toy",
            "user_id": ids,
            "item_id": ids,
            "columns": {"title": "string", "image": "list<float32>", "age": "float32"},
            "titles": "title",
            "scenarios": ["home", "search"],
            "history": {"length": 3},
            "tables": {"users": {"buckets": 64, "dim": 4}, "items": {"buckets": 97, "dim": 4}},
            "features": {
                "query": [
                    {"name": "user_id", "kind": "id", "table": "users"},
                    {"name": "history_item_id", "kind": "ids", "table": "items"},
                    {"name": "age", "kind": "number", "scale": 0.01},
                ],
                "candidate": [
                    {"name": "item_id", "kind": "id", "table": "items"},
                    {"name": "item_positives", "kind": "number", "log1p": True},
                    {"name": "image", "kind": "vector", "size": 2},
                ],
            },
        }
    )


def model(*, ids: str = "int64", **config: object) -> TwoTower:
    return TwoTower(specification(ids=ids), TwoTowerConfig(hidden=(6,), dim=4, **config))


def parameters(of: TwoTower, *, seed: int = 0) -> dict[str, np.ndarray]:
    """Random values of every table and weight, biases too."""
    random = np.random.default_rng(seed)
    shapes = {table.name: (table.buckets, table.dim) for table in of.tables}
    shapes |= {weight.name: weight.shape for weight in of.weights}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def samples(*, ids: str = "int64", num: int = 60) -> pa.Table:
    """Samples in order of time; every third in `search`, which only sees the first items."""
    random = np.random.default_rng(1)
    spec = specification(ids=ids)
    rows = []
    for time in range(num):
        scenario = "search" if time % 3 == 0 else "home"
        item = int(random.integers(0, 4 if scenario == "search" else NUM_ITEMS))
        rows.append(
            {
                "event_id": f"e{time}",
                "timestamp_ms": time,
                "user_id": _id(ids, time % NUM_USERS),
                "item_id": _id(ids, item),
                "scenario": scenario,
                "reward": 1.0,
                "history_item_id": [_id(ids, n) for n in range(time % 4)],
                "age": 20.0 + time,
                "item_positives": time,
                "image": [float(item), 1.0],
                "title": f"Title {item}",
            }
        )
    return pa.Table.from_pylist(rows, schema=spec.sample_schema)


def _id(ids: str, number: int) -> int | str:
    return number if ids == "int64" else f"id-{number}"
