"""The plan: which range comes next."""

from __future__ import annotations

import dataclasses
import math
import threading
from collections import deque
from collections.abc import Collection, Mapping

from streaming.schedule.borders import Borders
from streaming.schedule.sizes import RecordSizes
from streaming.source import Partition, Place, Range

_HALF_A_SAMPLE = 0.5  # less is what computing with means leaves over


@dataclasses.dataclass(frozen=True, slots=True)
class Pace:
    """How ranges are cut and partitions kept together.

    Attributes:
        linger_seconds: How long records wait for others before less than a full range is cut: a
            trickle shall not make tiny mini-batches.
        max_skew_ms: How far a partition may be ahead of the one furthest behind; None: any.
        idle_seconds: A partition that has had nothing to read for so long holds no other back.
    """

    linger_seconds: float = 0.0
    max_skew_ms: int | None = None
    idle_seconds: float = 0.0


class Plan:
    """Hands out ranges; thread-safe, and pure: offsets and times come in by its methods.

    Without a bound on the skew, the partition that has advanced least, as a share of its length,
    comes first. With one, the partition that is furthest behind in event time comes first, and none
    is read past the border that the slowest allows: with the low watermark W (which all that is
    *applied* has reached, in every partition that holds), only records before W + max_skew are
    handed out. At all times, then, the newest record applied is less than max_skew newer than the
    oldest that is not, in partitions whose records are in the order of event time (what else is
    true is in `Borders`). A bound that holds but few samples makes short ranges: a range is cut
    short at a border only if the watermark waits for it.

    A partition holds the others back unless it has ended, or has had nothing to read for
    `idle_seconds`. One that comes back with older records than the rest has the rest wait for it.

    Ranges are cut by samples: `measured` says how many the records of each partition hold.

    `upcoming` ranges are cut a few ahead, so that a worker can be told which one probably follows.
    """

    def __init__(
        self,
        start: Mapping[Partition, int],
        *,
        samples_per_range: int = 1,
        pace: Pace | None = None,
    ) -> None:
        """Starts a plan.

        Args:
            start: First offset to hand out, per partition.
            samples_per_range: Samples that make a full range.
            pace: When ranges are cut.
        """
        self._sizes = RecordSizes(samples_per_range)
        self._pace = pace = pace or Pace()
        self._start = dict(start)
        self._done = dict(start)
        self._next = dict(start)
        self._end = dict(start)
        self._ended: set[Partition] = set()
        self._waiting_since: dict[Partition, float] = {}
        self._caught_up_since: dict[Partition, float] = {}
        self._now = 0.0
        self._upcoming: deque[Range] = deque()
        self._borders = None if pace.max_skew_ms is None else Borders(pace.max_skew_ms)
        self._lock = threading.RLock()

    def add(self, starts: Mapping[Partition, int]) -> None:
        """Makes partitions known; those that it knows are left as they are."""
        with self._lock:
            for positions in (self._start, self._done, self._next, self._end):
                positions |= dict(starts) | positions

    def extend(
        self, ends: Mapping[Partition, int], *, now: float, ended: Collection[Partition] = ()
    ) -> None:
        """Makes known up to where each (known) partition can be read.

        Args:
            ends: The offsets after the last records, asked for *after* `now` was taken: a partition
                that has been applied up to here was caught up at `now`.
            now: A time in seconds.
            ended: Partitions in which nothing will follow, as far as is known now.
        """
        with self._lock:
            self._now = now
            # A partition that the source does not list any more holds nobody back.
            self._ended = set(ended) | (self._end.keys() - ends.keys())
            for partition, end in ends.items():
                if end > self._end[partition]:
                    if self._next[partition] == self._end[partition]:
                        self._waiting_since[partition] = now
                    self._end[partition] = end
                if self._done[partition] < self._end[partition]:
                    self._caught_up_since.pop(partition, None)
                else:
                    self._caught_up_since.setdefault(partition, now)

    def applied(self, offsets: Mapping[Partition, int]) -> None:
        """Makes known up to where each partition has been applied."""
        with self._lock:
            self._done |= offsets
            watermark = self.watermark_ms
            if self._borders is not None and watermark is not None:
                self._borders.forget_before(watermark)

    def measured(self, partition: Partition, *, records: int, samples: int) -> None:
        """Makes known how many samples some records of a partition held."""
        with self._lock:
            if self._sizes.note(partition, records=records, samples=samples):
                # What was cut ahead is far from what is wanted now.
                while self._upcoming:
                    cut = self._upcoming.pop()
                    self._next[cut.partition] = cut.start

    def take(
        self, *, look_ahead: int, now: float, max_samples: float | None = None
    ) -> tuple[Range, Range | None] | None:
        """Returns the next range and the one `look_ahead` places after it, or None for none now.

        Args:
            look_ahead: How many ranges are cut ahead.
            now: A time in seconds.
            max_samples: Cut no more than about so many samples that have not been cut yet.
        """
        with self._lock:
            left = max_samples
            while len(self._upcoming) <= look_ahead and (left is None or left >= _HALF_A_SAMPLE):
                following = self._cut(now, left)
                if following is None:
                    break
                self._upcoming.append(following)
                if left is not None:
                    left -= self._samples(following.partition, following.start, following.end)
            if not self._upcoming:
                return None
            wanted = self._upcoming.popleft()
            enough = len(self._upcoming) >= look_ahead
            return wanted, self._upcoming[look_ahead - 1] if enough and look_ahead else None

    def at_hand(self, now: float) -> int:
        """Returns how many ranges could be taken now."""
        with self._lock:
            watermark = self.watermark_ms
            left = {p: self._limit(p, watermark) - self._next[p] for p in self._end}
            return len(self._upcoming) + sum(
                max(1, left[p] // self._sizes.records_per_range(p))
                for p in self._end
                if self._ready(p, now, watermark)
            )

    def _samples(self, partition: Partition, start: int, end: int) -> float:
        return (end - start) * self._sizes.of(partition)

    def _cut(self, now: float, max_samples: float | None) -> Range | None:
        watermark = self.watermark_ms
        ready = [p for p in self._end if self._ready(p, now, watermark)]
        if not ready:
            return None
        partition = min(ready, key=self._advance)
        start = self._next[partition]
        full = self._sizes.records_per_range(partition)
        end = min(start + full, self._limit(partition, watermark))
        if max_samples is not None:
            # Means are not exact: a hundredth of a record too many is none.
            most = math.ceil(max_samples / self._sizes.of(partition) - 0.01)
            end = min(end, start + max(1, most))
        self._next[partition] = end
        self._waiting_since[partition] = now
        return Range(partition, start, end)

    def _ready(self, partition: Partition, now: float, watermark: int | None) -> bool:
        start, limit = self._next[partition], self._limit(partition, watermark)
        if limit <= start or limit - start >= self._sizes.records_per_range(partition):
            return limit > start
        if limit < self._end[partition] and self._borders is not None:
            return start < self._borders.next_border(partition, watermark)
        waited = now - self._waiting_since.get(partition, now)
        return partition in self._ended or waited >= self._pace.linger_seconds

    def _limit(self, partition: Partition, watermark: int | None) -> int:
        end = self._end[partition]
        return end if self._borders is None else min(end, self._borders.limit(partition, watermark))

    def _advance(self, partition: Partition) -> tuple[float, float, Partition]:
        """Returns the event time of a partition, and the share of it that has been handed out."""
        start, end, following = (o[partition] for o in (self._start, self._end, self._next))
        time_ms = 0.0 if self._borders is None else self._borders.estimate(partition, following)
        return time_ms, (following - start) / (end - start), partition

    # Event time.

    def holds(self, partition: Partition) -> bool:
        """Returns whether others wait for a partition: it has records, or may have soon."""
        if self._done[partition] < self._end[partition]:
            return True
        since = self._caught_up_since.get(partition, self._now)
        return partition not in self._ended and self._now - since < self._pace.idle_seconds

    def _reached(self, partition: Partition) -> int | None:
        if self._borders is None:
            return None
        done = self._done[partition]
        return self._borders.reached(partition, done, caught_up=done >= self._end[partition])

    def reached_ms(self, partition: Partition) -> int | None:
        """Returns the event time that a partition has reached, None without a bound on the skew."""
        with self._lock:
            return self._reached(partition)

    @property
    def watermark_ms(self) -> int | None:
        """The event time that all partitions that hold have reached, if that is known."""
        with self._lock:
            times = [self._reached(p) for p in self._end if self.holds(p)]
            known = [time for time in times if time is not None]
            return min(known) if times and len(known) == len(times) else None

    def behind(self) -> dict[Partition, int]:
        """Returns from where partitions must be looked at for `anchor`; none if time is known."""
        with self._lock:
            borders = self._borders
            if borders is None:
                return {}
            if borders.anchored and not any(self._is_behind(p, borders) for p in self._end):
                return {}
            return {p: done for p, done in self._done.items() if done < self._end[p]}

    def _is_behind(self, partition: Partition, borders: Borders) -> bool:
        known = borders.knows(partition, self._end[partition])
        return known and self.holds(partition) and self._reached(partition) is None

    def anchor(self, time_ms: int) -> None:
        """Starts event time at what the partitions `behind` have at their positions, the least."""
        with self._lock:
            if self._borders is not None:
                self._borders.anchor(time_ms)

    def wanted_time(self) -> int | None:
        """Returns a time at which the source is to be asked for offsets, or None."""
        with self._lock:
            if self._borders is None or not self._borders.anchored:
                return None
            return self._borders.wanted(self.watermark_ms, self._end)

    def learn(self, time_ms: int, places: Mapping[Partition, Place]) -> None:
        """Notes where the source reaches a time; asked after the ends that `extend` was given."""
        with self._lock:
            if self._borders is not None:
                self._borders.learn(time_ms, places, self._end)

    def end(self, partition: Partition) -> int:
        """Returns up to where a partition can be read."""
        return self._end[partition]

    @property
    def samples_out(self) -> float:
        """About how many samples have been cut into ranges and are not applied yet."""
        with self._lock:
            return sum(self._samples(p, self._done[p], end) for p, end in self._next.items())

    @property
    def remaining(self) -> int:
        """Records that can be read and have not been handed out."""
        with self._lock:
            return self._waiting + sum(self._uncut.values())

    def remaining_within(self, max_samples: float) -> int:
        """Returns how many of them are needed for about so many samples that were not cut yet."""
        with self._lock:
            samples = sum(self._samples(p, 0, count) for p, count in self._uncut.items())
            share = min(1.0, max(0.0, max_samples) / samples) if samples else 0.0
            return self._waiting + math.ceil(share * sum(self._uncut.values()))

    @property
    def _waiting(self) -> int:
        return sum(cut.end - cut.start for cut in self._upcoming)

    @property
    def _uncut(self) -> dict[Partition, int]:
        return {p: end - self._next[p] for p, end in self._end.items()}
