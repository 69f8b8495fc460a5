"""The plan: which range comes next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping

from streaming.source import Partition, Range


class Plan:
    """Hands out ranges, from the partition that has advanced least; thread-safe.

    `upcoming` ranges are cut a few ahead, so that a worker can be told which one probably follows.
    """

    def __init__(
        self,
        start: Mapping[Partition, int],
        *,
        records_per_range: int = 1,
        linger_seconds: float = 0.0,
    ) -> None:
        """Starts a plan.

        Args:
            start: First offset to hand out, per partition.
            records_per_range: Records that make a full range.
            linger_seconds: How long a partition's end must stand still before less than a full
                range is cut from it: a trickle shall not make tiny mini-batches.
        """
        self.records_per_range = records_per_range
        self._linger_seconds = linger_seconds
        self._start = dict(start)
        self._next = dict(start)
        self._end = dict(start)
        self._still_since: dict[Partition, float] = {}
        self._upcoming: deque[Range] = deque()
        self._lock = threading.Lock()

    def add(self, starts: Mapping[Partition, int]) -> None:
        """Makes partitions known; those that it knows are left as they are."""
        with self._lock:
            for positions in (self._start, self._next, self._end):
                positions |= dict(starts) | positions

    def extend(self, ends: Mapping[Partition, int], *, now: float = 0.0) -> None:
        """Makes known up to where each (known) partition can be read now, a time in seconds."""
        with self._lock:
            for partition, end in ends.items():
                if end > self._end[partition]:
                    self._end[partition] = end
                    self._still_since[partition] = now

    def take(self, *, look_ahead: int, now: float = 0.0) -> tuple[Range, Range | None] | None:
        """Returns the next range and the one `look_ahead` places after it, or None for none now."""
        with self._lock:
            while len(self._upcoming) <= look_ahead:
                following = self._cut(now)
                if following is None:
                    break
                self._upcoming.append(following)
            if not self._upcoming:
                return None
            wanted = self._upcoming.popleft()
            enough = len(self._upcoming) >= look_ahead
            return wanted, self._upcoming[look_ahead - 1] if enough and look_ahead else None

    def _cut(self, now: float) -> Range | None:
        behind = [(self._advance(p), p) for p in self._end if self._ready(p, now)]
        if not behind:
            return None
        partition = min(behind)[1]
        start = self._next[partition]
        end = min(start + self.records_per_range, self._end[partition])
        self._next[partition] = end
        return Range(partition, start, end)

    def _ready(self, partition: Partition, now: float) -> bool:
        left = self._end[partition] - self._next[partition]
        still = now - self._still_since.get(partition, now)
        return left >= self.records_per_range or (left > 0 and still >= self._linger_seconds)

    def _advance(self, partition: Partition) -> float:
        """Returns the share of a partition that has been handed out."""
        start, end = self._start[partition], self._end[partition]
        return (self._next[partition] - start) / (end - start)

    @property
    def remaining(self) -> int:
        """Records that can be read and have not been handed out."""
        with self._lock:
            cut = sum(r.end - r.start for r in self._upcoming)
            return cut + sum(end - self._next[p] for p, end in self._end.items())
