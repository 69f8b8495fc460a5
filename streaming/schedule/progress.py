"""How far training has come in event time, by what the workers report."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping

from streaming.source import Partition, Range


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """Where a run stands. Times are event times in milliseconds since 1970.

    Attributes:
        watermark_ms: What all partitions that hold the others back have reached: in those whose
            records are in the order of time, all older samples are applied. None if not known yet.
        newest_ms: The newest sample applied in this life of the coordinator, None before the first.
        skew_ms: How much newer that is, at present, than what the partition furthest behind has
            reached, 0 if no partition holds the others back.
        max_skew_ms: The largest `skew_ms` in this life.
        lag: Records to read, by topic.
        watermarks_ms: As `watermark_ms`, by topic.
    """

    watermark_ms: int | None = None
    newest_ms: int | None = None
    skew_ms: int = 0
    max_skew_ms: int = 0
    lag: Mapping[str, int] = dataclasses.field(default_factory=dict)
    watermarks_ms: Mapping[str, int | None] = dataclasses.field(default_factory=dict)


class Progress:
    """The event times of what was applied, per partition. Not thread-safe."""

    def __init__(self) -> None:
        self._newest: int | None = None
        self._passed: dict[Partition, int] = {}
        self._ahead: dict[Partition, list[tuple[int, int]]] = {}
        self._max_skew_ms = 0

    def note(self, done: Range, last_ms: int, *, offset: int) -> None:
        """Notes a range that was applied.

        Args:
            done: The range.
            last_ms: Event time of its newest sample, negative if it has none.
            offset: Up to where its partition has been applied without a hole.
        """
        if last_ms < 0:
            return
        self._newest = last_ms if self._newest is None else max(self._newest, last_ms)
        waiting = [*self._ahead.get(done.partition, []), (done.end, last_ms)]
        for _, time_ms in (entry for entry in waiting if entry[0] <= offset):
            self._passed[done.partition] = max(self._passed.get(done.partition, time_ms), time_ms)
        self._ahead[done.partition] = [entry for entry in waiting if entry[0] > offset]

    def position(
        self,
        reached: Mapping[Partition, int | None],
        holding: Collection[Partition],
        *,
        lag: Mapping[Partition, int],
    ) -> Position:
        """Returns where the run stands.

        Args:
            reached: What each partition has reached for other reasons, if that is known.
            holding: Partitions that hold the others back.
            lag: Records to read, per partition.
        """
        times = {p: _latest(self._passed.get(p), time) for p, time in reached.items()}
        known = [time for p, time in times.items() if p in holding and time is not None]
        skew = max(0, self._newest - min(known)) if known and self._newest is not None else 0
        self._max_skew_ms = max(self._max_skew_ms, skew)
        topics = sorted({partition.topic for partition in times})
        by_topic = {topic: [p for p in times if p.topic == topic] for topic in topics}
        return Position(
            watermark_ms=_low(times, holding),
            newest_ms=self._newest,
            skew_ms=skew,
            max_skew_ms=self._max_skew_ms,
            lag={topic: sum(lag[p] for p in of) for topic, of in by_topic.items()},
            watermarks_ms={
                topic: _low({p: times[p] for p in of}, holding) for topic, of in by_topic.items()
            },
        )


def _latest(one: int | None, other: int | None) -> int | None:
    return max((time for time in (one, other) if time is not None), default=None)


def _low(times: Mapping[Partition, int | None], holding: Collection[Partition]) -> int | None:
    """Returns the least time of those that hold, or, if none does, the latest of all."""
    held = [time for partition, time in times.items() if partition in holding]
    known = [time for time in held if time is not None]
    if held:
        return min(known) if len(known) == len(held) else None
    return max((time for time in times.values() if time is not None), default=None)
