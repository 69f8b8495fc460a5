"""The Arrow schemas of events and samples, and their fingerprints.

This is the contract between the rooms: it imports neither Beam nor TensorFlow.
"""

from __future__ import annotations

import functools
import hashlib
from typing import Final

import pyarrow as pa


class InputError(ValueError):
    """Data or a file given by the user is wrong; a command prints the message and exits with 2.

    The message names the file and the field, what was found, and what was expected.
    """


class SchemaMismatchError(InputError):
    """Samples lack a column or have one of another type: stop, do not skip."""


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
EXPOSED_ITEM_ID: Final = "exposed_item_id"

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


@functools.lru_cache
def type_name(kind: pa.DataType) -> str:
    """Returns a type's name, equal for the encodings of one logical type.

    Files and other engines write strings as `large_string`, `string_view` or dictionaries, and name
    the items of a list as they like; none of that changes what a column means.
    """
    if pa.types.is_dictionary(kind):
        return type_name(kind.value_type)
    if isinstance(kind, pa.ListType | pa.LargeListType | pa.ListViewType | pa.LargeListViewType):
        return f"list<item: {type_name(kind.value_type)}>"
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    return str(kind)


def schema_fingerprint(schema: pa.Schema) -> str:
    """Returns 16 hexadecimal digits that name a schema: column names and types, in any order.

    Equal for schemas that differ only in the order of columns, in metadata, or in how a type is
    encoded (see `type_name`).
    """
    columns = sorted(f"{field.name}:{type_name(field.type)}" for field in schema)
    return hashlib.sha256("\n".join(columns).encode()).hexdigest()[:16]


def check_columns(found: pa.Schema, expected: pa.Schema, *, where: str) -> None:
    """Checks that every expected column is there under its type; extra columns and any order pass.

    Args:
        found: What a file, a record or a table has.
        expected: What it must have.
        where: What is being checked, the start of the message: a path, or a topic and offset.

    Raises:
        SchemaMismatchError: If a column is missing or has another type; it lists all of them.
    """
    problems = []
    for field in expected:
        positions = found.get_all_field_indices(field.name)
        if not positions:
            problems.append(
                f"{where}: column {field.name!r}: found none; expected {type_name(field.type)}"
                f" (columns found: {', '.join(found.names) or 'none'})"
            )
        elif len(positions) > 1:
            problems.append(f"{where}: column {field.name!r}: found {len(positions)}; expected one")
        elif type_name(found.field(positions[0]).type) != type_name(field.type):
            problems.append(
                f"{where}: column {field.name!r}: found {found.field(positions[0]).type};"
                f" expected {type_name(field.type)}"
            )
    if problems:
        raise SchemaMismatchError("\n".join(problems))


def conform(table: pa.Table, schema: pa.Schema, *, where: str) -> pa.Table:
    """Returns the columns of `schema`, in its order and encodings; see `check_columns`."""
    check_columns(table.schema, schema, where=where)
    chosen = table.select(schema.names)
    return chosen if chosen.schema.equals(schema) else chosen.cast(schema)
