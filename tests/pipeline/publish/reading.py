"""What stands in a topic for readers of what is committed, read by a plain consumer."""

from __future__ import annotations

from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.protocol.consumer import IsolationLevel, OffsetSpec

from pipeline.topics.record import FORMAT_HEADER


def committed(kafka: str, topic: str) -> dict[int, list[Any]]:
    """Returns the committed records of each partition, in their order."""
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    (found,) = admin.describe_topics([topic])
    places = [TopicPartition(topic, part["partition_index"]) for part in found["partitions"]]
    wanted = dict.fromkeys(places, OffsetSpec.LATEST)
    ends = admin.list_partition_offsets(wanted, isolation_level=IsolationLevel.READ_COMMITTED)
    admin.close()
    consumer = KafkaConsumer(
        bootstrap_servers=kafka, isolation_level="read_committed", auto_offset_reset="earliest"
    )
    consumer.assign(places)
    records: dict[int, list[Any]] = {place.partition: [] for place in sorted(places)}
    while any(consumer.position(place) < ends[place].offset for place in places):
        for place, some in consumer.poll(timeout_ms=100).items():
            records[place.partition] += some
    consumer.close(autocommit=False)
    return records


def forms(records: dict[int, list[Any]]) -> set[bytes]:
    """Returns what the records say they are."""
    return {dict(record.headers)[FORMAT_HEADER] for some in records.values() for record in some}
