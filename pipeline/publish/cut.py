"""Rows to records: so many rows of one partition, or fewer where event time has moved on.

Where a record ends depends on the rows of its partition alone, not on how they come in, so that
whoever begins again behind a record makes the same ones after it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline.publish.sources.rows import Piece, Pieces
from pipeline.schema import EVENT_ID, TIMESTAMP_MS

IntArray = npt.NDArray[np.int64]

_TOGETHER: Final = (EVENT_ID,)
"""Neighbours that are equal in one of these columns belong together: they stay in one record."""


@dataclasses.dataclass(frozen=True, slots=True)
class Cut:
    """The rows of one record.

    Attributes:
        partition: Where it goes.
        rows: At least one.
        first_ms: Event time of the first row; None if the input is in no order of time.
        due_ms: Event time at which it goes out: when a row came that is too many, when the first is
            as old as a record's may be, or at the end of the input. None as for `first_ms`.
    """

    partition: int
    rows: pa.Table
    first_ms: int | None = None
    due_ms: int | None = None


class Cutter:
    """Cuts each partition's rows into records."""

    def __init__(
        self,
        schema: pa.Schema,
        sent: Sequence[int],
        *,
        rows: int,
        span_ms: float | None = None,
    ) -> None:
        """Begins behind what was sent.

        Args:
            schema: Of the rows.
            sent: For each partition, how many of its rows are left out, for they were sent before.
            rows: How many rows a record has.
            span_ms: A record's rows are of less than so much event time; None for any.
        """
        self._skip = list(sent)
        self._waiting = [schema.empty_table() for _ in sent]
        self._limit = rows
        self._span_ms = span_ms
        self._together = [name for name in _TOGETHER if name in schema.names]

    def cuts(self, steps: Iterable[Pieces]) -> Iterator[Cut]:
        """Yields the records; in the order in which they are due, if the input is in that of time.

        Args:
            steps: All rows of the input, those that were sent before included.
        """
        until_ms = None
        for step in steps:
            until_ms = step.until_ms
            for piece in step.pieces:
                self._add(piece)
            # Without a span, time alone makes no record whole.
            touched = [piece.partition for piece in step.pieces]
            numbers = touched if self._span_ms is None else range(len(self._waiting))
            found = (cut for number in numbers for cut in self._whole_ones(number, until_ms))
            yield from found if until_ms is None else sorted(found, key=_due)
        for number, rows in enumerate(self._waiting):
            if rows.num_rows:
                yield self._rest(number, until_ms)

    @property
    def missing(self) -> int:
        """How many rows were sent before that the input has not had so far."""
        return sum(self._skip)

    def _add(self, piece: Piece) -> None:
        number, rows = piece.partition, piece.rows
        if skipped := min(self._skip[number], rows.num_rows):
            self._skip[number] -= skipped
            rows = rows.slice(skipped)
        if rows.num_rows:
            waiting = self._waiting[number]
            self._waiting[number] = pa.concat_tables([waiting, rows]) if waiting.num_rows else rows

    def _whole_ones(self, number: int, until_ms: int | None) -> Iterator[Cut]:
        """Takes the records of a partition that are whole by now."""
        waiting = self._waiting[number]
        if waiting.num_rows <= self._limit and (until_ms is None or self._span_ms is None):
            return
        times = None if until_ms is None else waiting[TIMESTAMP_MS].to_numpy()
        start = 0
        while start < waiting.num_rows:
            count, due_ms = self._first(waiting, times, start)
            if not count or (due_ms is not None and until_ms is not None and due_ms > until_ms):
                break
            first_ms = None if times is None else int(times[start])
            yield Cut(number, waiting.slice(start, count), first_ms, due_ms)
            start += count
        self._waiting[number] = waiting.slice(start)

    def _first(
        self, waiting: pa.Table, times: IntArray | None, start: int
    ) -> tuple[int, int | None]:
        """Returns a record's length, 0 if it is not known yet, and when it is due."""
        left = waiting.num_rows - start
        count, due_ms = left, None
        if times is not None and self._span_ms is not None:
            due_ms = int(times[start] + max(1.0, self._span_ms))
            count = int(np.searchsorted(times[start:], due_ms, side="left"))
        if count <= self._limit:
            return (count, due_ms) if due_ms is not None else (0, None)
        count = self._limit - self._torn(waiting, start, self._limit)
        return count, None if times is None else int(times[start + self._limit])

    def _torn(self, waiting: pa.Table, start: int, count: int) -> int:
        """Returns how many rows at a record's end belong with the row after it."""
        for name in self._together:
            column = waiting[name]
            after = column[start + count]
            back = 0
            while back < count and column[start + count - 1 - back] == after:
                back += 1
            return back if back < count else 0
        return 0

    def _rest(self, number: int, until_ms: int | None) -> Cut:
        """Takes what is left of a partition at the end of the input, where time ends, too."""
        waiting, self._waiting[number] = self._waiting[number], self._waiting[number].slice(0, 0)
        first_ms = None if until_ms is None else waiting[TIMESTAMP_MS][0].as_py()
        return Cut(number, waiting, first_ms, until_ms)


def _due(cut: Cut) -> tuple[int, int]:
    return cut.due_ms or 0, cut.partition
