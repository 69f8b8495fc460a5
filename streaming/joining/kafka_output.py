"""Samples, dead letters and progress of a unit, in one transaction."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from kafka import KafkaProducer
from kafka.errors import (
    InvalidProducerEpochError,
    InvalidTimestampError,
    KafkaConfigurationError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    ProducerFencedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailedError,
)

from pipeline.schema import TIMESTAMP_MS, InputError
from pipeline.topics.connection import watch_client_log
from pipeline.topics.record import Headers, encode
from streaming.joining.config import JoinConfig
from streaming.joining.progress import Progress
from streaming.joining.step import Rejected
from streaming.source import SourceUnavailableError

logger = logging.getLogger(__name__)

PATIENCE_SECONDS: Final = 60.0
"""How long the brokers may be away."""
_TRANSACTION_SECONDS: Final = PATIENCE_SECONDS + 30  # or the broker ends one that waited for it
_RETRY_MS: Final = 10  # a commit is still being finished when the next transaction begins
_RECORD_BYTES: Final = 900_000  # with any compression, less than brokers take if not told otherwise
_PAYLOAD_BYTES: Final = 500_000
_MAX_REQUEST_BYTES: Final = 64 << 20
_FENCED: Final = (ProducerFencedError, InvalidProducerEpochError)


class FencedError(RuntimeError):
    """The broker takes nothing more from this producer: another one has its name, or had to."""


class UnitWriter:
    """The one producer of a unit; a second one, wherever it is, ends the first.

    Delivery: what one call of `write` is given becomes visible as a whole or never. If it raises,
    which of the two is not known before the unit's next producer is open: this process must end,
    or go on from what the progress topic says. Use from one thread at a time.
    """

    def __init__(self, config: JoinConfig, unit: int, *, reject_partitions: int) -> None:
        self._config = config
        self._unit = unit
        self._reject_partition = unit % reject_partitions if reject_partitions else 0
        self._name = f"{config.group}-{unit}"
        self._producer: KafkaProducer | None = None

    def open(self) -> None:
        """Takes over: ends what former producers of this unit had begun, and those themselves.

        Raises:
            InputError: If the configuration is wrong, or this user may not.
            SourceUnavailableError: If no broker answers.
        """
        compression = self._config.output.compression
        with self._failing_as(f"opening transactions of {self._name}"):
            self._producer = KafkaProducer(
                **self._config.client_options(),
                transactional_id=self._name,
                transaction_timeout_ms=round(1000 * _TRANSACTION_SECONDS),
                acks="all",
                allow_auto_create_topics=False,
                compression_type=None if compression == "none" else compression,
                max_request_size=_MAX_REQUEST_BYTES,
                max_block_ms=round(1000 * PATIENCE_SECONDS),
                delivery_timeout_ms=round(1000 * PATIENCE_SECONDS),
                retry_backoff_ms=_RETRY_MS,
                metrics_enabled=False,
            )
            self._producer.init_transactions()

    def write(
        self, samples: Sequence[pa.Table], rejects: Sequence[Rejected], progress: Progress
    ) -> None:
        """Writes all of it, or nothing.

        Raises:
            FencedError: If another producer has taken over.
            InputError: If a topic does not take what is sent.
            SourceUnavailableError: If no broker took it in time.
        """
        producer, config = self._producer, self._config
        if producer is None:
            raise ValueError("the writer is not open; expected a call of `open` before")
        with self._failing_as(f"writing to topic {config.output.topic}"):
            producer.begin_transaction()
            sent = self._send(producer, samples, rejects)
            sent.append(
                producer.send(
                    config.progress_topic,
                    progress.encode(),
                    key=str(self._unit).encode(),
                    partition=self._unit,
                )
            )
            # All must have arrived before the commit is asked for: where a batch fails meanwhile,
            # this client (3.0) may begin a new epoch, and call a commit done that never was.
            producer.flush(timeout=PATIENCE_SECONDS)
            for future in sent:
                future.get(timeout=PATIENCE_SECONDS)
            _within(producer.commit_transaction)

    def _send(
        self, producer: KafkaProducer, samples: Sequence[pa.Table], rejects: Sequence[Rejected]
    ) -> list[Any]:
        output, rejects_topic = self._config.output, self._config.rejects_topic
        sent = [
            producer.send(
                output.topic,
                value,
                headers=list(headers),
                partition=self._unit,
                timestamp_ms=time_ms,
            )
            for table in samples
            for value, headers, time_ms in records(table, output.samples_per_record)
        ]
        if rejects_topic is not None:
            sent += [
                producer.send(
                    rejects_topic,
                    reject.payload[:_PAYLOAD_BYTES],
                    key=f"{reject.topic}-{reject.partition}-{reject.offset}".encode(),
                    headers=_reject_headers(reject),
                    partition=self._reject_partition,
                )
                for reject in rejects
            ]
        return sent

    def close(self) -> None:
        """Closes the connection; a transaction that is open stays so until the next producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            with contextlib.suppress(KafkaError):
                producer.close(timeout=1)

    @contextlib.contextmanager
    def _failing_as(self, doing: str) -> Iterator[None]:
        watch_client_log()
        config = self._config
        try:
            yield
        except KafkaConfigurationError as error:
            raise InputError(f"join.bootstrap_servers: {error}") from error
        except MessageSizeTooLargeError as error:
            raise InputError(
                f"join.output.topic: found a sample larger than topic {config.output.topic} takes"
                f" ({error}); expected a larger max.message.bytes of it and of"
                f" {config.rejects_topic or config.progress_topic}"
            ) from error
        except InvalidTimestampError as error:
            raise InputError(
                f"join.output.topic: found samples of a time that topic {config.output.topic} does"
                f" not take ({error}); expected a larger message.timestamp.after.max.ms of it, or"
                " a smaller join.input.max_ahead_seconds"
            ) from error
        except (
            TopicAuthorizationFailedError,
            TransactionalIdAuthorizationFailedError,
        ) as error:
            raise InputError(
                f"join.output.topic: {type(error).__name__}: expected the right to write to"
                f" {config.output.topic}, {config.progress_topic}, the topic of rejects, and as"
                f" transactional id {self._name} (ACLs of the broker)"
            ) from error
        except KafkaError as error:
            if isinstance(error, _FENCED) or "Fenced" in repr(error):
                raise FencedError(self._name) from error
            raise SourceUnavailableError(str(config.failure(doing, error))) from error


def records(samples: pa.Table, size: int) -> Iterator[tuple[bytes, Headers, int]]:
    """Yields value, headers and timestamp of records of at most so many samples.

    Fewer where they are large, so that brokers take them; the form is that of `headrace publish`.
    """
    for start in range(0, samples.num_rows, size):
        part = samples.slice(start, size)
        value, headers = encode(part)
        if len(value) > _RECORD_BYTES and part.num_rows > 1:
            yield from records(part, (part.num_rows + 1) // 2)
        else:
            yield value, headers, pc.max(part[TIMESTAMP_MS]).as_py()


def _reject_headers(reject: Rejected) -> list[tuple[str, bytes]]:
    texts = {
        "topic": reject.topic,
        "partition": str(reject.partition),
        "offset": str(reject.offset),
        "reason": reject.reason,
        "detail": reject.detail,
    }
    if len(reject.payload) > _PAYLOAD_BYTES:
        texts["cut-from-bytes"] = str(len(reject.payload))
    # Details quote strangers' text, of which half a surrogate pair cannot be written.
    return [(f"headrace-{name}", text.encode(errors="replace")) for name, text in texts.items()]


def _within(call: Callable[[], object]) -> None:
    """Calls what has no time limit of its own, within ours."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
            raised.append(error)

    thread = threading.Thread(target=run, name="commit", daemon=True)
    thread.start()
    thread.join(PATIENCE_SECONDS)
    if thread.is_alive():
        raise KafkaTimeoutError(f"no answer to a commit in {PATIENCE_SECONDS:g} s")
    if raised:
        raise raised[0]
