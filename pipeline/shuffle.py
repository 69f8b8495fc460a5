"""Tables cut by key hash, so that one part fits in memory and moves as one block.

A shuffle moves bytes, not rows: each table is cut into at most `num_parts` pieces, a piece travels
as one compact Arrow IPC message, and whoever receives a part puts its pieces together in the order
of their origin. So a part's table does not depend on the runner's order of delivery.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
from apache_beam.pvalue import PCollection

from pipeline.positions import UInt64Array

# SplitMix64's finaliser (Steele, Lea, Flood 2014). Keys are cut by our own arithmetic, since the
# cut is part of the output's file names: Python's hash() differs per process, polars' per release.
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))
_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)

Origin = tuple[int, ...]
Piece = tuple[Origin, bytes]
"""Where a piece of a part was read (file, split, block), and its rows as an Arrow IPC stream."""


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


def pack(table: pa.Table) -> bytes:
    """Returns a table's rows as one Arrow IPC stream; a slice takes no more than its own rows."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    return sink.getvalue().to_pybytes()


def unpack(data: bytes) -> pa.Table:
    """Returns the table of an Arrow IPC stream, without a copy."""
    return pa.ipc.open_stream(data).read_all()


def join_pieces(pieces: Iterable[Piece]) -> pa.Table:
    """Returns the rows of at least one piece, by origin, whatever order they arrived in."""
    ordered = sorted(pieces, key=lambda piece: piece[0])
    return pa.concat_tables([unpack(data) for _, data in ordered])


@dataclasses.dataclass(kw_only=True)
class CutByKey(beam.PTransform):
    """(origin, table) elements to (part, pieces of that part): one group per part that has rows."""

    column: str
    num_parts: int

    def expand(self, tables: PCollection) -> PCollection:
        return tables | "Cut" >> beam.FlatMap(self._cut) | "Group" >> beam.GroupByKey()

    def _cut(self, element: tuple[Origin, pa.Table]) -> Iterator[tuple[int, Piece]]:
        origin, table = element
        for part, piece in cut_by_key(table, self.column, num_parts=self.num_parts):
            yield part, (origin, pack(piece))
