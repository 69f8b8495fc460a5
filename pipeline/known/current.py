"""The tables of users and items as their files are now, for samples that are joined live."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.known.tables import Tables, find_tables, read_tables
from pipeline.specification import Specification

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 10.0

Stamp = tuple[tuple[str, int, int], ...]  # path, time of change and size of each file


@dataclasses.dataclass(slots=True)
class _Held:
    stamp: Stamp
    tables: Tables


class CurrentTables:
    """All rows of the tables, in memory; read again when files come, go or change.

    Files are replaced by rename, as `headrace samples` and every careful writer do. What cannot be
    read is told of in the log, and the rows that were there before hold on.
    """

    def __init__(
        self,
        specification: Specification,
        *,
        users: Sequence[str] = (),
        items: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Reads the tables that the specification declares.

        Args:
            specification: Which tables there are, and their columns.
            users: Files, folders or globs of the users' table.
            items: The same of the items'.
            clock: Seconds.

        Raises:
            InputError: If a table is declared and its files are not there, or not as declared.
        """
        self._specification, self._clock = specification, clock
        self._users, self._items = users, items
        self._looked = clock()
        self._held = self._read(None)

    def of(self, rows: pl.DataFrame) -> Tables:
        """Returns what the tables have of the users and items of some rows."""
        self._look()
        held = self._held.tables
        return Tables(_only(held.users, rows, s.USER_ID), _only(held.items, rows, s.ITEM_ID))

    def _look(self) -> None:
        now = self._clock()
        if now - self._looked < _LOOK_SECONDS:
            return
        self._looked = now
        try:
            self._held = self._read(self._held)
        except (s.InputError, OSError, pa.ArrowException, pl.exceptions.PolarsError) as error:
            logger.warning("tables could not be read again, their former rows hold on: %s", error)

    def _read(self, held: _Held | None) -> _Held:
        specification = self._specification
        found = find_tables(specification, users=self._users, items=self._items)
        stamp = tuple(_stamp(path) for files in found for path in files)
        if held is not None and stamp == held.stamp:
            return held
        read = read_tables(specification, users=found[0], items=found[1])
        # In this order a look-up sorts nothing.
        rows = [t if t is None else t.sort(s.VALID_FROM_MS) for t in (read.users, read.items)]
        if held is not None:
            logger.info("tables were read again: %s", ", ".join(path for path, _, _ in stamp))
        return _Held(stamp, Tables(*rows))


def _stamp(path: str) -> tuple[str, int, int]:
    status = Path(path).stat()
    return path, status.st_mtime_ns, status.st_size


def _only(table: pl.DataFrame | None, rows: pl.DataFrame, key: str) -> pl.DataFrame | None:
    if table is None:
        return None
    return table.join(rows.select(pl.col(key).unique()), on=key, how="semi", maintain_order="left")
