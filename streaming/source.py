"""What a stream of samples is to the trainer: partitions, offsets and ranges."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Protocol

import pyarrow as pa

from pipeline.schema import SchemaMismatchError as SchemaMismatchError  # one name for both rooms


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Partition:
    """One ordered log of records. Offsets count its records from the beginning of time."""

    topic: str
    number: int


@dataclasses.dataclass(frozen=True, slots=True)
class Range:
    """The records `start <= offset < end` of a partition: the trainer's unit of work."""

    partition: Partition
    start: int
    end: int

    def __str__(self) -> str:
        """Names it for a person."""
        where = f"{self.partition.topic}, partition {self.partition.number}"
        return f"{where}, offsets {self.start} to {self.end - 1}"


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A record and its event time.

    Attributes:
        offset: Its offset in the partition.
        time_ms: Event time of its newest sample, in milliseconds since 1970.
    """

    offset: int
    time_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class Reject:
    """A record that could not become samples.

    Attributes:
        offset: Its offset in the partition.
        reason: A short identifier such as `undecodable`, to count by.
        detail: What was found and what was expected, for a person.
        payload: All its bytes, for repair; none if it has no value.
    """

    offset: int
    reason: str
    detail: str
    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class ReadResult:
    """What reading a range gave. Reading a range again gives the same result.

    Attributes:
        samples: The range's samples in offset order, with the columns of the sample schema.
        rejects: Records that hold no samples, one entry each.
        lost: Number of offsets that the source deleted before they were read.
        time_ms: The newest time by which `offsets_at` finds these records; None if it goes by the
            samples themselves, or there are none.
    """

    samples: pa.Table
    rejects: Sequence[Reject]
    lost: int
    time_ms: int | None = None


class SourceUnavailableError(RuntimeError):
    """The source cannot be reached at present; the message says why and where it was looked for."""


class Source(Protocol):
    """A set of partitions with offsets, replayable by range.

    The coordinator asks for partitions, offsets and identity; workers read. All methods may be
    called again at any time, from any one thread at a time.
    """

    def partitions(self) -> Sequence[Partition]:
        """Returns the partitions, in a stable order."""

    def start_offsets(self) -> dict[Partition, int]:
        """Returns the first offset that can still be read, per partition."""

    def end_offsets(self) -> dict[Partition, int]:
        """Returns the offset after the last record that can be read now, per partition."""

    def offsets_at(self, time_ms: int) -> dict[Partition, Place]:
        """Returns, per partition, the first record that reaches an event time.

        That is the first whose newest sample is of `time_ms` or later. A partition that has no such
        record now is left out. All partitions are asked at once: the trainer calls this each time
        that its watermark has moved on by a part of `max_skew_seconds`.
        """

    def identity(self, offsets: Mapping[Partition, int]) -> dict[str, str]:
        """Returns what must stay equal for these offsets to stay meaningful, by topic.

        It is stored with offsets, and compared with what the same offsets give later. For Kafka,
        the topic's id (a topic deleted and created again has another), whatever the offsets; for
        an archive, a fingerprint of the files up to them.
        """

    def read(self, wanted: Range) -> ReadResult:
        """Reads a range, whole.

        Raises:
            SchemaMismatchError: If records carry another schema than the trainer's.
            SourceUnavailableError: If the source could not be read in its own time limit.
        """

    def saved(self, offsets: Mapping[Partition, int]) -> None:
        """Is told the offsets of a checkpoint once it is on the disk; must not fail.

        For dashboards that follow a consumer group, and the like: nothing reads by it.
        """

    def close(self) -> None:
        """Releases connections and files."""
