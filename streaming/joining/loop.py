"""The loop: reads, joins and commits all units of a process, until it is told to end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, TypeVar

from pipeline.schema import InputError
from pipeline.topics.transactions import FencedError
from streaming.joining.config import JoinConfig
from streaming.joining.figures import JoinFigures
from streaming.joining.kafka_input import InputLog, out_of_range
from streaming.joining.kafka_output import PATIENCE_SECONDS, UnitWriter
from streaming.joining.kafka_topics import JoinTopics, Plan
from streaming.joining.life import LIFE, UnitLife, Wiring
from streaming.joining.progress import EVENTS, REJECTS, STALE, Progress, summed
from streaming.joining.reading import Reading
from streaming.joining.step import NEVER
from streaming.joining.unit import Outcome, Unit
from streaming.ledger import Totals
from streaming.rejects import RejectLimit
from streaming.source import Partition, SourceUnavailableError
from streaming.sources.kafka_client import KafkaClient

logger = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_MS: Final = 50
_FETCH_BYTES: Final = 1 << 20
_IDLE_SECONDS: Final = 1.0
_FENCED_SECONDS: Final = 2.0  # in which who took over has said so
_SHOWN_REJECTS: Final = 10
_REPLAYED_EVENTS: Final = 100_000


class JoinLoop:
    """Joins until the end that the configuration names, or until `stop`.

    Delivery: exactly once, see `streaming.joining`. Whatever is raised, and however the process
    ends: another life goes on at the last transaction.

    Attributes:
        figures: How it is told.
    """

    def __init__(self, config: JoinConfig, wiring: Wiring, *, name: str = LIFE) -> None:
        """Connects to nothing yet.

        Args:
            config: The section.
            wiring: What is done with events.
            name: Names this life among all that there will be.
        """
        self._config, self._wiring, self._name = config, wiring, name
        self._client = KafkaClient(
            config,
            config.input.topics,
            fetch_bytes=_FETCH_BYTES,
            dead_letters=config.rejects_topic,
            made_by="name topics of events in join.input.topics, and join.rejects_topic",
            again="Begin anew under another join.group",
        )
        self._topics = JoinTopics(config, self._client)
        self._log = InputLog(self._client)
        self._lives: list[UnitLife] = []
        self._stopped = threading.Event()
        kept = config.rejects_topic
        self._limit = RejectLimit(
            config.max_reject_share,
            kept_in=f"topic {kept}" if kept else "the log, or in a topic: join.rejects_topic",
            option="join.max_reject_share",
        )
        self._shown = 0
        self._idle_checked = 0.0
        self.figures = JoinFigures(config.watch)

    def stop(self) -> None:
        """Has `run` commit what was read, and return. From any thread, or a signal handler."""
        self._stopped.set()

    def run(self) -> list[Progress]:
        """Joins; returns what each unit has committed.

        Raises:
            InputError: If topics, progress and configuration do not fit together; if another
                process has taken over a unit; if too much is rejected.
            SourceUnavailableError: If no broker answers for a minute.
        """
        try:
            if finished := self._finished_before():
                return finished
            self._begin()
            self._replay()
            if not self._stopped.is_set():
                self._join()
        except FencedError as error:
            raise self._taken_over(str(error)) from error
        finally:
            for life in self._lives:
                life.close()
            self._client.close()
            self.figures.close()
        return self._progress()

    def _finished_before(self) -> list[Progress]:
        """Returns what all units last said, if all that is asked for was done by a former life."""
        if self._config.end != "closed":
            return []
        plan = self._topics.prepare()
        numbers = self._config.input.numbers(plan.partitions)
        places = [Partition(self._config.progress_topic, number) for number in numbers]
        if self._topics.committed_ends(places) != self._topics.written_ends(places):
            return []  # a former life died in a transaction, which only its successor can end
        last = [self._topics.last_progress(number) for number in numbers]
        done = [each for each in last if each is not None and each.closed]
        if len(done) < len(numbers):
            return []
        logger.info("all is there: every unit of join.group %s was closed", self._config.group)
        return done

    def _begin(self) -> None:
        plan = self._topics.prepare()
        numbers = self._config.input.numbers(plan.partitions)
        lanes = {n: [Partition(t, n) for t in self._config.input.topics] for n in numbers}
        everywhere = [lane for of_one in lanes.values() for lane in of_one]
        start = self._config.input.start
        topics = self._topics
        looked_up = topics.first_offsets if start == "earliest" else topics.committed_ends
        starts = looked_up(everywhere)
        self._ends = None
        if self._config.end != "never":
            self._ends = topics.committed_ends(everywhere)
        for number in numbers:
            self._take_over(number, plan, {lane: starts[lane] for lane in lanes[number]})
        self.figures.pulse.connected = True

    def _take_over(self, number: int, plan: Plan, starts: Mapping[Partition, int]) -> None:
        writer = UnitWriter(self._config, number, reject_partitions=plan.rejects)
        life = UnitLife(self._config, self._wiring, plan, writer=writer, name=self._name)
        try:
            writer.open()
            life.begin(number, self._topics.last_progress(number), starts)
        except BaseException:
            writer.close()
            raise
        self._lives.append(life)
        if life.resumed:
            logger.info("unit %d goes on after commit %d", number, life.progress.commit - 1)

    def _replay(self) -> None:
        """Reads again what the open windows hold."""
        lives = [life for life in self._lives if life.resumed]
        if not lives:
            return
        ends = {
            Partition(lane.topic, life.unit.number): lane.offset
            for life in lives
            for lane in life.progress.lanes
        }
        units = [life.unit for life in lives]
        starts = {p: lane.position for unit in units for p, lane in unit.lanes.items()}
        self._require_records(starts, ends)
        reading = self._reading(units, ends)
        began = time.monotonic()
        while not self._patiently(reading.finished):
            if self._stopped.is_set():
                return
            self._patiently(lambda: reading.step(timeout_ms=_POLL_MS))
            self.figures.pulse.progressed()
            for unit in units:
                if unit.num_events >= _REPLAYED_EVENTS:
                    unit.decode(self._patiently(reading.positions))
                    unit.join()
                    unit.discard()
        for life in lives:
            life.replayed()
        logger.info("open windows were read again in %.1f s", time.monotonic() - began)

    def _require_records(
        self, starts: Mapping[Partition, int], ends: Mapping[Partition, int]
    ) -> None:
        """Checks that what was joined, and is needed again, is still there."""
        first, end = self._topics.first_offsets(list(starts)), self._topics.written_ends(list(ends))
        for place, offset in starts.items():
            if first[place] > offset:
                raise out_of_range(place, offset, first[place], end[place])
            if end[place] < ends[place]:
                raise out_of_range(place, ends[place], first[place], end[place])

    def _join(self) -> None:
        reading = self._reading([life.unit for life in self._lives], self._ends)
        self.figures.pulse.training = True
        finished = False
        while not (finished or self._stopped.is_set()):
            self._patiently(lambda: reading.step(timeout_ms=_POLL_MS))
            self._patiently(lambda: self._raise_idle(reading))
            finished = self._patiently(reading.finished)
            due = [life for life in self._lives if life.due()]
            if due:
                # Or what a topic of the same name holds, from some offset on, would be joined.
                self._patiently(self._topics.check_identity)
                positions = self._patiently(reading.positions)
                for life in due:
                    self._commit(life, positions)
            self.figures.pulse.progressed()
            if self.figures.due():
                self._tell(reading)
        positions = self._patiently(reading.positions)
        for life in self._lives:
            self._commit(life, positions, final=finished and self._config.end == "closed")
        self._check_rejects(complete=finished)
        self._tell(reading)

    def _commit(
        self, life: UnitLife, positions: Mapping[Partition, int], *, final: bool = False
    ) -> None:
        outcome = life.commit(positions, final=final)
        counts = outcome.counts
        self._show(outcome)
        seen = counts[EVENTS] + counts[STALE] + counts[REJECTS]
        if seen:
            self._limit.note(Totals(records=seen, rejects=counts[REJECTS]))
        if counts[REJECTS]:
            self._check_rejects(complete=False)

    def _check_rejects(self, *, complete: bool) -> None:
        totals = summed(self._progress(), "totals")
        rejects = totals.get(REJECTS, 0)
        seen = totals.get(EVENTS, 0) + totals.get(STALE, 0) + rejects
        self._limit.check(Totals(records=seen, rejects=rejects), complete=complete)

    def _show(self, outcome: Outcome) -> None:
        if self._config.rejects_topic is not None:
            return
        for reject in outcome.rejects[: max(0, _SHOWN_REJECTS - self._shown)]:
            self._shown += 1
            logger.warning(
                "rejected: topic %s partition %d offset %d: %s: %s",
                reject.topic,
                reject.partition,
                reject.offset,
                reject.reason,
                reject.detail,
            )

    def _raise_idle(self, reading: Reading) -> None:
        """Moves the watermark of lanes that stand at their end by the clock, never faster."""
        if time.monotonic() - self._idle_checked < _IDLE_SECONDS:
            return
        self._idle_checked = time.monotonic()
        if self._ends is not None:
            if self._config.end == "closed":
                self._pass_ended(reading, self._ends)
            return
        now_ms = int(1000 * self._wiring.clock())  # before the ends are asked for
        idle = [
            (life.unit, lane)
            for life in self._lives
            for lane in life.unit.lanes.values()
            if not lane.waiting.offsets
            and now_ms - lane.seen_ms >= 1000 * self._config.idle_seconds
        ]
        if not idle:
            return
        # Of open transactions, too: what they hold may yet come.
        ends = self._topics.written_ends([lane.partition for _, lane in idle])
        positions = reading.positions()
        for unit, lane in idle:
            if positions[lane.partition] < ends[lane.partition]:
                continue
            if lane.newest_ms > NEVER:
                passed = now_ms - lane.seen_ms
                lane.raise_to(lane.newest_ms - self._config.lateness_ms + passed)
                continue
            # One that has never had a record follows the others.
            others = [each.watermark_ms for each in unit.lanes.values() if each is not lane]
            lane.raise_to(min(others, default=NEVER))

    def _pass_ended(self, reading: Reading, ends: Mapping[Partition, int]) -> None:
        """Has lanes that are at their end, for good, follow the others of their unit."""
        positions = reading.positions()
        for life in self._lives:
            lanes = life.unit.lanes.values()
            over = [
                lane
                for lane in lanes
                if not lane.waiting.offsets and positions[lane.partition] >= ends[lane.partition]
            ]
            others = [lane.watermark_ms for lane in lanes if lane not in over]
            for lane in over:
                lane.raise_to(min(others, default=NEVER))

    def _patiently(self, call: Callable[[], T]) -> T:
        """Calls what changes nothing by itself; while no broker answers, again and again."""
        deadline, wait = time.monotonic() + PATIENCE_SECONDS, 0.1
        while True:
            try:
                return call()
            except SourceUnavailableError as error:
                if time.monotonic() > deadline or self._stopped.is_set():
                    raise
                logger.warning("to be tried again: %s", error)
                self.figures.pulse.beat()
                self._stopped.wait(wait)
                wait = min(2 * wait, 5.0)

    def _reading(self, units: list[Unit], ends: Mapping[Partition, int] | None) -> Reading:
        return Reading(
            self._log,
            self._topics,
            units,
            ends=ends,
            window_ms=self._wiring.window_ms,
            clock=self._wiring.clock,
        )

    def _progress(self) -> list[Progress]:
        return [life.progress for life in self._lives]

    def _tell(self, reading: Reading) -> None:
        self.figures.tell(
            self._progress(),
            watermark_ms=min(life.unit.watermark_ms for life in self._lives),
            lag=reading.lag(),
            wall_ms=int(1000 * self._wiring.clock()),
        )

    def _taken_over(self, name: str) -> Exception:
        """Returns the error for a producer that was fenced: by whom, its successor has said."""
        time.sleep(_FENCED_SECONDS)
        unit = int(name.rpartition("-")[2])
        last = self._topics.last_progress(unit)
        if last is not None and last.life != self._name:
            return InputError(
                f"join.group: found that process {last.life} has taken over unit {unit} of group"
                f" {self._config.group}; expected one process for each unit: this one,"
                f" {self._name}, ends, and nothing of it is doubled or lost"
            )
        return SourceUnavailableError(
            f"unit {unit} of join.group {self._config.group}: the brokers have ended this process'"
            " transaction: it stood still for too long; run again"
        )
