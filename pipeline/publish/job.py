"""A job: rows of files to a topic, each once, whatever ends it; run again, it goes on.

Records, and how many rows of each partition were sent, are in one transaction. The rows of a
partition and their order depend on the files alone, so that is all that has to be known.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.publish.config import PublishConfig
from pipeline.publish.cut import Cut, Cutter
from pipeline.publish.form import encoded
from pipeline.publish.pacing import Clock, Pacer, SystemClock
from pipeline.publish.sources.events import EventLogs
from pipeline.publish.sources.rows import Prepared, Source
from pipeline.publish.sources.samples import SampleFiles
from pipeline.publish.state import PartitionCount, Plan, State
from pipeline.publish.topic import (
    Topic,
    failing_as,
    prepare_topic,
    require_empty,
    warn_of_retention,
)
from pipeline.publish.transactions import TransactionalWriter
from pipeline.schema import TIMESTAMP_MS, InputError

_COMMIT_SECONDS: Final = 1.0
_COMMIT_BYTES: Final = 64 << 20
# Who waits for time to pass commits before: what is sent should be seen soon.
_PACED_COMMIT_SECONDS: Final = 0.25
_ARROW_SECONDS: Final = 1.0
_SINGLE_SECONDS: Final = 0.05

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """How far a job is.

    Attributes:
        doing: `reading` the files to sort their rows by time, or `sending`.
        rows: Samples or events, those of former runs included.
        total: Of how many; None while that is not known.
        records: Kafka records sent by this run.
        bytes: Their size before compression.
        event_ms: Event time, where rows go out in its order.
    """

    doing: str
    rows: int
    total: int | None = None
    records: int = 0
    bytes: int = 0
    event_ms: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Published:
    """What a job has sent.

    Attributes:
        counts: For each partition, over all runs of the job.
        before: How many samples of these former runs had sent.
        rejects: Rows of event logs that are no events, per reason.
    """

    counts: list[PartitionCount]
    before: int = 0
    rejects: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @property
    def was_finished(self) -> bool:
        """Whether there was nothing left to be sent."""
        return self.before == sum(count.samples for count in self.counts)


def publish(
    config: PublishConfig,
    schema: pa.Schema,
    *,
    on_progress: Callable[[Progress], None] = lambda _progress: None,
    clock: Clock | None = None,
) -> Published:
    """Sends every sample of a folder, or every event of logs, to a topic.

    Delivery: each row once, for readers of what is committed, however often this ends early and is
    called again with the same files and settings. Of two at a time the older ends.

    Order: a user's rows stay in the order of time. Events of a user go to partition
    `hash_keys(user) % partitions`, samples of part p to p modulo the number of partitions; events,
    and with `speed` samples too, come in the order of event time over all files.

    Time: a record's timestamp is the event time of its newest row.

    Args:
        config: From where, to where.
        schema: Columns of a sample, or of an event; others in the files are not sent.
        on_progress: Called now and then, and after each record.
        clock: Tells the time; the machine's if none is given.

    Returns:
        What each partition was sent.

    Raises:
        InputError: If the files, the topic or the settings are not as expected, or not as they were
            when the job began.
        BrokerUnavailableError: If no broker answers, or it stopped answering.
    """
    topic = prepare_topic(config)
    source = _source(config, schema, topic.partitions)
    try:
        with failing_as(config, f"writing to topic {config.topic}"):
            writer = TransactionalWriter(
                config,
                f"headrace-publish.{config.topic}.{config.job}",
                topic=config.progress_topic,
                compression=config.compression,
            )
            try:
                job = _Job(config, writer, source, clock or SystemClock())
                return job.run(topic, on_progress)
            finally:
                writer.close()
    finally:
        source.close()


def _source(config: PublishConfig, schema: pa.Schema, partitions: int) -> Source:
    if config.directory is not None:
        return SampleFiles(config, schema, partitions)
    return EventLogs(config, schema, partitions)


class _Job:
    """One run of a job."""

    def __init__(
        self, config: PublishConfig, writer: TransactionalWriter, source: Source, clock: Clock
    ) -> None:
        self._config = config
        self._writer = writer
        self._source = source
        self._clock = clock
        self._key = f"publish/{config.topic}/{config.job}"
        self._state = State(topic_id="", counts=[])
        self._sent = Progress("sending", 0)
        self._opened: float | None = None  # when the present transaction began
        self._open_bytes = 0  # that it holds

    def run(self, topic: Topic, on_progress: Callable[[Progress], None]) -> Published:
        """Sends what is not there yet."""
        self._begin(topic)
        before = self._state.rows
        rejects: Mapping[str, int] = {}
        if not self._state.finished:
            sent = [count.samples for count in self._state.counts]
            prepared = self._source.prepare(sent, lambda n: on_progress(Progress("reading", n)))
            rejects = prepared.rejects
            if self._config.shift is None:
                warn_of_retention(self._config, prepared.days)
            self._sent = dataclasses.replace(self._sent, rows=before, total=prepared.rows)
            self._send(prepared, on_progress)
            if self._opened is not None:
                self._commit()
            # In a transaction of its own: this one begins only when readers see the one before, so
            # that whoever asks for the topic's end when `publish` has returned is told all of it.
            self._state.finished = True
            self._commit()
        return Published(self._state.counts, before, rejects)

    def _begin(self, topic: Topic) -> None:
        """Finds out where the job is, or begins it."""
        plan = Plan.of(self._config, self._source, topic.partitions)
        keys = self._key, f"{self._key}/plan"
        found = self._writer.take_over(keys)
        state, former = (found.get(key) for key in keys)
        if state is not None and former is not None:
            self._state = State.parsed(state, self._key)
            if self._state.topic_id == topic.id:
                plan.require_same(Plan.parsed(former, self._key), self._config)
                return
            logger.info(
                "topic %s was made anew since job %r wrote to it: it begins anew, too",
                self._config.topic,
                self._config.job,
            )
        require_empty(self._config, topic.partitions)
        counts = [PartitionCount(partition=number) for number in range(topic.partitions)]
        self._state = State(topic_id=topic.id, counts=counts)
        # Before any row, so that what a killed run leaves behind is known to be this job's.
        self._commit({f"{self._key}/plan": plan.model_dump_json().encode()})

    def _send(self, prepared: Prepared, on_progress: Callable[[Progress], None]) -> None:
        config, single = self._config, self._config.value_format != "arrow"
        if config.shift is not None and self._state.shift_ms is None:
            self._state.shift_ms = round(self._clock.now() * 1000) - (prepared.first_ms or 0)
        seconds = _SINGLE_SECONDS if single else _ARROW_SECONDS
        cutter = Cutter(
            self._source.schema,
            prepared.skip,
            rows=config.samples_per_record,
            span_ms=None if config.speed is None else 1000 * seconds * config.speed,
        )
        pacer = Pacer(self._clock, speed=config.speed, shift_ms=self._state.shift_ms)
        for cut in cutter.cuts(prepared.steps):
            self._wait(pacer.wait(cut.first_ms, cut.due_ms))
            self._write(cut)
            on_progress(self._sent)
            open_seconds = self._clock.now() - (self._opened or 0.0)
            if open_seconds >= _COMMIT_SECONDS or self._open_bytes >= _COMMIT_BYTES:
                self._commit()
        if cutter.missing:
            raise InputError(
                f"{self._key}: found {cutter.missing:,} rows fewer in the files than were sent"
                " before; expected the files that the job began with"
            )

    def _wait(self, seconds: float) -> None:
        """Lets time pass; what was sent is seen meanwhile."""
        if seconds <= 0:
            return
        if self._opened is not None:
            left = _PACED_COMMIT_SECONDS - (self._clock.now() - self._opened)
            if seconds >= left:
                self._clock.sleep(max(0.0, left))
                self._commit()
                seconds -= max(0.0, left)
        self._clock.sleep(seconds)

    def _write(self, cut: Cut) -> None:
        rows = _shifted(cut.rows, self._state.shift_ms)
        count = self._state.counts[cut.partition]
        records = size = 0
        for value, headers, time_ms in encoded(self._config, rows):
            self._writer.send(self._config.topic, cut.partition, value, headers, time_ms)
            records += 1
            size += len(value)
        count.records += records
        count.samples += cut.rows.num_rows
        count.bytes += size
        if self._opened is None:
            self._opened = self._clock.now()
        self._open_bytes += size
        self._sent = dataclasses.replace(
            self._sent,
            rows=self._sent.rows + cut.rows.num_rows,
            records=self._sent.records + records,
            bytes=self._sent.bytes + size,
            event_ms=cut.due_ms,
        )

    def _commit(self, more: Mapping[str, bytes] | None = None) -> None:
        state = self._state.model_dump_json().encode()
        self._writer.commit({**(more or {}), self._key: state})
        self._opened, self._open_bytes = None, 0


def _shifted(rows: pa.Table, shift_ms: int | None) -> pa.Table:
    if shift_ms is None:
        return rows
    place = rows.column_names.index(TIMESTAMP_MS)
    return rows.set_column(place, TIMESTAMP_MS, pc.add(rows[TIMESTAMP_MS], shift_ms))
