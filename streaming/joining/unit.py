"""One partition number: its lanes, its joiner, and what has closed since the last commit."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import pyarrow as pa

from pipeline.schema import TIMESTAMP_MS, InputError
from streaming.joining.lane import IntArray, Lane, Mark, Waiting
from streaming.joining.progress import EVENTS, RECORDS, REJECTS, SAMPLES, STALE, Progress
from streaming.joining.step import FOREVER, NEVER, BadEvent, Decoded, Decoder, Joiner, Rejected
from streaming.source import Partition

_REPLAYED_WINDOWS: Final = 3


@dataclasses.dataclass(slots=True)
class Outcome:
    """What a unit has done since the last commit.

    Attributes:
        samples: What closed.
        rejects: Dead letters.
        counts: By the names of `progress.TOTALS`, in this time.
        fates: The joiner's counts, likewise.
        reasons: Rejects by reason, likewise.
    """

    samples: list[pa.Table] = dataclasses.field(default_factory=list)
    rejects: list[Rejected] = dataclasses.field(default_factory=list)
    counts: Counter[str] = dataclasses.field(default_factory=Counter)
    fates: Counter[str] = dataclasses.field(default_factory=Counter)
    reasons: Counter[str] = dataclasses.field(default_factory=Counter)


class Unit:
    """Joins the events of one partition number. Use from one thread at a time.

    Attributes:
        number: The partition number.
        lanes: Its topic-partitions.
        watermark_ms: Everything before is closed, less the window; NEVER at first.
        outcome: What it has done since the last commit.
    """

    def __init__(
        self,
        number: int,
        lanes: Sequence[Lane],
        joiner: Joiner,
        decoder: Decoder,
        *,
        window_ms: int,
        max_ahead_seconds: float | None,
    ) -> None:
        self.number = number
        self.lanes: Mapping[Partition, Lane] = {lane.partition: lane for lane in lanes}
        self.joiner = joiner
        self._decoder = decoder
        self._window_ms = window_ms
        self._ahead_ms = math.inf if max_ahead_seconds is None else 1000 * max_ahead_seconds
        self._replay_bound_ms: int | None = None
        self.watermark_ms = self._processed_ms = NEVER
        self.outcome = Outcome()
        self._events: list[pa.Table] = []

    @property
    def waiting_bytes(self) -> int:
        """Bytes of records that are not decoded yet."""
        return sum(lane.waiting.bytes for lane in self.lanes.values())

    @property
    def num_events(self) -> int:
        """Events that are not joined yet; of records that are not decoded, at least as many."""
        waiting = sum(len(lane.waiting.offsets) for lane in self.lanes.values())
        return waiting + sum(table.num_rows for table in self._events)

    @property
    def changed(self) -> bool:
        """Whether there is anything to commit: what `decode` and `join` have done."""
        return bool(self.outcome.counts or self.outcome.fates)

    def decode(self, positions: Mapping[Partition, int]) -> None:
        """Decodes and judges the records that wait.

        Args:
            positions: The next offset of each lane: further than its last record where what
                follows is no record.
        """
        for partition, lane in self.lanes.items():
            waiting, lane.waiting = lane.waiting, Waiting()
            if waiting.offsets:
                self._decode(lane, waiting)
            lane.position = max(lane.position, positions.get(partition, 0))

    def join(self, *, final: bool = False) -> None:
        """Hands the events to the joiner with the watermark that they lead to.

        Args:
            final: Whether to close all windows.
        """
        own = min(lane.watermark_ms for lane in self.lanes.values())
        self.watermark_ms = FOREVER if final else max(self.watermark_ms, own)
        if not self._events and self.watermark_ms == self._processed_ms:
            return
        events = pa.concat_tables([self._decoder.schema.empty_table(), *self._events])
        self._events = []
        joined = self.joiner.process(events, self.watermark_ms)
        self._processed_ms = self.watermark_ms
        if joined.samples.num_rows:
            self.outcome.samples.append(joined.samples)
        self.outcome.counts.update(
            {EVENTS: events.num_rows, SAMPLES: joined.samples.num_rows},
        )
        self.outcome.counts = +self.outcome.counts
        self.outcome.fates.update(joined.counts)
        self.outcome.fates = +self.outcome.fates

    def restore(self, snapshot: bytes | None, closed_to_ms: int) -> None:
        """Begins a replay; `join` and `discard` it part by part, then `replayed`."""
        self._replay_bound_ms = closed_to_ms - _REPLAYED_WINDOWS * self._window_ms
        self.joiner.restore(snapshot, closed_to_ms)

    def discard(self) -> None:
        """Forgets what a replay brought out: it was committed by a former life."""
        self.outcome = Outcome()

    def replayed(self, saved: Progress) -> None:
        """Ends a replay: closes again what was closed.

        Raises:
            InputError: If the log is not what it was.
        """
        self.decode({})
        for lane, was in zip(self.lanes.values(), saved.lanes, strict=True):
            if lane.newest_ms != was.newest_ms:
                where = f"topic {lane.partition.topic} partition {lane.partition.number}"
                raise InputError(
                    f"join.input.topics: {where}: found {lane.newest_ms} as time of the newest"
                    f" event before offset {was.offset}; expected {was.newest_ms}, as when it was"
                    " joined: records were deleted (cleanup.policy must be delete, not compact)."
                    " Begin anew under another join.group and with another join.output.topic"
                )
            lane.position = was.offset
            lane.raised_ms = max(lane.raised_ms, was.raised_ms)
            lane.seen_ms = was.seen_ms
        self.watermark_ms = max(self.watermark_ms, saved.watermark_ms)
        self.join()
        self.discard()
        self._replay_bound_ms = None

    def replay_marks(self, closed_to_ms: int) -> dict[Partition, Mark]:
        """Returns where a replay must begin, for a restart that starts with this watermark."""
        bound = closed_to_ms - _REPLAYED_WINDOWS * self._window_ms
        return {partition: lane.replay_from(bound) for partition, lane in self.lanes.items()}

    def _decode(self, lane: Lane, waiting: Waiting) -> None:
        decoded = self._decoder.decode(waiting.values, waiting.forms)
        for reject in decoded.rejects:
            self._reject(lane, waiting, reject)
        events, record_of = self._without_future(lane, waiting, decoded)
        times = events[TIMESTAMP_MS].to_numpy()
        stale = lane.judge(times, record_of, waiting.offsets, clocks_ms=self._clocks(waiting))
        lane.position = waiting.offsets[-1] + 1
        num_stale = int(np.count_nonzero(stale))
        keep = ~stale
        if self._replay_bound_ms is not None:
            keep &= times >= self._replay_bound_ms
        if not keep.all():
            events = events.filter(pa.array(keep))
        if events.num_rows:
            self._events.append(events)
        self.outcome.counts.update({RECORDS: len(waiting.offsets)})
        if num_stale:
            self.outcome.counts.update({STALE: num_stale})

    def _clocks(self, waiting: Waiting) -> IntArray | None:
        if math.isinf(self._ahead_ms):
            return None
        times = np.asarray(waiting.times_ms, np.int64)
        return np.where(times >= 0, times, FOREVER)  # records of old producers have no timestamp

    def _without_future(
        self, lane: Lane, waiting: Waiting, decoded: Decoded
    ) -> tuple[pa.Table, IntArray]:
        """Rejects events that no clock has reached: their time would make all others stale."""
        events, record_of = decoded.events, decoded.record_of
        if math.isinf(self._ahead_ms) or not events.num_rows:
            return events, record_of
        known = np.asarray(waiting.times_ms, np.int64)[record_of]
        ahead = events[TIMESTAMP_MS].to_numpy() > known + int(self._ahead_ms)
        ahead &= known >= 0
        if not ahead.any():
            return events, record_of
        for row in np.flatnonzero(ahead).tolist():
            record = int(record_of[row])
            self._reject(lane, waiting, _Future(record, events.slice(row, 1), waiting))
        return events.filter(pa.array(~ahead)), record_of[~ahead]

    def _reject(self, lane: Lane, waiting: Waiting, reject: BadEvent) -> None:
        whole = waiting.values[reject.record] or b""
        self.outcome.rejects.append(
            Rejected(
                lane.partition.topic,
                lane.partition.number,
                waiting.offsets[reject.record],
                reject.reason,
                reject.detail,
                whole if reject.payload is None else reject.payload,
            )
        )
        self.outcome.counts.update({REJECTS: 1})
        self.outcome.reasons.update({reject.reason: 1})


class _Future:
    """An event that is ahead of its record's own time."""

    reason: Final = "ahead_of_its_record"

    def __init__(self, record: int, row: pa.Table, waiting: Waiting) -> None:
        self.record = record
        content = row.to_pylist()[0]
        self.payload = json.dumps(content, ensure_ascii=False, default=str).encode()
        found = content[TIMESTAMP_MS] - waiting.times_ms[record]
        self.detail = (
            f"{TIMESTAMP_MS}: found {content[TIMESTAMP_MS]}, {found / 1000:.0f} s after the"
            " record's own timestamp; expected at most join.input.max_ahead_seconds"
        )
