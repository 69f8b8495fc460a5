"""Event logs to Arrow tables: Parquet by row groups, JSON lines by blocks of bytes.

A file that is wrong as a whole (truncated, without a column, a column of another type) stops the
run before it starts, with an `InputError`. A row that is wrong becomes a reject.
"""

from __future__ import annotations

import dataclasses
import glob
import gzip
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Final, cast

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema as s
from pipeline.events.json_lines import Reject, parse_json_lines
from pipeline.manifest import InputFile

_PARQUET = (".parquet",)
_PLAIN_LINES = (".jsonl", ".ndjson", ".json")
_GZIP_LINES = tuple(f"{suffix}.gz" for suffix in _PLAIN_LINES)
SUFFIXES: Final = (*_PARQUET, *_PLAIN_LINES, *_GZIP_LINES)

# Large enough for vectors to pay, small enough for a few of them to fit in a worker.
_ROWS_PER_SPLIT = 262_144
_BYTES_PER_SPLIT = 32 << 20
_INSPECTED_BYTES = 1 << 20


@dataclasses.dataclass(frozen=True, slots=True)
class Split:
    """A piece of a file that is read at once.

    Attributes:
        file_number: Position of the file among the inputs.
        number: Position of the split in its file.
        path: The file.
        start: First row group of a Parquet file; first byte of JSON lines.
        end: After the last row group; after the byte where the last line may start.
    """

    file_number: int
    number: int
    path: str
    start: int
    end: int


@dataclasses.dataclass(frozen=True, slots=True)
class RawBlock:
    """Rows as the file has them, in the types of the event schema, not yet validated.

    Attributes:
        table: [num_parsed] rows with the wanted columns; those that the file has not are null.
        rows: [num_parsed] positions of these rows in the block.
        num_lines: How many rows or lines of the file the block is, blank lines included.
        malformed: Rows that are not in `table`.
        lines: The block's bytes if the file has lines, for the raw bytes of a reject.
    """

    table: pa.Table
    rows: Sequence[int]
    num_lines: int
    malformed: Sequence[Reject] = ()
    lines: bytes | None = None


def find_files(inputs: Sequence[str], *, setting: str = "samples.inputs") -> list[str]:
    """Returns the files that paths, folders and globs name, sorted, each once.

    Args:
        inputs: Paths, folders, globs.
        setting: Where they were given, for messages.

    Raises:
        InputError: If one of them names no file, or one with a suffix that is not known.
    """
    files: set[str] = set()
    for pattern in inputs:
        if Path(pattern).is_dir():
            found = [str(p) for p in Path(pattern).rglob("*") if p.name.endswith(SUFFIXES)]
        else:
            found = glob.glob(pattern, recursive=True)  # noqa: PTH207 -- may be absolute
        if not found:
            raise s.InputError(
                f"{setting}: {pattern!r}: found no file; expected a file, a folder or a glob"
                f" of {', '.join(SUFFIXES)} files"
            )
        files.update(found)
    for path in sorted(files):
        if not path.endswith(SUFFIXES):
            raise s.InputError(
                f"{path}: found an unknown kind of file; expected one of {', '.join(SUFFIXES)}"
            )
    return sorted(files)


def plan_splits(
    files: Sequence[str], types: Mapping[str, str], required: Sequence[str]
) -> list[Split]:
    """Looks at every file's footer or first lines and cuts it into splits.

    Args:
        files: Paths, in the order that numbers them.
        types: Type name of every event column.
        required: Columns that each file must have.

    Raises:
        InputError: If a file cannot be read or lacks a column or has one of another type; the
            message has one line per problem, of all files.
    """
    splits, problems = [], []
    for number, path in enumerate(files):
        try:
            if path.endswith(_PARQUET):
                bounds = _inspect_parquet(path, types, required)
            else:
                bounds = _inspect_lines(path, required)
        except s.InputError as error:
            problems.append(str(error))
            continue
        splits += [Split(number, i, path, *bound) for i, bound in enumerate(bounds)]
    if problems:
        raise s.InputError("\n".join(problems))
    return splits


def _inspect_parquet(
    path: str, types: Mapping[str, str], required: Sequence[str]
) -> list[tuple[int, int]]:
    try:
        with pq.ParquetFile(path) as file:
            found, metadata = file.schema_arrow, file.metadata
    except (pa.ArrowInvalid, OSError) as error:
        raise s.InputError(
            f"{path}: found no whole Parquet file ({_first_line(error)}); expected a footer at its"
            " end: was the file cut off? Fetch it again, or take it out of the inputs"
        ) from error
    _require_columns(path, found.names, required)
    for name in (name for name in types if name in found.names):
        if not is_accepted(found.field(name).type, types[name], column=name):
            raise s.InputError(
                f"{path}: {name}: found a column of type {found.field(name).type}; expected"
                f" {types[name]}"
            )
    bounds, start, rows = [], 0, 0
    for group in range(metadata.num_row_groups):
        rows += metadata.row_group(group).num_rows
        if rows >= _ROWS_PER_SPLIT or group == metadata.num_row_groups - 1:
            bounds.append((start, group + 1))
            start, rows = group + 1, 0
    return bounds or [(0, 0)]


def _inspect_lines(path: str, required: Sequence[str]) -> list[tuple[int, int]]:
    try:
        with _open(path) as file:
            head = file.read(_INSPECTED_BYTES)
        size = Path(path).stat().st_size
    except (OSError, EOFError) as error:
        raise _unreadable(path, error) from error
    columns: set[str] = set()
    for line in head.splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            columns.update(row)
    if columns:
        _require_columns(path, sorted(columns), required)
    if path.endswith(_GZIP_LINES):
        return [(0, -1)]
    return [(start, start + _BYTES_PER_SPLIT) for start in range(0, max(size, 1), _BYTES_PER_SPLIT)]


def _require_columns(path: str, found: Sequence[str], required: Sequence[str]) -> None:
    missing = [name for name in required if name not in found]
    if missing:
        raise s.InputError(
            f"{path}: {', '.join(missing)}: found no such column; found {', '.join(found)};"
            f" expected {', '.join(required)}"
        )


def is_accepted(found: pa.DataType, expected: str, *, column: str) -> bool:
    """Says whether a column's values can be taken over without changing what they mean.

    Narrower integers, double for float32, integers for float32, large and dictionary-encoded
    strings, any list for a list, and, for `timestamp_ms`, Arrow timestamps (cut to milliseconds).
    """
    if pa.types.is_dictionary(found):
        return is_accepted(found.value_type, expected, column=column)
    if pa.types.is_null(found):
        return True
    if expected.startswith("list<"):
        is_list = (
            pa.types.is_list(found)
            or pa.types.is_large_list(found)
            or pa.types.is_fixed_size_list(found)
        )
        return bool(is_list) and is_accepted(found.value_type, expected[5:-1], column=column)
    if expected == "int64":
        if column == s.TIMESTAMP_MS and pa.types.is_timestamp(found):
            return True
        return bool(pa.types.is_integer(found)) and found != pa.uint64()
    if expected == "float32":
        return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
    return found in (pa.string(), pa.large_string(), pa.string_view())


def conform(table: pa.Table, types: Mapping[str, str]) -> pa.Table:
    """Returns the columns of `types`, cast to their Arrow types; those not in `table` are null."""
    columns = []
    for name, kind in types.items():
        wanted = s.ARROW_TYPES[kind]
        if name not in table.column_names:
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, wanted)]))
            continue
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.timestamp("ms", column.type.tz), safe=False)
        columns.append(column.cast(wanted, safe=not kind.endswith(("float32", "float32>"))))
    return pa.table(columns, schema=s.arrow_schema(dict(types)))


def read_split(split: Split, types: Mapping[str, str]) -> Iterator[RawBlock]:
    """Yields the blocks of a split, in order.

    Raises:
        InputError: If the file's bytes cannot be decoded, so that rows might be lost.
    """
    try:
        if split.path.endswith(_PARQUET):
            yield _read_row_groups(split, types)
        else:
            for lines in _read_lines(split):
                table, rows, malformed, num_lines = parse_json_lines(lines, types)
                yield RawBlock(table, rows, num_lines, malformed, lines)
    except (pa.ArrowException, OSError, EOFError) as error:
        raise _unreadable(split.path, error) from error


def _read_row_groups(split: Split, types: Mapping[str, str]) -> RawBlock:
    with pq.ParquetFile(split.path) as file:
        names = [name for name in types if name in file.schema_arrow.names]
        table = file.read_row_groups(range(split.start, split.end), columns=names)
    return RawBlock(conform(table, types), range(table.num_rows), table.num_rows)


def _read_lines(split: Split) -> Iterator[bytes]:
    """Yields whole lines: those that start in the split; of a gzip file all, block by block."""
    with _open(split.path) as file:
        if split.end < 0:
            while block := file.read(_BYTES_PER_SPLIT):
                yield block if block.endswith(b"\n") else block + file.readline()
            return
        if split.start:
            file.seek(split.start - 1)
            file.readline()
        position = file.tell()
        block = file.read(max(split.end - position, 0))
        if block:
            yield block if block.endswith(b"\n") else block + file.readline()


def _open(path: str) -> BinaryIO:
    if path.endswith(_GZIP_LINES):
        return cast("BinaryIO", gzip.open(path, "rb"))
    return Path(path).open("rb")


def _unreadable(path: str, error: Exception) -> s.InputError:
    return s.InputError(
        f"{path}: found bytes that cannot be decoded ({_first_line(error)}); expected a whole"
        f" {Path(path).suffix[1:]} file: fetch it again, or take it out of the inputs"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def fingerprint_file(path: str) -> InputFile:
    """Returns a file's size and sha256, as the manifest lists it."""
    with Path(path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return InputFile(path=path, size_bytes=os.fstat(file.fileno()).st_size, sha256=digest)
