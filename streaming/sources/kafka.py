"""Kafka topics of Arrow records as a source: the one place where samples are consumed.

kafka-python is used with manual assignment and without a consumer group: which records are read is
decided by ranges, and what was read is remembered by the ledger alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Final

import pyarrow as pa
from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaConfigurationError, KafkaError, OffsetOutOfRangeError
from pydantic import Field

from pipeline.schema import InputError
from pipeline.topics.connection import BrokerConnection, watch_client_log
from pipeline.topics.record import RecordError, decode
from streaming.source import (
    Partition,
    Place,
    Range,
    ReadResult,
    Reject,
    SourceUnavailableError,
)

_POLL_MS: Final = 50
_CLOSE_MS: Final = 1000
_SHOWN_BYTES: Final = 200
_SHOWN_TOPICS: Final = 20
_NO_ERROR: Final = 0


class KafkaSourceConfig(BrokerConnection):
    """Topics of Arrow records, as `headrace publish` writes them."""

    topics: Annotated[list[str], Field(min_length=1)]
    stall_timeout_seconds: Annotated[float, Field(gt=0)] = 30.0
    """Give up a read that has not moved on for so long: the broker is away."""
    fetch_bytes: Annotated[int, Field(ge=1)] = 2 << 20
    """What one request may bring, at least one record: about the (compressed) size of a range."""


class KafkaSource:
    """Reads ranges of Kafka topics; see `streaming.source.Source`.

    Delivery: a range is read whole or an error is raised; a record is returned if and only if its
    offset lies in the range and its transaction, if any, was committed. Reading a range again gives
    the same, as long as retention keeps its records; those that it deleted are counted as `lost`.
    An offset is a record, that is, many samples. Use from one thread at a time.

    Connects on first use. A broker that restarts meanwhile only delays a read.
    """

    def __init__(
        self,
        config: KafkaSourceConfig,
        schema: pa.Schema,
        *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config = config
        self._schema = schema
        self._now = now
        self._consumer: KafkaConsumer | None = None

    def partitions(self) -> Sequence[Partition]:
        """Returns all partitions of all topics, ordered.

        Raises:
            InputError: If there is no such topic; it names those that there are.
            SourceUnavailableError: If no broker answers.
        """
        return [
            Partition(topic["name"], number)
            for topic in self._describe()
            for number in sorted(part["partition_index"] for part in topic["partitions"])
        ]

    def identity(self, offsets: Mapping[Partition, int]) -> dict[str, str]:
        """Returns the id of each topic: one that is deleted and created again has another.

        Args:
            offsets: Not looked at. What was written once stays, or is deleted by retention.
        """
        del offsets
        return {topic["name"]: str(topic["topic_id"]) for topic in self._describe()}

    def start_offsets(self) -> dict[Partition, int]:
        """Returns the first offset that retention has left, per partition."""
        return self._offsets("beginning_offsets")

    def end_offsets(self) -> dict[Partition, int]:
        """Returns the end of what is committed (the last stable offset), per partition."""
        return self._offsets("end_offsets")

    def offsets_at(self, time_ms: int) -> dict[Partition, Place]:
        """Returns the first record with a timestamp of `time_ms` or later, per partition.

        The timestamp is what the producer set: event time if it was `headrace publish`.
        """
        partitions = {TopicPartition(p.topic, p.number): p for p in self.partitions()}
        with self._failing_as("asking for offsets"):
            found = self._connected().offsets_for_times(
                dict.fromkeys(partitions, max(0, time_ms)),
                timeout_ms=self._config.stall_timeout_seconds * 1000,
            )
        return {
            partition: Place(found[place].offset, found[place].timestamp)
            for place, partition in partitions.items()
            if found.get(place) is not None and found[place].offset >= 0
        }

    def read(self, wanted: Range) -> ReadResult:
        """Reads a range, whole.

        Raises:
            SchemaMismatchError: If a record carries other columns than the trainer's.
            InputError: If the topic is gone, or has no such offsets yet or any more though nothing
                was deleted by retention: it was cut short, or deleted and created again.
            SourceUnavailableError: If nothing came for `stall_timeout_seconds`.
        """
        with self._failing_as(f"reading {_name(wanted.partition)}"):
            records, lost = self._fetch(wanted)
        tables, rejects = [self._schema.empty_table()], []
        for record in records:
            where = f"{_name(wanted.partition)} offset {record.offset}"
            try:
                tables.append(
                    decode(record.value, record.headers, schema=self._schema, where=where)
                )
            except RecordError as error:
                rejects.append(_reject(record, error))
        return ReadResult(samples=pa.concat_tables(tables), rejects=rejects, lost=lost)

    def close(self) -> None:
        """Closes the connection; the next use opens another."""
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)

    def _fetch(self, wanted: Range) -> tuple[list[Any], int]:
        """Returns the records of a range and how many of its offsets retention has deleted."""
        cursor = self._seek(wanted)
        records: list[Any] = []
        lost = 0
        watchdog = _Watchdog(self._config.stall_timeout_seconds, self._now)
        # Not until a number of records came: compaction and transactions leave holes.
        while (position := cursor.position()) < wanted.end:
            if watchdog.stalled(position):
                raise self._stall(wanted, position)
            try:
                # Never past the range if offsets have no holes, so that the next range finds its
                # first records in the client's buffer.
                batch = cursor.poll(max_records=wanted.end - position)
            except OffsetOutOfRangeError:
                lost += self._skip_deleted(cursor, wanted)
                continue
            # With holes, a poll does return records past the range.
            records += [record for record in batch if wanted.start <= record.offset < wanted.end]
        return records, lost

    def _seek(self, wanted: Range) -> _Cursor:
        consumer = self._connected()
        place = TopicPartition(wanted.partition.topic, wanted.partition.number)
        cursor = _Cursor(consumer, place)
        # Not pause() and resume() over all partitions: after a backward seek that stalls for ever.
        if consumer.assignment() != {place}:
            consumer.assign([place])
            consumer.seek(place, wanted.start)
        elif cursor.position() != wanted.start:
            consumer.seek(place, wanted.start)
        return cursor

    def _skip_deleted(self, cursor: _Cursor, wanted: Range) -> int:
        """Moves to the first record that is left and returns how many offsets it skipped."""
        position, first = cursor.position(), cursor.first()
        if first <= position:
            raise InputError(
                f"{_name(wanted.partition)}: found offsets {first} to {cursor.end()}; expected"
                f" records from {position} on: the topic was cut short, or deleted and created"
                " again since the offsets were stored"
            )
        target = min(first, wanted.end)
        cursor.consumer.seek(cursor.place, target)
        return target - position

    def _offsets(self, method: str) -> dict[Partition, int]:
        partitions = {TopicPartition(p.topic, p.number): p for p in self.partitions()}
        with self._failing_as("asking for offsets"):
            ask = getattr(self._connected(), method)
            found = ask(list(partitions), timeout_ms=self._config.stall_timeout_seconds * 1000)
        return {partition: found[place] for place, partition in partitions.items()}

    def _describe(self) -> list[dict[str, Any]]:
        """Returns the broker's description of each topic, in the order of the configuration."""
        with self._failing_as("asking for topics"):
            admin = KafkaAdminClient(**self._config.client_options())
            try:
                topics = admin.describe_topics(list(self._config.topics))
                missing = [topic["name"] for topic in topics if topic["error_code"] != _NO_ERROR]
                existing = sorted(admin.list_topics()) if missing else []
            finally:
                admin.close()
        if missing:
            raise InputError(self._no_topic(missing, existing))
        return sorted(topics, key=lambda topic: self._config.topics.index(topic["name"]))

    def _no_topic(self, missing: Sequence[str], existing: Sequence[str]) -> str:
        shown = ", ".join(existing[:_SHOWN_TOPICS]) or "none"
        more = ", ..." if len(existing) > _SHOWN_TOPICS else ""
        return (
            f"topics: found no topic {', '.join(missing)} at"
            f" {', '.join(self._config.bootstrap_servers)}; expected one of: {shown}{more}"
            " (`headrace publish` makes one)"
        )

    def _connected(self) -> KafkaConsumer:
        if self._consumer is None:
            self._consumer = KafkaConsumer(
                **self._config.client_options(),
                group_id=None,
                metrics_enabled=False,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                isolation_level="read_committed",
                # Any other value jumps silently over what retention has deleted.
                auto_offset_reset="none",
                max_partition_fetch_bytes=self._config.fetch_bytes,
                # A fetch at the end of one partition holds up the next partition's for so long.
                fetch_max_wait_ms=_POLL_MS,
            )
        return self._consumer

    @contextlib.contextmanager
    def _failing_as(self, doing: str) -> Iterator[None]:
        watch_client_log()
        try:
            yield
        except KafkaConfigurationError as error:
            raise InputError(f"bootstrap_servers: {error}") from error
        except KafkaError as error:
            # The next use starts with a fresh client, whatever state this one is in.
            self.close()
            raise SourceUnavailableError(self._config.unavailable(doing, error)) from error

    def _stall(self, wanted: Range, position: int) -> Exception:
        """Returns the error for a read that does not move on: it may be for good."""
        with contextlib.suppress(SourceUnavailableError):
            try:
                self._describe()
            except InputError as error:
                return error
        seconds = f"{self._config.stall_timeout_seconds:g} s"
        return SourceUnavailableError(
            self._config.unavailable(
                f"reading {_name(wanted.partition)} from {wanted.start} to {wanted.end}: nothing"
                f" from offset {position} on in {seconds}"
            )
        )


@dataclasses.dataclass(frozen=True, slots=True)
class _Cursor:
    """A consumer that reads one partition."""

    consumer: KafkaConsumer
    place: TopicPartition

    def position(self) -> int:
        return self.consumer.position(self.place)

    def poll(self, *, max_records: int) -> list[Any]:
        batch = self.consumer.poll(timeout_ms=_POLL_MS, max_records=max_records)
        return batch.get(self.place, [])

    def first(self) -> int:
        return self.consumer.beginning_offsets([self.place])[self.place]

    def end(self) -> int:
        return self.consumer.end_offsets([self.place])[self.place]


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


def _reject(record: Any, error: RecordError) -> Reject:
    payload = (record.value or b"")[:_SHOWN_BYTES]
    return Reject(record.offset, error.reason, error.detail, payload)


def _name(partition: Partition) -> str:
    return f"topic {partition.topic} partition {partition.number}"
