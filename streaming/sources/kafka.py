"""A Kafka cluster as a source: ranges of offsets, read by this process alone, without a group."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import pyarrow as pa
from kafka import TopicPartition
from kafka.errors import OffsetOutOfRangeError
from kafka.protocol.consumer import OffsetSpec
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.schema import InputError
from pipeline.topics.connection import BrokerConnection
from pipeline.topics.record import FORMATS
from streaming.source import Partition, Place, Range, ReadResult, SourceUnavailableError
from streaming.sources.kafka_client import Cursor, KafkaClient
from streaming.sources.kafka_records import RecordDecoder, Runs, inside, name_of

logger = logging.getLogger(__name__)

_IDENTITY_SECONDS: Final = 1.0
# Few of the client's records alive at a time are read faster than many; see `Runs`.
_POLL_RECORDS: Final = 250


class DeadLettersConfig(BaseModel):
    """Where records go that cannot be decoded, instead of `dead-letters/` in the run's folder."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    topic: str
    """A topic of the same brokers; it must be there, and take records as large as those read."""


class KafkaSourceConfig(BrokerConnection):
    """Topics of Arrow records, as `headrace publish` writes them, or of single `tf.Example`s."""

    section: ClassVar[str] = "train.source.kafka"

    topics: Annotated[list[str], Field(min_length=1)]
    value_format: Literal["arrow", "example"] = "arrow"
    """What a record is that has no header `headrace-format`; with one, the header decides."""
    stall_timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Give up a read that has not moved on for so long: the broker is away."""
    fetch_bytes: Annotated[int, Field(ge=1)] = 2 << 20
    """What one request may bring, at least one record: about the (compressed) size of a range."""
    on_lost: Literal["count", "stop"] = "count"
    """Answer to records that retention deleted before they were read."""
    dead_letters: DeadLettersConfig | None = None
    """Send records that cannot be decoded to a topic; without it they are written to files."""
    group: str | None = None
    """Commit the offsets of each checkpoint to this group, for dashboards; nothing reads them."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dead_letters is not None and self.dead_letters.topic in self.topics:
            raise ValueError(
                f"dead_letters: found topic {self.dead_letters.topic}, which is read; expected"
                " another one"
            )
        return self


class KafkaSource:
    """Reads ranges of Kafka topics; see `streaming.source.Source`.

    Delivery: a range is read whole or an error is raised; a record is returned if and only if its
    offset lies in the range and its transaction, if any, was committed. Reading a range again gives
    the same, as long as retention keeps its records; those that it deleted are counted as `lost`.
    What compaction removed, and the markers of transactions, are offsets without a record: passed,
    and not lost. An offset is a record, that is, one sample or many. Use from one thread at a time.

    Connects on first use. A broker that restarts meanwhile only delays a read. A topic that is
    deleted and created again is found out within a second of reading; `identity` always looks.
    """

    def __init__(
        self,
        config: KafkaSourceConfig,
        schema: pa.Schema,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._now = now
        self._client = KafkaClient(
            config,
            config.topics,
            fetch_bytes=config.fetch_bytes,
            dead_letters=None if config.dead_letters is None else config.dead_letters.topic,
        )
        self._decoder = RecordDecoder(schema)
        self._identified = -_IDENTITY_SECONDS

    def partitions(self) -> Sequence[Partition]:
        """Returns all partitions of all topics, ordered.

        Raises:
            InputError: If there is no such topic; it names those that there are.
            SourceUnavailableError: If no broker answers.
        """
        return [
            Partition(topic["name"], number)
            for topic in self._client.describe()
            for number in sorted(part["partition_index"] for part in topic["partitions"])
        ]

    def identity(self, offsets: Mapping[Partition, int]) -> dict[str, str]:
        """Returns the id of each topic: one that is deleted and created again has another.

        Args:
            offsets: Not looked at. What was written once stays, or is deleted by retention.

        Raises:
            InputError: If a topic has another id than when this source first saw it.
        """
        del offsets
        return {topic["name"]: str(topic["topic_id"]) for topic in self._client.describe()}

    def start_offsets(self) -> dict[Partition, int]:
        """Returns the first offset that retention has left, per partition."""
        return {p: place.offset for p, place in self._places(OffsetSpec.EARLIEST).items()}

    def end_offsets(self) -> dict[Partition, int]:
        """Returns the end of what is committed (the last stable offset), per partition."""
        return {p: place.offset for p, place in self._places(OffsetSpec.LATEST).items()}

    def offsets_at(self, time_ms: int) -> dict[Partition, Place]:
        """Returns the first record with a timestamp of `time_ms` or later, per partition.

        The timestamp is what the producer set: event time if it was `headrace publish`.
        """
        return {
            partition: Place(place.offset, place.timestamp)
            for partition, place in self._places(max(0, time_ms)).items()
            if place.offset >= 0
        }

    def read(self, wanted: Range) -> ReadResult:
        """Reads a range, whole.

        Raises:
            SchemaMismatchError: If a record carries other columns than the trainer's.
            InputError: If the topic is gone or is another one, or has no such offsets yet or any
                more though nothing was deleted by retention: it was cut short. If retention did
                delete some, and `on_lost` is `stop`.
            SourceUnavailableError: If nothing came for `stall_timeout_seconds`.
        """
        with self._client.failing_as(f"reading {name_of(wanted.partition)}"):
            runs, lost = self._fetch(wanted)
        self._check_identity()
        samples, rejects = runs.decode(self._decoder, wanted.partition)
        return ReadResult(samples=samples, rejects=rejects, lost=lost, time_ms=runs.time_ms)

    def saved(self, offsets: Mapping[Partition, int]) -> None:
        """Commits the offsets of a checkpoint to `group`, if one is set; never fails."""
        if self._config.group is None:
            return
        places = {TopicPartition(p.topic, p.number): offset for p, offset in offsets.items()}
        try:
            self._client.commit(self._config.group, places)
        except (SourceUnavailableError, InputError) as error:
            logger.warning("dashboards will lag, training does not: %s", error)

    def close(self) -> None:
        """Closes the connections; the next use opens others."""
        self._client.close()

    def _fetch(self, wanted: Range) -> tuple[Runs, int]:
        """Returns the records of a range and how many of its offsets retention has deleted."""
        cursor = self._client.cursor(wanted.partition.topic, wanted.partition.number)
        cursor.move(wanted.start)
        runs = Runs(default=FORMATS[self._config.value_format])
        lost = 0
        watchdog = _Watchdog(self._config.stall_timeout_seconds, self._now)
        # Not until a number of records came: compaction and transactions leave holes.
        while (position := cursor.position()) < wanted.end:
            if watchdog.stalled(position):
                raise self._stall(wanted, position)
            try:
                # Never past the range if offsets have no holes, so that the next range finds its
                # first records in the client's buffer.
                records = cursor.poll(max_records=min(_POLL_RECORDS, wanted.end - position))
            except OffsetOutOfRangeError:
                lost += self._skip_deleted(cursor, wanted)
                continue
            # With holes, a poll does return records past the range.
            runs.add(inside(records, wanted.start, wanted.end))
        return runs, lost

    def _skip_deleted(self, cursor: Cursor, wanted: Range) -> int:
        """Moves to the first record that is left and returns how many offsets it skipped."""
        position = cursor.position()
        first, end = (
            self._client.offsets([cursor.place], spec)[cursor.place].offset
            for spec in (OffsetSpec.EARLIEST, OffsetSpec.LATEST)
        )
        if first <= position:
            raise InputError(
                f"{name_of(wanted.partition)}: found offsets {first} to {end}; expected"
                f" records from {position} on: the topic was cut short, or deleted and created"
                " again since the offsets were stored"
            )
        target = min(first, wanted.end)
        count = target - position
        found = f"{name_of(wanted.partition)}: offsets {position} to {target - 1}, {count} in all"
        if self._config.on_lost == "stop":
            raise InputError(
                f"{found}: found that retention deleted them before they were read; expected all,"
                " by on_lost: give the topic a longer retention.ms and go on from what is left"
                " with on_lost: count"
            )
        logger.warning("%s, are lost: retention deleted them before they were read", found)
        cursor.move(target)
        return count

    def _check_identity(self) -> None:
        """Looks now and then, after a fetch, whether the topic is still the one of before."""
        if self._now() - self._identified < _IDENTITY_SECONDS:
            return
        # A broker that went away this moment is the business of the next fetch.
        with contextlib.suppress(SourceUnavailableError):
            self._client.describe()
        self._identified = self._now()

    def _places(self, spec: OffsetSpec | int) -> dict[Partition, Any]:
        """Returns an offset with its timestamp, per partition; see `KafkaClient.offsets`."""
        partitions = {TopicPartition(p.topic, p.number): p for p in self.partitions()}
        found = self._client.offsets(list(partitions), spec)
        return {partition: found[place] for place, partition in partitions.items()}

    def _stall(self, wanted: Range, position: int) -> Exception:
        """Returns the error for a read that does not move on: it may be for good."""
        with contextlib.suppress(SourceUnavailableError):
            try:
                self._client.describe()
            except InputError as error:
                return error
        seconds = f"{self._config.stall_timeout_seconds:g} s"
        return SourceUnavailableError(
            self._config.unavailable(
                f"reading {name_of(wanted.partition)} from {wanted.start} to {wanted.end}: nothing"
                f" from offset {position} on in {seconds}"
            )
        )


class _Watchdog:
    """Notices that a position has not moved for a while; the client itself waits for ever."""

    def __init__(self, timeout_seconds: float, now: Callable[[], float]) -> None:
        self._timeout_seconds = timeout_seconds
        self._now = now
        self._position: int | None = None
        self._since = now()

    def stalled(self, position: int) -> bool:
        if position != self._position:
            self._position, self._since = position, self._now()
        return self._now() - self._since > self._timeout_seconds
