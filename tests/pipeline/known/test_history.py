from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.known.history import recent_items

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 9)), max_size=40)


def columns(rows: list[tuple[int, int]]) -> tuple[pa.Array, np.ndarray]:
    keys, times = zip(*rows, strict=True) if rows else ((), ())
    return pa.array(keys, pa.int64()), np.array(times, np.int64)


def test_history_is_oldest_first_cut_to_its_length_and_of_the_own_user() -> None:
    log = (pa.array([1, 1, 1, 2]), np.array([30, 10, 20, 15]), pa.array([103, 101, 102, 201]))
    queries = (pa.array([1, 1, 2, 3]), np.array([99, 25, 99, 99]))
    assert recent_items(log, queries, length=2).to_pylist() == [[102, 103], [101, 102], [201], []]


def test_an_item_known_at_the_very_time_of_the_event_is_not_history() -> None:
    log = (pa.array([1]), np.array([10]), pa.array([7]))
    queries = (pa.array([1, 1]), np.array([10, 11]))
    assert recent_items(log, queries, length=5).to_pylist() == [[], [7]]


def test_items_known_at_one_time_keep_the_order_of_the_log() -> None:
    log = (pa.array([1, 1, 1]), np.array([10, 10, 10]), pa.array(["c", "a", "b"]))
    queries = (pa.array([1]), np.array([11]))
    assert recent_items(log, queries, length=2).to_pylist() == [["a", "b"]]


def test_history_of_string_users_and_items() -> None:
    log = (pa.array(["u", "v"]), np.array([1, 2]), pa.array(["x", "y"]))
    history = recent_items(log, (pa.array(["v", "u"]), np.array([5, 5])), length=1)
    assert history.type == pa.list_(pa.string())
    assert history.to_pylist() == [["y"], ["x"]]


@pytest.mark.parametrize("length", [1, 3, 100])
@given(log=ROWS, queries=ROWS)
def test_history_matches_a_loop(
    length: int, log: list[tuple[int, int]], queries: list[tuple[int, int]]
) -> None:
    users, times = columns(log)
    items = pa.array(range(len(log)), pa.int64())
    found = recent_items((users, times, items), columns(queries), length=length).to_pylist()
    for (user, time), history in zip(queries, found, strict=True):
        known = sorted((t, i) for i, (u, t) in enumerate(log) if u == user and t < time)
        assert history == [item for _, item in known][-length:]
