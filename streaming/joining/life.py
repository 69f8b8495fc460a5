"""One unit in the hands of one process: taking over, replaying, committing."""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from pipeline.topics.record import EVENT_FORMATS
from streaming.joining.config import JoinConfig
from streaming.joining.kafka_output import UnitWriter
from streaming.joining.kafka_topics import Plan
from streaming.joining.lane import Lane, Mark
from streaming.joining.progress import (
    COMMITS,
    LaneProgress,
    Progress,
    Snapshots,
    lane_progress,
    restored_lane,
)
from streaming.joining.step import NEVER, Decoder, Joiner
from streaming.joining.unit import Outcome, Unit
from streaming.source import Partition

logger = logging.getLogger(__name__)

# An idle unit, too, learns that another process has taken it over; and brokers forget the names of
# producers that have written nothing for a week.
_HEARTBEAT_SECONDS: Final = 10.0

LIFE: Final = f"{socket.gethostname()}:{os.getpid()}:{uuid.uuid4().hex[:8]}"
"""Names this process in progress records."""


@dataclasses.dataclass(frozen=True, slots=True)
class Wiring:
    """What all units of a process are made with.

    Attributes:
        decoder: Records to events.
        make_joiner: A new joiner, for one unit.
        window_ms: The join window.
        shape: By option, what may not change between lives: what decides of samples.
        clock: Wall time in seconds.
    """

    decoder: Decoder
    make_joiner: Callable[[], Joiner]
    window_ms: int
    shape: Mapping[str, str]
    clock: Callable[[], float] = time.time


class UnitLife:
    """A unit with its writer and its snapshots.

    Attributes:
        unit: The unit.
        progress: What its last transaction said.
        resumed: Whether a former life's events must be replayed before new ones are joined.
    """

    def __init__(
        self,
        config: JoinConfig,
        wiring: Wiring,
        plan: Plan,
        *,
        writer: UnitWriter,
        name: str = LIFE,
    ) -> None:
        self._config, self._wiring, self._plan = config, wiring, plan
        self._writer = writer
        self._name = name
        self._joiner = wiring.make_joiner()

    def begin(self, number: int, last: Progress | None, starts: Mapping[Partition, int]) -> None:
        """Takes a unit over: its first transaction says so, and where it begins.

        Args:
            number: Its partition number.
            last: What its last life said.
            starts: Offset of each lane at which a unit begins that never was.

        Raises:
            InputError: If this life may not go on where the last one ended.
        """
        shape = self._shape()
        if last is not None:
            last.check(shape, self._plan.ids, partitions=self._plan.partitions)
        self._snapshots = Snapshots(
            self._config.snapshot.directory, group=self._config.group, unit=number
        )
        self.resumed = last is not None
        self.unit = Unit(
            number,
            self._new_lanes(starts) if last is None else self._lanes_of(last),
            self._joiner,
            self._wiring.decoder,
            window_ms=self._wiring.window_ms,
            max_ahead_seconds=self._config.input.max_ahead_seconds,
        )
        self.progress = self._first(number, shape) if last is None else last
        if last is not None:
            content = self._snapshots.read(last.snapshot)
            self.unit.restore(content, last.closed_to_ms)
        self._snapped = time.monotonic()
        commit = self.progress.commit + 1
        claimed = self.progress.model_copy(
            update={"life": self._name, "commit": commit, "written_ms": self._now_ms()}
        )
        self._writer.write([], [], claimed)
        self.progress = claimed
        self._committed = self._written = time.monotonic()

    def replayed(self) -> None:
        """All records of former lives were replayed."""
        self.unit.replayed(self.progress)
        self.resumed = False

    def due(self) -> bool:
        """Whether it is time to commit."""
        limits = self._config.commit
        if self.unit.num_events >= limits.every_events:
            return True
        return time.monotonic() - self._committed >= limits.every_seconds

    def commit(self, positions: Mapping[Partition, int], *, final: bool = False) -> Outcome:
        """Joins what was read, and writes what closed with what follows from it.

        Args:
            positions: The next offset of each lane.
            final: Whether to close all windows, for good.

        Returns:
            What was committed.

        Raises:
            FencedError: If another process has this unit now.
            InputError: If a topic does not take what is sent.
            SourceUnavailableError: If no broker took it in time.
        """
        unit = self.unit
        unit.decode(positions)
        unit.join(final=final)
        now = self._committed = time.monotonic()
        outcome = unit.outcome
        if not (unit.changed or final or now - self._written >= _HEARTBEAT_SECONDS):
            return outcome
        progress = self._following(outcome, final=final)
        self._writer.write(outcome.samples, outcome.rejects, progress)
        if progress.snapshot is not None and progress.snapshot != self.progress.snapshot:
            self._snapshots.keep(progress.snapshot)
        self.progress = progress
        unit.outcome = Outcome()
        self._committed = self._written = time.monotonic()
        return outcome

    def close(self) -> None:
        """Closes the writer."""
        self._writer.close()

    def _following(self, outcome: Outcome, *, final: bool) -> Progress:
        """Returns the progress after the next transaction."""
        unit, last = self.unit, self.progress
        commit = last.commit + 1
        closed_to_ms, snapshot = last.closed_to_ms, last.snapshot
        marks = {Partition(each.topic, unit.number): each.replay_mark for each in last.lanes}
        if snapshot is None:
            closed_to_ms, marks = unit.watermark_ms, unit.replay_marks(unit.watermark_ms)
        elif self._snapshot_due():
            closed_to_ms, marks = unit.watermark_ms, unit.replay_marks(unit.watermark_ms)
            snapshot = self._snapshots.write(self._joiner.snapshot(), name=self._file_name(commit))
            self._snapped = time.monotonic()
        totals = outcome.counts + Counter({COMMITS: 1})
        return last.model_copy(
            update={
                "commit": commit,
                "written_ms": self._now_ms(),
                "watermark_ms": unit.watermark_ms,
                "closed_to_ms": closed_to_ms,
                "snapshot": snapshot,
                "closed": final,
                "lanes": self._saved_lanes(marks),
                "totals": _added(last.totals, totals),
                "fates": _added(last.fates, outcome.fates),
                "reasons": _added(last.reasons, outcome.reasons),
            }
        )

    def _first(self, number: int, shape: dict[str, str]) -> Progress:
        """Returns the progress of a unit that never was."""
        content = self._joiner.snapshot()
        snapshot = self._snapshots.write(content, name=self._file_name(0)) if content else None
        return Progress(
            unit=number,
            life=self._name,
            commit=0,
            written_ms=self._now_ms(),
            partitions=self._plan.partitions,
            shape=shape,
            lanes=self._saved_lanes({p: lane.mark for p, lane in self.unit.lanes.items()}),
            watermark_ms=NEVER,
            closed_to_ms=NEVER,
            snapshot=snapshot,
            totals={},
        )

    def _shape(self) -> dict[str, str]:
        config = self._config
        return dict(self._wiring.shape) | {
            "join.input.topics": ", ".join(config.input.topics),
            "join.input.value_format": config.input.value_format,
            "join.input.max_ahead_seconds": str(config.input.max_ahead_seconds),
            "join.lateness_seconds": f"{config.lateness_seconds:g}",
            "join.output.topic": config.output.topic,
        }

    def _new_lanes(self, starts: Mapping[Partition, int]) -> list[Lane]:
        lanes = [
            Lane(
                partition,
                Mark(offset),
                lateness_ms=self._config.lateness_ms,
                default_form=EVENT_FORMATS[self._config.input.value_format],
            )
            for partition, offset in starts.items()
        ]
        for lane in lanes:
            lane.seen_ms = self._now_ms()
        return lanes

    def _lanes_of(self, last: Progress) -> list[Lane]:
        return [
            restored_lane(
                saved,
                last.unit,
                lateness_ms=self._config.lateness_ms,
                default_form=EVENT_FORMATS[self._config.input.value_format],
            )
            for saved in last.lanes
        ]

    def _saved_lanes(self, marks: Mapping[Partition, Mark]) -> tuple[LaneProgress, ...]:
        ids = self._plan.ids
        return tuple(
            lane_progress(lane, ids[partition.topic], marks[partition])
            for partition, lane in self.unit.lanes.items()
        )

    def _snapshot_due(self) -> bool:
        wait = self._config.snapshot.every_seconds
        known = self.unit.watermark_ms > NEVER
        return known and time.monotonic() - self._snapped >= wait

    def _file_name(self, commit: int) -> str:
        return f"{commit:012d}-{self._name.rpartition(':')[2]}"

    def _now_ms(self) -> int:
        return int(1000 * self._wiring.clock())


def _added(counts: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    return {name: counts.get(name, 0) + more.get(name, 0) for name in dict(counts) | dict(more)}
