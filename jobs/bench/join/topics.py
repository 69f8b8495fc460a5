"""What the benchmark itself sends to Kafka and reads from it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Final, Self

import pyarrow as pa
import pyarrow.compute as pc
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from jobs.bench.join.events import ARRIVAL_MS, json_lines
from pipeline import schema as s
from pipeline.topics.record import encode

_BATCH_BYTES: Final = 256 << 10
_LINGER_MS: Final = 5
_POLL_MS: Final = 50
_WAIT_SECONDS: Final = 0.02


def create_topic(address: str, topic: str, partitions: int) -> None:
    """Creates a topic that keeps everything, whatever times its records have."""
    wanted = {"num_partitions": partitions, "configs": {"retention.ms": "-1"}}
    with _admin(address) as admin:
        admin.create_topics({topic: wanted}, wait_for_metadata=True)


class GroupOffsets:
    """How far a consumer group is in a topic."""

    def __init__(self, address: str, group: str, topic: str) -> None:
        self._group, self._topic = group, topic
        self._admin = KafkaAdminClient(bootstrap_servers=address)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._admin.close()

    def done(self) -> int:
        """Returns the sum of its committed offsets; 0 while there is none."""
        try:
            offsets = self._admin.list_group_offsets({self._group: None})[self._group]
        except KafkaError as error:  # the first group of a broker makes that find a coordinator
            if not error.retriable:
                raise
            return 0
        return sum(max(0, f.offset) for place, f in offsets.items() if place.topic == self._topic)


@contextlib.contextmanager
def _admin(address: str) -> Iterator[KafkaAdminClient]:
    admin = KafkaAdminClient(bootstrap_servers=address)
    try:
        yield admin
    finally:
        admin.close()


class Sender:
    """Sends events to their users' partitions, each record with the newest time in it."""

    def __init__(self, address: str, topic: str, partitions: int) -> None:
        self._topic, self._partitions = topic, partitions
        self._producer = KafkaProducer(
            bootstrap_servers=address,
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            batch_size=_BATCH_BYTES,
            linger_ms=_LINGER_MS,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._producer.close()

    def send_json(self, events: pa.Table, *, keys: Sequence[str] = (s.USER_ID,)) -> None:
        """Sends one record for each event, with what stands in some columns as key."""
        key = pc.binary_join_element_wise(*(events[name].cast("string") for name in keys), "/")
        users, times = events[s.USER_ID].to_pylist(), events[s.TIMESTAMP_MS].to_pylist()
        send, topic, partitions = self._producer.send, self._topic, self._partitions
        for line, name, user, time_ms in zip(
            json_lines(events), key.cast("binary").to_pylist(), users, times, strict=True
        ):
            send(topic, line, name, partition=user % partitions, timestamp_ms=time_ms)

    def send_arrow(self, events: pa.Table, *, rows: int) -> None:
        """Sends records of so many events each; the last ones of a partition may have fewer."""
        for partition in range(self._partitions):
            own = events.drop_columns([ARRIVAL_MS]).filter(
                pc.equal(_modulo(events[s.USER_ID], self._partitions), partition)
            )
            for start in range(0, own.num_rows, rows):
                part = own.slice(start, rows)
                value, headers = encode(part)
                time_ms = pc.max(part[s.TIMESTAMP_MS]).as_py()
                self._producer.send(
                    self._topic,
                    value,
                    headers=list(headers),
                    partition=partition,
                    timestamp_ms=time_ms,
                )

    def flush(self) -> None:
        """Waits until the broker has everything."""
        self._producer.flush()


def _modulo(users: pa.ChunkedArray, count: int) -> pa.Array:
    return pa.array(users.to_numpy() % count)


class Watcher:
    """Reads what is committed to a topic as it comes, in a thread, and notes when it was seen.

    Attributes:
        seen: Wall time in seconds, and the values of the records that were seen then.
    """

    def __init__(self, address: str, topic: str) -> None:
        """Begins with the first record; sees nothing of a topic that is not there."""
        self._consumer = KafkaConsumer(
            bootstrap_servers=address,
            isolation_level="read_committed",
            group_id=None,
            enable_auto_commit=False,
        )
        numbers = self._consumer.partitions_for_topic(topic) or set()
        self._places = [TopicPartition(topic, number) for number in sorted(numbers)]
        self._consumer.assign(self._places)
        if self._places:
            self._consumer.seek_to_beginning(*self._places)
        self.seen: list[tuple[float, list[bytes]]] = []
        self._wanted = 0  # how often somebody has asked to read to the end
        self._at_end = 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name=f"watch-{topic}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        self._consumer.close(autocommit=False)

    def wait_for_more(self, after: float, *, timeout: float) -> float | None:
        """Returns when the first record after a time was seen; None if none was in time."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            first = next((at for at, _ in list(self.seen) if at > after), None)
            if first is not None:
                return first
            time.sleep(_WAIT_SECONDS)
        return None

    def drain(self) -> None:
        """Waits until all is read that is committed at present."""
        self._wanted += 1
        wanted = self._wanted
        while self._at_end < wanted and self._thread.is_alive():
            time.sleep(_WAIT_SECONDS)

    def values(self) -> list[bytes]:
        """Returns the values of all records that were seen."""
        return [value for _, values in list(self.seen) for value in values]

    def _watch(self) -> None:
        while not self._over.is_set():
            polled = self._consumer.poll(timeout_ms=_POLL_MS)
            now = time.time()
            values = [record.value for records in polled.values() for record in records]
            if values:
                self.seen.append((now, values))
            elif (wanted := self._wanted) > self._at_end:
                ends = self._consumer.end_offsets(self._places)
                if all(self._consumer.position(place) >= ends[place] for place in self._places):
                    self._at_end = wanted


def read_committed(address: str, topic: str) -> list[bytes]:
    """Returns the values of all that is committed to a topic, in the order of its partitions."""
    with Watcher(address, topic) as watcher:
        watcher.drain()
        return watcher.values()
