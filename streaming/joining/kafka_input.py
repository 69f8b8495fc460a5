"""Records of many partitions at a time, from the places where they are wanted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka.errors import OffsetOutOfRangeError
from kafka.protocol.consumer import OffsetSpec

from pipeline.schema import InputError
from streaming.source import Partition
from streaming.sources.kafka_client import KafkaClient

# Few of the client's records alive at a time are read faster than many.
_POLL_RECORDS: Final = 500


class InputLog:
    """One consumer for all the lanes of a process. Use from one thread at a time."""

    def __init__(self, client: KafkaClient) -> None:
        self._client = client
        self._consumer: KafkaConsumer | None = None
        self._watched: set[Partition] = set()

    def poll(
        self, places: Mapping[Partition, int], *, timeout_ms: int
    ) -> dict[Partition, list[Any]]:
        """Returns the next records of some partitions; none if there are none for a moment.

        Args:
            places: The next offset of each partition that is to be read. It counts where the
                partition was not read from just before.
            timeout_ms: How long to wait for a first record.

        Raises:
            InputError: If records were deleted before they were read.
            SourceUnavailableError: If no broker answers at all.
        """
        if not places:
            return {}
        with self._client.failing_as("reading events"):
            consumer = self._client.consumer
            if consumer is not self._consumer or places.keys() != self._watched:
                self._watch(consumer, places)
            try:
                found = consumer.poll(timeout_ms=timeout_ms, max_records=_POLL_RECORDS)
            except OffsetOutOfRangeError as error:
                raise self._lost(places) from error
        return {Partition(at.topic, at.partition): records for at, records in found.items()}

    def forget(self) -> None:
        """Has the next `poll` begin at the places that it is given, wherever this one stands.

        Whoever stopped at an end may have been given records behind it, and dropped them.
        """
        self._watched = set()

    def positions(self) -> dict[Partition, int]:
        """Returns the next offset of each partition that is read, holes in the log passed."""
        with self._client.failing_as("reading events"):
            consumer = self._consumer
            if consumer is None or consumer is not self._client.consumer:
                return {}  # the former one was lost, and a new one stands nowhere
            return {
                each: int(consumer.position(TopicPartition(each.topic, each.number)))
                for each in self._watched
            }

    def _watch(self, consumer: KafkaConsumer, places: Mapping[Partition, int]) -> None:
        # Not pause() and resume(): after a seek that stalls for ever.
        wanted = {TopicPartition(each.topic, each.number): at for each, at in places.items()}
        consumer.assign(list(wanted))
        for place, offset in wanted.items():
            consumer.seek(place, offset)
        self._consumer, self._watched = consumer, set(places)

    def _lost(self, places: Mapping[Partition, int]) -> InputError:
        wanted = {TopicPartition(each.topic, each.number): each for each in places}
        firsts = self._client.offsets(list(wanted), OffsetSpec.EARLIEST)
        ends = self._client.offsets(list(wanted), OffsetSpec.LATEST)
        consumer = self._consumer
        for place in wanted:
            position = int(consumer.position(place)) if consumer is not None else -1
            if not firsts[place].offset <= position <= ends[place].offset:
                return out_of_range(
                    wanted[place], position, firsts[place].offset, ends[place].offset
                )
        return InputError("join.input.topics: found offsets that are gone; expected all")


def out_of_range(partition: Partition, wanted: int, first: int, end: int) -> InputError:
    """Returns the error for records that are needed and not there."""
    where = f"topic {partition.topic} partition {partition.number}"
    if wanted > end:
        return InputError(
            f"join.input.topics: {where}: found offsets {first} to {end}; expected records from"
            f" {wanted} on: the topic was cut short. Join it under another join.group"
        )
    return InputError(
        f"join.input.topics: {where}: found offsets from {first} on; expected them from {wanted},"
        f" {first - wanted} more: retention deleted them before they were joined. Each topic must"
        " keep three join windows, join.lateness_seconds and the longest outage (retention.ms); to"
        " go on without them, begin anew under another join.group and join.output.topic"
    )
