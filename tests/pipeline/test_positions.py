from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from pipeline.positions import encode_keys, end_positions, start_positions


def test_positions_before_a_time_count_ties_only_if_inclusive() -> None:
    log = (np.array([0, 0, 0, 2]), np.array([10, 20, 20, 5]))
    queries = (np.array([0, 0, 0, 1, 2]), np.array([10, 20, 99, 99, 5]))
    assert end_positions(log, queries, inclusive=False).tolist() == [0, 1, 3, 3, 3]
    assert end_positions(log, queries, inclusive=True).tolist() == [1, 3, 3, 3, 4]
    assert start_positions(log[0], queries[0]).tolist() == [0, 0, 0, 3, 3]


def test_positions_do_not_overflow_at_the_ends_of_time() -> None:
    log = (np.array([0, 2**31]), np.array([-(2**62), 2**62]))
    queries = (np.array([2**31]), np.array([2**62 + 1]))
    assert end_positions(log, queries, inclusive=False).tolist() == [2]


def test_positions_in_an_empty_log_are_zero() -> None:
    none = np.zeros(0, np.int64)
    assert end_positions((none, none), (np.array([3]), np.array([7])), inclusive=True).tolist() == [
        0
    ]


@pytest.mark.parametrize("values", [[3, 4], ["b", "c"]])
def test_keys_of_several_columns_share_their_codes(values: list[int] | list[str]) -> None:
    low, high = values
    first, second = encode_keys(pa.array([low, high]), pa.chunked_array([[high], [high, low]]))
    assert (first[0], first[1]) == (second[2], second[0])
    assert first[0] != first[1]
    assert second[0] == second[1]
