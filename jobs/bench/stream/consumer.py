"""What reads single `tf.Example` records for `headrace bench stream`: bare, for Keras, and ours.

Run as `python -m jobs.bench.stream.consumer bare|source ADDRESS COUNT`: prints a `Speed`'s figures.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from kafka import KafkaConsumer, TopicPartition

from jobs.bench.stream.synthetic import EXAMPLE_TOPIC, specification

_RANGE = 8192
_RAW_BATCH = 1024


def values(address: str) -> Iterator[bytes]:
    """Yields the records of the topic for ever, as a kafka-python consumer iterates over them."""
    while True:
        consumer = _consumer(address)
        for message in consumer:
            yield message.value
        consumer.close()


def value_lists(address: str) -> Iterator[list[bytes]]:
    """Yields lists of 1,024 records, for ever."""
    waiting: list[bytes] = []
    while True:
        consumer = _consumer(address)
        while polled := consumer.poll(timeout_ms=1000, max_records=_RAW_BATCH):
            waiting += [record.value for records in polled.values() for record in records]
            while len(waiting) >= _RAW_BATCH:
                yield waiting[:_RAW_BATCH]
                waiting = waiting[_RAW_BATCH:]
        consumer.close()


def _consumer(address: str) -> Any:
    consumer = KafkaConsumer(
        bootstrap_servers=[address], enable_auto_commit=False, consumer_timeout_ms=1000
    )
    numbers = consumer.partitions_for_topic(EXAMPLE_TOPIC) or set()
    partitions = [TopicPartition(EXAMPLE_TOPIC, number) for number in sorted(numbers)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    return consumer


def _read_bare(address: str, count: int) -> int:
    consumer, done = _consumer(address), 0
    while done < count:
        polled = consumer.poll(timeout_ms=1000, max_records=_RANGE)
        done += sum(len(records) for records in polled.values())
    consumer.close()
    return done


def _read_source(address: str, count: int) -> int:
    """Reads and decodes them as a worker does."""
    from streaming.source import Range
    from streaming.sources.kafka import KafkaSource, KafkaSourceConfig

    config = KafkaSourceConfig(bootstrap_servers=[address], topics=[EXAMPLE_TOPIC])
    source, done = KafkaSource(config, specification().sample_schema), 0
    for partition, end in source.end_offsets().items():
        for start in range(0, end, _RANGE):
            if done < count:
                done += source.read(
                    Range(partition, start, min(end, start + _RANGE))
                ).samples.num_rows
    source.close()
    return done


def main(argv: Sequence[str]) -> int:
    """Reads COUNT records twice, prints the figures of the second time."""
    mode, address, count = argv[0], argv[1], int(argv[2])
    read = {"bare": _read_bare, "source": _read_source}[mode]
    read(address, min(count, _RANGE))
    started, used = time.perf_counter(), time.process_time()
    done = read(address, count)
    seconds, spent = time.perf_counter() - started, time.process_time() - used
    sys.stdout.write(f"{json.dumps([done / seconds, spent / done * 1e6])}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
