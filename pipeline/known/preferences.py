"""The values that a key has had most often before a time: a user's favourite brands."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.known.history import Column, find_recent
from pipeline.positions import IntArray, encode_keys

_ROWS_AT_ONCE: Final = 1 << 18
_ALL: Final = 1 << 62


def most_frequent(
    log: tuple[Column, IntArray, pa.Array],
    queries: tuple[Column, IntArray],
    *,
    length: int,
    since: IntArray | None = None,
) -> pa.ListArray:
    """Returns the most frequent values of each query's key before the query's time.

    The most frequent first; of equally frequent ones the one that came last, then the smallest.

    Args:
        log: [num_rows] keys, times and values, in any order; of a list each value counts, null
            values do not.
        queries: [num_queries] keys and times, in any order.
        length: At most this many values each.
        since: [num_queries] times; what is older does not count. None: all counts.

    Returns:
        [num_queries, (0 to length)] values.
    """
    values = log[2]
    rows = np.arange(len(values))
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type):
        rows = pc.list_parent_indices(values).to_numpy()
        values = pc.list_flatten(values)
    known = pc.is_valid(values).to_numpy(zero_copy_only=False)
    distinct, codes = _sorted_codes(values.drop_null())
    log_keys, keys = encode_keys(log[0], queries[0])
    log_keys, times = log_keys[rows[known]], log[1][rows[known]]
    best = np.full((len(keys), 0), -1)
    borders = np.full(len(keys), -_ALL) if since is None else since
    for border in np.unique(borders):
        # An older row that no longer counts changes all counts after it: each border has its own.
        new, asked = times >= border, np.flatnonzero(borders == border)
        found = _at_ends(
            (log_keys[new], times[new], codes[new]), (keys[asked], queries[1][asked]), length
        )
        if found.shape[1] > best.shape[1]:
            missing = found.shape[1] - best.shape[1]
            best = np.pad(best, ((0, 0), (0, missing)), constant_values=-1)
        best[asked, : found.shape[1]] = found
    there = best >= 0
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(there.sum(axis=1))])
    return pa.ListArray.from_arrays(
        pa.array(offsets, pa.int32()), distinct.take(pa.array(best[there]))
    )


def _sorted_codes(values: pa.Array) -> tuple[pa.Array, IntArray]:
    """Returns the distinct values in order, and each value's place among them."""
    distinct = pl.Series(pl.from_arrow(values)).unique().sort().to_arrow().cast(values.type)
    return distinct, pc.index_in(values, distinct).to_numpy().astype(np.int64)


def _at_ends(
    log: tuple[IntArray, IntArray, IntArray], queries: tuple[IntArray, IntArray], length: int
) -> IntArray:
    """Returns [num_queries, at most length] codes, -1 where a key has had fewer."""
    keys, times, codes = log
    window = find_recent((pa.array(keys), times), _columns(queries), length=_ALL)
    keys, times, codes = keys[window.order], times[window.order], codes[window.order]
    best = best_by_row(keys, times, codes, length=length)
    # Row -1 is nobody's: it stands for a key that has had nothing.
    best = np.concatenate([best, np.full((1, best.shape[1]), -1)])
    return best[np.where(window.ends > window.starts, window.ends - 1, -1)]


def _columns(queries: tuple[IntArray, IntArray]) -> tuple[pa.Array, IntArray]:
    return pa.array(queries[0]), queries[1]


def best_by_row(keys: IntArray, times: IntArray, codes: IntArray, *, length: int) -> IntArray:
    """Returns, for each row of a log, the most frequent codes of its key up to it.

    A code is as good as its last row: only rows that raise a count can change who is best. So the
    best of two neighbouring stretches of rows are among the best of each, less the codes of the
    first that come again in the second; and stretches are merged until they reach back to their
    key's first row.

    Args:
        keys: [num_rows], in order; a key's rows are sorted by time.
        times: [num_rows] milliseconds.
        codes: [num_rows] values' places in their order.
        length: At most so many codes.

    Returns:
        [num_rows, at most length] codes, -1 where there are fewer.
    """
    num_rows = len(keys)
    counts, again, most = _occurrences(keys, codes)
    width = min(length, most)
    # A row's rank among all rows of its key, as if each were the last of its code: 0 is best.
    order = np.lexsort((codes, -times, -counts, keys))
    ranks = np.empty(num_rows, np.int64)
    ranks[order] = np.arange(num_rows)
    best = np.full((num_rows, width), num_rows, np.int64)
    if not num_rows:
        return best
    best[:, 0] = ranks
    row_of, again = np.append(order, num_rows), np.append(again, 0)
    starts = np.flatnonzero(np.diff(keys, prepend=keys[0] - 1))
    number = np.arange(num_rows) - np.repeat(starts - 1, np.diff(np.append(starts, num_rows)))
    for rows, stretch in _stretches(number):
        left = best[rows - stretch]
        left = np.where(again[row_of[left]] > rows[:, None], left, num_rows)
        both = np.concatenate([left, best[rows]], axis=1)
        both.sort(axis=1)
        best[rows] = both[:, :width]
    return np.append(codes, -1)[row_of[best]]


def _stretches(number: IntArray) -> Iterator[tuple[IntArray, int]]:
    """Yields which rows to merge with the row so far before them (Brent and Kung 1982).

    Upwards, a row whose number is a multiple of twice the stretch learns of that many rows; then
    downwards, the others learn of all rows before their own stretch. That is twice as many merges
    as there are rows, whatever the length of a key's log.

    Args:
        number: [num_rows] 1 for the first row of each key, and so on.
    """
    longest = int(number.max())
    sizes = [1 << level for level in range(longest.bit_length())]
    for size in sizes:
        yield from _chunks(np.flatnonzero(number % (2 * size) == 0), size)
    for size in reversed(sizes):
        yield from _chunks(np.flatnonzero((number % (2 * size) == size) & (number > size)), size)


def _chunks(rows: IntArray, size: int) -> Iterator[tuple[IntArray, int]]:
    for first in range(0, len(rows), _ROWS_AT_ONCE):
        yield rows[first : first + _ROWS_AT_ONCE], size


def _occurrences(keys: IntArray, codes: IntArray) -> tuple[IntArray, IntArray, int]:
    """Counts rows with the same key and code.

    Returns:
        [num_rows] how many a row is, [num_rows] the row of the next one, or num_rows; and the
        largest number of codes that a key has.
    """
    num_rows = len(keys)
    if not num_rows:
        return np.zeros(0, np.int64), np.zeros(0, np.int64), 1
    order = np.lexsort((codes, keys))  # stable: rows stay in order
    is_first = np.diff(keys[order], prepend=-1) != 0
    is_first |= np.diff(codes[order], prepend=-1) != 0
    firsts = np.flatnonzero(is_first)
    place = np.arange(num_rows) - np.repeat(firsts, np.diff(np.append(firsts, num_rows)))
    counts, again = np.empty(num_rows, np.int64), np.full(num_rows, num_rows)
    counts[order] = place + 1
    repeated = np.flatnonzero(~is_first)
    again[order[repeated - 1]] = order[repeated]
    most = np.unique(keys[order[firsts]], return_counts=True)[1].max()
    return counts, again, int(most)
