"""A few records of each topic, read before the rest: their sizes, and whether times are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterator, Mapping

import pyarrow.compute as pc

from pipeline.schema import TIMESTAMP_MS
from streaming.source import Partition, Range, Source

_PARTITIONS_PER_TOPIC = 4
_TOLERATED_MS = 60_000


@dataclasses.dataclass(frozen=True, slots=True)
class Probe:
    """One record.

    Attributes:
        partition: Where it is.
        offset: Its offset.
        samples: How many it holds.
        newest_ms: Event time of its newest sample, None if it has none.
        time_ms: The time by which the source finds it, None if the source goes by its samples.
    """

    partition: Partition
    offset: int
    samples: int
    newest_ms: int | None
    time_ms: int | None

    @property
    def complaint(self) -> str | None:
        """What is wrong with the record's time; None if nothing is, or it cannot be seen."""
        if self.newest_ms is None or self.time_ms is None:
            return None
        if abs(self.time_ms - self.newest_ms) <= _TOLERATED_MS:
            return None
        return (
            f"topic {self.partition.topic} partition {self.partition.number} offset {self.offset}:"
            f" found record time {self.time_ms}, {(self.time_ms - self.newest_ms) / 1000:+.0f} s"
            f" from its newest sample's, {self.newest_ms}; expected the same: the topic needs"
            " message.timestamp.type=CreateTime, and a producer that sets each record's time"
        )


class Prober:
    """Looks once at each topic, when it has records."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._seen: set[str] = set()

    def probe(
        self, offsets: Mapping[Partition, int], ends: Mapping[Partition, int]
    ) -> Iterator[Probe]:
        """Reads, of topics not seen yet, the first record and one in the middle of some partitions.

        Args:
            offsets: From where each partition will be read, if its records are still there.
            ends: Up to where.

        Yields:
            What was found; nothing of records without samples.
        """
        filled = [p for p, end in sorted(ends.items()) if end > offsets.get(p, 0)]
        new = {partition.topic for partition in filled} - self._seen
        starts = self._source.start_offsets() if new else {}
        for topic in sorted(new):
            for partition in [p for p in filled if p.topic == topic][:_PARTITIONS_PER_TOPIC]:
                first = max(starts[partition], offsets.get(partition, 0))
                if first < ends[partition]:
                    yield from self._read(partition, {first, (first + ends[partition]) // 2})
            self._seen.add(topic)

    def _read(self, partition: Partition, offsets: Collection[int]) -> Iterator[Probe]:
        for offset in sorted(offsets):
            found = self._source.read(Range(partition, offset, offset + 1))
            samples = found.samples
            if samples.num_rows:
                timed = TIMESTAMP_MS in samples.column_names
                newest = pc.max(samples.column(TIMESTAMP_MS)).as_py() if timed else None
                yield Probe(partition, offset, samples.num_rows, newest, found.time_ms)
