"""Records, and how far the work is, in one Kafka transaction: both are there, or neither.

How far the work is stands in a compacted topic, under a key of the work's own, with its newest
value for ever. Who takes the work over first shuts out whoever did it before (`take_over`), then
reads where to go on. This module knows nothing of what is sent.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import (
    IllegalStateError,
    InvalidProducerEpochError,
    KafkaError,
    KafkaTimeoutError,
    ProducerFencedError,
    TopicAlreadyExistsError,
)
from kafka.protocol.consumer.offsets import OffsetSpec

from pipeline.schema import InputError
from pipeline.topics.connection import BrokerConnection
from pipeline.topics.record import Headers

TRANSACTION_SECONDS: Final = 60.0
"""After so long without an end the broker aborts a transaction, and its writer is shut out."""

_MAX_RECORD_BYTES: Final = 64 << 20  # the broker has the last word, and looks after compression
_BATCH_BYTES: Final = 256 << 10
_LINGER_MS: Final = 20
_MAX_UNACKNOWLEDGED_BYTES: Final = 64 << 20
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

logger = logging.getLogger(__name__)


class ShutOutError(InputError):
    """Another writer took the work over, or this one stood still for too long."""


def producer_options(connection: BrokerConnection, compression: str) -> dict[str, Any]:
    """Returns kafka-python's options for a producer that repeats and drops nothing."""
    return {
        **connection.client_options(),
        "metrics_enabled": False,  # a sixth of its processor time
        "acks": "all",
        "enable_idempotence": True,
        "allow_auto_create_topics": False,
        "compression_type": None if compression == "none" else compression,
        "batch_size": _BATCH_BYTES,
        "linger_ms": _LINGER_MS,
        "max_request_size": _MAX_RECORD_BYTES,
    }


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
        self._identity = identity
        self._topic = topic
        self._unacknowledged: deque[tuple[Any, int]] = deque()
        self._unacknowledged_bytes = 0
        self._open = False
        self._ensure_topic()
        self._producer = KafkaProducer(
            **producer_options(connection, compression),
            transactional_id=identity,
            transaction_timeout_ms=round(TRANSACTION_SECONDS * 1000),
            retry_backoff_ms=_RETRY_MS,
        )

    def take_over(self, keys: Collection[str]) -> dict[str, bytes]:
        """Shuts out any other writer of this name, and returns the newest value of each key.

        What the other had not committed is gone.
        """
        with self._fenced():
            self._producer.init_transactions()
        return self._read(keys)

    def send(
        self, topic: str, partition: int, value: bytes, headers: Headers, time_ms: int | None
    ) -> None:
        """Adds a record to the present transaction."""
        with self._fenced():
            self._send(topic, partition, value, headers=list(headers), timestamp_ms=time_ms)
            self._await(_MAX_UNACKNOWLEDGED_BYTES)

    def commit(self, progress: Mapping[str, bytes]) -> None:
        """Ends the transaction: all that was sent since the last one, and how far the work is."""
        with self._fenced():
            for key, value in progress.items():
                self._send(self._topic, 0, value, key=key.encode())
            self._producer.flush()
            # A commit while a record is under way may seem to succeed though the record is lost:
            # the client begins its transactions anew behind the back of who waits for it.
            self._await(-1)
            _within(TRANSACTION_SECONDS, self._producer.commit_transaction)
            self._open = False

    def close(self) -> None:
        """Aborts what was not committed, if a broker is there to be told, and closes."""
        if self._open:
            with contextlib.suppress(KafkaError):
                _within(1.0, self._producer.abort_transaction)
        self._producer.close(timeout=1)

    def _send(self, topic: str, partition: int, value: bytes, **options: Any) -> None:
        if not self._open:
            self._producer.begin_transaction()
            self._open = True
        sent = self._producer.send(topic, value, partition=partition, **options)
        self._unacknowledged.append((sent, len(value)))
        self._unacknowledged_bytes += len(value)

    def _await(self, most: int) -> None:
        """Waits until so few bytes are under way, -1 for no record; raises what went wrong."""
        while self._unacknowledged and self._unacknowledged_bytes > most:
            sent, size = self._unacknowledged.popleft()
            sent.get()
            self._unacknowledged_bytes -= size

    @contextlib.contextmanager
    def _fenced(self) -> Iterator[None]:
        try:
            yield
        except KafkaError as error:
            cause = _cause(error)
            if not isinstance(cause, ProducerFencedError | InvalidProducerEpochError):
                raise cause from error
            self._open = False
            raise ShutOutError(
                f"{self._identity}: found that this writer is shut out: another one was started"
                f" for the same work, or this one stood still for {TRANSACTION_SECONDS:.0f} s;"
                " expected one writer at a time. What it had not committed is not there; if no"
                " other one runs, start it again, and it goes on where it was"
            ) from error

    def _ensure_topic(self) -> None:
        admin = KafkaAdminClient(**self._connection.client_options())
        try:
            (topic,) = admin.describe_topics([self._topic])
            if topic["error_code"] != _NO_ERROR:
                wanted = {"num_partitions": 1, "configs": _PROGRESS_CONFIGS}
                with contextlib.suppress(TopicAlreadyExistsError):
                    admin.create_topics({self._topic: wanted}, wait_for_metadata=True)
                return
            resource = ConfigResource("topic", self._topic)
            found = admin.describe_configs([resource], config_filter="all")["topic"][self._topic]
            policy = found["cleanup.policy"]["value"]
        except (KeyError, TypeError):  # not everybody may ask
            return
        finally:
            admin.close()
        if policy != "compact":
            raise InputError(
                f"topic {self._topic}: found cleanup.policy={policy}, which forgets how far the"
                " work is; expected compact: set it, or name another topic"
            )

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


def _cause(error: KafkaError) -> KafkaError:
    """Returns what the client wrapped: after a first error, each call fails for that it failed."""
    for inner in (*error.args, error.__cause__):
        if isinstance(inner, KafkaError):
            return _cause(inner)
    if isinstance(error, IllegalStateError) or "error state" in str(error):
        fenced = (ProducerFencedError, InvalidProducerEpochError)
        return next((kind() for kind in fenced if kind.message in str(error)), error)
    return error


def _within(seconds: float, call: Callable[[], None]) -> None:
    """Calls what would wait for ever while no broker answers.

    Raises:
        KafkaTimeoutError: If it takes longer; the call then goes on, and dies with the process.
    """
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 -- raised by who waits
            raised.append(error)

    thread = threading.Thread(target=run, name="transaction", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise KafkaTimeoutError(f"no answer for {seconds:.0f} s about a transaction's end")
    if raised:
        raise raised[0]
