"""Topics of a real broker around a join, and what stands in them."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from pipeline.events.records import EventDecoder
from pipeline.topics.record import encode
from streaming.joining.config import JoinConfig
from streaming.joining.life import Wiring
from streaming.joining.loop import JoinLoop
from streaming.joining.progress import Progress, summed
from tests.kafka.topics import create
from tests.pipeline.event_log import specification
from tests.streaming.joining.naive import WINDOW_MS, Event, NaiveJoiner, Sample

SPECIFICATION = specification()
JSON_HEADERS = [("headrace-format", b"json/1")]


class World:
    """Input topics NAME-in0 ..., and a join of them into NAME-out."""

    def __init__(
        self, kafka: str, name: str, folder: Path, *, inputs: int = 1, partitions: int = 2
    ) -> None:
        self.kafka, self.name, self.folder, self.partitions = kafka, name, folder, partitions
        self.inputs = [f"{name}-in{number}" for number in range(inputs)]
        self.output, self.rejects = f"{name}-out", f"{name}-rejects"
        self.admin = KafkaAdminClient(bootstrap_servers=kafka, reconnect_backoff_max_ms=500)
        for topic in self.inputs:
            create(self.admin, topic, partitions)
        create(self.admin, self.rejects)
        self.remembers = False
        self.clock: Callable[[], float] = time.time

    def section(self, **changes: Any) -> dict[str, Any]:
        content: dict[str, Any] = {
            "bootstrap_servers": [self.kafka],
            "input": {"topics": self.inputs, "max_ahead_seconds": None},
            "output": {"topic": self.output, "create": True, "samples_per_record": 50},
            "rejects_topic": self.rejects,
            "group": f"{self.name}-group",
            "lateness_seconds": 2.5,
            "idle_seconds": 1000,
            "end": "caught-up",
            "commit": {"every_seconds": 0.05},
            "snapshot": {"directory": str(self.folder / "snapshots"), "every_seconds": 0.01},
        }
        for name, value in changes.items():
            inner = content.get(name)
            content[name] = {**inner, **value} if isinstance(inner, dict) else value
        return content

    def loop(self, *, life: str = "life", **changes: Any) -> JoinLoop:
        wiring = Wiring(
            decoder=EventDecoder(SPECIFICATION, outcomes_need_features=False),
            make_joiner=lambda: NaiveJoiner(remembers=self.remembers),
            window_ms=WINDOW_MS,
            shape={"specification": SPECIFICATION.fingerprint},
            clock=lambda: self.clock(),
        )
        return JoinLoop(JoinConfig.model_validate(self.section(**changes)), wiring, name=life)

    def join(self, **changes: Any) -> list[Progress]:
        """Joins what is there at present."""
        return self.loop(**changes).run()

    def send(
        self, events: Sequence[Event], *, topic: int = 0, rows: int | None = None, **options: Any
    ) -> None:
        """Sends events to their users' partitions: as JSON each, or Arrow of `rows` each."""
        records: list[tuple[int, bytes, list[Any]]] = []
        if rows is None:
            for each in events:
                where = each["user_id"] % self.partitions
                records.append((where, json.dumps(each).encode(), JSON_HEADERS))
        else:
            for where in range(self.partitions):
                own = [each for each in events if each["user_id"] % self.partitions == where]
                for start in range(0, len(own), rows):
                    value, headers = encode(as_table(own[start : start + rows]))
                    records.append((where, value, list(headers)))
        self.send_records(records, topic=topic, **options)

    def send_records(
        self, records: Iterable[tuple[int, Any, Any]], *, topic: int = 0, **options: Any
    ) -> None:
        producer = KafkaProducer(
            bootstrap_servers=self.kafka, linger_ms=5, reconnect_backoff_max_ms=500
        )
        for where, value, headers in records:
            key = b"key" if value is None else None
            producer.send(
                self.inputs[topic], value, key, headers=list(headers), partition=where, **options
            )
        producer.flush()
        producer.close()

    def samples(self) -> list[Sample]:
        """Returns the samples in the output, and sees that each stands in its user's partition."""
        found: list[Sample] = []
        for record in self.records(self.output):
            with pa.ipc.open_stream(record.value) as stream:
                rows = stream.read_all().to_pylist()
            assert record.timestamp == max(row["timestamp_ms"] for row in rows)
            assert {row["user_id"] % self.partitions for row in rows} == {record.partition}
            found += [tuple(row.values()) for row in rows]
        return found

    def records(self, topic: str, *, isolation: str = "read_committed") -> list[Any]:
        consumer = KafkaConsumer(
            bootstrap_servers=self.kafka, isolation_level=isolation, auto_offset_reset="earliest"
        )
        places = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
        consumer.assign(places)
        consumer.seek_to_beginning(*places)
        ends = consumer.end_offsets(places)
        found: list[Any] = []
        deadline = time.monotonic() + 60
        while any(consumer.position(place) < ends[place] for place in places):
            for records in consumer.poll(timeout_ms=200).values():
                found += records
            assert time.monotonic() < deadline, "a transaction does not end"
        consumer.close(autocommit=False)
        return found

    def progress(self) -> dict[int, Progress]:
        """Returns each unit's last progress."""
        topic = f"{self.name}-group-progress"
        records = self.records(topic)
        return {r.partition: Progress.decode(r.value, where=topic) for r in records}

    def close(self) -> None:
        self.admin.close()


def as_table(events: Sequence[Event]) -> pa.Table:
    return pa.Table.from_pylist(list(events), SPECIFICATION.event_schema)


def totals(progress: Iterable[Progress]) -> dict[str, int]:
    return summed(list(progress), "totals")


class Running:
    """A loop in a thread of its own."""

    def __init__(self, loop: JoinLoop) -> None:
        self.loop = loop
        self.error: Exception | None = None
        self.progress: list[Progress] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.progress = self.loop.run()
        except Exception as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def count(self, name: str = "events") -> int:
        """Returns a total of what was committed so far."""
        return totals(self.loop._progress()).get(name, 0)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def wait(self, seconds: float = 60) -> None:
        self._thread.join(seconds)
        assert not self.alive

    def stop(self) -> list[Progress]:
        self.loop.stop()
        self.wait()
        if self.error is not None:
            raise self.error
        return self.progress
