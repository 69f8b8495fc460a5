"""What happens to topics while they are read: compaction, retention, partitions, new lives."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.errors import RetriableError

from pipeline.schema import InputError
from pipeline.topics.record import encode
from streaming.source import Partition, Place, Range, SourceUnavailableError
from streaming.sources.kafka import KafkaSource, KafkaSourceConfig
from tests.kafka.broker import Broker
from tests.kafka.topics import create, produce
from tests.waiting import wait_until

pytestmark = pytest.mark.kafka

SCHEMA = pa.schema([("item_id", pa.int64())])


def samples(*ids: int) -> pa.Table:
    return pa.table({"item_id": ids}, SCHEMA)


@pytest.fixture
def admin(kafka: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=kafka)
    yield client
    client.close()


class Clock:
    """Seconds that pass when told."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def make_source(kafka: str, *topics: str, now: Any = None, **options: Any) -> KafkaSource:
    config = KafkaSourceConfig(bootstrap_servers=[kafka], topics=list(topics), **options)
    return KafkaSource(config, SCHEMA, **({} if now is None else {"now": now}))


def items(source: KafkaSource, topic: str, start: int, end: int, number: int = 0) -> list[int]:
    return source.read(Range(Partition(topic, number), start, end)).samples["item_id"].to_pylist()


def test_compaction_leaves_holes_that_are_passed_and_not_counted_as_lost(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    now = {"min_cleanable_dirty_ratio": "0.001", "segment_ms": "1", "min_compaction_lag_ms": "0"}
    create(admin, topic, cleanup_policy="compact", delete_retention_ms="1", **now)
    producer = KafkaProducer(bootstrap_servers=kafka)

    def send(key: int, item: int) -> int:
        value, headers = encode(samples(item))
        future = producer.send(topic, value, b"%d" % key, headers=list(headers), partition=0)
        return int(future.get(30).offset)

    # Three keys over and over: of a closed segment only the last record of each key is left.
    newest = {send(k % 3, k): k for k in range(60)}
    source = make_source(kafka, topic)

    def compacted() -> bool:
        newest[send(9, 1000 + len(newest))] = 999 + len(newest)  # closes the segment before it
        return len(items(source, topic, 0, 60)) == 3

    wait_until(compacted)

    everything = source.read(Range(Partition(topic, 0), 0, 60))
    assert everything.samples["item_id"].to_pylist() == [57, 58, 59]
    assert (everything.lost, everything.rejects) == (0, [])
    assert source.start_offsets() == {Partition(topic, 0): 0}
    for start, end in [(0, 10), (5, 57), (30, 58), (56, 57)]:
        result = source.read(Range(Partition(topic, 0), start, end))
        expected = [item for item in (57, 58, 59) if start <= item < end]
        assert (result.samples["item_id"].to_pylist(), result.lost) == (expected, 0)
    source.close()
    producer.close()


def test_a_transaction_counts_as_a_whole_over_many_ranges_and_two_partitions(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic, 2)
    producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=topic)
    producer.init_transactions()
    for first, commit in [(0, False), (10, True), (20, False), (30, True)]:
        producer.begin_transaction()
        for item in range(first, first + 10):
            value, headers = encode(samples(item))
            producer.send(topic, value, headers=list(headers), partition=item % 2)
        producer.flush()
        (producer.commit_transaction if commit else producer.abort_transaction)()
    producer.close()
    source = make_source(kafka, topic)
    # Five records and one marker a transaction and partition.
    ends = {Partition(topic, 0): 24, Partition(topic, 1): 24}
    wait_until(lambda: source.end_offsets() == ends)

    for size in (1, 4, 7, 24):
        for number in (0, 1):
            found: list[int] = []
            for start in range(0, 24, size):
                wanted = Range(Partition(topic, number), start, min(24, start + size))
                result = source.read(wanted)
                assert (result.lost, result.rejects) == (0, [])
                found += result.samples["item_id"].to_pylist()
            committed = [*range(10, 20), *range(30, 40)]
            assert found == [item for item in committed if item % 2 == number]
    source.close()


def test_what_retention_deleted_is_logged_with_its_offsets_or_stops(
    kafka: str, topic: str, admin: KafkaAdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    create(admin, topic)
    produce(kafka, topic, *((0, samples(k)) for k in range(10)))
    counting, stopping = make_source(kafka, topic), make_source(kafka, topic, on_lost="stop")
    admin.delete_records({TopicPartition(topic, 0): 4})

    with caplog.at_level(logging.WARNING):
        assert counting.read(Range(Partition(topic, 0), 2, 6)).lost == 2
    message = f"topic {topic} partition 0: offsets 2 to 3, 2 in all"
    assert f"{message}, are lost: retention deleted them before they were read" in caplog.text

    with pytest.raises(InputError, match=rf"{message}: found that retention .* on_lost: count"):
        stopping.read(Range(Partition(topic, 0), 2, 6))
    assert items(stopping, topic, 4, 6) == [4, 5]
    counting.close()
    stopping.close()


def test_partitions_added_while_running_are_found_and_read(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    produce(kafka, topic, (0, samples(1)))
    coordinator, worker = make_source(kafka, topic), make_source(kafka, topic)
    assert coordinator.end_offsets() == {Partition(topic, 0): 1}
    assert items(worker, topic, 0, 1) == [1]

    admin.create_partitions({topic: 3})
    wait_until(lambda: len(coordinator.partitions()) == 3)
    produce(kafka, topic, (2, samples(7)), (2, samples(8)))

    added = Partition(topic, 2)
    wait_until(lambda: coordinator.end_offsets().get(added) == 2)
    assert coordinator.start_offsets()[added] == 0
    assert items(worker, topic, 0, 2, number=2) == [7, 8]
    assert items(worker, topic, 0, 1) == [1]
    coordinator.close()
    worker.close()


def test_a_topic_made_anew_is_found_out_while_it_is_read(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    produce(kafka, topic, *((0, samples(k)) for k in range(4)))
    clock = Clock()
    source = make_source(kafka, topic, now=clock)
    assert items(source, topic, 0, 2) == [0, 1]

    admin.delete_topics([topic])
    wait_until(lambda: topic not in admin.list_topics())
    create(admin, topic)
    produce(kafka, topic, *((0, samples(100 + k)) for k in range(4)))

    clock.time += 1.0
    with pytest.raises(InputError, match="was deleted and created again while it was read"):
        items(source, topic, 2, 4)
    with pytest.raises(InputError, match="was deleted and created again while it was read"):
        source.end_offsets()
    source.close()


def test_the_first_record_of_a_time_is_found_by_its_timestamp(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic, 2, retention_ms="-1")
    producer = KafkaProducer(bootstrap_servers=kafka)
    for time_ms in (1000, 2000, 3000):
        producer.send(topic, b"x", partition=0, timestamp_ms=time_ms).get(30)
    producer.close()
    source = make_source(kafka, topic)
    assert source.offsets_at(0) == {Partition(topic, 0): Place(0, 1000)}
    assert source.offsets_at(1001) == {Partition(topic, 0): Place(1, 2000)}
    assert source.offsets_at(3001) == {}
    source.close()


def test_a_broker_that_goes_away_is_waited_for_and_told_of(own_broker: Broker, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=own_broker.bootstrap)
    create(admin, topic)
    admin.close()
    produce(own_broker.bootstrap, topic, (0, samples(1)), (0, samples(2)))
    options = {"stall_timeout_seconds": 1.0, "connect_timeout_seconds": 1.0}
    source = make_source(own_broker.bootstrap, topic, **options)
    assert source.end_offsets() == {Partition(topic, 0): 2}
    assert items(source, topic, 0, 1) == [1]

    own_broker.kill()
    for ask in (lambda: items(source, topic, 0, 2), source.end_offsets):
        with pytest.raises(SourceUnavailableError, match="check that a broker listens at"):
            ask()
    own_broker.start()

    assert source.end_offsets() == {Partition(topic, 0): 2}
    assert items(source, topic, 0, 2) == [1, 2]
    source.close()


def test_a_checkpoints_offsets_are_committed_for_dashboards(
    kafka: str, topic: str, admin: KafkaAdminClient, caplog: pytest.LogCaptureFixture
) -> None:
    create(admin, topic, 2)
    source = make_source(kafka, topic, group=f"group-{topic}")
    group = f"group-{topic}"
    committed: dict[int, int] = {}

    def shown(*offsets: int) -> bool:
        # The first group of a broker's life makes it create its own topic, which takes a moment.
        source.saved({Partition(topic, number): offset for number, offset in enumerate(offsets)})
        with contextlib.suppress(RetriableError):
            found = admin.list_group_offsets({group: None})[group]
            committed.update({place.partition: entry.offset for place, entry in found.items()})
        return committed == dict(enumerate(offsets))

    wait_until(lambda: shown(5, 0))
    wait_until(lambda: shown(7, 1))
    source.close()

    away = make_source("127.0.0.1:1", topic, group="g", connect_timeout_seconds=0.3)
    with caplog.at_level(logging.WARNING):
        away.saved({Partition(topic, 0): 5})
    assert "dashboards will lag, training does not" in caplog.text
    assert "committing to group g" in caplog.text
