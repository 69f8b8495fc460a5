"""Sample files to a Kafka topic, as records of many samples or of one."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import (
    InvalidTimestampError,
    KafkaConfigurationError,
    KafkaError,
    MessageSizeTooLargeError,
)
from kafka.protocol.consumer.offsets import OffsetSpec
from pydantic import Field

from pipeline.manifest import SampleFile, sample_files
from pipeline.schema import TIMESTAMP_MS, InputError, conform
from pipeline.topics.connection import BrokerConnection, watch_client_log
from pipeline.topics.example import HEADERS as EXAMPLE_HEADERS
from pipeline.topics.example import encode_examples
from pipeline.topics.record import Headers, encode

_MAX_RECORD_BYTES: Final = 64 << 20  # the broker has the last word, and looks after compression
_BATCH_BYTES: Final = 256 << 10
_LINGER_MS: Final = 20
_MAX_UNACKNOWLEDGED: Final = 1024
_NO_ERROR: Final = 0
_RETENTION: Final = "retention.ms"
_LONGEST_RETENTION: Final = 100 * 365 * 86_400_000  # no history is older

logger = logging.getLogger(__name__)


class PublishConfig(BrokerConnection):
    """Which samples go to which topic, and in what form."""

    section: ClassVar[str] = "publish"

    directory: Path
    """The output of `headrace samples`."""
    topic: str
    create_partitions: Annotated[int, Field(ge=1)] | None = None
    """Create the topic with so many partitions and unlimited retention, if it is not there."""
    value_format: Literal["arrow", "example"] = "arrow"
    """`arrow`: many samples a record, read many times faster; `example`: one `tf.Example` each."""
    samples_per_record: Annotated[int, Field(ge=1)] = 1000
    """With `arrow`."""
    compression: Literal["lz4", "zstd", "none"] = "lz4"
    """`lz4` is read fastest; `zstd` is smaller."""
    append: bool = False
    """Add to a topic that has records already; without it, such a topic is refused."""


@dataclasses.dataclass(slots=True)
class PartitionCount:
    """What one partition was sent: bytes are counted before compression."""

    partition: int
    records: int = 0
    samples: int = 0
    bytes: int = 0


def publish(
    config: PublishConfig,
    schema: pa.Schema,
    *,
    on_progress: Callable[[int, int], None] = lambda _sent, _total: None,
) -> list[PartitionCount]:
    """Sends every sample of a folder to a topic.

    Delivery: each sample once, acknowledged by all in-sync replicas, if this returns (the producer
    is idempotent). A run that ends early leaves the records sent so far: delete the topic and run
    again, since a topic with records is refused unless `append` is set.

    Order: samples of part p go to partition p modulo the number of partitions, oldest day first.
    A part has all samples of its users, so each user's samples stay in the order of time.

    Time: a record's timestamp is the event time of its newest sample.

    Args:
        config: From where, to where.
        schema: Columns of a sample; others in the files are not sent.
        on_progress: Called with the number of samples sent so far and of all.

    Returns:
        What each partition was sent.

    Raises:
        InputError: If the files, the topic or the settings are not as expected.
        BrokerUnavailableError: If no broker answers, or it stopped answering.
    """
    files = sorted(sample_files(config.directory), key=lambda file: (file.day, file.part))
    total = sum(file.rows for file in files)
    counts = [PartitionCount(number) for number in range(_prepare_topic(config))]
    _warn_of_retention(config, files)
    sent = 0
    with _sender(config) as send:
        for number, samples in _cut(files, schema, config.samples_per_record, len(counts)):
            count = counts[number]
            for value, headers, time_ms in _records(config, samples):
                send(number, value, headers, time_ms)
                count.bytes += len(value)
                count.records += 1
            count.samples += samples.num_rows
            sent += samples.num_rows
            on_progress(sent, total)
    return counts


@contextlib.contextmanager
def live_sender(config: PublishConfig) -> Iterator[Callable[[int, pa.Table], None]]:
    """Gives a function that sends samples to a partition as they happen; `directory` is not read.

    At the end all have been acknowledged by all in-sync replicas.

    Raises:
        InputError: If the topic or the settings are not as expected.
        BrokerUnavailableError: If no broker answers, or it stopped answering.
    """
    _prepare_topic(config)
    with _sender(config) as send:

        def send_samples(number: int, samples: pa.Table) -> None:
            for value, headers, time_ms in _records(config, samples):
                send(number, value, headers, time_ms)

        yield send_samples


def _records(
    config: PublishConfig, samples: pa.Table
) -> Iterator[tuple[bytes, Headers, int | None]]:
    """Yields value, headers and event time in milliseconds of each record for these samples."""
    timed = TIMESTAMP_MS in samples.column_names
    if config.value_format == "arrow":
        value, headers = encode(samples)
        yield value, headers, pc.max(samples[TIMESTAMP_MS]).as_py() if timed else None
        return
    times = samples[TIMESTAMP_MS].to_pylist() if timed else [None] * samples.num_rows
    for value, time_ms in zip(encode_examples(samples), times, strict=True):
        yield value, EXAMPLE_HEADERS, time_ms


def _cut(
    files: Sequence[SampleFile], schema: pa.Schema, rows: int, partitions: int
) -> Iterator[tuple[int, pa.Table]]:
    """Yields (partition, samples of one record): `rows` of them, fewer in a partition's last."""
    rest = {number: schema.empty_table() for number in range(partitions)}
    for file in files:
        number = file.part % partitions
        for table in _tables(file, schema, rows):
            waiting = pa.concat_tables([rest[number], table])
            while waiting.num_rows >= rows:
                yield number, waiting.slice(0, rows)
                waiting = waiting.slice(rows)
            rest[number] = waiting
    for number, waiting in rest.items():
        if waiting.num_rows:
            yield number, waiting


def _tables(file: SampleFile, schema: pa.Schema, rows: int) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(file.path) as parquet:
            for batch in parquet.iter_batches(batch_size=rows):
                yield conform(pa.Table.from_batches([batch]), schema, where=str(file.path))
    except (pa.ArrowException, OSError) as error:
        cause = " ".join(str(error).split())
        raise InputError(
            f"{file.path}: found a file that is not readable ({cause}); expected a whole Parquet"
            " file: write the samples again with `headrace samples`"
        ) from error


def _prepare_topic(config: PublishConfig) -> int:
    """Returns the number of partitions of the topic, which is made if that is wanted."""
    with _failing_as(config, "asking for the topic"):
        admin = KafkaAdminClient(**config.client_options())
        try:
            (topic,) = admin.describe_topics([config.topic])
            if topic["error_code"] != _NO_ERROR:
                return _create(config, admin)
            places = [
                TopicPartition(config.topic, part["partition_index"])
                for part in topic["partitions"]
            ]
            if not config.append:
                _require_empty(config, admin, places)
        finally:
            admin.close()
    if config.create_partitions not in (None, len(places)):
        raise InputError(
            f"publish.create_partitions: found topic {config.topic} with {len(places)} partitions;"
            f" expected {config.create_partitions}"
        )
    return len(places)


def _warn_of_retention(config: PublishConfig, files: Sequence[SampleFile]) -> None:
    """Brokers judge records by their time, which is that of their samples: history is old."""
    retention = _retention(config)
    if not 0 <= retention < _LONGEST_RETENTION:
        return
    begin = datetime.now(UTC) - timedelta(milliseconds=retention)
    early = sorted({file.day for file in files if file.day < begin.date().isoformat()})
    if early:
        logger.warning(
            "topic %s has %s=%d: its broker will delete samples of %s to %s, %d days, for their"
            " age; set it to -1 to keep a history",
            config.topic,
            _RETENTION,
            retention,
            early[0],
            early[-1],
            len(early),
        )


def _retention(config: PublishConfig) -> int:
    """Returns the topic's retention in milliseconds, -1 without one, or where it is not known.

    It may be the broker's own. Who may write a topic need not be allowed to ask.
    """
    try:
        admin = KafkaAdminClient(**config.client_options())
        try:
            resource = ConfigResource("topic", config.topic)
            found = admin.describe_configs([resource], config_filter="all")["topic"][config.topic]
            settings = {name: entry["value"] for name, entry in found.items()}
            by_event_time = settings["message.timestamp.type"] == "CreateTime"
            return int(settings[_RETENTION]) if by_event_time else -1
        finally:
            admin.close()
    except (KafkaError, KeyError, ValueError) as error:
        logger.debug("the retention of topic %s is not known: %r", config.topic, error)
        return -1


def _create(config: PublishConfig, admin: KafkaAdminClient) -> int:
    if config.create_partitions is None:
        raise InputError(
            f"publish.topic: found no topic {config.topic} at"
            f" {', '.join(config.bootstrap_servers)}; expected one: create it, or set"
            " publish.create_partitions to have it created"
        )
    wanted = {
        "num_partitions": config.create_partitions,
        # Retention looks at time stamps: a default of days would delete a replayed history at once.
        "configs": {_RETENTION: "-1"},
    }
    admin.create_topics({config.topic: wanted}, wait_for_metadata=True)
    return config.create_partitions


def _require_empty(
    config: PublishConfig, admin: KafkaAdminClient, places: Sequence[TopicPartition]
) -> None:
    ends = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
    records = sum(end.offset for end in ends.values())
    if records:
        raise InputError(
            f"publish.topic: found {records:,} records in topic {config.topic}; expected an empty"
            " one, so that no sample is there twice: delete the topic, name another, or set"
            " publish.append=true to add to it"
        )


@contextlib.contextmanager
def _sender(config: PublishConfig) -> Iterator[Callable[[int, bytes, Headers, int | None], None]]:
    """Gives a function that sends one record; at the end all have arrived."""
    with _failing_as(config, f"writing to topic {config.topic}"):
        producer = KafkaProducer(
            **config.client_options(),
            acks="all",
            enable_idempotence=True,
            allow_auto_create_topics=False,
            compression_type=None if config.compression == "none" else config.compression,
            batch_size=_BATCH_BYTES,
            linger_ms=_LINGER_MS,
            max_request_size=_MAX_RECORD_BYTES,
        )
        unacknowledged: deque[Any] = deque()

        def send(number: int, value: bytes, headers: Headers, time_ms: int | None) -> None:
            future = producer.send(
                config.topic,
                value,
                headers=list(headers),
                partition=number,
                timestamp_ms=time_ms,
            )
            unacknowledged.append(future)
            while len(unacknowledged) > _MAX_UNACKNOWLEDGED:
                unacknowledged.popleft().get()

        try:
            yield send
            producer.flush()
            for future in unacknowledged:
                future.get()
        finally:
            producer.close(timeout=1)


@contextlib.contextmanager
def _failing_as(config: PublishConfig, doing: str) -> Iterator[None]:
    watch_client_log()
    try:
        yield
    except KafkaConfigurationError as error:
        raise InputError(f"publish.bootstrap_servers: {error}") from error
    except MessageSizeTooLargeError as error:
        raise InputError(
            f"publish.samples_per_record: found {config.samples_per_record}, which makes a record"
            " larger than the topic takes; expected fewer, or a larger max.message.bytes of the"
            f" topic ({error})"
        ) from error
    except InvalidTimestampError as error:
        raise InputError(
            f"publish.directory: found samples of a time that topic {config.topic} does not take"
            f" ({error}); expected none from the future: mend {TIMESTAMP_MS}, or raise the topic's"
            " message.timestamp.after.max.ms"
        ) from error
    except KafkaError as error:
        raise config.failure(doing, error) from error
