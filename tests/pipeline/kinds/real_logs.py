"""Real logs as events; they are not part of the project."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest

from pipeline.specification import Specification

FOLDER = Path(__file__).resolve().parents[4] / "shared" / "data"
DAYPARTS = ["night", "morning", "afternoon", "evening"]
WINDOW_MS = 86_400_000
_ACTIONS = {
    "pv": "impression",
    "view": "impression",
    "fav": "favourite",
    "cart": "cart",
    "buy": "purchase",
}


def real_events(name: str, *, num_days: int, one_of: int) -> pa.Table:
    """The events of one of so many users in the first days of a log.

    A view is an impression, the rest outcomes; scenarios are the quarters of the day. Made up:
    `category` of an item, `price` of an item at a time, `device` of a user at a time.
    """
    path = FOLDER / f"{name}.parquet"
    if not path.is_file():
        pytest.skip(f"found no {path.name} in shared/data beside the project; expected that log")
    seconds, user, item = (pl.col(c) for c in ("timestamp_seconds", "user_id", "item_id"))
    rows = (
        pl.read_parquet(path)
        .cast({"user_id": pl.Int64, "item_id": pl.Int64})
        .with_row_index("row")
        .filter(
            seconds // 86_400 < (seconds // 86_400).min() + num_days,
            user * 2_654_435_761 // 128 % one_of == 0,
        )
    )
    return rows.select(
        event_id=pl.col("row").cast(pl.String),
        request_id=pl.format("{}-{}", user, item),
        timestamp_ms=seconds * 1000,
        user_id=user,
        item_id=item,
        scenario=(seconds % 86_400 // 21_600).replace_strict(
            dict(enumerate(DAYPARTS)), return_dtype=pl.String
        ),
        action=pl.col("behaviour").replace_strict(_ACTIONS, return_dtype=pl.String),
        category=(item % 50).cast(pl.String),
        price=((item * 31 + seconds // 3600) % 97).cast(pl.Float32),
        device=pl.format("device {}", (user + seconds // 7200) % 5),
        hour=seconds % 86_400 // 3600,
    ).to_arrow()


def real_specification(**changes: Any) -> Specification:
    """Of these events; night is labelled by favourites or purchases, the rest by carts."""
    ids = {"kind": "id", "table": "t"}
    content = {
        "name": "real",
        "columns": {
            "category": "string",
            "price": "float32",
            "device": "string",
            "hour": "int64",
        },
        "scenarios": DAYPARTS,
        "labels": {name: {"action": "cart"} for name in DAYPARTS[1:]}
        | {"night": {"action": "purchase"}},
        "tables": {"t": {"buckets": 8}},
        "features": {
            "query": [{"name": "user_id", **ids}, {"name": "device", **ids}],
            "candidate": [{"name": "item_id", **ids}, {"name": "price", "kind": "number"}],
            "context": [{"name": "scenario", **ids}, {"name": "hour", "kind": "number"}],
        },
        "scenario_views": {"history": 3, "preferences": {"category": 2}},
        "kinds": {
            "scenario": {"negatives": 3},
            "pair": {"users": 2, "items": 2},
            "corpus": {},
        },
    }
    return Specification.model_validate(content | changes)
