"""The stream of a drill: numbered samples, produced while faults fall, and what truly arrived."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

from pipeline.topics.record import encode
from tests.kafka.broker import Broker
from tests.streaming.counting.samples import numbered

TOPIC = "drill"
PARTITIONS = 3
SAMPLES_PER_RECORD = 50
_DELIVERY_MS = 600_000  # an idempotent producer tries again for longer than any fault lasts


class Producer:
    """Sends samples 0, 1, 2 ... until `stop`, each once, whatever becomes of the broker."""

    def __init__(
        self, broker: Broker, schema: pa.Schema, *, rate: float, limit: int, seen: Callable[[], int]
    ) -> None:
        """Creates the topic; `start` starts sending.

        Args:
            broker: Where to.
            schema: The columns of a sample.
            rate: Samples a second, at most.
            limit: Samples that there may be at all.
            seen: How many samples have been trained: sending keeps some seconds ahead, not more.
        """
        self._broker, self._schema, self._rate, self._limit = broker, schema, rate, limit
        self._seen = seen
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)
        self._error: Exception | None = None
        self.sent = 0
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap)
        configs = {"retention.ms": "-1"}
        admin.create_topics(
            {TOPIC: {"num_partitions": PARTITIONS, "configs": configs}}, wait_for_metadata=True
        )
        admin.close()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Ends the production; on return, all that was sent is acknowledged."""
        self._stopped.set()
        self._thread.join(300)
        if self._error is not None:
            raise self._error
        if self._thread.is_alive():
            raise RuntimeError("the producer did not end: the broker does not answer")

    def _run(self) -> None:
        try:
            self._send_all()
        except Exception as error:  # noqa: BLE001 - `stop` raises it
            self._error = error

    def _send_all(self) -> None:
        producer = KafkaProducer(
            bootstrap_servers=self._broker.bootstrap,
            acks="all",
            enable_idempotence=True,
            retries=2**31 - 1,
            delivery_timeout_ms=_DELIVERY_MS,
            reconnect_backoff_max_ms=1000,
            compression_type="lz4",
            linger_ms=20,
            max_block_ms=_DELIVERY_MS,
        )
        waiting: deque[Any] = deque()
        began, record = time.monotonic(), 0
        while not self._stopped.is_set() and self.sent + SAMPLES_PER_RECORD <= self._limit:
            due = (time.monotonic() - began) * self._rate
            if self.sent >= due or self.sent > self._seen() + 10 * self._rate:
                began = max(began, time.monotonic() - (self.sent + self._rate) / self._rate)
                time.sleep(0.01)
                continue
            numbers = np.arange(self.sent, self.sent + SAMPLES_PER_RECORD)
            value, headers = encode(numbered(numbers, self._schema))
            waiting.append(
                producer.send(TOPIC, value, headers=list(headers), partition=record % PARTITIONS)
            )
            self.sent += SAMPLES_PER_RECORD
            record += 1
            while waiting and waiting[0].is_done:
                waiting.popleft().get()
        producer.flush()
        for future in waiting:
            future.get()
        producer.close()


def read_truth(broker: Broker, *, rows: int) -> tuple[np.ndarray, dict[int, int]]:
    """Reads the whole topic: how often each sample stands in it, and where each partition ends."""
    consumer = KafkaConsumer(
        bootstrap_servers=broker.bootstrap, group_id=None, auto_offset_reset="earliest"
    )
    places = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
    counts = np.zeros(rows, np.int64)
    ends = consumer.end_offsets(places)
    consumer.assign(places)
    consumer.seek_to_beginning(*places)
    while any(consumer.position(place) < ends[place] for place in places):
        for records in consumer.poll(timeout_ms=500, max_records=5000).values():
            for record in records:
                with pa.ipc.open_stream(record.value) as batches:
                    np.add.at(counts, batches.read_all().column("item_id").to_numpy(), 1)
    consumer.close()
    return counts, {place.partition: end for place, end in ends.items()}
