"""Rows in memory, found by a hash of their key and taken by their time.

The state of a join is millions of rows of which each call needs a few thousand. A `Store` keeps
rows in chunks as they came, and beside them an index: runs of (hash, row number) sorted by hash.
Both are merged geometrically and only up to a size, so that a row is copied a few times in all and
no single merge is long. Found rows are *candidates*: they share a hash, and who asks compares keys.

Everything here is a value: adding, taking and forgetting return another store, which shares all it
can with the former.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from pipeline.positions import IntArray, UInt64Array

MAX_CHUNK_ROWS: Final = 1 << 16
MAX_RUN_ROWS: Final = 1 << 20

_VIEW_BYTES: Final = 16
_NO_TIMES: Final[IntArray] = np.zeros(0, np.int64)
_NO_ROWS: Final[npt.NDArray[np.uint32]] = np.zeros(0, np.uint32)


def hash_rows(keys: pl.DataFrame) -> UInt64Array:
    """Returns [num_rows] hashes of whole rows: of this process and version only, never to keep."""
    return keys.hash_rows().to_numpy()


@dataclasses.dataclass(frozen=True, slots=True)
class Chunk:
    """Rows that came one after the other.

    Attributes:
        first: Number of the first row.
        rows: All of them, in the order they came.
        times: [num_left] times of the rows not taken yet, ascending.
        order: [num_left] which rows these are.
        last_ms: The latest time of all rows.
    """

    first: int
    rows: pl.DataFrame
    times: IntArray
    order: npt.NDArray[np.uint32]
    last_ms: int

    @property
    def end(self) -> int:
        """The number after the last row's."""
        return self.first + len(self.rows)

    def fits(self, following: Chunk) -> bool:
        """Whether the two can be one chunk: neighbours with the same columns."""
        return self.end == following.first and self.rows.columns == following.rows.columns


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """An index of some rows.

    Attributes:
        hashes: [num_rows] ascending.
        ids: [num_rows] the rows' numbers.
        end: The number after the greatest.
    """

    hashes: UInt64Array
    ids: IntArray
    end: int


@dataclasses.dataclass(frozen=True, slots=True)
class Store:
    """Rows in the order they came; see the module's docstring.

    Attributes:
        chunks: Their rows.
        runs: Their index.
        first: No row before this number counts any more.
        end: Number of the next row to come.
    """

    chunks: tuple[Chunk, ...] = ()
    runs: tuple[Run, ...] = ()
    first: int = 0
    end: int = 0

    @property
    def num_left(self) -> int:
        """How many rows were not taken yet."""
        return sum(len(chunk.times) for chunk in self.chunks)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, rows, times and index together."""
        rows = sum(_num_bytes(c.rows) + c.times.nbytes + c.order.nbytes for c in self.chunks)
        return rows + sum(run.hashes.nbytes + run.ids.nbytes for run in self.runs)

    def add(
        self, rows: pl.DataFrame, times: IntArray, *, hashes: UInt64Array | None = None
    ) -> Store:
        """Returns a store with these rows behind the others.

        Args:
            rows: Of the same columns in every call.
            times: [num_rows] by which they can be taken and are forgotten.
            hashes: [num_rows] by which they can be found; without, they cannot.
        """
        if not len(rows):
            return self
        order = np.argsort(times, kind="stable")
        ordered = times[order]
        added = Chunk(self.end, rows, ordered, order.astype(np.uint32), int(ordered[-1]))
        store = dataclasses.replace(
            self, chunks=_with_chunk(self.chunks, added), end=self.end + len(rows)
        )
        if hashes is None:
            return store
        by_hash = np.argsort(hashes, kind="stable")
        run = Run(hashes[by_hash], self.end + by_hash, store.end)
        return dataclasses.replace(store, runs=_with_run(self.runs, run, first=self.first))

    def find(self, hashes: UInt64Array, like: pl.DataFrame) -> tuple[IntArray, pl.DataFrame]:
        """Finds the rows that have any of some hashes, each once, in the order they came.

        Args:
            hashes: In any order, repeats allowed.
            like: A frame of the wanted columns.

        Returns:
            [num_found] row numbers, and their rows.
        """
        wanted = _distinct(hashes) if self.runs else hashes
        parts = [_search(run, wanted) for run in self.runs]
        ids = np.sort(np.concatenate([np.zeros(0, np.int64), *parts]))
        return self._gather(ids[ids >= self.first], like)

    def _gather(self, ids: IntArray, like: pl.DataFrame) -> tuple[IntArray, pl.DataFrame]:
        firsts = np.array([chunk.first for chunk in self.chunks], np.int64)
        bounds = np.append(np.searchsorted(ids, firsts), len(ids))
        frames, found = [like.clear()], [np.zeros(0, np.int64)]
        for position in np.flatnonzero(np.diff(bounds)):
            chunk = self.chunks[position]
            part = ids[bounds[position] : bounds[position + 1]]
            part = part[part < chunk.end]  # rows of a forgotten chunk are in the index for a while
            frames.append(_columns(chunk.rows, like)[part - chunk.first])
            found.append(part)
        return np.concatenate(found), pl.concat(frames)

    def take_before(
        self, bound_ms: int, like: pl.DataFrame
    ) -> tuple[IntArray, pl.DataFrame, Store]:
        """Takes the rows of an earlier time that were not taken yet; they can still be found.

        Args:
            bound_ms: Exclusive.
            like: A frame of all columns.

        Returns:
            [num_taken] row numbers, ascending, their rows, and the store without them.
        """
        chunks, ids, frames = list(self.chunks), [np.zeros(0, np.int64)], [like.clear()]
        for position, chunk in enumerate(self.chunks):
            if not len(chunk.times) or chunk.times[0] >= bound_ms:
                continue
            end = int(np.searchsorted(chunk.times, bound_ms))
            whole = end == len(chunk.rows)
            taken = np.arange(end) if whole else np.sort(chunk.order[:end]).astype(np.int64)
            ids.append(chunk.first + taken)
            frames.append(chunk.rows if whole else chunk.rows[taken])
            left = (chunk.times[end:], chunk.order[end:])
            if end == len(chunk.times):
                left = (_NO_TIMES, _NO_ROWS)  # a slice would keep the whole in memory
            chunks[position] = dataclasses.replace(chunk, times=left[0], order=left[1])
        store = dataclasses.replace(self, chunks=tuple(chunks))
        return np.concatenate(ids), pl.concat(frames), store

    def forget_before(self, bound_ms: int, *, keep: Sequence[str] = ()) -> Store:
        """Returns a store without the chunks that are older as a whole.

        So rows of an earlier time may stay for a while: who asks compares times.

        Args:
            bound_ms: Exclusive.
            keep: Columns to keep of the other chunks of which every row was taken; all if empty.
        """
        chunks = [chunk for chunk in self.chunks if chunk.last_ms >= bound_ms]
        if keep:
            chunks = [
                dataclasses.replace(chunk, rows=chunk.rows.select(keep))
                if not len(chunk.times) and chunk.rows.width > len(keep)
                else chunk
                for chunk in chunks
            ]
        first = max(self.first, chunks[0].first if chunks else self.end)
        return self._from(first, chunks)

    def oldest(self, count: int, like: pl.DataFrame) -> tuple[pl.DataFrame, Store]:
        """Returns about `count` of the first rows, taken or not, and the store without them."""
        ends = [min(chunk.end, max(chunk.first, self.first) + count) for chunk in self.chunks[:1]]
        first = max([self.first, *ends])
        _, rows = self._gather(np.arange(self.first, first), like)
        return rows, self._from(first, [c for c in self.chunks if c.end > first])

    def everything(self, like: pl.DataFrame) -> pl.DataFrame:
        """Returns the wanted columns of all rows, taken or not."""
        frames = [
            _columns(chunk.rows, like)[max(self.first - chunk.first, 0) :] for chunk in self.chunks
        ]
        return pl.concat([like.clear(), *frames])

    def _from(self, first: int, chunks: Sequence[Chunk]) -> Store:
        runs = tuple(run for run in self.runs if run.end > first)
        return dataclasses.replace(self, chunks=tuple(chunks), runs=runs, first=first)


EMPTY: Final = Store()


def _num_bytes(rows: pl.DataFrame) -> int:
    # Polars counts a string's own bytes, not the view of 16 bytes that points at them.
    num_strings = sum(kind == pl.String for kind in rows.dtypes)
    return int(rows.estimated_size()) + _VIEW_BYTES * num_strings * len(rows)


def _columns(rows: pl.DataFrame, like: pl.DataFrame) -> pl.DataFrame:
    # To select is a query with its own cost, for each of hundreds of chunks.
    return rows if rows.columns == like.columns else rows.select(like.columns)


def _distinct(hashes: UInt64Array) -> UInt64Array:
    """As `np.unique`, which takes ten times as long where nearly all are distinct."""
    ordered = np.sort(hashes)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


def _search(run: Run, wanted: UInt64Array) -> IntArray:
    """Returns the numbers of the rows that have one of these distinct, ascending hashes."""
    starts = np.searchsorted(run.hashes, wanted)
    hits = run.hashes[np.minimum(starts, len(run.hashes) - 1)] == wanted
    starts = starts[hits]
    counts = np.searchsorted(run.hashes, wanted[hits], side="right") - starts
    before = np.cumsum(counts) - counts
    return run.ids[np.repeat(starts - before, counts) + np.arange(counts.sum())]


def _with_chunk(chunks: tuple[Chunk, ...], added: Chunk) -> tuple[Chunk, ...]:
    start, size = len(chunks), len(added.rows)
    following = added
    while start and chunks[start - 1].fits(following):
        before = len(chunks[start - 1].rows)
        if before > 2 * size or before + size > MAX_CHUNK_ROWS:
            break
        start, size, following = start - 1, size + before, chunks[start - 1]
    if start == len(chunks):
        return (*chunks, added)
    merged = (*chunks[start:], added)
    first = merged[0].first
    times = np.concatenate([chunk.times for chunk in merged])
    rows = np.concatenate([chunk.order + np.uint32(chunk.first - first) for chunk in merged])
    order = np.argsort(times, kind="stable")
    last_ms = max(chunk.last_ms for chunk in merged)
    frame = pl.concat([chunk.rows for chunk in merged], rechunk=True)
    return (*chunks[:start], Chunk(first, frame, times[order], rows[order], last_ms))


def _with_run(runs: tuple[Run, ...], added: Run, *, first: int) -> tuple[Run, ...]:
    start, size = len(runs), len(added.ids)
    while start:
        before = len(runs[start - 1].ids)
        if before > 2 * size or before + size > MAX_RUN_ROWS:
            break
        start, size = start - 1, size + before
    if start == len(runs):
        return (*runs, added)
    merged = (*runs[start:], added)
    hashes = np.concatenate([run.hashes for run in merged])
    ids = np.concatenate([run.ids for run in merged])
    order = np.argsort(hashes, kind="stable")  # linear in sorted runs
    order = order[ids[order] >= first]
    if not len(order):
        return runs[:start]
    return (*runs[:start], Run(hashes[order], ids[order], added.end))
