"""The positives that histories are made of, for a log without an end."""

from __future__ import annotations

from typing import Final

import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.join.labels import OUTCOME_TIME_MS
from pipeline.join.runs import EMPTY, hash_rows
from pipeline.positions import UInt64Array
from pipeline.schema import InputError
from pipeline.specification import Specification

_COLUMNS: Final = (s.USER_ID, s.ITEM_ID, OUTCOME_TIME_MS, s.TIMESTAMP_MS, s.EVENT_ID)
_ORDER: Final = (OUTCOME_TIME_MS, s.TIMESTAMP_MS, s.EVENT_ID)
_SLICE_ROWS: Final = 1 << 16
CLEAN_ABOVE_ROWS: Final = 1 << 16


class Histories:
    """A log of positives in which each user's are found without a look at the others'.

    It is cleaned like a log-structured file: each call takes some of the oldest rows out, and puts
    those that can still be asked for back at the end. For a row that is added two are looked at, so
    at most about half of the rows are waste, and no call is long.
    """

    def __init__(self, specification: Specification) -> None:
        """Starts without a positive.

        Args:
            specification: Says the ids' types, and how many positives a history has.
        """
        types = specification.event_schema
        times = {name: pa.int64() for name in (OUTCOME_TIME_MS, s.TIMESTAMP_MS)}
        self._schema = pa.schema(
            [pa.field(name, times.get(name) or types.field(name).type) for name in _COLUMNS]
        )
        self._length = specification.history.length
        self._log = EMPTY
        self._like = pl.DataFrame(pl.from_arrow(self._schema.empty_table()))

    @property
    def num_rows(self) -> int:
        """How many positives are in memory."""
        return self._log.end - self._log.first

    def add(self, positives: pl.DataFrame) -> None:
        """Adds positives with their `outcome_time_ms`."""
        rows = positives.select(_COLUMNS)
        times = rows[OUTCOME_TIME_MS].to_numpy()
        self._log = self._log.add(rows, times, hashes=_hash_users(rows))

    def of(self, asking: pl.DataFrame) -> pl.DataFrame:
        """Returns the positives of the users of some rows, those of some other users among them."""
        return self._log.find(_hash_users(asking), self._like)[1]

    def clean(self, bound_ms: int, *, num_added: int, oldest_ms: int | None = None) -> None:
        """Drops some of the positives that no history can hold any more.

        A user's last N positives of an outcome time before the bound stay, and all younger ones.

        Args:
            bound_ms: No time that is asked about is earlier.
            oldest_ms: What is older than this, nobody looks back to. None: some may look to all.
            num_added: How many positives were added since the last call.
        """
        if self.num_rows < CLEAN_ABOVE_ROWS:
            return
        oldest, rest = self._log.oldest(2 * num_added, self._like)
        if not len(oldest):
            return
        old = pl.col(OUTCOME_TIME_MS) < bound_ms
        users = pl.concat([oldest, rest.find(_hash_users(oldest), self._like)[1]]).filter(old)
        # Ranked with all of the user's: a younger positive than these may be among the oldest rows.
        rank = pl.col(s.EVENT_ID).cum_count(reverse=True).over(s.USER_ID)
        kept = users.sort(_ORDER).filter(rank <= self._length)
        if oldest_ms is not None:
            kept = kept.filter(pl.col(OUTCOME_TIME_MS) >= oldest_ms)
        stay = oldest.join(kept, on=_COLUMNS, how="semi", maintain_order="left")
        self._log = rest
        self.add(pl.concat([stay, oldest.filter(~old)]))

    def dump(self) -> bytes:
        """Returns all positives as a compressed Arrow IPC file."""
        rows = self._log.everything(self._like)
        sink = pa.BufferOutputStream()
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with pa.ipc.new_file(sink, self._schema, options=options) as writer:
            writer.write_table(rows.to_arrow().cast(self._schema), max_chunksize=_SLICE_ROWS)
        return sink.getvalue().to_pybytes()

    def load(self, data: bytes) -> None:
        """Replaces all positives by those of `dump`.

        Raises:
            InputError: If they are not of this specification's types, or no such file at all.
        """
        try:
            table = pa.ipc.open_file(data).read_all()
        except pa.ArrowInvalid as error:
            raise InputError(
                f"snapshot: found {len(data)} bytes that are no Arrow file ({error}); expected a"
                " snapshot of this joiner"
            ) from error
        rows = pl.DataFrame(pl.from_arrow(s.conform(table, self._schema, where="snapshot")))
        self._log = EMPTY
        for part in rows.iter_slices(_SLICE_ROWS):
            self.add(part)


def _hash_users(rows: pl.DataFrame) -> UInt64Array:
    return hash_rows(rows.select(s.USER_ID))
