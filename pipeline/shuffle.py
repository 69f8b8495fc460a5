"""Tables cut by key hash, so that one part fits in memory.

Each table is cut into at most `num_parts` pieces, which are written to one file, and the runner's
shuffle moves their places only: no runner has to hold the log in memory or copy it through its own
buffers. Whoever receives a part puts its pieces together in the order of their origin, so a part's
table does not depend on the runner's order of delivery.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.positions import UInt64Array

# SplitMix64's finaliser (Steele, Lea, Flood 2014). Keys are cut by our own arithmetic, since the
# cut is part of the output's file names: Python's hash() differs per process, polars' per release.
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)

Origin = tuple[int, ...]


def hash_keys(keys: pa.Array | pa.ChunkedArray) -> UInt64Array:
    """Returns [num_rows] uint64 hashes, the same in every process, version and machine.

    Integers pass SplitMix64's finaliser. Strings pass a polynomial over their UTF-8 bytes modulo
    2^64, then the same finaliser; each distinct string is hashed once.

    Args:
        keys: [num_rows] int64 or string keys without nulls.
    """
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    if pa.types.is_integer(keys.type):
        return _mix(keys.cast(pa.int64()).to_numpy(zero_copy_only=False).view(np.uint64))
    encoded = keys.dictionary_encode()
    return _mix(_fold_bytes(encoded.dictionary))[encoded.indices.to_numpy(zero_copy_only=False)]


def _mix(values: UInt64Array) -> UInt64Array:
    mixed = values + _GOLDEN
    for shift, factor in _MIX:
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    result: UInt64Array = mixed ^ (mixed >> np.uint64(31))
    return result


def _fold_bytes(strings: pa.Array) -> UInt64Array:
    """Returns sum of (byte + 1) * GOLDEN^(position + 1) modulo 2^64, for every string."""
    strings = strings.cast(pa.large_binary())
    offsets = np.frombuffer(strings.buffers()[1], dtype=np.int64)
    offsets = offsets[strings.offset : strings.offset + len(strings) + 1]
    data = np.frombuffer(strings.buffers()[2] or b"", dtype=np.uint8)[offsets[0] : offsets[-1]]
    starts, lengths = offsets[:-1] - offsets[0], np.diff(offsets)
    powers = np.cumprod(np.full(max(lengths.max(initial=0), 1), _GOLDEN), dtype=np.uint64)
    positions = np.arange(len(data)) - np.repeat(starts, lengths)
    terms = (data.astype(np.uint64) + np.uint64(1)) * powers[positions]
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])
    folded: UInt64Array = sums[starts + lengths] - sums[starts]
    return folded


def cut_by_key(table: pa.Table, column: str, *, num_parts: int) -> Iterator[tuple[int, pa.Table]]:
    """Yields (part, rows of that part), by the hash of a column; row order is kept in each part.

    Args:
        table: Rows to cut.
        column: Name of an int64 or string column without nulls.
        num_parts: Number of parts; parts without rows are left out.
    """
    if num_parts == 1 and table.num_rows:
        yield 0, table
        return
    parts = (hash_keys(table[column]) % np.uint64(num_parts)).astype(np.int32)
    order = np.argsort(parts, kind="stable")
    bounds = np.searchsorted(parts[order], np.arange(num_parts + 1))
    ordered = table.take(pa.array(order))
    for part in range(num_parts):
        start, end = int(bounds[part]), int(bounds[part + 1])
        if end > start:
            yield part, ordered.slice(start, end - start)


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Piece:
    """Rows of one part, in a file that all workers can read: a shuffle moves this, not the rows.

    Attributes:
        origin: Where they were read: file, split, block; or the part that made them.
        path: An Arrow IPC file.
        batch: The record batch in it.
    """

    origin: Origin
    path: str
    batch: int


def write_pieces(
    table: pa.Table, column: str, *, num_parts: int, path: Path, origin: Origin
) -> Iterator[tuple[int, Piece]]:
    """Cuts a table by the hash of a column into the batches of one file.

    The file appears by rename under a name that depends on the origin alone, so that a bundle which
    a runner tries twice, or at the same time twice, writes the same file twice.

    Args:
        table: Rows to cut.
        column: Name of an int64 or string column without nulls.
        num_parts: Number of parts; parts without rows are left out.
        path: Where to; its folder is made.
        origin: Orders the pieces of a part.

    Yields:
        (part, piece) for each part that has rows, once all are written.
    """
    cut = list(cut_by_key(table, column, num_parts=num_parts))
    if not cut:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    with pa.OSFile(str(aside), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        for _, rows in cut:
            writer.write_batch(rows.combine_chunks().to_batches()[0])
    aside.replace(path)
    for batch, (part, _) in enumerate(cut):
        yield part, Piece(origin, str(path), batch)


def read_pieces(pieces: Iterable[Piece]) -> pa.Table:
    """Returns the rows of at least one piece, by origin, whatever order they arrived in.

    The rows stay in their files until they are looked at: these are mapped into memory.
    """
    batches = []
    for piece in sorted(pieces):
        with pa.ipc.open_file(pa.memory_map(piece.path)) as reader:
            batches.append(reader.get_batch(piece.batch))
    return pa.Table.from_batches(batches)
