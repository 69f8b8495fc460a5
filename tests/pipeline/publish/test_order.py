"""The external sort against a sort of everything at once."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.publish.sources.order import EventTimeOrder, merged_steps
from pipeline.publish.sources.rows import PARTITION

# Few times and few ids, so that there are many ties; ids beyond ASCII sort by code point.
ROWS = st.lists(
    st.tuples(st.integers(0, 6), st.sampled_from(["", "a", "b", "é", "\U0001f600", "\ufb01"]))
)


def table(rows: list[tuple[int, str]], first: int = 0) -> pa.Table:
    columns = {
        "timestamp_ms": pa.array([time for time, _ in rows], pa.int64()),
        "event_id": pa.array([name for _, name in rows], pa.string()),
        "number": pa.array(range(first, first + len(rows)), pa.int64()),
    }
    return pa.table(columns)


def ordered(tables: list[pa.Table], **options: Any) -> list[dict[str, Any]]:
    order = EventTimeOrder(**options)
    for each in tables:
        order.add(each)
    order.finish()
    found = [row for merged in order.merged() for row in merged.to_pylist()]
    order.close()
    return found


@given(ROWS, st.integers(1, 200), st.integers(1, 5), st.integers(1, 7))
def test_many_small_runs_give_what_one_stable_sort_gives(
    rows: list[tuple[int, str]], run_bytes: int, batch_rows: int, length: int
) -> None:
    tables = [table(rows[start : start + length], start) for start in range(0, len(rows), length)]
    found = ordered(tables, run_bytes=run_bytes, batch_rows=batch_rows)
    wanted = sorted(range(len(rows)), key=lambda place: rows[place])
    assert [row["number"] for row in found] == wanted
    assert [(row["timestamp_ms"], row["event_id"]) for row in found] == sorted(rows)


def test_rows_without_event_ids_keep_their_order_within_a_time() -> None:
    tables = [
        table([(5, ""), (1, "")], 0).drop_columns(["event_id"]),
        table([(5, ""), (1, ""), (3, "")], 2).drop_columns(["event_id"]),
    ]
    found = ordered(tables, run_bytes=1)
    assert [row["number"] for row in found] == [1, 3, 4, 0, 2]


def test_a_log_in_order_is_merged_with_one_run_open_at_a_time() -> None:
    order = EventTimeOrder(run_bytes=1, batch_rows=4)
    for start in range(0, 1000, 10):
        order.add(table([(time, str(time)) for time in range(start, start + 10)], start))
    assert order.finish() == 0
    lengths = [each.num_rows for each in order.merged()]
    # What is merged at once is a batch of the one run, and perhaps the first of the next.
    assert sum(lengths) == 1000
    assert max(lengths) <= 8
    order.close()


def test_nothing_gives_nothing() -> None:
    order = EventTimeOrder()
    order.add(table([]))
    assert order.finish() is None
    assert list(order.merged()) == []
    order.close()


def test_steps_are_cut_by_partition_in_the_order_of_time() -> None:
    order = EventTimeOrder()
    rows = table([(30, "c"), (10, "a"), (20, "b"), (25, "d")])
    order.add(rows.append_column(PARTITION, pa.array([7, 7, 2, 7], pa.int32())))
    order.finish()
    (step,) = merged_steps(order)
    found = [(piece.partition, piece.rows["number"].to_pylist()) for piece in step.pieces]
    assert found == [(2, [2]), (7, [1, 3, 0])]
    assert step.until_ms == 30
    order.close()
