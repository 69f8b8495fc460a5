"""Where records go that could not become samples: one file per range, here; or a topic."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from streaming.source import Range, Reject


class DeadLetters(Protocol):
    """Keeps rejected records, whole.

    A range that is tried again is written again: what was kept of it before must be replaced, or
    be recognised by its topic, partition and offset.
    """

    def write(self, wanted: Range, rejects: Sequence[Reject]) -> None:
        """Keeps a range's rejects; they have arrived when this returns.

        Raises:
            OSError, SourceUnavailableError: If they cannot be kept at present; the range is tried
                again, for no reject may be counted and not be there.
        """


class DeadLetterFiles:
    """One Parquet file per range that has rejects; its name makes a retry overwrite it.

    After a restart from a checkpoint ranges may be cut elsewhere, and files overlap: a record is
    one by its topic, partition and offset.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, wanted: Range, rejects: Sequence[Reject]) -> None:
        """Writes the file; none without rejects."""
        if not rejects:
            return
        rows = [
            {
                "topic": wanted.partition.topic,
                "partition": wanted.partition.number,
                "offset": reject.offset,
                "reason": reject.reason,
                "detail": reject.detail,
                "payload": reject.payload,
            }
            for reject in rejects
        ]
        self._directory.mkdir(parents=True, exist_ok=True)
        name = f"{wanted.partition.topic}-{wanted.partition.number}-{wanted.start}-{wanted.end}"
        temporary = self._directory / f".{name}.{os.getpid()}"
        pq.write_table(pa.Table.from_pylist(rows), temporary)
        temporary.replace(self._directory / f"{name}.parquet")
