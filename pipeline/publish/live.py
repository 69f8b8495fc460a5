"""Rows that are made while they are sent: benchmarks measure by them what a stream does."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import pyarrow as pa
from kafka import KafkaProducer

from pipeline.publish.config import PublishConfig
from pipeline.publish.form import encoded
from pipeline.publish.topic import failing_as, prepare_topic, require_empty
from pipeline.publish.transactions import BATCHES
from pipeline.topics.transactions import producer_options

_MAX_UNACKNOWLEDGED: Final = 1024


@contextlib.contextmanager
def live_sender(config: PublishConfig) -> Iterator[Callable[[int, pa.Table], None]]:
    """Gives a function that sends samples to a partition as they happen; no file is read.

    At the end all have been acknowledged by all in-sync replicas. There are no transactions: the
    n-th record of a partition has offset n.

    Raises:
        InputError: If the topic or the settings are not as expected.
        BrokerUnavailableError: If no broker answers, or it stopped answering.
    """
    require_empty(config, prepare_topic(config).partitions)
    with failing_as(config, f"writing to topic {config.topic}"):
        producer = KafkaProducer(
            **producer_options(config.client_options(), config.compression), **BATCHES
        )
        unacknowledged: deque[Any] = deque()

        def send_samples(number: int, samples: pa.Table) -> None:
            for value, headers, time_ms in encoded(config, samples):
                future = producer.send(
                    config.topic,
                    value,
                    headers=list(headers),
                    partition=number,
                    timestamp_ms=time_ms,
                )
                unacknowledged.append(future)
            while len(unacknowledged) > _MAX_UNACKNOWLEDGED:
                unacknowledged.popleft().get()

        try:
            yield send_samples
            producer.flush()
            for future in unacknowledged:
                future.get()
        finally:
            producer.close(timeout=1)
