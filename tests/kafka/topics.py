"""What tests do to topics and their records, beside the code under test."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from pipeline.topics.record import encode
from tests.waiting import wait_until


def create(admin: KafkaAdminClient, topic: str, partitions: int = 1, **configs: str) -> None:
    """Creates a topic; `retention_ms="1"` is the configuration `retention.ms`.

    Without it nothing is deleted: the tests' records have times of long ago.
    """
    configs = {"retention_ms": "-1"} | configs
    wanted = {
        "num_partitions": partitions,
        "replication_factor": 1,
        "configs": {name.replace("_", "."): value for name, value in configs.items()},
    }
    admin.create_topics({topic: wanted}, wait_for_metadata=True)


def produce(kafka: str, topic: str, *records: tuple[int, Any], **options: Any) -> None:
    """Sends (partition, table or bytes or None) records in their order; bytes have no headers."""
    producer = KafkaProducer(bootstrap_servers=kafka, **options)
    for partition, content in records:
        value, headers = encode(content) if isinstance(content, pa.Table) else (content, [])
        # The client takes no record without key and value.
        key = b"key" if value is None else None
        producer.send(topic, value, key, headers=list(headers), partition=partition).get(30)
    producer.close()


def consume(kafka: str, topic: str, count: int) -> list[Any]:
    """Returns the first `count` records of partition 0, read by a plain consumer."""
    consumer = KafkaConsumer(bootstrap_servers=kafka, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, 0)])
    consumer.seek_to_beginning()
    found: list[Any] = []

    def enough() -> bool:
        for records in consumer.poll(timeout_ms=200).values():
            found.extend(records)
        return len(found) >= count

    wait_until(enough)
    consumer.close(autocommit=False)
    return found[:count]
