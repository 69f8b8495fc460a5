"""Days: which are built, from which events, and which are to be built again.

A day is a UTC day, counted from 1970-01-01. Samples of a day are made of the events from three join
windows before it to one behind it (`Span.reads`), and of what earlier days have left in `facts/`.
"""

from __future__ import annotations

import dataclasses
import datetime
import re
from collections.abc import Iterable, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema as s
from pipeline.manifest import Day, Manifest
from pipeline.positions import IntArray

MS_PER_DAY: Final = 86_400_000
WINDOWS_BEFORE: Final = 3
"""An outcome of the first window before a day may belong to an impression two windows older."""

_FAST_CLOCK_MS = 3_600_000  # an event may be of tomorrow by its own clock

_DATED = re.compile(r"(?:^|/)dt=(\d{4}-\d{2}-\d{2})(?=/)")


def name_of(day: int) -> str:
    """Returns YYYY-MM-DD of a day."""
    return str(np.datetime64(day, "D"))


def parse_day(text: str, *, where: str) -> int:
    """Returns the number of a day written YYYY-MM-DD.

    Raises:
        InputError: If it is not one; `where` starts the message.
    """
    try:
        return (datetime.date.fromisoformat(text) - datetime.date(1970, 1, 1)).days
    except ValueError as error:
        raise s.InputError(f"{where}: found {text!r}; expected a day, YYYY-MM-DD") from error


@dataclasses.dataclass(frozen=True, slots=True)
class Span:
    """Days that are built together, and the events that they are made of.

    Attributes:
        first: The first day; None for all that the logs have, with all earlier ones.
        last: The last day, inclusive; None with `first`.
        window_ms: The join window.
    """

    first: int | None
    last: int | None
    window_ms: int

    @property
    def bounds(self) -> tuple[int, int]:
        """Times of the days themselves: first millisecond, and the one after the last."""
        if self.first is None or self.last is None:
            return (-(1 << 62), 1 << 62)
        return self.first * MS_PER_DAY, (self.last + 1) * MS_PER_DAY

    @property
    def reads(self) -> tuple[int, int]:
        """Times of the events that are needed, the end exclusive."""
        start, end = self.bounds
        if self.first is None:
            return start, end
        return start - WINDOWS_BEFORE * self.window_ms, end + self.window_ms + 1

    def __str__(self) -> str:
        if self.first is None or self.last is None:
            return "all days"
        first, last = name_of(self.first), name_of(self.last)
        return first if first == last else f"{first} to {last}"


def since_lookback(times: IntArray, lookback_days: int | None) -> IntArray | None:
    """Returns [num_samples] times of the oldest facts that count, None if all of them do.

    Args:
        times: [num_samples] of the samples, milliseconds.
        lookback_days: How many days before its own a sample looks back; None for all.
    """
    return None if lookback_days is None else (times // MS_PER_DAY - lookback_days) * MS_PER_DAY


def missing_days(manifest: Manifest | None, first: int, last: int) -> list[int]:
    """Returns the days that are not built, or were when their outcomes were not all there."""
    built = {day.day for day in manifest.days if day.complete} if manifest is not None else set()
    return [day for day in range(first, last + 1) if name_of(day) not in built]


def runs_of(days: Sequence[int], *, at_once: int) -> list[tuple[int, int]]:
    """Returns (first, last) of at most `at_once` days each that follow each other, in order."""
    runs: list[tuple[int, int]] = []
    for day in sorted(days):
        if runs and runs[-1][1] == day - 1 and day - runs[-1][0] < at_once:
            runs[-1] = (runs[-1][0], day)
        else:
            runs.append((day, day))
    return runs


def outdated_days(manifest: Manifest, *, lookback_days: int | None) -> list[str]:
    """Returns the days that were built before an earlier day, which they look back to, was."""
    days = sorted(manifest.days, key=lambda day: day.day)
    return [
        day.day
        for position, day in enumerate(days)
        if any(
            earlier.build > day.build and _within(earlier, day, lookback_days)
            for earlier in days[:position]
        )
    ]


def _within(earlier: Day, day: Day, lookback_days: int | None) -> bool:
    if lookback_days is None:
        return True
    return parse_day(day.day, where="") - parse_day(earlier.day, where="") <= lookback_days


def files_for(files: Iterable[str], span: Span) -> list[str]:
    """Leaves out the logs that cannot have an event for a span, by their footers or their names.

    Parquet files are known by the statistics of `timestamp_ms`. Of others, a path with
    `dt=YYYY-MM-DD/` has events that arrived on that day: of it, and of the day before. Files that
    say nothing are read.
    """
    if span.first is None:
        return list(files)
    start, end = span.reads
    return [path for path in files if _may_have(path, start, end)]


def _may_have(path: str, start: int, end: int) -> bool:
    bounds = _known_bounds(path) if path.endswith(".parquet") else None
    if bounds is None and (dated := _DATED.findall(path)):
        day = parse_day(dated[-1], where=path)
        bounds = (day - 1) * MS_PER_DAY, (day + 1) * MS_PER_DAY + _FAST_CLOCK_MS
    return bounds is None or (bounds[0] < end and bounds[1] >= start)


def _known_bounds(path: str) -> tuple[int, int] | None:
    """Returns the smallest and the largest event time of a Parquet file, if its footer has them."""
    try:
        metadata = pq.read_metadata(path)
    except (pa.ArrowException, OSError):
        return None  # told when its columns are looked at
    names = [metadata.schema.column(i).path for i in range(metadata.num_columns)]
    if s.TIMESTAMP_MS not in names:
        return None
    column = names.index(s.TIMESTAMP_MS)
    groups = [metadata.row_group(i).column(column) for i in range(metadata.num_row_groups)]
    known = [g.statistics for g in groups if g.is_stats_set and g.statistics.has_min_max]
    if len(known) < len(groups) or not all(isinstance(stats.min, int) for stats in known):
        return None
    return min((n.min for n in known), default=0), max((n.max for n in known), default=0)
