from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaAdminClient
from kafka.admin import ConfigResource

from pipeline.publish import Progress, PublishConfig, publish
from pipeline.schema import InputError, SchemaMismatchError
from pipeline.topics.connection import BrokerUnavailableError
from streaming.source import Range
from streaming.sources.kafka import KafkaSource, KafkaSourceConfig
from tests.kafka.topics import create
from tests.sample_folder import write_samples
from tests.waiting import wait_until

SCHEMA = pa.schema([("user_id", pa.int64()), ("item_id", pa.int64())])


def samples(user: int, *items: int) -> pa.Table:
    return pa.table({"user_id": [user] * len(items), "item_id": items}, SCHEMA)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two days of three parts; each part has one user, of its number."""
    tables = {
        ("2026-01-02", 0): samples(0, 5, 6),
        ("2026-01-01", 0): samples(0, 1, 2, 3, 4),
        ("2026-01-01", 1): samples(1, 1, 2, 3),
        ("2026-01-02", 2): samples(2, 7),
        ("2026-01-02", 1): samples(1, 4),
    }
    write_samples(tmp_path, tables)
    return tmp_path


def settings(folder: Path, kafka: str, topic: str, **options: Any) -> PublishConfig:
    options = {"create_partitions": 2, "samples_per_record": 3} | options
    return PublishConfig(bootstrap_servers=[kafka], directory=folder, topic=topic, **options)


def published(kafka: str, topic: str) -> dict[int, list[tuple[int, int]]]:
    """Returns the (user, item) pairs of each partition in their order."""
    config = KafkaSourceConfig(bootstrap_servers=[kafka], topics=[topic])
    source = KafkaSource(config, SCHEMA)
    found = {}
    for partition, end in source.end_offsets().items():
        rows = source.read(Range(partition, 0, end)).samples.to_pylist()
        found[partition.number] = [(row["user_id"], row["item_id"]) for row in rows]
    source.close()
    return found


@pytest.mark.kafka
@pytest.mark.parametrize("compression", ["zstd", "lz4", "none"])
def test_every_sample_arrives_once_in_the_order_of_its_users_days(
    folder: Path, kafka: str, topic: str, compression: str
) -> None:
    counts = publish(settings(folder, kafka, topic, compression=compression), SCHEMA).counts

    # Parts 0 and 2 share partition 0; of a day, part 0 comes first.
    zeros = [(0, item) for item in (1, 2, 3, 4, 5, 6)]
    assert published(kafka, topic) == {0: [*zeros, (2, 7)], 1: [(1, 1), (1, 2), (1, 3), (1, 4)]}
    # Three samples a record: 3 + 3 + 1 and 3 + 1.
    assert [(c.partition, c.records, c.samples) for c in counts] == [(0, 3, 7), (1, 2, 4)]


@pytest.mark.kafka
def test_a_folder_that_grows_is_sent_day_by_day(folder: Path, kafka: str, topic: str) -> None:
    def send(day: str) -> int:
        options = {"days": [day, day], "job": day, "append": True, "create_partitions": 2}
        publish(settings(folder, kafka, topic, **options), SCHEMA)
        return sum(len(rows) for rows in published(kafka, topic).values())

    assert send("2026-01-01") == 7
    assert send("2026-01-01") == 7  # is there already
    tables = {("2026-01-03", 1): samples(1, 9)}
    days = {("2026-01-01", 0): samples(0, 1, 2, 3, 4), ("2026-01-01", 1): samples(1, 1, 2, 3)}
    write_samples(folder, days | tables)
    assert send("2026-01-01") == 7  # whatever came beside it
    assert send("2026-01-03") == 8
    assert published(kafka, topic)[1][-1] == (1, 9)
    with pytest.raises(InputError, match=r"publish.days: found no sample of 2026-02-01 to"):
        send("2026-02-01")


@pytest.mark.kafka
def test_the_created_topic_keeps_its_records_for_ever(folder: Path, kafka: str, topic: str) -> None:
    publish(settings(folder, kafka, topic), SCHEMA)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    found = admin.describe_configs([ConfigResource("topic", topic)], config_filter="all")
    admin.close()
    assert found["topic"][topic]["retention.ms"]["value"] == "-1"


@pytest.mark.kafka
def test_samples_that_the_topics_retention_would_delete_are_warned_of(
    folder: Path, kafka: str, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    def warnings() -> list[str]:  # ours, and not what the client logs meanwhile
        return [r.getMessage() for r in caplog.records if r.name == "pipeline.publish.topic"]

    admin = KafkaAdminClient(bootstrap_servers=kafka)
    create(admin, topic, 2, retention_ms="86400000")
    create(admin, f"{topic}-kept", 2, retention_ms="-1")
    wanted = {"num_partitions": 2, "replication_factor": 1}  # with the broker's own 7 days
    admin.create_topics({f"{topic}-inherited": wanted}, wait_for_metadata=True)
    admin.close()
    publish(settings(folder, kafka, f"{topic}-kept"), SCHEMA)
    assert not warnings()
    publish(settings(folder, kafka, topic), SCHEMA)
    (warning,) = warnings()
    assert f"topic {topic} has retention.ms=86400000" in warning
    assert "delete samples of 2026-01-01 to 2026-01-02, 2 days" in warning
    publish(settings(folder, kafka, f"{topic}-inherited"), SCHEMA)
    assert f"topic {topic}-inherited has retention.ms=604800000" in warnings()[-1]


@pytest.mark.kafka
def test_whoever_reads_when_it_has_returned_sees_all_of_it(
    folder: Path, kafka: str, topic: str
) -> None:
    for attempt in range(20):
        publish(settings(folder, kafka, f"{topic}-{attempt}"), SCHEMA)
        assert [len(rows) for rows in published(kafka, f"{topic}-{attempt}").values()] == [7, 4]


@pytest.mark.kafka
def test_a_job_that_is_finished_has_nothing_left_to_send(
    folder: Path, kafka: str, topic: str
) -> None:
    first = publish(settings(folder, kafka, topic), SCHEMA)
    assert not first.was_finished
    again = publish(settings(folder, kafka, topic), SCHEMA)
    assert again.was_finished
    assert again.counts == first.counts
    assert len(published(kafka, topic)[1]) == 4


@pytest.mark.kafka
def test_another_job_is_refused_a_topic_with_records_unless_appending(
    folder: Path, kafka: str, topic: str
) -> None:
    publish(settings(folder, kafka, topic), SCHEMA)

    other = settings(folder, kafka, topic, job="other")
    with pytest.raises(InputError, match=rf"records in topic {topic}, of which job 'other' knows"):
        publish(other, SCHEMA)
    assert len(published(kafka, topic)[1]) == 4

    publish(other.model_copy(update={"append": True}), SCHEMA)
    assert len(published(kafka, topic)[1]) == 8


@pytest.mark.kafka
def test_a_topic_that_was_made_anew_is_written_anew(folder: Path, kafka: str, topic: str) -> None:
    publish(settings(folder, kafka, topic), SCHEMA)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.delete_topics([topic])
    wait_until(lambda: topic not in admin.list_topics())
    admin.close()
    assert not publish(settings(folder, kafka, topic), SCHEMA).was_finished
    assert len(published(kafka, topic)[1]) == 4


@pytest.mark.kafka
def test_a_topic_that_is_not_there_is_not_made_unasked(
    folder: Path, kafka: str, topic: str
) -> None:
    with pytest.raises(InputError, match=rf"found no topic {topic} .* publish.create_partitions"):
        publish(settings(folder, kafka, topic, create_partitions=None), SCHEMA)


@pytest.mark.kafka
def test_another_number_of_partitions_is_refused(folder: Path, kafka: str, topic: str) -> None:
    publish(settings(folder, kafka, topic), SCHEMA)
    with pytest.raises(InputError, match="with 2 partitions; expected 3"):
        publish(settings(folder, kafka, topic, create_partitions=3, append=True), SCHEMA)


@pytest.mark.kafka
def test_a_missing_column_is_named_with_its_file(folder: Path, kafka: str, topic: str) -> None:
    wider = SCHEMA.append(pa.field("reward", pa.float32()))
    with pytest.raises(SchemaMismatchError, match=r"dt=2026-01-01/part-00000.parquet: column 'rew"):
        publish(settings(folder, kafka, topic), wider)


@pytest.mark.kafka
def test_a_record_larger_than_the_topic_takes_says_which_setting(
    tmp_path: Path, kafka: str, topic: str
) -> None:
    ids = random.Random(1).sample(range(1 << 62), 200_000)
    write_samples(tmp_path, {("2026-01-01", 0): samples(0, *ids)}, row_group_size=len(ids))
    with pytest.raises(InputError, match=r"publish.samples_per_record: found 200000"):
        publish(settings(tmp_path, kafka, topic, samples_per_record=200_000), SCHEMA)


@pytest.mark.kafka
def test_progress_is_told_up_to_the_total(folder: Path, kafka: str, topic: str) -> None:
    told: list[Progress] = []
    publish(settings(folder, kafka, topic), SCHEMA, on_progress=told.append)
    assert [(now.rows, now.total) for now in told][-1] == (11, 11)
    assert [now.records for now in told] == [1, 2, 3, 4, 5]
    assert {now.doing for now in told} == {"sending"}


@pytest.mark.kafka
def test_a_progress_topic_that_forgets_is_refused(folder: Path, kafka: str, topic: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    create(admin, f"{topic}-progress", 1, cleanup_policy="delete")
    admin.close()
    config = settings(folder, kafka, topic, progress_topic=f"{topic}-progress")
    with pytest.raises(InputError, match=r"found cleanup.policy=delete.*expected compact"):
        publish(config, SCHEMA)


def test_a_broker_that_is_not_there_is_named_with_the_cause(folder: Path) -> None:
    config = settings(folder, "127.0.0.1:1", "clicks", connect_timeout_seconds=0.5)
    with pytest.raises(BrokerUnavailableError, match=r"127.0.0.1:1: asking for the topic: .*REFUS"):
        publish(config, SCHEMA)
