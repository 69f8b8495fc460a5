"""What records hold: both formats mixed, columns that change, poison, and where it is kept."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaAdminClient, KafkaProducer

from pipeline.publish import PublishConfig, publish
from pipeline.schema import InputError, SchemaMismatchError
from pipeline.topics.example import HEADERS, encode_examples
from pipeline.topics.record import encode
from streaming.source import Partition, Place, Range, Reject
from streaming.sources.kafka import KafkaSource, KafkaSourceConfig
from streaming.sources.kafka_dead_letters import DeadLetterTopic
from tests.kafka.topics import consume, create, produce
from tests.sample_folder import write_samples

pytestmark = pytest.mark.kafka

SCHEMA = pa.schema(
    [("item_id", pa.int64()), ("title", pa.string()), ("history_item_id", pa.list_(pa.int64()))]
)


def samples(*ids: int) -> pa.Table:
    columns = {
        "item_id": ids,
        "title": [f"title {i}" for i in ids],
        "history_item_id": [list(range(i % 3)) for i in ids],
    }
    return pa.table(columns, SCHEMA)


@pytest.fixture
def admin(kafka: str) -> Iterator[KafkaAdminClient]:
    client = KafkaAdminClient(bootstrap_servers=kafka)
    yield client
    client.close()


def settings(kafka: str, *topics: str, **options: Any) -> KafkaSourceConfig:
    return KafkaSourceConfig(bootstrap_servers=[kafka], topics=list(topics), **options)


def read(kafka: str, topic: str, start: int, end: int, **options: Any):
    source = KafkaSource(settings(kafka, topic, **options), SCHEMA)
    try:
        return source.read(Range(Partition(topic, 0), start, end))
    finally:
        source.close()


def send(kafka: str, topic: str, *records: tuple[bytes, Any]) -> None:
    """Sends (value, headers) records to partition 0."""
    producer = KafkaProducer(bootstrap_servers=kafka)
    for value, headers in records:
        producer.send(topic, value, headers=list(headers), partition=0).get(30)
    producer.close()


def test_arrow_batches_and_single_examples_are_read_from_one_topic_in_their_order(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    examples = [(value, HEADERS) for value in encode_examples(samples(3, 4, 5))]
    send(kafka, topic, encode(samples(1, 2)), *examples, encode(samples(6)), examples[0])

    result = read(kafka, topic, 0, 6)
    assert result.samples.equals(samples(1, 2, 3, 4, 5, 6, 3))
    assert (result.rejects, result.lost) == ([], 0)
    assert read(kafka, topic, 2, 5).samples.equals(samples(4, 5, 6))


def test_records_without_a_header_are_what_the_configuration_says(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    (example,) = encode_examples(samples(1))
    send(kafka, topic, (example, []), (encode(samples(2))[0], []), encode(samples(3)))

    found = read(kafka, topic, 0, 3, value_format="example")
    assert found.samples["item_id"].to_pylist() == [1, 3]
    assert [(reject.offset, reject.reason) for reject in found.rejects] == [(1, "undecodable")]

    found = read(kafka, topic, 0, 3)
    assert found.samples["item_id"].to_pylist() == [2, 3]
    assert [(reject.offset, reject.reason) for reject in found.rejects] == [(0, "undecodable")]


def test_a_poisoned_example_among_a_thousand_is_rejected_alone_and_whole(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    values = encode_examples(samples(*range(1000)))
    noise = b"\xff" + bytes(1000)
    values[617] = noise
    producer = KafkaProducer(bootstrap_servers=kafka, linger_ms=20)
    for value in values:
        producer.send(topic, value, headers=list(HEADERS), partition=0)
    producer.close()

    result = read(kafka, topic, 0, 1000)

    assert result.samples["item_id"].to_pylist() == [i for i in range(1000) if i != 617]
    (reject,) = result.rejects
    assert (reject.offset, reject.reason, reject.payload) == (617, "undecodable", noise)


def test_an_unknown_format_is_rejected_with_the_known_ones(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    send(kafka, topic, (b"x", [("headrace-format", b"avro")]), encode(samples(1)))
    result = read(kafka, topic, 0, 2)
    assert result.samples.equals(samples(1))
    assert result.rejects[0].reason == "unknown-format"
    assert "found b'avro'; expected b'arrow-ipc/1' or b'tf-example/1'" in result.rejects[0].detail


def test_added_and_reordered_columns_pass_and_others_stop_with_their_name(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    rows = samples(1, 2)
    added = rows.append_column("price", pa.array([0.5, 1.5], pa.float32()))
    reordered = rows.select(["history_item_id", "title", "item_id"])
    removed = rows.drop_columns(["title"])
    renamed = rows.rename_columns(["item_id", "headline", "history_item_id"])
    retyped = rows.set_column(0, "item_id", pa.array(["1", "2"]))
    tables = [added, reordered, removed, renamed, retyped]
    examples = [[(value, HEADERS) for value in encode_examples(table)] for table in tables]
    send(kafka, topic, *(encode(table) for table in tables))
    send(kafka, topic, *examples[0], *examples[1], *examples[4])

    assert read(kafka, topic, 0, 2).samples.equals(pa.concat_tables([rows, rows]))
    assert read(kafka, topic, 5, 9).samples.equals(pa.concat_tables([rows, rows]))
    for offset, found in [
        (2, "column 'title': found none; expected string"),
        (3, "column 'title': found none; expected string"),
        (4, "column 'item_id': found string; expected int64"),
        (9, "column 'item_id': found a bytes_list; expected a int64_list"),
    ]:
        message = f"topic {topic} partition 0 offset {offset}: {found}"
        with pytest.raises(SchemaMismatchError, match=message):
            read(kafka, topic, offset, offset + 1)


def test_dead_letters_say_where_they_were_and_a_retry_sends_the_same_keys(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    create(admin, dead := f"{topic}-dead", cleanup_policy="compact")
    produce(kafka, topic, (0, samples(1)), (0, b"\x00noise" * 100), (0, None))
    config = settings(kafka, topic, dead_letters={"topic": dead})
    wanted = Range(Partition(topic, 0), 0, 3)
    letters = DeadLetterTopic(config, dead)

    for _ in range(2):
        letters.write(wanted, read(kafka, topic, 0, 3).rejects)
    letters.close()

    first, second, *again = consume(kafka, dead, 4)
    assert [record.key.decode() for record in (first, second)] == [f"{topic}-0-1", f"{topic}-0-2"]
    assert [record.key for record in again] == [first.key, second.key]
    assert (first.value, second.value) == (b"\x00noise" * 100, b"")
    headers = dict(first.headers)
    assert headers["headrace-topic"] == topic.encode()
    assert (headers["headrace-partition"], headers["headrace-offset"]) == (b"0", b"1")
    assert headers["headrace-reason"] == b"undecodable"
    assert b"no Arrow IPC stream" in headers["headrace-detail"]


def test_a_dead_letter_topic_that_is_not_there_is_missed_before_anything_is_read(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic)
    source = KafkaSource(settings(kafka, topic, dead_letters={"topic": f"{topic}-dead"}), SCHEMA)
    with pytest.raises(InputError, match=f"found no topic {topic}-dead at"):
        source.end_offsets()
    create(admin, f"{topic}-dead")
    assert source.end_offsets() == {Partition(topic, 0): 0}
    source.close()


def test_a_dead_letter_topic_that_does_not_take_a_record_says_so(
    kafka: str, topic: str, admin: KafkaAdminClient
) -> None:
    create(admin, topic, max_message_bytes="1000")
    wanted = Range(Partition("clicks", 0), 0, 3)
    noise = b"".join(number.to_bytes(4, "big") for number in range(0, 1 << 31, 1 << 20))
    letters = DeadLetterTopic(settings(kafka, "clicks"), topic)
    with pytest.raises(InputError, match=r"dead_letters.topic: .* expected a max.message.bytes"):
        letters.write(wanted, [Reject(1, "undecodable", "found noise", noise)])
    letters.close()

    with pytest.raises(ValueError, match="dead_letters: found topic clicks, which is read"):
        settings(kafka, "clicks", dead_letters={"topic": "clicks"})


@pytest.mark.parametrize("value_format", ["arrow", "example"])
def test_published_records_have_the_time_of_their_newest_sample(
    kafka: str, topic: str, tmp_path: Path, value_format: str
) -> None:
    schema = pa.schema([("timestamp_ms", pa.int64()), ("item_id", pa.int64())])
    table = pa.table({"timestamp_ms": [1000, 5000, 3000, 9000], "item_id": [1, 2, 3, 4]}, schema)
    write_samples(tmp_path, {("2026-01-01", 0): table})
    config = PublishConfig(
        bootstrap_servers=[kafka],
        directory=tmp_path,
        topic=topic,
        create_partitions=1,
        samples_per_record=2,
        value_format=value_format,
    )
    (count,) = publish(config, schema).counts

    source = KafkaSource(settings(kafka, topic), schema)
    end = {"arrow": 2, "example": 4}[value_format]
    assert (count.records, count.samples) == (end, 4)
    assert source.read(Range(Partition(topic, 0), 0, end)).samples.equals(table)
    last = Place(end - 1, 9000)
    assert source.offsets_at(5001) == {Partition(topic, 0): last}
    first = {"arrow": Place(0, 5000), "example": Place(1, 5000)}[value_format]
    assert source.offsets_at(1001) == {Partition(topic, 0): first}
    source.close()
