"""Small event logs, written by hand in one line each."""

from __future__ import annotations

from typing import Any

import polars as pl

from pipeline.specification import Specification

START = 1_767_225_600_000  # 2026-01-01T00:00:00Z


def event(
    event_id: str, time: int, user: Any, item: Any, action: str = "impression", **other: Any
) -> dict[str, Any]:
    """An event `time` milliseconds after START; its request is named after user and item."""
    return {
        "event_id": event_id,
        "request_id": f"{user}-{item}",
        "timestamp_ms": START + time,
        "user_id": user,
        "item_id": item,
        "scenario": "feed",
        "action": action,
    } | other


def frame(*events: dict[str, Any]) -> pl.DataFrame:
    types = {"play_seconds": pl.Float32, "duration_seconds": pl.Float32}
    return pl.DataFrame([dict.fromkeys(types) | row for row in events], schema_overrides=types)


def specification(**changes: Any) -> Specification:
    ids = {"kind": "id", "table": "t"}
    content = {
        "name": "test",
        "scenarios": ["feed", "video"],
        "labels": {"video": {"play_share": 0.5}},
        "history": {"length": 2},
        "tables": {"t": {"buckets": 8}},
        "features": {
            "query": [
                {"name": "user_id", **ids},
                {"name": "history_item_id", "kind": "ids", "table": "t"},
            ],
            "candidate": [{"name": "item_id", **ids}],
        },
    }
    return Specification.model_validate(content | changes)


def with_statistics(**changes: Any) -> Specification:
    features = specification().features.model_dump()
    features["candidate"] += [
        {"name": "item_impressions", "kind": "number"},
        {"name": "item_positives", "kind": "number"},
    ]
    return specification(features=features, **changes)
