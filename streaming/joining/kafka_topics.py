"""The topics around a join: whether they are there and fit together, and who wrote last."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from pipeline.schema import InputError
from pipeline.topics.transactions import require_compact
from streaming.joining.config import JoinConfig
from streaming.joining.progress import Progress
from streaming.source import Partition, SourceUnavailableError
from streaming.sources.kafka_client import KafkaClient

_NO_ERROR: Final = 0
_POLL_MS: Final = 200
_READ_SECONDS: Final = 60.0
_TAIL: Final = 16  # records from the end in which the last one is looked for first
_COMPACTED: Final = {
    "cleanup.policy": "compact",
    # Small segments: an open one is never compacted, and a record comes with every commit.
    "segment.bytes": str(16 << 20),
    "min.cleanable.dirty.ratio": "0.1",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Plan:
    """The topics as they are.

    Attributes:
        partitions: How many each of them has.
        ids: Id of each input topic.
        rejects: How many the topic of rejects has, 0 without one.
    """

    partitions: int
    ids: Mapping[str, str]
    rejects: int


class JoinTopics:
    """Looks after the topics of a join. Use from one thread at a time."""

    def __init__(self, config: JoinConfig, client: KafkaClient) -> None:
        self._config = config
        self._client = client

    def prepare(self) -> Plan:
        """Compares the topics with each other, and makes those that may be made.

        Raises:
            InputError: If one is missing, or they do not fit together.
            SourceUnavailableError: If no broker answers.
        """
        inputs = self._client.describe()
        counts = {topic["name"]: len(topic["partitions"]) for topic in inputs}
        wanted = counts[self._config.input.topics[0]]
        if set(counts.values()) != {wanted}:
            found = ", ".join(f"{name} with {count}" for name, count in counts.items())
            raise InputError(
                f"join.input.topics: found {found} partitions; expected equal numbers: an"
                " impression and its outcomes stand in partitions of one number, by a hash of the"
                " user"
            )
        self._prepare_output(wanted)
        self._prepare_progress(wanted)
        rejects = self._config.rejects_topic
        found_rejects = 0 if rejects is None else self._partitions_of(rejects) or 0
        ids = {topic["name"]: str(topic["topic_id"]) for topic in inputs}
        return Plan(wanted, ids, found_rejects)

    def check_identity(self) -> None:
        """Checks that the input topics are the ones of before.

        Raises:
            InputError: If one is gone, or was deleted and created again.
            SourceUnavailableError: If no broker answers.
        """
        self._client.describe()

    def first_offsets(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Returns the first offset that is left of each."""
        return self._offsets(partitions, OffsetSpec.EARLIEST)

    def committed_ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Returns the end of what is committed of each."""
        return self._offsets(partitions, OffsetSpec.LATEST)

    def written_ends(self, partitions: Sequence[Partition]) -> dict[Partition, int]:
        """Returns the end of each, records of open transactions included."""
        return self._offsets(partitions, OffsetSpec.LATEST, committed=False)

    def last_progress(self, unit: int) -> Progress | None:
        """Returns what a unit's last transaction said, None if there was none.

        Only after the unit's producer has ended the transactions of former lives: then nothing of
        the partition, which is this unit's alone, is open.

        Raises:
            InputError: If something else stands there.
            SourceUnavailableError: If it cannot be read.
        """
        topic = self._config.progress_topic
        place = Partition(topic, unit)
        first, end = self.first_offsets([place])[place], self.written_ends([place])[place]
        tail = _TAIL
        while end > first:
            start = max(first, end - tail)
            records = self._read(place, start, end)
            values = [each for each in records if each.value is not None]
            if values:
                last = values[-1]
                where = f"topic {topic} partition {unit} offset {last.offset}"
                return Progress.decode(last.value, where=where)
            if start == first:
                break
            tail *= 8
        return None

    def _read(self, place: Partition, start: int, end: int) -> list[Any]:
        """Returns the committed records from an offset to the end, which is waited for."""
        wanted = TopicPartition(place.topic, place.number)
        deadline = time.monotonic() + _READ_SECONDS
        found: list[Any] = []
        with self._client.failing_as(f"reading topic {place.topic}"):
            consumer = KafkaConsumer(
                **self._config.client_options(),
                group_id=None,
                metrics_enabled=False,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                isolation_level="read_committed",
                auto_offset_reset="earliest",
            )
            try:
                consumer.assign([wanted])
                consumer.seek(wanted, start)
                while consumer.position(wanted) < end:
                    found += consumer.poll(timeout_ms=_POLL_MS).get(wanted, [])
                    if time.monotonic() > deadline:
                        raise SourceUnavailableError(
                            f"topic {place.topic} partition {place.number}: found nothing from"
                            f" offset {consumer.position(wanted)} on in {_READ_SECONDS:g} s;"
                            f" expected all up to {end}: a transaction in it does not end"
                        )
            finally:
                consumer.close(autocommit=False, timeout_ms=1000)
        return found

    def _prepare_output(self, partitions: int) -> None:
        output = self._config.output
        found = self._partitions_of(output.topic)
        if found is None and not output.create:
            raise InputError(
                f"join.output.topic: found no topic {output.topic} at"
                f" {', '.join(self._config.bootstrap_servers)}; expected one: create it with"
                f" {partitions} partitions and retention.ms=-1, or set join.output.create=true"
            )
        if found is None:
            # Retention looks at time stamps, which are event times: a backlog's are old.
            self._create(output.topic, partitions, {"retention.ms": "-1"})
        elif found != partitions:
            raise InputError(
                f"join.output.topic: found topic {output.topic} with {found} partitions; expected"
                f" {partitions}, as many as topic {self._config.input.topics[0]} has: samples of"
                " partition p go to partition p"
            )

    def _prepare_progress(self, partitions: int) -> None:
        topic = self._config.progress_topic
        found = self._partitions_of(topic)
        if found is None:
            self._create(topic, partitions, _COMPACTED)
            return
        if found < partitions:
            raise InputError(
                f"join.commit.topic: found topic {topic} with {found} partitions; expected at least"
                f" {partitions}, one for each unit: give it more, or name another"
            )
        with self._client.failing_as(f"asking for topic {topic}"):
            require_compact(self._client.admin, topic, setting="join.commit.topic")

    def _partitions_of(self, topic: str) -> int | None:
        with self._client.failing_as(f"asking for topic {topic}"):
            (found,) = self._client.admin.describe_topics([topic])
        return len(found["partitions"]) if found["error_code"] == _NO_ERROR else None

    def _create(self, topic: str, partitions: int, configs: Mapping[str, str]) -> None:
        wanted = {"num_partitions": partitions, "configs": dict(configs)}
        with self._client.failing_as(f"creating topic {topic}"):
            self._client.admin.create_topics({topic: wanted}, wait_for_metadata=True)

    def _offsets(
        self, partitions: Sequence[Partition], spec: OffsetSpec, *, committed: bool = True
    ) -> dict[Partition, int]:
        level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
        places = {TopicPartition(each.topic, each.number): each for each in partitions}
        with self._client.failing_as("asking for offsets"):
            found = self._client.admin.list_partition_offsets(
                dict.fromkeys(places, spec), isolation_level=level
            )
        return {partition: found[place].offset for place, partition in places.items()}
