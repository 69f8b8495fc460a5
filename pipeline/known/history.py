"""What was known before an event: the user's last positives, the item's counts.

Everything here is strictly before: a row at the very time of the event is not history, since logs
do not say which of the two came first. A positive is known from its *outcome's* time on, not from
its impression's.
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.positions import IntArray, encode_keys, end_positions, start_positions

Column: TypeAlias = pa.Array | pa.ChunkedArray


def recent_items(
    log: tuple[Column, IntArray, pa.Array], queries: tuple[Column, IntArray], *, length: int
) -> pa.ListArray:
    """Returns the last items of each query's user before the query's time, oldest first.

    Args:
        log: [num_positives] users, outcome times and items, in an order that settles ties of time.
        queries: [num_queries] users and times, in any order.
        length: At most this many items each.

    Returns:
        [num_queries, (0 to length)] item ids.
    """
    users, times, items = log
    query_users, query_times = queries
    log_keys, query_keys = encode_keys(users, query_users)
    order = np.lexsort((times, log_keys))  # stable: the order given settles ties
    log_keys, times = log_keys[order], times[order]
    ends = end_positions((log_keys, times), (query_keys, query_times), inclusive=False)
    starts = np.maximum(start_positions(log_keys, query_keys), ends - length)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(ends - starts)])
    positions = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - starts, ends - starts)
    values = items.take(pa.array(order[positions]))
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def count_before(log: tuple[Column, IntArray], queries: tuple[Column, IntArray]) -> IntArray:
    """Returns how many rows of each query's key a log has strictly before the query's time.

    Args:
        log: [num_rows] keys and times, in any order.
        queries: [num_queries] keys and times, in any order.

    Returns:
        [num_queries] counts.
    """
    log_keys, query_keys = encode_keys(log[0], queries[0])
    order = np.lexsort((log[1], log_keys))
    log_keys, times = log_keys[order], log[1][order]
    ends = end_positions((log_keys, times), (query_keys, queries[1]), inclusive=False)
    return ends - start_positions(log_keys, query_keys)
