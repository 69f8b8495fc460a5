"""JSON lines to Arrow at columnar speed, without losing the good rows beside a bad one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json as pa_json

from pipeline import schema as s

_FEW_LINES = 64
_INT64 = range(-(2**63), 2**63)


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
    """A row that is no event.

    Attributes:
        row: Its position in its block, from 0; in the rejected files, in its file, from 1.
        reason: Short identifier to count by.
        detail: Column, what was found, what is expected.
        raw: The row, whole: its line, or a Parquet row written as JSON.
    """

    row: int
    reason: str
    detail: str
    raw: bytes


Parsed = tuple[pa.Table, list[int] | range, list[Reject], int]


def parse_json_lines(block: bytes, types: Mapping[str, str]) -> Parsed:
    """Parses a block of whole lines; keys that `types` has not are ignored, missing ones are null.

    The block is parsed as a whole by Arrow. Only where that fails is it halved, and halved again,
    until a few lines are left, which are parsed one by one. Blank lines are no rows.

    Args:
        block: Lines of UTF-8, each one JSON object.
        types: Type name of each wanted column.

    Returns:
        [num_parsed] rows, their line numbers in the block (from 0), the rejects (`not_json`,
        `wrong_type`), and the number of lines, blank ones
        included.
    """
    schema = s.arrow_schema(dict(types))
    num_lines = block.count(b"\n") + (not block.endswith(b"\n") and bool(block))
    whole = _parse_columnar(block, schema, num_lines)
    if whole is not None:
        return whole, range(num_lines), [], num_lines
    lines = block.split(b"\n")
    tables: list[pa.Table] = []
    rows: list[int] = []
    rejects: list[Reject] = []
    # Depth first, left before right: rows stay in order.
    todo = [(0, len(lines))]
    while todo:
        start, end = todo.pop()
        piece = lines[start:end]
        parsed = _parse_columnar(b"\n".join(piece), schema, end - start)
        if parsed is not None:
            tables.append(parsed)
            rows += range(start, end)
        elif end - start > _FEW_LINES:
            middle = (start + end) // 2
            todo += [(middle, end), (start, middle)]
        else:
            tables.append(_parse_each(piece, start, schema=schema, found=(rows, rejects)))
    table = pa.concat_tables(tables) if tables else schema.empty_table()
    return table, rows, rejects, num_lines


def _parse_columnar(block: bytes, schema: pa.Schema, num_lines: int) -> pa.Table | None:
    """Returns one row per line, or None if the block holds anything else."""
    # Arrow reads a stream of objects, whatever stands between them: lines are ours to check.
    num_ends = block.count(b"}\n") + block.count(b"}\r\n") + block.endswith((b"}", b"}\r"))
    if num_ends != num_lines:
        return None
    try:
        block.decode()  # Arrow does not check that strings are UTF-8
        table = pa_json.read_json(
            pa.BufferReader(block),
            read_options=pa_json.ReadOptions(block_size=1 << 22),
            parse_options=pa_json.ParseOptions(
                explicit_schema=schema, unexpected_field_behavior="ignore"
            ),
        )
    except (UnicodeDecodeError, pa.ArrowInvalid):
        return None
    return table.select(schema.names) if table.num_rows == num_lines else None


def _parse_each(
    lines: Sequence[bytes],
    first: int,
    *,
    schema: pa.Schema,
    found: tuple[list[int], list[Reject]],
) -> pa.Table:
    rows, rejects = found
    good = []
    for number, line in enumerate(lines, start=first):
        if not line.strip():
            continue
        row, problem = _parse_line(line, schema)
        if problem:
            rejects.append(Reject(number, *problem, line))
        else:
            rows.append(number)
            good.append(row)
    return pa.Table.from_pylist(good, schema=schema)


def _parse_line(line: bytes, schema: pa.Schema) -> tuple[dict[str, Any], tuple[str, str] | None]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return {}, ("not_json", f"found {error}; expected one JSON object on a line")
    if not isinstance(row, dict):
        return {}, ("not_json", f"found a {type(row).__name__}; expected one JSON object on a line")
    for field in schema:
        value = row.get(field.name)
        if value is not None and not _fits(value, field.type):
            shown = repr(value)[:80]
            return {}, ("wrong_type", f"{field.name}: found {shown}; expected {field.type}")
    return row, None


def _fits(value: object, kind: pa.DataType) -> bool:
    if pa.types.is_list(kind):
        return isinstance(value, list) and all(
            item is None or _fits(item, kind.value_type) for item in value
        )
    if isinstance(value, bool):
        return False
    if kind == pa.int64():
        return isinstance(value, int) and value in _INT64
    if kind == pa.float32():
        # An integer too long for any float is of the wrong type too.
        return isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**300)
    return isinstance(value, str) and _is_utf8(value)


def _is_utf8(value: str) -> bool:
    # JSON may escape half of a surrogate pair, which no UTF-8 can hold.
    return value.isascii() or not any(0xD800 <= ord(char) <= 0xDFFF for char in value)  # noqa: PLR2004
