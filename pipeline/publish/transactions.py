"""Records, and how far the work is, in one Kafka transaction: both are there, or neither.

How far the work is stands in a compacted topic, under a key of the work's own, with its newest
value for ever. Who takes the work over first shuts out whoever did it before (`take_over`), then
reads where to go on. This module knows nothing of what is sent.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection, Iterator, Mapping
from typing import Final

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaTimeoutError, TopicAlreadyExistsError
from kafka.protocol.consumer.offsets import OffsetSpec

from pipeline.schema import InputError
from pipeline.topics.connection import BrokerConnection
from pipeline.topics.record import Headers
from pipeline.topics.transactions import (
    FencedError,
    Transactions,
    producer_options,
    require_compact,
)

PATIENCE_SECONDS: Final = 60.0
"""How long the brokers may be away."""
TRANSACTION_SECONDS: Final = PATIENCE_SECONDS + 30
"""After so long without an end the broker aborts a transaction, and its writer is shut out."""

BATCHES: Final = {"batch_size": 256 << 10, "linger_ms": 20}
"""Options of a producer that has much to send."""

_RETRY_MS: Final = 20  # also how long the client rests between the steps of a transaction's start
_NO_ERROR: Final = 0
_POLL_MS: Final = 100
# Small segments: what is not the newest of its key is removed only from those that are full.
_PROGRESS_CONFIGS: Final = {
    "cleanup.policy": "compact",
    "segment.bytes": str(8 << 20),
    "max.message.bytes": str(8 << 20),
    "min.cleanable.dirty.ratio": "0.1",
}


class ShutOutError(InputError):
    """Another writer took the work over, or this one stood still for too long."""


class TransactionalWriter:
    """Sends records in transactions that hold how far the work is. Use from one thread at a time.

    Kafka's own errors pass through, but for `ShutOutError`.
    """

    def __init__(
        self, connection: BrokerConnection, identity: str, *, topic: str, compression: str = "lz4"
    ) -> None:
        """Connects.

        Args:
            connection: Where the brokers are.
            identity: Names the work: of all writers of one name the last counts.
            topic: Where it is kept how far the work is; made if it is not there.
            compression: Of the records: lz4, zstd or none.
        """
        self._connection = connection
        self._topic = topic
        self._ensure_topic()
        options = producer_options(connection.client_options(), compression)
        self._transactions = Transactions(
            identity,
            {**options, **BATCHES, "retry_backoff_ms": _RETRY_MS},
            patience_seconds=PATIENCE_SECONDS,
            abandon_seconds=TRANSACTION_SECONDS,
        )

    def take_over(self, keys: Collection[str]) -> dict[str, bytes]:
        """Shuts out any other writer of this name, and returns the newest value of each key.

        What the other had not committed is gone.
        """
        with _shut_out():
            self._transactions.take_over()
        return self._read(keys)

    def send(
        self, topic: str, partition: int, value: bytes, headers: Headers, time_ms: int | None
    ) -> None:
        """Adds a record to the present transaction."""
        with _shut_out():
            self._transactions.send(
                topic, value, partition=partition, headers=list(headers), timestamp_ms=time_ms
            )

    def commit(self, progress: Mapping[str, bytes]) -> None:
        """Ends the transaction: all that was sent since the last one, and how far the work is."""
        with _shut_out():
            for key, value in progress.items():
                self._transactions.send(self._topic, value, partition=0, key=key.encode())
            self._transactions.commit()

    def close(self) -> None:
        """Aborts what was not committed, if a broker is there to be told, and closes."""
        self._transactions.close()

    def _ensure_topic(self) -> None:
        admin = KafkaAdminClient(**self._connection.client_options())
        try:
            (topic,) = admin.describe_topics([self._topic])
            if topic["error_code"] != _NO_ERROR:
                wanted = {"num_partitions": 1, "configs": _PROGRESS_CONFIGS}
                with contextlib.suppress(TopicAlreadyExistsError):
                    admin.create_topics({self._topic: wanted}, wait_for_metadata=True)
                return
            require_compact(admin, self._topic, setting="publish.progress_topic")
        finally:
            admin.close()

    def _read(self, keys: Collection[str]) -> dict[str, bytes]:
        place = TopicPartition(self._topic, 0)
        options = self._connection.client_options()
        admin = KafkaAdminClient(**options)
        try:
            end = admin.list_partition_offsets({place: OffsetSpec.LATEST})[place].offset
        finally:
            admin.close()
        consumer = KafkaConsumer(
            **options,
            group_id=None,
            enable_auto_commit=False,
            allow_auto_create_topics=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        found: dict[str, bytes] = {}
        try:
            consumer.assign([place])
            consumer.seek_to_beginning(place)
            # Others write here, too: what stands behind a transaction of theirs that is still open
            # shows only when that has ended, as it must in time.
            deadline = time.monotonic() + 2 * TRANSACTION_SECONDS
            while consumer.position(place) < end:
                for record in consumer.poll(timeout_ms=_POLL_MS).get(place, []):
                    if record.key is not None and (key := record.key.decode()) in keys:
                        found[key] = record.value
                if time.monotonic() > deadline:
                    raise KafkaTimeoutError(
                        f"topic {self._topic} cannot be read to offset {end}: a transaction of"
                        " another writer has not ended"
                    )
        finally:
            consumer.close(autocommit=False, timeout_ms=1000)
        return found


@contextlib.contextmanager
def _shut_out() -> Iterator[None]:
    try:
        yield
    except FencedError as error:
        raise ShutOutError(
            f"{error}: found that this writer is shut out: another one was started for the same"
            f" work, or this one stood still for {TRANSACTION_SECONDS:.0f} s; expected one writer"
            " at a time. What it had not committed is not there; if no other one runs, start it"
            " again, and it goes on where it was"
        ) from error
