"""What was known before an event: the last rows of its user, counts of its item.

Everything here is strictly before: a row at the very time of the event is not history, since logs
do not say which of the two came first. A positive is known from its *outcome's* time on, not from
its impression's.
"""

from __future__ import annotations

import dataclasses
from typing import TypeAlias

import numpy as np
import pyarrow as pa

from pipeline.positions import IntArray, encode_keys, end_positions, start_positions

Column: TypeAlias = pa.Array | pa.ChunkedArray


@dataclasses.dataclass(frozen=True, slots=True)
class Recent:
    """Which rows of a log each query sees: one search, from which any column can be gathered.

    Attributes:
        order: [num_rows] rows of the log by (key, time).
        starts: [num_queries] where each query's rows begin in `order`.
        ends: [num_queries] where they end, exclusive.
    """

    order: IntArray
    starts: IntArray
    ends: IntArray

    def slice(self, first: int, last: int) -> Recent:
        """Returns the queries from `first` to `last`, exclusive."""
        return Recent(self.order, self.starts[first:last], self.ends[first:last])

    @property
    def offsets(self) -> IntArray:
        """[num_queries + 1] where each query's rows begin in `rows`, and where the last end."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.ends - self.starts)])

    @property
    def rows(self) -> IntArray:
        """Rows of the log, oldest first, of all queries behind each other."""
        offsets, counts = self.offsets, self.ends - self.starts
        places = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.starts, counts)
        return self.order[places]

    def gather(self, values: pa.Array) -> pa.ListArray:
        """Returns [num_queries, (0 to length)] values of the log's rows."""
        return pa.ListArray.from_arrays(
            pa.array(self.offsets, pa.int32()), values.take(pa.array(self.rows))
        )


def find_recent(
    log: tuple[Column, IntArray],
    queries: tuple[Column, IntArray],
    *,
    length: int,
    since: IntArray | None = None,
) -> Recent:
    """Finds the last rows of each query's key before the query's time.

    Args:
        log: [num_rows] keys and times, in an order that settles ties of time.
        queries: [num_queries] keys and times, in any order.
        length: At most this many rows each.
        since: [num_queries] times; older rows are not seen. None: all are.
    """
    times, query_times = log[1], queries[1]
    log_keys, query_keys = encode_keys(log[0], queries[0])
    order = np.lexsort((times, log_keys))  # stable: the order given settles ties
    ordered = (log_keys[order], times[order])
    ends = end_positions(ordered, (query_keys, query_times), inclusive=False)
    if since is None:
        oldest = start_positions(ordered[0], query_keys)
    else:
        oldest = np.minimum(end_positions(ordered, (query_keys, since), inclusive=False), ends)
    return Recent(order, np.maximum(oldest, ends - length), ends)


def recent_items(
    log: tuple[Column, IntArray, pa.Array],
    queries: tuple[Column, IntArray],
    *,
    length: int,
    since: IntArray | None = None,
) -> pa.ListArray:
    """Returns the last items of each query's user before the query's time, oldest first.

    Args:
        log: [num_positives] users, outcome times and items, in an order that settles ties of time.
        queries: [num_queries] users and times, in any order.
        length: At most this many items each.
        since: [num_queries] times; what was known earlier does not count. None: all counts.

    Returns:
        [num_queries, (0 to length)] item ids.
    """
    return find_recent(log[:2], queries, length=length, since=since).gather(log[2])
