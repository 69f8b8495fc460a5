"""Rows of many files in the order of event time, in bounded memory: an external merge sort.

Tables are collected to runs of some megabytes; a run is sorted and laid behind the others in one
temporary file without a name, so that nothing is left of it however the process ends. Then the
runs are merged batch by batch. A run is opened when the merge comes to its first row, so a log that
is nearly in order, as logs are, needs few at once. The file is mapped, not read: what is held of it
is the kernel's to drop.
"""

from __future__ import annotations

import bisect
import dataclasses
import mmap
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.publish.sources.rows import PARTITION, Piece, Pieces
from pipeline.schema import EVENT_ID, TIMESTAMP_MS, InputError

RUN_BYTES: Final = 64 << 20
BATCH_ROWS: Final = 8192
_PLACE: Final = "headrace-place"
"""A hidden column, the row's place in the input: rows of one event keep their order."""

_Key = tuple[int, str, int]


@dataclasses.dataclass(slots=True)
class _Run:
    """A sorted part of the input, in the temporary file.

    Attributes:
        start: Its first byte.
        end: After its last byte.
        first: Key of its first row.
    """

    start: int
    end: int
    first: _Key


class EventTimeOrder:
    """Takes rows in any order, gives them by (timestamp_ms, event_id), equal ones as they came."""

    def __init__(self, *, run_bytes: int = RUN_BYTES, batch_rows: int = BATCH_ROWS) -> None:
        """Opens the temporary file.

        Args:
            run_bytes: How much is sorted at once.
            batch_rows: How much of each open run is looked at when they are merged.
        """
        self._run_bytes = run_bytes
        self._batch_rows = batch_rows
        self._file: BinaryIO = tempfile.TemporaryFile(prefix="headrace-publish-")  # noqa: SIM115
        self._waiting: list[pa.Table] = []
        self._bytes = 0
        self._runs: list[_Run] = []
        self.rows = 0
        """How many have been added."""

    def close(self) -> None:
        """Gives the disk back; `merged` has ended."""
        self._file.close()

    def add(self, table: pa.Table) -> None:
        """Takes rows of one schema. Times are not null, nor are event ids, if there are any.

        Raises:
            InputError: If the disk is full.
        """
        place = pa.array(np.arange(self.rows, self.rows + table.num_rows))
        self.rows += table.num_rows
        self._waiting.append(table.append_column(_PLACE, place))
        self._bytes += table.nbytes
        if self._bytes >= self._run_bytes:
            self._write_run()

    def finish(self) -> int | None:
        """Ends the input, and returns the time of the first row, None without rows.

        Raises:
            InputError: If the disk is full.
        """
        self._write_run()
        self._runs.sort(key=lambda run: run.first)
        return self._runs[0].first[0] if self._runs else None

    def merged(self) -> Iterator[pa.Table]:
        """Yields all rows in their order, after `finish`; tables are of any length but 0."""
        if not self._runs:
            return
        mapped = pa.py_buffer(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        closed = list(reversed(self._runs))
        opened: list[_Reader] = []
        while opened or closed:
            bound = min((reader.last for reader in opened if reader.more), default=None)
            while closed and (bound is None or closed[-1].first <= bound):
                reader = _Reader(mapped, closed.pop())
                opened.append(reader)
                if reader.more:
                    bound = reader.last if bound is None else min(bound, reader.last)
            table = _sorted(pa.concat_tables([reader.take(bound) for reader in opened]))
            yield table.drop_columns([_PLACE])
            opened = [reader for reader in opened if reader.fill()]

    def _write_run(self) -> None:
        if not (tables := [table for table in self._waiting if table.num_rows]):
            return
        self._waiting, self._bytes = [], 0
        table = _sorted(pa.concat_tables(tables))
        start = self._file.tell()
        try:
            with pa.ipc.new_stream(self._file, table.schema) as stream:
                stream.write_table(table, max_chunksize=self._batch_rows)
            self._file.flush()
        except OSError as error:
            raise InputError(
                f"publish: found no room in {tempfile.gettempdir()} to sort by event time, at"
                f" {start / 1e6:,.0f} MB ({error.strerror or error}); expected room for all rows,"
                " uncompressed: set TMPDIR to a folder of a larger disk"
            ) from error
        self._runs.append(_Run(start, self._file.tell(), _key(table, 0)))


class _Reader:
    """The rows of a run that were not taken yet, a batch at a time.

    Attributes:
        last: Key of the last row of the present batch.
        more: Whether there are batches after it.
    """

    def __init__(self, mapped: pa.Buffer, run: _Run) -> None:
        self._batches = iter(pa.ipc.open_stream(mapped.slice(run.start, run.end - run.start)))
        self._next: pa.RecordBatch | None = next(self._batches)
        self._present: pa.Table = None
        self._step()

    def _step(self) -> None:
        self._present = pa.Table.from_batches([self._next])
        self._next = next(self._batches, None)
        self.more = self._next is not None
        self.last = _key(self._present, -1)

    def take(self, bound: _Key | None) -> pa.Table:
        """Takes the rows up to a key; all for None."""
        table = self._present
        if bound is None or self.last <= bound:
            count = table.num_rows
        else:
            times = table[TIMESTAMP_MS].to_numpy()
            low, high = (int(np.searchsorted(times, bound[0], side)) for side in ("left", "right"))
            ties = range(low, high)
            count = low + bisect.bisect_right(ties, bound, key=lambda row: _key(table, row))
        self._present = table.slice(count)
        return table.slice(0, count)

    def fill(self) -> bool:
        """Goes to the next batch if this one was taken; returns whether there are rows left."""
        if not self._present.num_rows and self.more:
            self._step()
        return bool(self._present.num_rows)


def _sorted(table: pa.Table) -> pa.Table:
    table = table.combine_chunks()
    keys = [name for name in (TIMESTAMP_MS, EVENT_ID, _PLACE) if name in table.column_names]
    return table.take(pc.sort_indices(table, [(name, "ascending") for name in keys]))


def _key(table: pa.Table, row: int) -> _Key:
    # Text compares by its code points here and by its UTF-8 bytes in Arrow: the same order.
    time_ms, place = (table[name][row].as_py() for name in (TIMESTAMP_MS, _PLACE))
    return time_ms, table[EVENT_ID][row].as_py() if EVENT_ID in table.column_names else "", place


def merged_steps(order: EventTimeOrder) -> Iterator[Pieces]:
    """Yields all rows by time, each table cut by its column `PARTITION`."""
    for table in order.merged():
        until_ms = table[TIMESTAMP_MS][-1].as_py()
        numbers = table[PARTITION].to_numpy()
        rows = table.drop_columns([PARTITION])
        places = np.argsort(numbers, kind="stable")
        found, starts = np.unique(numbers[places], return_index=True)
        yield Pieces(
            [
                # Copied, not sliced: rows may wait long, and would keep the whole table waiting.
                Piece(int(number), rows.take(pa.array(chosen)))
                for number, chosen in zip(found, np.split(places, starts[1:]), strict=True)
            ],
            until_ms,
        )
