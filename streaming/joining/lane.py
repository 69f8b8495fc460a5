"""One topic-partition of a unit: its own watermark, and what of it must be read again.

All of it is a function of the records in their order, and of the *raises*: the moments in which
an idle lane's watermark was moved by the clock. A replay that repeats those judges as before.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from pipeline.topics.record import format_of
from streaming.joining.step import NEVER
from streaming.source import Partition

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_SEGMENT_RECORDS = 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Mark:
    """A place in a lane with the watermark that it had there.

    Attributes:
        offset: The next record to be read.
        newest_ms: Time of the newest event before it, or NEVER.
        raised_ms: Where the clock had moved the watermark to, or NEVER.
    """

    offset: int
    newest_ms: int = NEVER
    raised_ms: int = NEVER


@dataclasses.dataclass(slots=True)
class Raise:
    """From `offset` on, the watermark is at least `to_ms`."""

    offset: int
    to_ms: int
    mattered: bool


@dataclasses.dataclass(slots=True)
class _Segment:
    """Neighbouring records: where they begin, and how new the newest of them is."""

    mark: Mark
    newest_ms: int
    records: int


@dataclasses.dataclass(slots=True)
class Waiting:
    """Records that were read and not decoded yet; of the client's objects, only what is needed."""

    offsets: list[int] = dataclasses.field(default_factory=list)
    values: list[bytes | None] = dataclasses.field(default_factory=list)
    forms: list[bytes] = dataclasses.field(default_factory=list)
    times_ms: list[int] = dataclasses.field(default_factory=list)
    bytes: int = 0


class Lane:
    """Where a topic-partition stands. Use from one thread at a time.

    Attributes:
        partition: Which one.
        position: The next offset to be read.
        newest_ms: Time of its newest event that was accepted, or NEVER.
        raised_ms: Where the clock has moved its watermark to, or NEVER.
        seen_ms: Wall time at which its last record was taken, or the lane was first known.
        waiting: Records that `take` has put aside.
    """

    def __init__(
        self, partition: Partition, mark: Mark, *, lateness_ms: int, default_form: bytes
    ) -> None:
        self.partition = partition
        self._lateness_ms = lateness_ms
        self._default_form = default_form
        self.position = mark.offset
        self.newest_ms, self.raised_ms = mark.newest_ms, mark.raised_ms
        self.seen_ms = 0
        self.waiting = Waiting()
        self._raises: list[Raise] = []
        self._segments: deque[_Segment] = deque()

    @property
    def watermark_ms(self) -> int:
        """No event older than this is accepted any more; NEVER while nothing is known."""
        return max(self._natural(self.newest_ms), self.raised_ms)

    @property
    def mark(self) -> Mark:
        """Where it stands, the records that wait left out."""
        return Mark(self.position, self.newest_ms, self.raised_ms)

    @property
    def raises(self) -> Sequence[Raise]:
        """The raises that a replay must repeat."""
        return tuple(self._raises)

    def take(self, records: Sequence[Any], *, end: int | None, now_ms: int) -> None:
        """Puts records of the client aside.

        Args:
            records: In their order; some before `position` or behind `end` may be among them.
            end: Offset at which to stop, if any.
            now_ms: Wall time.
        """
        waiting, default = self.waiting, self._default_form
        first = waiting.offsets[-1] + 1 if waiting.offsets else self.position
        for record in records:
            if record.offset < first or (end is not None and record.offset >= end):
                continue
            headers, value = record.headers, record.value
            waiting.offsets.append(record.offset)
            waiting.values.append(value)
            waiting.forms.append(format_of(headers, default=default) if headers else default)
            waiting.times_ms.append(record.timestamp)
            waiting.bytes += len(value) if value is not None else 0
        self.seen_ms = now_ms

    def judge(
        self,
        times_ms: IntArray,
        record_of: IntArray,
        offsets: Sequence[int],
        *,
        clocks_ms: IntArray | None = None,
    ) -> BoolArray:
        """Says which events are stale, and moves the watermark over all the others.

        Args:
            times_ms: [num_events] their times.
            record_of: [num_events] position of each one's record; never falls.
            offsets: [num_records] offset of each record; all of them have been consumed then.
            clocks_ms: [num_records] what each record's events may move the watermark by at most:
                one of a fast clock would make all others stale. None: no such limit.

        Returns:
            [num_events] whether an event is older than the watermark before its record.
        """
        starts = np.flatnonzero(np.diff(record_of, prepend=-1))
        in_record = np.full(len(offsets), NEVER)
        if len(starts):
            in_record[record_of[starts]] = np.maximum.reduceat(times_ms, starts)
        if clocks_ms is not None:
            in_record = np.minimum(in_record, clocks_ms)
        # Stale events count here: they were consumed, and are never ahead of what made them stale.
        newest = np.maximum.accumulate(np.concatenate([[self.newest_ms], in_record]))
        natural = np.where(newest > NEVER, newest - self._lateness_ms, NEVER)[:-1]
        raised = self._raised_at(np.asarray(offsets, np.int64))
        stale_by_itself = times_ms < natural[record_of]
        stale = times_ms < np.maximum(natural, raised)[record_of]
        for start in range(0, len(offsets), _SEGMENT_RECORDS):
            # Holes before the first one belong to it: they may hold what is not committed yet.
            offset = offsets[start] if start else self.position
            mark = Mark(offset, int(newest[start]), int(raised[start]))
            end = min(start + _SEGMENT_RECORDS, len(offsets))
            here = ~stale & (start <= record_of) & (record_of < end)
            self._note(mark, int(times_ms[here].max(initial=NEVER)), end - start)
        self.newest_ms = int(newest[-1])
        self._keep_raises(mattered=bool((stale & ~stale_by_itself).any()), offsets=offsets)
        return stale

    def raise_to(self, time_ms: int) -> None:
        """Moves the watermark by the clock: this lane has nothing to read, and is idle."""
        if time_ms <= self.watermark_ms:
            return
        if self._raises and self._raises[-1].offset == self.position:
            self._raises[-1].to_ms = time_ms
        else:
            self._raises = [each for each in self._raises if each.mattered]
            self._raises.append(Raise(self.position, time_ms, mattered=False))
        self.raised_ms = time_ms

    def replay_from(self, time_ms: int) -> Mark:
        """Returns the place before the first event of this time or later; forgets those before."""
        while self._segments and self._segments[0].newest_ms < time_ms:
            self._segments.popleft()
        mark = self._segments[0].mark if self._segments else self.mark
        self._raises = [
            each
            for each in self._raises
            if each.offset >= mark.offset or each.to_ms > mark.raised_ms
        ]
        return mark

    def repeat(self, raises: Sequence[Raise]) -> None:
        """Takes the raises of a former life, before its records are replayed."""
        self._raises = list(raises)

    def _natural(self, newest_ms: int) -> int:
        return newest_ms - self._lateness_ms if newest_ms > NEVER else NEVER

    def _raised_at(self, offsets: IntArray) -> IntArray:
        """Returns where the clock had moved the watermark to before each record."""
        raised = np.full(len(offsets), self.raised_ms)
        for each in self._raises:
            raised = np.where(offsets >= each.offset, np.maximum(raised, each.to_ms), raised)
        return raised

    def _keep_raises(self, *, mattered: bool, offsets: Sequence[int]) -> None:
        """Applies the raises that were passed, and forgets those that have decided nothing."""
        passed = [each for each in self._raises if offsets and each.offset <= offsets[-1]]
        for each in passed:
            self.raised_ms = max(self.raised_ms, each.to_ms)
            each.mattered |= mattered
        natural = self._natural(self.newest_ms)
        over = [each for each in passed if not each.mattered and each.to_ms <= natural]
        self._raises = [each for each in self._raises if each not in over]

    def _note(self, mark: Mark, newest_ms: int, records: int) -> None:
        """Notes records for replays; few are added to those before, so that marks stay few."""
        last = self._segments[-1] if self._segments else None
        if last is not None and last.records + records <= _SEGMENT_RECORDS:
            last.newest_ms = max(last.newest_ms, newest_ms)
            last.records += records
        else:
            self._segments.append(_Segment(mark, newest_ms, records))
