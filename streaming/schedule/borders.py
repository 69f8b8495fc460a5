"""Where event times lie in the partitions' offsets, as the source said when it was asked."""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Mapping

from streaming.source import Partition, Place

_STEPS = 4  # a quarter of the skew: how far the watermark moves before the next border is known
_AHEAD = 2  # steps asked for early, so that no worker waits for an answer


@dataclasses.dataclass(frozen=True, slots=True)
class _Border:
    """The first record of a partition that reaches a time; `time_ms` is None if there is none yet.

    Then `offset` is the end of the partition when it was asked: all before it is older.
    """

    offset: int
    time_ms: int | None


class Borders:
    """A grid of event times, and for each the offset where every partition reaches it.

    The times start at `anchor` and go on in quarters of the skew; where no partition has a record
    for longer, they jump over the gap. They are exact for partitions whose records are in the order
    of time. A record counts by its newest sample, so within a record older ones may come along. In
    a partition that is out of order a border is the *first* record that reaches the time: records
    after it may be older, so they are late, but none before it is newer: the bound on the skew
    holds, only the watermark may have been passed by what comes late.
    """

    def __init__(self, max_skew_ms: int) -> None:
        self._max_skew_ms = max_skew_ms
        self._step_ms = max(1, max_skew_ms // _STEPS)
        self._times: list[int] = []
        self._borders: dict[int, dict[Partition, _Border]] = {}
        self._first: int | None = None

    def anchor(self, time_ms: int) -> None:
        """Starts the grid again, at a time that no partition is behind."""
        self._times, self._borders, self._first = [], {}, time_ms

    @property
    def anchored(self) -> bool:
        """Whether the grid has a first time."""
        return self._first is not None

    def knows(self, partition: Partition, end: int) -> bool:
        """Returns whether the grid's first time was asked for of a partition as it is now."""
        border = self._borders[self._times[0]].get(partition) if self._times else None
        return border is not None and (border.time_ms is not None or border.offset >= end)

    def wanted(self, watermark_ms: int | None, ends: Mapping[Partition, int]) -> int | None:
        """Returns a time to ask the source for, or None if enough is known.

        Args:
            watermark_ms: The time that every partition has reached, None before the first answer.
            ends: Where each partition ends now: an answer from before it grew is asked for again.
        """
        for time_ms in self._times:
            found = self._borders[time_ms]
            for partition, end in ends.items():
                border = found.get(partition)
                if border is None or (border.time_ms is None and border.offset < end):
                    return time_ms
        if not self._times:
            return self._first
        if watermark_ms is not None and self._hides(watermark_ms):
            return watermark_ms + self._step_ms
        last = self._times[-1]
        reached = [b.time_ms for b in self._borders[last].values() if b.time_ms is not None]
        horizon = self._max_skew_ms + _AHEAD * self._step_ms
        if not reached or last >= (watermark_ms or self._times[0]) + horizon:
            return None
        return max(last + self._step_ms, min(reached))

    def _hides(self, watermark_ms: int) -> bool:
        """Returns whether records came into a gap that was jumped over."""
        index = bisect.bisect_right(self._times, watermark_ms)
        if index == len(self._times):
            return False
        return self._times[index] > watermark_ms + self._max_skew_ms

    def learn(
        self, time_ms: int, places: Mapping[Partition, Place], ends: Mapping[Partition, int]
    ) -> None:
        """Notes the source's answer.

        Args:
            time_ms: What it was asked for.
            places: The first record, per partition, that reaches it.
            ends: Where the partitions ended *before* it was asked.
        """
        found = {p: _Border(place.offset, place.time_ms) for p, place in places.items()}
        missing = {p: _Border(end, None) for p, end in ends.items() if p not in places}
        if time_ms not in self._borders:
            bisect.insort(self._times, time_ms)
            self._borders[time_ms] = {}
        self._borders[time_ms] |= found | missing
        for later in self._times[self._times.index(time_ms) + 1 :]:
            self._borders[later] |= missing

    def forget_before(self, watermark_ms: int) -> None:
        """Drops all times but the last that the watermark has passed."""
        while len(self._times) > 1 and self._times[1] <= watermark_ms:
            del self._borders[self._times.pop(0)]

    def reached(self, partition: Partition, offset: int, *, caught_up: bool) -> int | None:
        """Returns a time that all records from an offset on have reached, as late as is known.

        None says that the partition is behind the grid. One that is caught up has no such records;
        it counts by the last time that it passed, at least the grid's first.
        """
        best = self._times[0] if caught_up and self._times else None
        for time_ms in self._times:
            border = self._borders[time_ms].get(partition)
            if border is None or border.time_ms is None or border.offset > offset:
                break
            best = border.time_ms if border.offset == offset else time_ms
        return best

    def limit(self, partition: Partition, watermark_ms: int | None) -> int:
        """Returns the offset up to which a partition may be read; 0 before anything is known.

        Args:
            partition: Which.
            watermark_ms: What all partitions have reached; None if some are behind the grid: then
                none may pass its first time.
        """
        if not self._times:
            return 0
        latest = self._times[0]
        if watermark_ms is not None:
            index = bisect.bisect_right(self._times, watermark_ms + self._max_skew_ms)
            latest = self._times[max(0, index - 1)]
        border = self._borders[latest].get(partition)
        return border.offset if border is not None else 0

    def next_border(self, partition: Partition, watermark_ms: int | None) -> int:
        """Returns the offset that a partition must reach for the watermark to move on."""
        if watermark_ms is None or not self._times:
            return self.limit(partition, None)
        index = min(bisect.bisect_right(self._times, watermark_ms), len(self._times) - 1)
        border = self._borders[self._times[index]].get(partition)
        return border.offset if border is not None else 0

    def estimate(self, partition: Partition, offset: int) -> float:
        """Returns about which event time an offset has, by its place between two borders."""
        before: tuple[int, float] | None = None
        for time_ms in self._times:
            border = self._borders[time_ms].get(partition)
            if border is None:
                continue
            if border.offset > offset:
                if before is None:
                    return time_ms - self._step_ms
                span = border.offset - before[0]
                return before[1] + (time_ms - before[1]) * (offset - before[0]) / span
            before = (border.offset, border.time_ms or time_ms)
        return before[1] if before is not None else 0.0
