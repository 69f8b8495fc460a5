"""The topic: looked at, made, and the broker's errors in words of ours."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource
from kafka.errors import (
    InvalidTimestampError,
    KafkaConfigurationError,
    KafkaError,
    MessageSizeTooLargeError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailedError,
)
from kafka.protocol.consumer.offsets import OffsetSpec

from pipeline.publish.config import TargetConfig
from pipeline.schema import TIMESTAMP_MS, InputError
from pipeline.topics.connection import watch_client_log

_NO_ERROR: Final = 0
_RETENTION: Final = "retention.ms"
_LONGEST_RETENTION: Final = 100 * 365 * 86_400_000  # no history is older

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Topic:
    """A topic as its broker describes it.

    Attributes:
        id: Another for a topic that is made anew under the same name.
        partitions: How many.
    """

    id: str
    partitions: int


def prepare_topic(config: TargetConfig) -> Topic:
    """Returns the topic, which is made if that is wanted.

    Raises:
        InputError: If there is none, or it has another number of partitions than is asked for.
        BrokerUnavailableError: If no broker answers.
    """
    with failing_as(config, "asking for the topic"), _admin(config) as admin:
        (topic,) = admin.describe_topics([config.topic])
        if topic["error_code"] != _NO_ERROR:
            _create(config, admin)
            (topic,) = admin.describe_topics([config.topic])
    found = Topic(str(topic["topic_id"]), len(topic["partitions"]))
    if config.create_partitions not in (None, found.partitions):
        raise InputError(
            f"publish.create_partitions: found topic {config.topic} with {found.partitions}"
            f" partitions; expected {config.create_partitions}"
        )
    return found


def require_empty(config: TargetConfig, partitions: int) -> None:
    """Refuses a topic that has records, unless `append` is set.

    Raises:
        InputError: If it has.
        BrokerUnavailableError: If no broker answers.
    """
    if config.append:
        return
    places = [TopicPartition(config.topic, number) for number in range(partitions)]
    with failing_as(config, "asking for the topic"), _admin(config) as admin:
        ends = admin.list_partition_offsets(dict.fromkeys(places, OffsetSpec.LATEST))
    if records := sum(end.offset for end in ends.values()):
        raise InputError(
            f"publish.topic: found {records:,} records in topic {config.topic}, of which job"
            f" {config.job!r} knows nothing; expected an empty one, so that no sample is there"
            " twice: delete the topic, name another, or set publish.append=true to add to it"
        )


def warn_of_retention(config: TargetConfig, days: Sequence[str]) -> None:
    """Warns of days whose records the topic will delete: brokers go by a record's event time.

    Args:
        config: Names the topic.
        days: As YYYY-MM-DD.
    """
    retention = _retention(config)
    if not 0 <= retention < _LONGEST_RETENTION:
        return
    begin = datetime.now(UTC) - timedelta(milliseconds=retention)
    if early := sorted({day for day in days if day < begin.date().isoformat()}):
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


@contextlib.contextmanager
def failing_as(config: TargetConfig, doing: str) -> Iterator[None]:
    """Turns the client's errors into ours.

    Raises:
        InputError: If waiting does not help.
        BrokerUnavailableError: If it may.
    """
    watch_client_log()
    try:
        yield
    except KafkaConfigurationError as error:
        raise InputError(f"publish.bootstrap_servers: {error}") from error
    except MessageSizeTooLargeError as error:
        rows = getattr(config, "samples_per_record", "so many")
        raise InputError(
            f"publish.samples_per_record: found {rows}, which makes a record larger than the topic"
            " takes; expected fewer, or a larger max.message.bytes of the topic"
            f" ({error})"
        ) from error
    except InvalidTimestampError as error:
        raise InputError(
            f"publish.topic: found rows of a time that topic {config.topic} does not take"
            f" ({error}); expected none from the future: mend {TIMESTAMP_MS}, or raise the topic's"
            " message.timestamp.after.max.ms"
        ) from error
    except TransactionalIdAuthorizationFailedError as error:
        raise InputError(
            f"publish.job: found that the broker does not allow transactions of job {config.job!r}"
            f" ({error}); expected the right to write and describe transactional ids that begin"
            " with headrace-publish (an ACL of the broker)"
        ) from error
    except TopicAuthorizationFailedError as error:
        raise InputError(
            f"publish.topic: found that the broker does not allow {doing} ({error}); expected the"
            f" right to write topic {config.topic}, and to write and read topic"
            f" {config.progress_topic} (ACLs of the broker)"
        ) from error
    except KafkaError as error:
        raise config.failure(doing, error) from error


@contextlib.contextmanager
def _admin(config: TargetConfig) -> Iterator[Any]:
    admin = KafkaAdminClient(**config.client_options())
    try:
        yield admin
    finally:
        admin.close()


def _retention(config: TargetConfig) -> int:
    """Returns the topic's retention in milliseconds, -1 without one, or where it is not known.

    It may be the broker's own. Who may write a topic need not be allowed to ask.
    """
    try:
        with _admin(config) as admin:
            resource = ConfigResource("topic", config.topic)
            found = admin.describe_configs([resource], config_filter="all")["topic"][config.topic]
            settings = {name: entry["value"] for name, entry in found.items()}
            by_event_time = settings["message.timestamp.type"] == "CreateTime"
            return int(settings[_RETENTION]) if by_event_time else -1
    except (KafkaError, KeyError, ValueError) as error:
        logger.debug("the retention of topic %s is not known: %r", config.topic, error)
        return -1


def _create(config: TargetConfig, admin: KafkaAdminClient) -> None:
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
