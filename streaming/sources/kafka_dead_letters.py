"""Dead letters as a topic, beside the topics that they come from."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Final

from kafka import KafkaProducer
from kafka.errors import (
    KafkaConfigurationError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)

from pipeline.schema import InputError
from pipeline.topics.connection import BrokerConnection, watch_client_log
from streaming.source import Range, Reject, SourceUnavailableError

_ACKNOWLEDGED_SECONDS: Final = 30.0
_MAX_RECORD_BYTES: Final = 256 << 20  # the broker has the last word, and looks after compression


class DeadLetterTopic:
    """Sends rejected records, whole, to a topic; see `streaming.worker.dead_letters.DeadLetters`.

    Delivery: at least once, before the range counts. A record's key is `topic-partition-offset` of
    where it was read: what a retry sends again has the same key, so a topic with
    `cleanup.policy=compact` keeps one of each, and others can be counted by key. The value is the
    record's, and the headers say where it was and what is wrong with it. Use from one thread at a
    time.
    """

    def __init__(self, config: BrokerConnection, topic: str) -> None:
        self._config = config
        self._topic = topic
        self._producer: KafkaProducer | None = None

    def write(self, wanted: Range, rejects: Sequence[Reject]) -> None:
        """Sends a range's rejects and waits until all in-sync replicas have them.

        Raises:
            InputError: If there is no such topic, or it does not take so large a record.
            SourceUnavailableError: If no broker takes them at present.
        """
        if not rejects:
            return
        with self._failing_as(f"writing to topic {self._topic}"):
            producer = self._connected()
            sent = [
                producer.send(
                    self._topic,
                    reject.payload,
                    key=_key(wanted, reject).encode(),
                    headers=_headers(wanted, reject),
                )
                for reject in rejects
            ]
            producer.flush(timeout=_ACKNOWLEDGED_SECONDS)
            for future in sent:
                future.get(timeout=_ACKNOWLEDGED_SECONDS)

    def close(self) -> None:
        """Closes the connection; the next use opens another."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.close(timeout=1)

    def _connected(self) -> KafkaProducer:
        if self._producer is None:
            self._producer = KafkaProducer(
                **self._config.client_options(),
                acks="all",
                allow_auto_create_topics=False,
                compression_type="lz4",
                max_request_size=_MAX_RECORD_BYTES,
                max_block_ms=round(_ACKNOWLEDGED_SECONDS * 1000),
            )
        return self._producer

    @contextlib.contextmanager
    def _failing_as(self, doing: str) -> Iterator[None]:
        watch_client_log()
        try:
            yield
        except KafkaConfigurationError as error:
            raise InputError(f"bootstrap_servers: {error}") from error
        except MessageSizeTooLargeError as error:
            raise InputError(
                f"dead_letters.topic: {self._topic} does not take a record as large as one that was"
                f" rejected; expected a max.message.bytes as large as where it was read ({error})"
            ) from error
        except (UnknownTopicOrPartitionError, TopicAuthorizationFailedError) as error:
            raise InputError(
                f"dead_letters.topic: found no topic {self._topic} that this user may write to"
                f" ({type(error).__name__}); expected one: create it, cleanup.policy=compact"
            ) from error
        except KafkaError as error:
            self.close()
            failure = self._config.failure(doing, error)
            raise SourceUnavailableError(str(failure)) from error


def _key(wanted: Range, reject: Reject) -> str:
    return f"{wanted.partition.topic}-{wanted.partition.number}-{reject.offset}"


def _headers(wanted: Range, reject: Reject) -> list[tuple[str, bytes]]:
    texts = {
        "topic": wanted.partition.topic,
        "partition": str(wanted.partition.number),
        "offset": str(reject.offset),
        "reason": reject.reason,
        "detail": reject.detail,
    }
    return [(f"headrace-{name}", text.encode()) for name, text in texts.items()]
