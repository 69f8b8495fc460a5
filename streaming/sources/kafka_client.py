"""The connections behind a Kafka source, and their failures in words of ours."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from kafka import KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaConfigurationError, KafkaError, for_code
from kafka.protocol.consumer import IsolationLevel, OffsetSpec
from kafka.structs import OffsetAndMetadata, OffsetAndTimestamp

from pipeline.schema import InputError
from pipeline.topics.connection import BrokerConnection, BrokerRefusedError, watch_client_log
from streaming.source import SourceUnavailableError

logger = logging.getLogger(__name__)

_AGAIN: Final = (
    "Nothing was saved since. To go on in the new one: `headrace offsets reset --to earliest"
    " --topic {topic}`; or train in a new directory"
)
_POLL_MS: Final = 50
_CLOSE_MS: Final = 1000
_SHOWN_TOPICS: Final = 20
_NO_ERROR, _UNKNOWN_TOPIC, _NOT_AUTHORISED = 0, 3, 29


class KafkaClient:
    """A consumer and an admin client, opened on first use. Use from one thread at a time.

    It knows its topics by their ids from the first time that it sees them: one that is deleted and
    created again under the same name is an error from then on.
    """

    def __init__(
        self,
        config: BrokerConnection,
        topics: Sequence[str],
        *,
        fetch_bytes: int,
        dead_letters: str | None = None,
        made_by: str = "`headrace publish` makes one",
        again: str = _AGAIN,
    ) -> None:
        """Connects to nothing yet.

        Args:
            config: Where the brokers are.
            topics: What is read.
            fetch_bytes: What one request for records may bring.
            dead_letters: Another topic that has to be there.
            made_by: Where a topic comes from, for who has none.
            again: What to do about one, `{topic}`, that was deleted and created again.
        """
        self._config = config
        self._topics = list(topics)
        self._required = [*topics, *([dead_letters] if dead_letters is not None else [])]
        self._fetch_bytes = fetch_bytes
        self._made_by, self._again = made_by, again
        self._ids: dict[str, str] = {}
        self._consumer: KafkaConsumer | None = None
        self._admin: KafkaAdminClient | None = None
        self._was_connected = False

    def describe(self) -> list[dict[str, Any]]:
        """Returns the broker's description of each topic, in the order in which they were named.

        Raises:
            InputError: If there is no such topic, or it is another one than before.
            SourceUnavailableError: If no broker answers.
        """
        with self.failing_as("asking for topics"):
            found = {topic["name"]: topic for topic in self.admin.describe_topics(self._required)}
            missing = [name for name in self._required if self._missing(name, found.get(name))]
            existing = sorted(self.admin.list_topics()) if missing else []
        if missing:
            raise InputError(self._no_topic(missing, existing))
        topics = [found[name] for name in self._topics]
        self._compare_ids({topic["name"]: str(topic["topic_id"]) for topic in topics})
        return topics

    @property
    def admin(self) -> KafkaAdminClient:
        """The admin client; inside `failing_as` only."""
        if self._admin is None:
            self._admin = KafkaAdminClient(**self._config.client_options())
            self._was_connected = True
        return self._admin

    @property
    def consumer(self) -> KafkaConsumer:
        """The consumer; inside `failing_as` only."""
        if self._consumer is None:
            self._consumer = KafkaConsumer(
                **self._config.client_options(),
                group_id=None,
                metrics_enabled=False,
                enable_auto_commit=False,
                allow_auto_create_topics=False,
                isolation_level="read_committed",
                # Any other value jumps silently over what retention has deleted.
                auto_offset_reset="none",
                max_partition_fetch_bytes=self._fetch_bytes,
                # A fetch at the end of one partition holds up the next partition's for so long.
                fetch_max_wait_ms=_POLL_MS,
            )
            self._was_connected = True
        return self._consumer

    def offsets(
        self, places: Sequence[TopicPartition], spec: OffsetSpec | int
    ) -> dict[TopicPartition, OffsetAndTimestamp]:
        """Returns an offset of each partition: the first, the end of what is committed, or another.

        Not by the consumer, which forgets partitions that were added a moment ago.

        Args:
            places: The partitions.
            spec: Which one, or a time in milliseconds: the first record of then or later.

        Raises:
            SourceUnavailableError: If no broker answers.
        """
        with self.failing_as("asking for offsets"):
            found: dict[TopicPartition, OffsetAndTimestamp] = self.admin.list_partition_offsets(
                dict.fromkeys(places, spec), isolation_level=IsolationLevel.READ_COMMITTED
            )
        return found

    def cursor(self, topic: str, number: int) -> Cursor:
        """Returns the consumer's place in a partition."""
        return Cursor(self.consumer, TopicPartition(topic, number))

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Sets a group's offsets. Nobody reads by them: they are what dashboards show.

        Raises:
            SourceUnavailableError: If it is refused, or no broker answers.
        """
        wanted = {place: OffsetAndMetadata(offset, "", -1) for place, offset in offsets.items()}
        with self.failing_as(f"committing to group {group}"):
            answers = self.admin.alter_group_offsets(group, wanted)
        refused = {place: error for place, error in answers.items() if error.errno != _NO_ERROR}
        for place, error in refused.items():
            raise SourceUnavailableError(
                f"group {group}: {place.topic} partition {place.partition}: {error.__name__};"
                " expected a group without consumers of its own, and the right to write to it"
            )

    @contextlib.contextmanager
    def failing_as(self, doing: str) -> Iterator[None]:
        """Turns the client's errors into ours.

        Raises:
            InputError: If the configuration is wrong, or a broker refuses a first connection.
            SourceUnavailableError: If no broker answers, or one that did refuses.
        """
        watch_client_log()
        try:
            yield
        except KafkaConfigurationError as error:
            raise InputError(f"bootstrap_servers: {error}") from error
        except KafkaError as error:
            # The next use starts with fresh clients, whatever state these are in.
            self.close()
            failure = self._config.failure(doing, error)
            # A password that is being changed on both sides is no reason to end a long run.
            if isinstance(failure, BrokerRefusedError) and not self._was_connected:
                raise failure from error
            raise SourceUnavailableError(str(failure)) from error

    def close(self) -> None:
        """Closes the connections; the next use opens others."""
        consumer, self._consumer = self._consumer, None
        admin, self._admin = self._admin, None
        if consumer is not None:
            consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)
        if admin is not None:
            admin.close()

    def _missing(self, name: str, found: Mapping[str, Any] | None) -> bool:
        """Returns whether a topic is not there; raises what else is the matter with it."""
        code = _UNKNOWN_TOPIC if found is None else found["error_code"]
        if code == _NOT_AUTHORISED:
            user = self._config.sasl.username if self._config.sasl is not None else "anonymous"
            raise InputError(
                f"topics: found that user {user!r} may not read topic {name}; expected the right"
                " to describe and to read it (an ACL of the broker)"
            )
        if code not in (_NO_ERROR, _UNKNOWN_TOPIC):
            raise for_code(code)(f"topic {name}")
        return bool(code == _UNKNOWN_TOPIC)

    def _no_topic(self, missing: Sequence[str], existing: Sequence[str]) -> str:
        shown = ", ".join(existing[:_SHOWN_TOPICS]) or "none"
        more = ", ..." if len(existing) > _SHOWN_TOPICS else ""
        deleted = " (it was there: deleted since)" if self._ids.keys() & set(missing) else ""
        return (
            f"topics: found no topic {', '.join(missing)}{deleted} at"
            f" {', '.join(self._config.bootstrap_servers)}; expected one of: {shown}{more}"
            f" ({self._made_by})"
        )

    def _compare_ids(self, found: Mapping[str, str]) -> None:
        for name, topic_id in found.items():
            if (known := self._ids.setdefault(name, topic_id)) != topic_id:
                raise InputError(
                    f"topic {name!r}: found id {topic_id}; expected {known}: it was deleted and"
                    f" created again while it was read. {self._again.format(topic=name)}"
                )


class Cursor:
    """A consumer that reads one partition."""

    def __init__(self, consumer: KafkaConsumer, place: TopicPartition) -> None:
        self._consumer = consumer
        self.place = place

    def move(self, offset: int) -> None:
        """Makes `offset` the next to be read."""
        # Not pause() and resume() over all partitions: after a backward seek that stalls for ever.
        if self._consumer.assignment() != {self.place}:
            self._consumer.assign([self.place])
        elif self.position() == offset:
            return
        self._consumer.seek(self.place, offset)

    def position(self) -> int:
        """Returns the next offset to be read."""
        return int(self._consumer.position(self.place))

    def poll(self, *, max_records: int) -> list[Any]:
        """Returns the next records, none if there are none for a moment."""
        batch = self._consumer.poll(timeout_ms=_POLL_MS, max_records=max_records)
        found: list[Any] = batch.get(self.place, [])
        return found
