"""Records from the log to the units' lanes, those that are behind in event time first."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from streaming.joining.kafka_input import InputLog
from streaming.joining.kafka_topics import JoinTopics
from streaming.joining.lane import Lane
from streaming.joining.step import NEVER
from streaming.joining.unit import Unit
from streaming.source import Partition

_LEAST_SKEW_MS: Final = 60_000
_DECODED_BYTES: Final = 4 << 20  # enough for columns to pay
_ENDS_SECONDS: Final = 1.0


class Reading:
    """Reads the lanes of some units up to an end, or for ever. Use from one thread at a time.

    A lane that is further ahead of another one of its unit than a window, in event time, waits
    until that one has come nearer or is at its end: what is read ahead would have to be remembered.
    """

    def __init__(
        self,
        log: InputLog,
        topics: JoinTopics,
        units: Sequence[Unit],
        *,
        ends: Mapping[Partition, int] | None,
        window_ms: int,
        clock: Callable[[], float],
    ) -> None:
        """Begins where the lanes stand.

        Args:
            log: Where records come from.
            topics: Knows where partitions end.
            units: Whose lanes are read.
            ends: Offset at which to stop reading, for every lane; None: for ever.
            window_ms: The join window.
            clock: Wall time in seconds.
        """
        log.forget()
        self._log, self._topics, self._units = log, topics, units
        self._ends = ends
        self._skew_ms = max(window_ms, _LEAST_SKEW_MS)
        self._clock = clock
        self._held: set[Partition] = set()
        self._known_ends: dict[Partition, int] = {}
        self._asked = -_ENDS_SECONDS

    @property
    def lanes(self) -> dict[Partition, Lane]:
        """All lanes."""
        return {p: lane for unit in self._units for p, lane in unit.lanes.items()}

    def step(self, *, timeout_ms: int) -> int:
        """Reads some records, if there are any, and returns how many.

        Raises:
            InputError: If records are gone.
            SourceUnavailableError: If no broker answers.
        """
        self._look_for_ends()
        lanes = self.lanes
        wanted = [p for unit in self._units for p in self._wanted(unit)]
        places = {partition: following(lanes[partition]) for partition in wanted}
        found = self._log.poll(places, timeout_ms=timeout_ms)
        now_ms = int(1000 * self._clock())
        for partition, records in found.items():
            end = None if self._ends is None else self._ends[partition]
            lanes[partition].take(records, end=end, now_ms=now_ms)
        full = [unit for unit in self._units if unit.waiting_bytes > _DECODED_BYTES]
        for unit in full:
            unit.decode(self.positions())
        return sum(map(len, found.values()))

    def positions(self) -> dict[Partition, int]:
        """Returns the next offset of each lane; what follows there is no record that was taken."""
        read = self._log.positions()
        found = {p: max(following(lane), read.get(p, 0)) for p, lane in self.lanes.items()}
        if self._ends is None:
            return found
        return {p: max(min(at, self._ends[p]), following(self.lanes[p])) for p, at in found.items()}

    def finished(self) -> bool:
        """Whether every lane is at its end."""
        ends = self._ends
        if ends is None:
            return False
        if all(following(lane) >= ends[p] for p, lane in self.lanes.items()):
            return True
        return all(at >= ends[partition] for partition, at in self.positions().items())

    def lag(self) -> int:
        """Returns how many records are there and not read yet, as last known."""
        lanes = self.lanes
        return sum(max(0, end - following(lanes[p])) for p, end in self._known_ends.items())

    def _look_for_ends(self) -> None:
        now = time.monotonic()
        if now - self._asked >= _ENDS_SECONDS:
            self._known_ends = self._topics.committed_ends(list(self.lanes))
            self._asked = now

    def _wanted(self, unit: Unit) -> list[Partition]:
        """Returns the lanes of a unit that may be read now."""
        ends = self._known_ends if self._ends is None else self._ends
        open_lanes = [
            lane
            for p, lane in unit.lanes.items()
            if self._ends is None or following(lane) < ends[p]
        ]
        more = [lane for lane in open_lanes if following(lane) < ends[lane.partition]]
        behind = min((lane.newest_ms for lane in more), default=NEVER)
        wanted = []
        for lane in open_lanes:
            # Held back at more than a window, let go at half of it: each change costs a fetch.
            held = lane.partition in self._held
            ahead = lane.newest_ms - behind > self._skew_ms // (1 + held)
            if ahead and more and lane.newest_ms > NEVER:
                self._held.add(lane.partition)
            else:
                self._held.discard(lane.partition)
                wanted.append(lane.partition)
        return wanted


def following(lane: Lane) -> int:
    """Returns the offset after the last record that a lane was given."""
    return lane.waiting.offsets[-1] + 1 if lane.waiting.offsets else lane.position
