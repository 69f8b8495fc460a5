from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from pipeline.schema import InputError, SchemaMismatchError
from pipeline.topics.record import encode
from streaming.source import Partition, Range, SourceUnavailableError
from streaming.sources.kafka import KafkaSource, KafkaSourceConfig
from tests.kafka.broker import Broker
from tests.kafka.topics import create, produce
from tests.waiting import wait_until

pytestmark = pytest.mark.kafka

SCHEMA = pa.schema([("item_id", pa.int64()), ("history_item_id", pa.list_(pa.int64()))])


def samples(*ids: int) -> pa.Table:
    return pa.table({"item_id": ids, "history_item_id": [[i] * (i % 3) for i in ids]}, SCHEMA)


@pytest.fixture
def admin(kafka: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=kafka)
    yield client
    client.close()


@pytest.fixture
def source(kafka: str, topic: str) -> Iterator[KafkaSource]:
    reader = make_source(kafka, topic)
    yield reader
    reader.close()


def make_source(kafka: str, *topics: str, **options: Any) -> KafkaSource:
    config = KafkaSourceConfig(bootstrap_servers=[kafka], topics=list(topics), **options)
    return KafkaSource(config, SCHEMA)


def read_items(source: KafkaSource, topic: str, start: int, end: int, number: int = 0) -> list[int]:
    return source.read(Range(Partition(topic, number), start, end)).samples["item_id"].to_pylist()


@pytest.fixture
def ten(kafka: str, topic: str, admin: KafkaAdminClient) -> str:
    """A topic with ten records; record k has the samples 10 k and 10 k + 1."""
    create(admin, topic)
    produce(kafka, topic, *((0, samples(10 * k, 10 * k + 1)) for k in range(10)))
    return topic


def test_what_was_written_is_read_equal(
    kafka: str, topic: str, source: KafkaSource, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    produce(kafka, topic, (0, samples(1, 2, 3)), (0, samples(4, 5)), compression_type="zstd")

    result = source.read(Range(Partition(topic, 0), 0, 2))

    assert result.samples.equals(samples(1, 2, 3, 4, 5))
    assert (result.rejects, result.lost) == ([], 0)


def test_partitions_offsets_and_identity_come_from_the_broker(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    other = f"a-{topic}"
    create(admin, topic, 2)
    create(admin, other)
    produce(kafka, topic, (1, samples(1)), (1, samples(2)))
    source = make_source(kafka, topic, other)

    first, second, third = Partition(topic, 0), Partition(topic, 1), Partition(other, 0)
    assert source.partitions() == [first, second, third]
    assert source.start_offsets() == {first: 0, second: 0, third: 0}
    assert source.end_offsets() == {first: 0, second: 2, third: 0}
    ids = {entry["name"]: entry["topic_id"] for entry in admin.describe_topics([topic, other])}
    assert source.identity({}) == source.identity({second: 2}) == ids
    source.close()


def test_ranges_are_read_in_any_order_and_again(ten: str, source: KafkaSource) -> None:
    for start, end in [(4, 7), (7, 10), (0, 2), (5, 6), (5, 6), (9, 10), (0, 10), (3, 3)]:
        expected = [10 * k + i for k in range(start, end) for i in (0, 1)]
        assert read_items(source, ten, start, end) == expected


def test_partitions_may_alternate(
    kafka: str, topic: str, source: KafkaSource, admin: KafkaAdminClient
) -> None:
    create(admin, topic, 3)
    produce(kafka, topic, *((n, samples(100 * n + k)) for k in range(6) for n in range(3)))

    for start in (0, 2, 4, 1):  # the last goes backwards
        for number in (0, 1, 2, 1):
            found = read_items(source, topic, start, start + 2, number)
            assert found == [100 * number + start, 100 * number + start + 1]


def test_aborted_transactions_leave_holes_that_change_no_range(
    kafka: str, topic: str, source: KafkaSource, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=topic)
    producer.init_transactions()
    for item in range(6):  # offsets 2 item (the record) and 2 item + 1 (the transaction's end)
        producer.begin_transaction()
        value, headers = encode(samples(item))
        producer.send(topic, value, headers=list(headers), partition=0).get(30)
        if item % 2:
            producer.abort_transaction()
        else:
            producer.commit_transaction()
    producer.close()
    wait_for_end(source, Partition(topic, 0), 12)

    assert read_items(source, topic, 0, 12) == [0, 2, 4]
    committed = {0: 0, 4: 2, 8: 4}
    for start in range(12):
        for end in range(start, 13):
            expected = [committed[offset] for offset in range(start, end) if offset in committed]
            assert read_items(source, topic, start, end) == expected, (start, end)


def wait_for_end(source: KafkaSource, partition: Partition, end: int) -> None:
    wait_until(lambda: source.end_offsets()[partition] >= end)


def test_an_open_transaction_is_beyond_the_end(
    kafka: str, topic: str, source: KafkaSource, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    produce(kafka, topic, (0, samples(1)))
    producer = KafkaProducer(bootstrap_servers=kafka, transactional_id=topic)
    producer.init_transactions()
    producer.begin_transaction()
    producer.send(topic, encode(samples(2))[0], partition=0).get(30)

    assert source.end_offsets() == {Partition(topic, 0): 1}
    producer.abort_transaction()
    producer.close()


def test_undecodable_records_are_rejects_with_offset_and_reason_and_the_others_survive(
    kafka: str, topic: str, source: KafkaSource, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    noise = bytes(range(200)) * 3
    produce(kafka, topic, (0, samples(1)), (0, noise), (0, None), (0, samples(2)))

    result = source.read(Range(Partition(topic, 0), 0, 4))

    assert result.samples["item_id"].to_pylist() == [1, 2]
    assert [(reject.offset, reject.reason) for reject in result.rejects] == [
        (1, "undecodable"),
        (2, "no-value"),
    ]
    assert result.rejects[0].payload == noise


def test_another_schema_stops_with_topic_offset_and_column(
    kafka: str, topic: str, source: KafkaSource, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    retyped = samples(7).set_column(0, "item_id", pa.array(["7"]))
    produce(kafka, topic, (0, samples(1)), (0, retyped))

    message = rf"{topic} partition 0 offset 1: column 'item_id': found string; expected int64"
    with pytest.raises(SchemaMismatchError, match=message):
        source.read(Range(Partition(topic, 0), 0, 2))


def test_records_that_retention_deleted_are_counted_as_lost(
    ten: str, source: KafkaSource, admin: KafkaAdminClient
) -> None:
    admin.delete_records({TopicPartition(ten, 0): 4})

    partly = source.read(Range(Partition(ten, 0), 2, 6))
    wholly = source.read(Range(Partition(ten, 0), 0, 3))

    assert source.start_offsets() == {Partition(ten, 0): 4}
    assert (partly.samples["item_id"].to_pylist(), partly.lost) == ([40, 41, 50, 51], 2)
    assert (wholly.samples.num_rows, wholly.lost) == (0, 3)
    assert wholly.samples.schema == SCHEMA


def test_a_topic_made_anew_has_another_identity_and_refuses_old_offsets(
    kafka: str, ten: str, source: KafkaSource, admin: KafkaAdminClient
) -> None:
    before = source.identity({})
    admin.delete_topics([ten])
    wait_until(lambda: ten not in admin.list_topics())
    create(admin, ten)
    produce(kafka, ten, (0, samples(1)))

    fresh = make_source(kafka, ten)
    assert fresh.identity({}) != before
    with pytest.raises(InputError, match="found offsets 0 to 1; expected records from 8 on"):
        read_items(fresh, ten, 8, 10)
    fresh.close()
    with pytest.raises(InputError, match="it was deleted and created again while it was read"):
        source.identity({})


def test_a_topic_that_is_not_there_is_named_with_those_that_are(ten: str, kafka: str) -> None:
    missing = make_source(kafka, "no-such-topic")
    with pytest.raises(InputError, match=r"found no topic no-such-topic at .*; expected one of: "):
        missing.partitions()


def test_a_topic_that_is_deleted_during_a_read_is_an_error_not_a_wait_for_ever(
    kafka: str, ten: str, admin: KafkaAdminClient
) -> None:
    source = make_source(kafka, ten, stall_timeout_seconds=1)
    assert read_items(source, ten, 0, 1) == [0, 1]
    admin.delete_topics([ten])

    with pytest.raises((InputError, SourceUnavailableError), match=ten):
        read_items(source, ten, 8, 12)
    source.close()


def test_a_range_past_the_end_is_given_up_after_the_stall_timeout(kafka: str, ten: str) -> None:
    source = make_source(kafka, ten, stall_timeout_seconds=0.5)
    with pytest.raises(SourceUnavailableError, match=r"from 8 to 11: nothing from offset 10 on"):
        read_items(source, ten, 8, 11)
    assert read_items(source, ten, 8, 10) == [80, 81, 90, 91]
    source.close()


@pytest.mark.parametrize("address", ["127.0.0.1:1", "no-such-host.invalid:9092"])
def test_a_broker_that_is_not_there_is_named_with_the_cause_in_time(address: str) -> None:
    source = make_source(address, "clicks", connect_timeout_seconds=1)
    began = time.monotonic()

    with pytest.raises(SourceUnavailableError) as caught:
        source.partitions()

    assert time.monotonic() - began < 4
    message = str(caught.value)
    assert address in message
    assert ("ECONNREFUSED" if address.startswith("127") else "DNS") in message
    assert "check that a broker listens at `bootstrap_servers`" in message
    assert "\n" not in message


def test_reads_survive_a_broker_that_is_killed_and_comes_back(
    own_broker: Broker, topic: str
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=own_broker.bootstrap)
    create(admin, topic)
    admin.close()
    produce(own_broker.bootstrap, topic, *((0, samples(k)) for k in range(20)))
    source = make_source(own_broker.bootstrap, topic)
    passes: list[list[int]] = []
    enough = threading.Event()

    def read_over_and_over() -> None:
        while not enough.is_set():
            passes.append([read_items(source, topic, k, k + 1)[0] for k in range(20)])

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read_over_and_over)
        wait_until(lambda: len(passes) > 0)
        own_broker.kill()
        before = len(passes)
        own_broker.start()
        wait_until(lambda: len(passes) > before + 1 or reading.done())
        enough.set()
        reading.result()
    assert passes == [list(range(20))] * len(passes)
    source.close()


def test_readers_in_parallel_processes_read_their_own_ranges(kafka: str, ten: str) -> None:
    context = multiprocessing.get_context("spawn")
    queues = [context.Queue() for _ in range(2)]
    bounds = [(0, 6), (4, 10)]
    readers = [
        context.Process(target=read_in_process, args=(kafka, ten, *bound, queue))
        for bound, queue in zip(bounds, queues, strict=True)
    ]
    for reader in readers:
        reader.start()
    for (start, end), queue in zip(bounds, queues, strict=True):
        assert queue.get(timeout=60) == [10 * k + i for k in range(start, end) for i in (0, 1)]
    for reader in readers:
        reader.join(20)


def read_in_process(kafka: str, topic: str, start: int, end: int, queue: Any) -> None:
    source = make_source(kafka, topic, connect_timeout_seconds=30)
    queue.put(read_items(source, topic, start, end))
    source.close()
