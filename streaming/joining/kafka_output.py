"""Samples, dead letters and progress of a unit, in one transaction."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
from kafka.errors import (
    InvalidTimestampError,
    KafkaConfigurationError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailedError,
)

from pipeline.schema import TIMESTAMP_MS, InputError
from pipeline.topics.connection import watch_client_log
from pipeline.topics.record import Headers, encode
from pipeline.topics.transactions import Transactions, producer_options
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
        self._transactions: Transactions | None = None

    def open(self) -> None:
        """Takes over: ends what former producers of this unit had begun, and those themselves.

        Raises:
            InputError: If the configuration is wrong, or this user may not.
            SourceUnavailableError: If no broker answers.
        """
        config = self._config
        with self._failing_as(f"opening transactions of {self._name}"):
            options = producer_options(config.client_options(), config.output.compression)
            self._transactions = Transactions(
                self._name,
                {
                    **options,
                    "max_block_ms": round(1000 * PATIENCE_SECONDS),
                    "delivery_timeout_ms": round(1000 * PATIENCE_SECONDS),
                    "retry_backoff_ms": _RETRY_MS,
                },
                patience_seconds=PATIENCE_SECONDS,
                abandon_seconds=_TRANSACTION_SECONDS,
            )
            self._transactions.take_over()

    def write(
        self, samples: Sequence[pa.Table], rejects: Sequence[Rejected], progress: Progress
    ) -> None:
        """Writes all of it, or nothing.

        Raises:
            FencedError: If another producer has taken over.
            InputError: If a topic does not take what is sent.
            SourceUnavailableError: If no broker took it in time.
        """
        transactions, config = self._transactions, self._config
        if transactions is None:
            raise ValueError("the writer is not open; expected a call of `open` before")
        with self._failing_as(f"writing to topic {config.output.topic}"):
            self._send(transactions, samples, rejects)
            transactions.send(
                config.progress_topic,
                progress.encode(),
                key=str(self._unit).encode(),
                partition=self._unit,
            )
            transactions.commit()

    def _send(
        self, transactions: Transactions, samples: Sequence[pa.Table], rejects: Sequence[Rejected]
    ) -> None:
        output, rejects_topic = self._config.output, self._config.rejects_topic
        for table in samples:
            for value, headers, time_ms in records(table, output.samples_per_record):
                transactions.send(
                    output.topic,
                    value,
                    headers=list(headers),
                    partition=self._unit,
                    timestamp_ms=time_ms,
                )
        if rejects_topic is None:
            return
        for reject in rejects:
            transactions.send(
                rejects_topic,
                reject.payload[:_PAYLOAD_BYTES],
                key=f"{reject.topic}-{reject.partition}-{reject.offset}".encode(),
                headers=_reject_headers(reject),
                partition=self._reject_partition,
            )

    def close(self) -> None:
        """Aborts what was not committed, if a broker is there to be told, and closes."""
        transactions, self._transactions = self._transactions, None
        if transactions is not None:
            transactions.close()

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
