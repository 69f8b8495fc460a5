"""One producer whose records become visible in transactions: all of one, or none.

Of all producers of one name the last counts: it ends what the others had begun, and those
themselves. What is written, and how far the work is, is its user's affair.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import ConfigResource
from kafka.errors import (
    IllegalStateError,
    InvalidProducerEpochError,
    KafkaError,
    KafkaTimeoutError,
    ProducerFencedError,
)

from pipeline.schema import InputError

_MAX_REQUEST_BYTES: Final = 64 << 20  # the broker has the last word, and looks after compression
_MAX_UNACKNOWLEDGED_BYTES: Final = 64 << 20
_FENCED: Final = (ProducerFencedError, InvalidProducerEpochError)


class FencedError(RuntimeError):
    """The broker takes nothing more from this producer: another has its name, or it stood still."""


def producer_options(connection: dict[str, Any], compression: str) -> dict[str, Any]:
    """Returns kafka-python's options for a producer that repeats and drops nothing."""
    return {
        **connection,
        "metrics_enabled": False,  # a sixth of its processor time
        "acks": "all",
        "enable_idempotence": True,
        "allow_auto_create_topics": False,
        "compression_type": None if compression == "none" else compression,
        "max_request_size": _MAX_REQUEST_BYTES,
    }


class Transactions:
    """Sends records in transactions. Use from one thread at a time.

    Delivery: what is sent between two commits becomes visible as a whole or never. If a commit
    raises, which of the two is not known before the next producer of this name is open.

    Kafka's own errors pass through, but for `FencedError`.
    """

    def __init__(
        self,
        identity: str,
        options: dict[str, Any],
        *,
        patience_seconds: float,
        abandon_seconds: float,
    ) -> None:
        """Connects.

        Args:
            identity: The transactional id.
            options: Of the producer, as `producer_options` gives them, and more.
            patience_seconds: How long the brokers may leave a record or a commit without an answer.
            abandon_seconds: How long a transaction may stay open before the broker ends it.
        """
        self.identity = identity
        self._patience = patience_seconds
        self._open = False
        self._unacknowledged: deque[tuple[Any, int]] = deque()
        self._unacknowledged_bytes = 0
        self._producer = KafkaProducer(
            **options,
            transactional_id=identity,
            transaction_timeout_ms=round(1000 * abandon_seconds),
        )

    def take_over(self) -> None:
        """Shuts out all other producers of this name; what they had not committed is gone."""
        with self._fenced():
            self._producer.init_transactions()

    def send(self, topic: str, value: bytes, *, partition: int, **options: Any) -> None:
        """Adds a record to the present transaction."""
        with self._fenced():
            if not self._open:
                self._producer.begin_transaction()
                self._open = True
            sent = self._producer.send(topic, value, partition=partition, **options)
            self._unacknowledged.append((sent, len(value)))
            self._unacknowledged_bytes += len(value)
            self._await(_MAX_UNACKNOWLEDGED_BYTES)

    def commit(self) -> None:
        """Makes all visible that was sent since the last commit."""
        with self._fenced():
            self._producer.flush(timeout=self._patience)
            # All must have arrived before the commit is asked for: where a batch fails meanwhile,
            # this client (3.0) may begin a new epoch, and call a commit done that never was.
            self._await(-1)
            _within(self._patience, self._producer.commit_transaction)
            self._open = False

    def close(self) -> None:
        """Aborts what was not committed, if a broker is there to be told, and closes."""
        if self._open:
            with contextlib.suppress(KafkaError):
                _within(1.0, self._producer.abort_transaction)
        try:
            self._producer.close(timeout=1)
        except KafkaError:
            # It gave up waiting, and left its thread running: that would go on writing, and take
            # this name back from its next producer, once a broker answers again.
            self._producer._sender.force_close()
            with contextlib.suppress(KafkaError):
                self._producer.close(timeout=1)

    def _await(self, most: int) -> None:
        """Waits until so few bytes are under way, -1 for no record; raises what went wrong."""
        while self._unacknowledged and self._unacknowledged_bytes > most:
            sent, size = self._unacknowledged.popleft()
            self._unacknowledged_bytes -= size
            sent.get(timeout=self._patience)

    @contextlib.contextmanager
    def _fenced(self) -> Iterator[None]:
        try:
            yield
        except KafkaError as error:
            cause = _cause(error)
            if not isinstance(cause, _FENCED):
                if cause is error:
                    raise
                raise cause from error
            self._open = False
            raise FencedError(self.identity) from error


def require_compact(admin: KafkaAdminClient, topic: str, *, setting: str) -> None:
    """Checks that a topic keeps the newest value of each key for ever.

    Raises:
        InputError: If it deletes what is old. Not where this user may not ask.
    """
    try:
        resource = ConfigResource("topic", topic)
        found = admin.describe_configs([resource], config_filter="all")["topic"][topic]
        policy = found["cleanup.policy"]["value"]
    except (KeyError, TypeError):
        return
    if policy != "compact":
        raise InputError(
            f"{setting}: topic {topic}: found cleanup.policy={policy}, which forgets how far the"
            " work is; expected compact: set it, or name another topic"
        )


def _cause(error: KafkaError) -> KafkaError:
    """Returns what the client wrapped: after a first error, each call fails for that it failed."""
    for inner in (*error.args, error.__cause__):
        if isinstance(inner, KafkaError):
            return _cause(inner)
    if isinstance(error, IllegalStateError) or "error state" in str(error):
        return next((kind() for kind in _FENCED if kind.message in str(error)), error)
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
        raise KafkaTimeoutError(f"no answer for {seconds:g} s about a transaction's end")
    if raised:
        raise raised[0]
