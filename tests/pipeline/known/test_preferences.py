from __future__ import annotations

import collections
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.known import preferences
from pipeline.known.preferences import most_frequent

ROW = st.tuples(st.integers(0, 2), st.integers(0, 12), st.integers(0, 5))


def columns(rows: list[tuple[int, ...]]) -> list[np.ndarray]:
    return [np.array(column, np.int64) for column in zip(*rows, strict=True)] or [np.array([])] * 3


def test_more_often_then_more_recent_then_smaller() -> None:
    log = (
        pa.array([1, 1, 1, 1, 1, 2]),
        np.array([1, 2, 3, 4, 4, 1]),
        pa.array(["b", "a", "b", "d", "c", "z"]),
    )
    queries = (pa.array([1, 1, 1, 1, 2, 3]), np.array([1, 2, 4, 9, 9, 9]))
    expected = [[], ["b"], ["b", "a"], ["b", "c", "d"], ["z"], []]
    assert most_frequent(log, queries, length=3).to_pylist() == expected


def test_each_value_of_a_list_counts_and_nulls_do_not() -> None:
    values = pa.array([[1, 2], None, [], [2, None, 3]], pa.list_(pa.int64()))
    log = (pa.array(["u"] * 4), np.array([1, 2, 3, 4]), values)
    queries = (pa.array(["u", "u"]), np.array([4, 5]))
    found = most_frequent(log, queries, length=9)
    assert found.type == pa.list_(pa.int64())
    assert found.to_pylist() == [[1, 2], [2, 3, 1]]


@pytest.mark.parametrize("rows_at_once", [3, 1 << 18])
@given(
    log=st.lists(ROW, max_size=60),
    queries=st.lists(ROW, min_size=1, max_size=15),
    length=st.integers(1, 4),
    looks_back=st.booleans(),
)
def test_preferences_match_a_loop(
    rows_at_once: int, log: Any, queries: Any, length: int, looks_back: bool
) -> None:
    keys, times, values = columns(log) if log else [np.zeros(0, np.int64)] * 3
    query_keys, query_times, ages = columns(queries)
    since = query_times - ages if looks_back else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preferences, "_ROWS_AT_ONCE", rows_at_once)
        found = most_frequent(
            (pa.array(keys), times, pa.array(values)),
            (pa.array(query_keys), query_times),
            length=length,
            since=since,
        ).to_pylist()
    for (key, time, age), best in zip(queries, found, strict=True):
        counts: collections.Counter[int] = collections.Counter()
        last: dict[int, int] = {}
        for other, known, value in sorted(log, key=lambda row: row[1]):
            if other == key and known < time and (not looks_back or known >= time - age):
                counts[value] += 1
                last[value] = known
        assert best == sorted(counts, key=lambda v: (-counts[v], -last[v], v))[:length]
