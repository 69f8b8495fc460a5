"""Three topics of eight partitions in a real broker: kept together in event time."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

import pyarrow as pa
import pytest
from kafka import KafkaAdminClient, KafkaProducer

from pipeline.topics.example import HEADERS, encode_examples
from pipeline.topics.record import encode
from streaming.config import TrainConfig
from streaming.feed import Feed
from streaming.ledger import Ledger, Totals
from streaming.source import Partition, Place, Range
from streaming.sources.kafka import KafkaSource, KafkaSourceConfig
from tests.kafka.topics import create

pytestmark = pytest.mark.kafka

HOUR = 3_600_000
START = 1_767_225_600_000
SCHEMA = pa.schema([("timestamp_ms", pa.int64())])
BACKLOG_HOURS, FRESH_HOURS, SKEW_HOURS = 72, 6, 4


@pytest.fixture
def topics(kafka: str, topic: str) -> Iterator[list[str]]:
    """The first holds three days in each partition, a record an hour; the others six hours."""
    names = [f"{topic}-{number}" for number in range(3)]
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=20)
    for name in names:
        create(admin, name, 8)
        hours = BACKLOG_HOURS if name == names[0] else FRESH_HOURS
        for number in range(8):
            for hour in range(BACKLOG_HOURS - hours, BACKLOG_HOURS):
                # Partitions are apart by minutes; a record holds two samples.
                time_ms = START + hour * HOUR + number * 60_000
                samples = pa.table({"timestamp_ms": [time_ms - 30_000, time_ms]}, schema=SCHEMA)
                value, headers = encode(samples)
                producer.send(
                    name, value, headers=list(headers), partition=number, timestamp_ms=time_ms
                )
    producer.flush()
    yield names
    producer.close()
    admin.close()


def make(
    kafka: str, topics: list[str], *, batch_size: int = 2, **stream: object
) -> tuple[KafkaSource, Feed, Ledger]:
    source = KafkaSource(KafkaSourceConfig(bootstrap_servers=[kafka], topics=topics), SCHEMA)
    config = TrainConfig(
        directory="d",
        source={"kafka": {"bootstrap_servers": [kafka], "topics": topics}},
        batch_size=batch_size,
        batches_per_range=2,
        stream=stream,
    )
    feed = Feed(source, config, ledger_lock=contextlib.nullcontext())
    feed.open()
    ledger = feed.first_ledger()
    feed.begin(ledger)
    return source, feed, ledger


def taken_from(feed: Feed) -> Iterator[Range]:
    """Yields ranges, one in flight at a time, until the end."""
    while not feed.finished:
        feed.refresh(1e9)
        taken = feed.take(look_ahead=0, now=1e9)
        assert taken is not None
        yield taken[0]


def test_a_backlog_of_three_days_in_24_partitions_stays_within_the_skew(kafka, topics):
    source, feed, ledger = make(kafka, topics, max_skew_seconds=SKEW_HOURS * 3600)
    assert source.offsets_at(START + 70 * HOUR) == {
        Partition(name, number): Place(
            70 if name == topics[0] else 4, START + 70 * HOUR + number * 60_000
        )
        for name in topics
        for number in range(8)
    }
    in_flight: list[Range] = []
    order: list[str] = []
    while not feed.finished or in_flight:
        feed.refresh(1e9)
        while len(in_flight) < 4 and (taken := feed.take(look_ahead=2, now=1e9)) is not None:
            in_flight.append(taken[0])
        done = in_flight.pop(len(in_flight) // 2)
        order.append(done.partition.topic)
        samples = source.read(done).samples
        times = samples.column("timestamp_ms").to_pylist()
        ledger.commit(done, Totals(records=done.end - done.start, samples=samples.num_rows))
        counts = {"samples": len(times), "batches": 1, "lost": 0}
        feed.note(done, counts | {"first_ms": min(times), "last_ms": max(times)})
        assert feed.position().skew_ms <= SKEW_HOURS * HOUR
    assert ledger.totals.samples == 2 * 8 * (BACKLOG_HOURS + 2 * FRESH_HOURS)
    assert feed.position().max_skew_ms > HOUR  # the bound was not kept by standing still
    # The fresh ones begin when the backlog's 62 hours before have been learned, two records each.
    assert set(order[: 8 * 31]) == {topics[0]}
    source.close()


def test_start_and_end_at_timestamps(kafka, topics):
    begin, end = "2026-01-03T20:00:00Z", "2026-01-03T22:00:00Z"  # hours 68 and 70 of the 72
    source, feed, ledger = make(kafka, topics, start={"timestamp": begin}, end={"timestamp": end})
    for done in taken_from(feed):
        ledger.commit(done, Totals(samples=source.read(done).samples.num_rows))
    assert ledger.totals.samples == 24 * 2 * 2  # two hours of two samples in each partition
    assert {o for p, o in ledger.offsets.items() if p.topic == topics[0]} == {70}
    assert {o for p, o in ledger.offsets.items() if p.topic != topics[0]} == {4}
    source.close()


def test_topics_of_arrow_batches_and_of_single_examples_make_ranges_of_as_many_samples(
    kafka, topic
):
    batches, examples = Partition(f"{topic}-a", 0), Partition(f"{topic}-b", 0)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=20)
    for partition in (batches, examples):
        create(admin, partition.topic, 1)
    for record in range(8):
        samples = pa.table({"timestamp_ms": [START + record * 64 + n for n in range(64)]}, SCHEMA)
        value, headers = encode(samples)
        times = samples["timestamp_ms"].to_pylist()
        producer.send(
            batches.topic, value, headers=list(headers), partition=0, timestamp_ms=times[-1]
        )
        for value, time_ms in zip(encode_examples(samples), times, strict=True):
            producer.send(
                examples.topic, value, headers=list(HEADERS), partition=0, timestamp_ms=time_ms
            )
    producer.flush()
    source, feed, ledger = make(kafka, [batches.topic, examples.topic], batch_size=64)
    assert feed.position().watermark_ms is not None  # both are kept together in event time
    lengths: dict[Partition, list[int]] = {batches: [], examples: []}
    for done in taken_from(feed):
        lengths[done.partition].append(done.end - done.start)
        rows = source.read(done).samples.num_rows
        ledger.commit(done, Totals(records=done.end - done.start, samples=rows))
        counts = {"samples": rows, "batches": 2, "lost": 0}
        feed.note(done, counts | {"first_ms": 0, "last_ms": START})
    assert lengths == {batches: [2, 2, 2, 2], examples: [128, 128, 128, 128]}
    assert ledger.totals.samples == 1024
    source.close()
    producer.close()
    admin.close()


def test_a_topic_whose_broker_sets_the_times_is_told_and_not_aligned_by_them(
    kafka, topic, topics, caplog
):
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    create(admin, topic, 1, message_timestamp_type="LogAppendTime")
    producer = KafkaProducer(bootstrap_servers=kafka)
    value, headers = encode(pa.table({"timestamp_ms": [START]}, SCHEMA))
    producer.send(topic, value, headers=list(headers), partition=0, timestamp_ms=START).get(30)
    with caplog.at_level(logging.WARNING):
        source, feed, _ = make(kafka, [topic, topics[1]])
    assert f"topic {topic} partition 0 offset 0: found record time" in caplog.text
    assert "message.timestamp.type=CreateTime" in caplog.text
    assert "not kept together" in caplog.text
    assert topics[1] not in caplog.text
    assert feed.position().watermark_ms is None
    source.close()
    producer.close()
    admin.close()
