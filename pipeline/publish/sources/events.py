"""Event logs, for rehearsals, to rows of partitions in the order of event time over all files."""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema as s
from pipeline.events.json_lines import Reject
from pipeline.events.read import RawBlock, find_files, fingerprint_file, plan_splits, read_split
from pipeline.events.validate import EARLIEST_MS, LATEST_MS, Check, validate
from pipeline.publish.config import PublishConfig
from pipeline.publish.form import RAW
from pipeline.publish.sources.order import EventTimeOrder, merged_steps
from pipeline.publish.sources.rows import PARTITION, Prepared, days_of
from pipeline.shuffle import hash_keys

_PLACED: Final = (s.EVENT_ID, s.USER_ID, s.TIMESTAMP_MS)
"""What an event needs to have a place in a topic; all else is for those to judge who read it."""

logger = logging.getLogger(__name__)


class EventLogs:
    """The events of logs, as a `Source`; those of a user go to `hash_keys(user) % partitions`."""

    def __init__(self, config: PublishConfig, schema: pa.Schema, partitions: int) -> None:
        """Looks at every file's footer or first lines, and at all its bytes for the digest.

        Args:
            config: `events` names the logs, `actions` and `malformed` what of them is sent.
            schema: Of an event; columns that a file lacks are null.
            partitions: Of the topic.

        Raises:
            InputError: If a file is not there, not whole, or lacks a column that every log has.
        """
        files = find_files(config.events or [], setting="publish.events")
        names = {kind: name for name, kind in s.ARROW_TYPES.items()}
        self._types = {field.name: names[field.type] for field in schema}
        self._splits = plan_splits(files, self._types, s.REQUIRED_EVENT_COLUMNS)
        root = os.path.commonpath([Path(path).parent for path in files])
        self.inputs = {
            os.path.relpath(path, root): fingerprint_file(path).sha256[:16] for path in files
        }
        self.schema = schema
        self._send_raw = config.malformed == "send"
        if self._send_raw:
            self.schema = schema.append(pa.field(RAW, pa.binary()))
        self._actions = None if config.actions is None else pa.array(config.actions)
        self._partitions = np.uint64(partitions)
        self._checks = _checks()
        self._order = EventTimeOrder()
        self._rejects: Counter[str] = Counter()
        self._days: set[str] = set()

    def prepare(self, sent: Sequence[int], told: Callable[[int], None]) -> Prepared:
        """Sorts all events into a temporary file.

        Raises:
            InputError: If a file cannot be read, the disk is full, or no event is left to be sent.
        """
        path, lines = "", 0
        for split in self._splits:
            lines = 0 if split.path != path else lines
            path = split.path
            for block in read_split(split, self._types):
                self._order.add(self._rows(block, path, lines))
                lines += block.num_lines
                told(self._order.rows)
        if not self._order.rows:
            raise s.InputError(
                "publish.events: found no event"
                + ("" if self._actions is None else f" of {', '.join(self._actions.to_pylist())}")
                + f" in {len({split.path for split in self._splits})} files"
                + (f", and {self._rejects.total():,} rows that are none" if self._rejects else "")
                + "; expected some"
            )
        first_ms = self._order.finish()
        steps = merged_steps(self._order)
        return Prepared(
            self._order.rows, sent, steps, sorted(self._days), first_ms, dict(self._rejects)
        )

    def close(self) -> None:
        """Removes the sorted copy."""
        self._order.close()

    def _rows(self, block: RawBlock, path: str, lines: int) -> pa.Table:
        """Returns the rows of a block that are sent, with their partitions.

        Args:
            block: Of a file.
            path: The file.
            lines: How many rows of it come before the block.
        """
        events, rejects = validate(block, self._checks)
        self._days.update(days_of(events[s.TIMESTAMP_MS]))
        if rejects:
            self._tell(rejects, f"{path}: row {lines + rejects[0].row + 1}")
        numbers = np.setdiff1d(np.asarray(block.rows), [reject.row for reject in rejects])
        times = events[s.TIMESTAMP_MS].to_numpy()
        hashes = hash_keys(events[s.USER_ID]) if events.num_rows else np.empty(0, np.uint64)
        parts = pa.array((hashes % self._partitions).astype(np.int32))
        if self._send_raw:
            events = events.append_column(RAW, pa.nulls(events.num_rows, pa.binary()))
        events = events.append_column(PARTITION, parts)
        if self._actions is not None:
            mask = pc.is_in(events[s.ACTION], self._actions)
            events = events.filter(mask)
            kept = numbers[mask.to_numpy(zero_copy_only=False).astype(bool)]
        else:
            kept = numbers
        if not (rejects and self._send_raw and len(times)):
            return events
        bad = [reject.row for reject in rejects]
        # Where it stands in its file, a row that has no time of its own follows the event before.
        before = np.maximum(np.searchsorted(numbers, bad) - 1, 0)
        raw = self._as_they_are(block, rejects, times[before])
        order = np.argsort(np.concatenate([kept, bad]), kind="stable")
        return pa.concat_tables([events, raw]).take(pa.array(order))

    def _as_they_are(
        self, block: RawBlock, rejects: Sequence[Reject], times: np.ndarray
    ) -> pa.Table:
        """Returns rows that have nothing but a time, a partition, and the bytes to be sent."""
        lines = None if block.lines is None else block.lines.split(b"\n")
        raw = [
            json.dumps(block.table.slice(reject.row, 1).to_pylist()[0], default=str).encode()
            if lines is None
            else lines[reject.row]
            for reject in rejects
        ]
        columns = {
            field.name: pa.nulls(len(raw), field.type)
            for field in self.schema.append(pa.field(PARTITION, pa.int32()))
        }
        columns[s.EVENT_ID] = pa.array([""] * len(raw))
        columns[s.TIMESTAMP_MS] = pa.array(times)
        columns[RAW] = pa.array(raw, pa.binary())
        parts = [zlib.crc32(line) % int(self._partitions) for line in raw]
        columns[PARTITION] = pa.array(parts, pa.int32())
        return pa.table(columns)

    def _tell(self, rejects: Sequence[Reject], where: str) -> None:
        if not self._rejects:
            logger.warning(
                "%s: %s: %s; such rows are %s, and counted",
                where,
                rejects[0].reason,
                rejects[0].detail,
                "sent as they are" if self._send_raw else "left out",
            )
        self._rejects.update(reject.reason for reject in rejects)


def _checks() -> list[Check]:
    """Returns the rules for a place in a topic."""
    rules = [
        Check("missing_column_value", name, "a value", pl.col(name).is_null()) for name in _PLACED
    ]
    plausible = pl.col(s.TIMESTAMP_MS).is_between(EARLIEST_MS, LATEST_MS, closed="left")
    expected = "milliseconds since 1970, of a time from 1990 to 2099"
    return [*rules, Check("implausible_timestamp", s.TIMESTAMP_MS, expected, ~plausible)]
