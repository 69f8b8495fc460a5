"""Where a key's rows are in a sorted log: what "before" means, in one place."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

UInt64Array = npt.NDArray[np.uint64]
IntArray = npt.NDArray[np.int64]


def end_positions(
    log: tuple[IntArray, IntArray], queries: tuple[IntArray, IntArray], *, inclusive: bool
) -> IntArray:
    """Finds, for each query, the position in a log after the last row of its key by its time.

    This is the one place where "before" is decided: every point-in-time column uses it.

    Args:
        log: [num_rows] keys, 0 or more, and [num_rows] times, sorted by (key, time).
        queries: [num_queries] keys and times, in any order.
        inclusive: Whether a row at exactly the query's time counts as before it.

    Returns:
        [num_queries] positions; `start_positions` gives where the key's rows begin.
    """
    (log_keys, log_times), (keys, times) = log, queries
    distinct, ranks = np.unique(log_times, return_inverse=True)
    # One sorted integer per row, from (key, rank of time): it cannot overflow as (key, time) might.
    width = np.int64(len(distinct) + 1)
    num_earlier = np.searchsorted(distinct, times, side="right" if inclusive else "left")
    composite = log_keys * width + ranks
    return np.searchsorted(composite, keys * width + num_earlier, side="left").astype(np.int64)


def start_positions(log_keys: IntArray, keys: IntArray) -> IntArray:
    """Returns [num_queries] positions where each key's rows begin in sorted `log_keys`."""
    return np.searchsorted(log_keys, keys, side="left").astype(np.int64)


def encode_keys(*columns: pa.Array | pa.ChunkedArray) -> list[IntArray]:
    """Replaces the keys of several columns by numbers that are equal where the keys are."""
    chunks = [chunk for column in columns for chunk in _chunks(column)]
    encoded = pc.dictionary_encode(pa.chunked_array(chunks, type=columns[0].type))
    indices = [chunk.indices for chunk in encoded.chunks]
    codes = pa.chunked_array(indices, type=pa.int32()).to_numpy().astype(np.int64)
    return list(np.split(codes, np.cumsum([len(column) for column in columns])[:-1]))


def _chunks(column: pa.Array | pa.ChunkedArray) -> list[pa.Array]:
    return list(column.chunks) if isinstance(column, pa.ChunkedArray) else [column]
