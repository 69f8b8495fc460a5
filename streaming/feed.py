"""What the coordinator knows of the source: how far it reaches, how large its records are."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import pyarrow.compute as pc

from pipeline.schema import TIMESTAMP_MS
from streaming.config import EndConfig, TrainConfig
from streaming.ledger import Ledger
from streaming.schedule.plan import Pace, Plan
from streaming.schedule.positions import first_ledger, milliseconds
from streaming.schedule.probe import Probe, Prober
from streaming.schedule.progress import Position, Progress
from streaming.source import Partition, Place, Range, Source, SourceUnavailableError

logger = logging.getLogger(__name__)

_SOURCE_SECONDS = 1.0
_LINGER_SECONDS = 5.0
_ASKS_AT_ONCE = 8
_JUDGED_BATCHES = 500


class Feed:
    """Keeps the plan filled from the source.

    For the main thread; `take`, `note` and `position` for any that holds the ledger's lock.

    Attributes:
        away: Whether the source could not be read when it was last asked.
    """

    def __init__(
        self, source: Source, config: TrainConfig, *, ledger_lock: AbstractContextManager[Any]
    ) -> None:
        self._source = source
        self._ledger_lock = ledger_lock
        self._config = config
        self._end = config.stream.end
        self._prober = Prober(source)
        self._identity: dict[str, str] = {}
        self._ended: set[Partition] = set()
        self._gone: set[Partition] = set()
        self._batches = self._batched = 0
        self._seen = self._asked = time.monotonic()
        self.away = False
        self._plan = Plan({})
        self._progress = Progress()

    def open(self) -> None:
        """Asks the source how far it reaches."""
        self._starts, self._first_ends = self._source.start_offsets(), self._source.end_offsets()

    def first_ledger(self) -> Ledger:
        """Returns the ledger of a run that has no checkpoint: it stands at `train.stream.start`.

        Raises:
            InputError: If that position is not of this source.
        """
        start = self._config.stream.start
        return first_ledger(start, self._source, starts=self._starts, ends=self._first_ends)

    def begin(self, ledger: Ledger) -> None:
        """Plans from a ledger on.

        Raises:
            InputError: If the ledger's offsets are not of this source, or beyond its end.
        """
        self._identity = self._source.identity(ledger.offsets)
        ledger.check_identity(self._identity)
        ledger.adopt(self._starts, self._first_ends)
        self._ledger = ledger
        self._prober = Prober(self._source)
        found = list(self._prober.probe(ledger.offsets, self._source.end_offsets()))
        self._plan = self._new_plan(self._skew_for(found))
        self._note_probes(found)
        self._extend(time.monotonic())
        self._follow_time()
        self._seen = time.monotonic()

    def refresh(self, now: float) -> None:
        """Asks the source how far it reaches now; one that is away is asked again, for a while.

        Raises:
            SourceUnavailableError: If it has been away for `watch.stall_seconds`.
        """
        due = now - self._asked >= _SOURCE_SECONDS
        if self.away and not due:
            return
        try:
            if due:
                self._asked = now
                if self.endless:
                    self._extend(now)
            self._follow_time()
            self._seen, self.away = now, False
        except SourceUnavailableError as error:
            if now - self._seen > self._config.watch.stall_seconds:
                raise
            self.away = True
            logger.warning("the source cannot be read at present: %s", error)

    def take(self, *, look_ahead: int, now: float) -> tuple[Range, Range | None] | None:
        """Returns the next range and a later one, or None for none now; see `Plan.take`."""
        self._plan.applied(self._ledger.offsets)
        limit = self._samples_wanted
        if limit is None:
            return self._plan.take(look_ahead=look_ahead, now=now)
        if self._ledger.totals.samples >= limit:
            return None
        return self._plan.take(look_ahead=look_ahead, now=now, max_samples=self._budget(limit))

    def at_hand(self, now: float) -> int:
        """Returns how many ranges could be taken now."""
        self._plan.applied(self._ledger.offsets)
        return self._plan.at_hand(now)

    def note(self, done: Range, report: Mapping[str, float]) -> None:
        """Notes the event times of a range that stands in the ledger now."""
        offset = self._ledger.offsets[done.partition]
        self._progress.note(done, int(report["last_ms"]), offset=offset)
        self._plan.applied(self._ledger.offsets)
        samples = int(report["samples"])
        read = done.end - done.start - int(report["lost"])
        self._plan.measured(done.partition, records=read, samples=samples)
        self._watch_batches(samples, int(report["batches"]))

    def _watch_batches(self, samples: int, batches: int) -> None:
        """Warns when mini-batches are much smaller than configured: negatives are missing then."""
        self._batches += batches
        self._batched += samples
        if self._batches < _JUDGED_BATCHES:
            return
        mean, wanted = self._batched / self._batches, self._config.batch_size
        if mean < wanted / 2:
            logger.warning(
                "the last %d mini-batches held %.0f samples on average; expected about"
                " train.batch_size, %d: ranges are cut short by a stream that is slow, or by a"
                " train.stream.max_skew_seconds that spans too few samples",
                self._batches,
                mean,
                wanted,
            )
        self._batches = self._batched = 0

    def position(self) -> Position:
        """Returns how far the run has come, in event time and records; cheap."""
        self._plan.applied(self._ledger.offsets)
        offsets = dict(self._ledger.offsets)
        return self._progress.position(
            {partition: self._plan.reached_ms(partition) for partition in offsets},
            {partition for partition in offsets if self._plan.holds(partition)},
            lag={p: max(0, self._plan.end(p) - offset) for p, offset in offsets.items()},
        )

    def identity(self, offsets: Mapping[Partition, int]) -> dict[str, str]:
        """Returns what these offsets of the ledger are counted in.

        A source that is away is not waited for: what it was known by when it was last seen is
        returned, within `_SOURCE_SECONDS` of its last answer.

        Raises:
            InputError: If a topic is another one than before.
        """
        if not self.away:
            try:
                self._identity = self._source.identity(offsets)
            except SourceUnavailableError as error:
                self.away = True
                logger.warning("the source cannot be asked for its identity: %s", error)
        return dict(self._identity)

    @property
    def endless(self) -> bool:
        """Whether new records are waited for at the end of the source."""
        return self._end != "now"

    @property
    def finished(self) -> bool:
        """Whether all has been handed out that is to be: the end of the stream is reached."""
        limit = self._samples_wanted
        if limit is not None:
            return self._ledger.totals.samples >= limit
        ended = self._ended | self._gone
        return ended >= self._ledger.offsets.keys() and self._plan.remaining == 0

    @property
    def remaining(self) -> int:
        """Records that can be read, are wanted, and have not been handed out.

        About so many, where the run ends after a number of samples: by the means of partitions.
        """
        limit = self._samples_wanted
        if limit is None:
            return self._plan.remaining
        if self._ledger.totals.samples >= limit:
            return 0
        return self._plan.remaining_within(self._budget(limit))

    @property
    def _samples_wanted(self) -> int | None:
        return self._end.samples if isinstance(self._end, EndConfig) else None

    def _budget(self, limit: int) -> float:
        """Returns about how many samples may still be cut."""
        return limit - self._ledger.totals.samples - self._plan.samples_out

    def _skew_for(self, probes: Sequence[Probe]) -> float | None:
        """Returns the bound on the skew; one that nobody asked for only if times are right."""
        skew = self._config.max_skew_seconds
        wrong = any(probe.complaint is not None for probe in probes)
        if skew is None or not wrong or self._config.stream.max_skew_seconds != "auto":
            return skew
        logger.warning(
            "partitions are not kept together in event time, as records' times are not event"
            " times; train.stream.max_skew_seconds would keep them together by records' times"
        )
        return None

    def _new_plan(self, skew: float | None) -> Plan:
        pace = Pace(
            linger_seconds=_LINGER_SECONDS,
            max_skew_ms=None if skew is None else round(skew * 1000),
            idle_seconds=self._config.stream.idle_timeout_seconds,
        )
        wanted = self._config.samples_per_range
        return Plan(self._ledger.offsets, samples_per_range=wanted, pace=pace)

    def _note_probes(self, probes: Iterable[Probe]) -> None:
        told: set[str] = set()
        for probe in probes:
            topic = probe.partition.topic
            self._plan.measured(probe.partition, records=1, samples=probe.samples)
            if probe.complaint and topic not in told and self._config.uses_record_times:
                told.add(topic)
                logger.warning("event time is taken from records' times: %s", probe.complaint)

    def _extend(self, now: float) -> None:
        wall_ms = time.time_ns() // 1_000_000
        ends = self._source.end_offsets()
        if not ends.keys() <= self._ledger.offsets.keys():
            starts = self._source.start_offsets()
            with self._ledger_lock:
                self._ledger.adopt(starts, {})
            self._plan.add(starts)
        self._note_probes(self._prober.probe(self._ledger.offsets, ends))
        self._gone = self._ledger.offsets.keys() - ends.keys()
        ends = self._cut_at_end(ends, wall_ms)
        self._plan.extend(ends, now=now, ended=self._ended)

    def _cut_at_end(self, ends: Mapping[Partition, int], wall_ms: int) -> dict[Partition, int]:
        """Returns up to where partitions are read, and notes those in which nothing follows."""
        if self._end == "now":
            self._ended = set(ends) | set(self._ledger.offsets)
        if not isinstance(self._end, EndConfig) or self._end.timestamp is None:
            return dict(ends)
        end_ms = milliseconds(self._end.timestamp)
        places = self._source.offsets_at(end_ms)
        over = wall_ms >= end_ms + 1000 * self._config.stream.idle_timeout_seconds
        self._ended |= set(ends) if over else set(places)
        return {p: min(end, places[p].offset) if p in places else end for p, end in ends.items()}

    # Event time, if the skew is bounded.

    def _follow_time(self) -> None:
        """Asks the source where the next event times lie, a few at once."""
        if behind := self._plan.behind():
            times = self._times_at(behind)
            if times:
                self._plan.anchor(min(times))
        for _ in range(_ASKS_AT_ONCE):
            time_ms = self._plan.wanted_time()
            if time_ms is None:
                break
            self._plan.learn(time_ms, self._source.offsets_at(time_ms))

    def _times_at(self, offsets: Mapping[Partition, int]) -> list[int]:
        """Returns the event times of the records at some offsets, or earlier ones."""
        oldest = self._source.offsets_at(0)
        times = [self._time_at(p, offset, oldest.get(p)) for p, offset in offsets.items()]
        return [time_ms for time_ms in times if time_ms is not None]

    def _time_at(self, partition: Partition, offset: int, oldest: Place | None) -> int | None:
        if oldest is None or oldest.offset >= offset:
            return None if oldest is None else oldest.time_ms
        samples = self._source.read(Range(partition, offset, offset + 1)).samples
        known = samples.num_rows > 0 and TIMESTAMP_MS in samples.column_names
        return int(pc.max(samples.column(TIMESTAMP_MS)).as_py()) if known else oldest.time_ms
