"""Rows to records: sizes, ages, order, and the same ones after a restart."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.publish.cut import Cut, Cutter
from pipeline.publish.sources.rows import Piece, Pieces

SCHEMA = pa.schema([("timestamp_ms", pa.int64()), ("event_id", pa.string())])

Row = tuple[int, int, str]
"""Partition, time, event."""


def steps(rows: Sequence[Row], borders: Sequence[int]) -> list[Pieces]:
    """Returns rows in order, as they come if the source's tables end at these borders."""
    ends = sorted({min(border, len(rows)) for border in borders} | {len(rows)})
    found, start = [], 0
    for end in ends:
        if some := rows[start:end]:
            numbers = sorted({row[0] for row in some})
            pieces = [Piece(n, table([row for row in some if row[0] == n])) for n in numbers]
            found.append(Pieces(pieces, some[-1][1]))
        start = end
    return found


def table(rows: Sequence[Row]) -> pa.Table:
    return pa.table([[row[1] for row in rows], [row[2] for row in rows]], schema=SCHEMA)


def cuts(
    rows: Sequence[Row],
    *,
    limit: int,
    span: float | None,
    borders: Sequence[int] = (),
    sent: Sequence[int] = (0, 0, 0),
) -> list[Cut]:
    return list(Cutter(SCHEMA, sent, rows=limit, span_ms=span).cuts(steps(rows, borders)))


def shown(found: Sequence[Cut]) -> list[tuple[int, list[str], int | None]]:
    return [(cut.partition, cut.rows["event_id"].to_pylist(), cut.due_ms) for cut in found]


def test_a_record_ends_when_it_is_full_or_its_first_row_is_old() -> None:
    rows = [(0, 0, "a"), (1, 5, "b"), (0, 9, "c"), (0, 10, "d"), (0, 11, "e"), (0, 12, "f")]
    rows += [(1, 40, "g")]
    # Partition 0: a and c are within 10 ms; d, e and no third, for there are but two a record.
    assert shown(cuts(rows, limit=2, span=10)) == [
        (0, ["a", "c"], 10),  # full, known by d
        (0, ["d", "e"], 12),  # full, known by f
        (1, ["b"], 15),  # 10 ms old
        (0, ["f"], 22),
        (1, ["g"], 40),  # the input ends
    ]


def test_rows_of_one_event_stay_in_one_record_unless_they_are_too_many() -> None:
    rows = [(0, 1, name) for name in "abbbcccccc"]
    found = [names for _, names, _ in shown(cuts(rows, limit=3, span=None))]
    assert found == [["a"], ["b", "b", "b"], ["c", "c", "c"], ["c", "c", "c"]]
    # Where the limit falls between two events, nothing is torn.
    assert [n for _, n, _ in shown(cuts(rows[:7], limit=4, span=None))] == [
        ["a", "b", "b", "b"],
        ["c", "c", "c"],
    ]


def test_without_an_order_of_time_rows_alone_count() -> None:
    pieces = [Pieces([Piece(1, table([(1, 9, "a"), (1, 3, "b"), (1, 1, "c")]))])]
    pieces += [Pieces([Piece(0, table([(0, 2, "d")]))])]
    found = shown(list(Cutter(SCHEMA, [0, 0], rows=2).cuts(pieces)))
    assert found == [(1, ["a", "b"], None), (0, ["d"], None), (1, ["c"], None)]


ROWS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 40), st.sampled_from("abcdefgh")), max_size=40
).map(lambda rows: sorted(rows, key=lambda row: row[1:]))
SPANS = st.sampled_from([None, 0.5, 3.0, 10.0])


@given(ROWS, st.integers(1, 5), SPANS, st.lists(st.integers(0, 40), max_size=8))
def test_records_do_not_depend_on_how_rows_come_in_and_are_young_and_in_order(
    rows: list[Row], limit: int, span: float | None, borders: list[int]
) -> None:
    found = cuts(rows, limit=limit, span=span, borders=borders)
    by_partition = [[each for each in shown(found) if each[0] == n] for n in range(3)]
    at_once = shown(cuts(rows, limit=limit, span=span))
    assert by_partition == [[each for each in at_once if each[0] == n] for n in range(3)]
    for number, records in enumerate(by_partition):
        names = [name for _, some, _ in records for name in some]
        assert names == [name for n, _, name in rows if n == number]
    due = [cut.due_ms or 0 for cut in found]
    assert due == sorted(due)
    for cut in found:
        times = cut.rows["timestamp_ms"].to_pylist()
        assert len(times) <= limit
        assert cut.first_ms == times[0]
        if span is not None:
            assert times[-1] - times[0] < max(span, 1)
            assert cut.due_ms is not None
            assert times[-1] <= cut.due_ms <= times[0] + max(span, 1)


@given(ROWS, st.integers(1, 5), SPANS, st.lists(st.integers(0, 40), max_size=4), st.data())
def test_who_begins_behind_a_record_makes_the_same_ones_after_it(
    rows: list[Row], limit: int, span: float | None, borders: list[int], data: st.DataObject
) -> None:
    whole = cuts(rows, limit=limit, span=span, borders=borders)
    gone = data.draw(st.integers(0, len(whole)))
    sent = [
        sum(cut.rows.num_rows for cut in whole[:gone] if cut.partition == number)
        for number in range(3)
    ]
    cutter = Cutter(SCHEMA, sent, rows=limit, span_ms=span)
    rest = shown(list(cutter.cuts(steps(rows, borders))))
    assert sorted(rest) == sorted(shown(whole[gone:]))
    assert cutter.missing == 0


def test_rows_that_were_sent_and_are_there_no_more_are_missed() -> None:
    cutter = Cutter(SCHEMA, [3], rows=2)
    assert list(cutter.cuts(steps([(0, 1, "a")], []))) == []
    assert cutter.missing == 2
