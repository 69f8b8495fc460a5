"""The Arrow schemas of events and samples, and their fingerprints.

This is the contract between the rooms: it imports neither Beam nor TensorFlow.
"""

from __future__ import annotations

import hashlib
from typing import Final

import pyarrow as pa

# Column names have one home.
EVENT_ID: Final = "event_id"
REQUEST_ID: Final = "request_id"
TIMESTAMP_MS: Final = "timestamp_ms"
USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
SCENARIO: Final = "scenario"
ACTION: Final = "action"
PLAY_SECONDS: Final = "play_seconds"
DURATION_SECONDS: Final = "duration_seconds"
POSITION: Final = "position"
QUERY: Final = "query"

REWARD: Final = "reward"
HISTORY_ITEM_ID: Final = "history_item_id"
ITEM_IMPRESSIONS: Final = "item_impressions"
ITEM_POSITIVES: Final = "item_positives"

IMPRESSION: Final = "impression"
ACTIONS: Final = (IMPRESSION, "click", "favourite", "cart", "purchase", "follow", "play")

# Values that mean "no value" in a padded multi-valued input of a served model; never valid ids.
PADDING: Final[dict[str, int | str]] = {"int64": -1, "string": ""}

ARROW_TYPES: Final[dict[str, pa.DataType]] = {
    "int64": pa.int64(),
    "float32": pa.float32(),
    "string": pa.string(),
    "list<int64>": pa.list_(pa.int64()),
    "list<float32>": pa.list_(pa.float32()),
    "list<string>": pa.list_(pa.string()),
}

# Event columns that every log has, and those that it may leave out (then they are null).
REQUIRED_EVENT_COLUMNS: Final = (
    EVENT_ID,
    REQUEST_ID,
    TIMESTAMP_MS,
    USER_ID,
    ITEM_ID,
    SCENARIO,
    ACTION,
)
OPTIONAL_EVENT_COLUMNS: Final = (PLAY_SECONDS, DURATION_SECONDS, POSITION, QUERY)

_FIXED_EVENT_TYPES: Final = {
    EVENT_ID: "string",
    REQUEST_ID: "string",
    TIMESTAMP_MS: "int64",
    SCENARIO: "string",
    ACTION: "string",
    PLAY_SECONDS: "float32",
    DURATION_SECONDS: "float32",
    POSITION: "int64",
    QUERY: "string",
}


def event_column_types(*, user_id: str, item_id: str, extra: dict[str, str]) -> dict[str, str]:
    """Returns the type name of every event column, in schema order.

    Args:
        user_id: Type of user ids, `int64` or `string`.
        item_id: Type of item ids, `int64` or `string`.
        extra: Type names of the columns that a specification declares.
    """
    types = _FIXED_EVENT_TYPES | {USER_ID: user_id, ITEM_ID: item_id}
    ordered = {name: types[name] for name in REQUIRED_EVENT_COLUMNS + OPTIONAL_EVENT_COLUMNS}
    return ordered | extra


def derived_column_types(*, item_id: str) -> dict[str, str]:
    """Returns the columns that the pipeline computes, point in time: no event carries them."""
    return {
        HISTORY_ITEM_ID: f"list<{item_id}>",
        ITEM_IMPRESSIONS: "int64",
        ITEM_POSITIVES: "int64",
    }


def arrow_schema(types: dict[str, str]) -> pa.Schema:
    """Builds an Arrow schema from type names."""
    return pa.schema([pa.field(name, ARROW_TYPES[kind]) for name, kind in types.items()])


def schema_fingerprint(schema: pa.Schema) -> str:
    """Returns 16 hexadecimal digits that name a schema: column names and types, in any order.

    Equal for schemas that differ only in the order of columns, in metadata, or in Arrow's large and
    small variants of one type.
    """
    columns = sorted(
        f"{field.name}:{str(field.type).replace('large_', '').replace('element', 'item')}"
        for field in schema
    )
    return hashlib.sha256("\n".join(columns).encode()).hexdigest()[:16]
