"""What a unit remembers of itself: a record, in the transaction that it tells of, and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import durable
from pipeline.schema import InputError
from streaming.joining.lane import Lane, Mark, Raise
from streaming.source import Partition

RECORDS: Final = "records"
EVENTS: Final = "events"
STALE: Final = "stale"
REJECTS: Final = "rejects"
SAMPLES: Final = "samples"
COMMITS: Final = "commits"
TOTALS: Final = (RECORDS, EVENTS, STALE, REJECTS, SAMPLES, COMMITS)
"""Records consumed; of the rows in them, events joined, stale ones, and rejects (or of records);
samples written; transactions."""


_SUFFIX: Final = ".snapshot"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LaneProgress(_Part):
    """Where a topic-partition stands, and from where it must be read again.

    Attributes:
        topic_id: Of the topic, which one that is deleted and created again has not.
        offset: The next record.
        newest_ms: Time of its newest event.
        raised_ms: Where the clock has moved its watermark to.
        seen_ms: Wall time of its last record.
        replay: Offset, `newest_ms` and `raised_ms` where a replay begins.
        raises: (offset, watermark) of each raise that a replay repeats.
    """

    topic: str
    topic_id: str
    offset: int
    newest_ms: int
    raised_ms: int
    seen_ms: int
    replay: tuple[int, int, int]
    raises: tuple[tuple[int, int], ...] = ()

    @property
    def replay_mark(self) -> Mark:
        """Where a replay begins."""
        return Mark(*self.replay)


class Progress(_Part):
    """One unit after one transaction.

    Attributes:
        unit: Its partition number.
        life: Names the process that wrote this.
        commit: Number of the transaction.
        written_ms: Wall time.
        partitions: How many the topics have.
        shape: By option, what may not change between lives.
        watermark_ms: What is closed: all before this less the window.
        closed_to_ms: The watermark that a replay starts with: of the snapshot, if there is one.
        snapshot: Name of its file.
        closed: Whether all windows were closed for good.
        totals: Counts of all lives, see `TOTALS`.
        fates: Counts of the joiner.
        reasons: Rejects by reason.
    """

    format: Literal[1] = 1
    unit: int
    life: str
    commit: int
    written_ms: int
    partitions: int
    shape: dict[str, str]
    lanes: tuple[LaneProgress, ...]
    watermark_ms: int
    closed_to_ms: int
    snapshot: str | None = None
    closed: bool = False
    totals: dict[str, int]
    fates: dict[str, int] = {}
    reasons: dict[str, int] = {}

    def encode(self) -> bytes:
        """Returns the record's value."""
        return self.model_dump_json().encode()

    @classmethod
    def decode(cls, value: bytes, *, where: str) -> Self:
        """Returns what a record holds.

        Raises:
            InputError: If it is none of ours.
        """
        try:
            return cls.model_validate_json(value)
        except ValidationError as error:
            first = error.errors()[0]
            raise InputError(
                f"{where}: found {value[:80]!r}, {'.'.join(map(str, first['loc']))}:"
                f" {first['msg']}; expected progress as this version writes it: has another program"
                " written to join.commit.topic?"
            ) from error

    def check(self, shape: Mapping[str, str], ids: Mapping[str, str], *, partitions: int) -> None:
        """Checks that a life of now may go on from here.

        Raises:
            InputError: If not.
        """
        what = f"unit {self.unit} of this join.group"
        if self.closed:
            raise InputError(
                f"join.end: found that {what} was closed for good (`end: closed`); expected one"
                " that is open: join into another join.output.topic under another join.group"
            )
        for name, found in shape.items():
            if self.shape.get(name) != found:
                raise InputError(
                    f"{name}: found {found}; expected {self.shape.get(name)}, with which {what} was"
                    " joined so far: set it back, or begin anew under another join.group and with"
                    " another join.output.topic"
                )
        for lane in self.lanes:
            if ids[lane.topic] != lane.topic_id:
                raise InputError(
                    f"join.input.topics: found topic {lane.topic} with id {ids[lane.topic]};"
                    f" expected {lane.topic_id}: it was deleted and created again since {what} was"
                    " joined. To join the new one: another join.group"
                )
        if partitions != self.partitions:
            raise InputError(
                f"join.input.topics: found {partitions} partitions; expected {self.partitions}, as"
                f" when {what} was joined first: users have moved between partitions. Join under"
                " another join.group"
            )


def lane_progress(lane: Lane, topic_id: str, replay: Mark) -> LaneProgress:
    """Returns what is remembered of a lane."""
    return LaneProgress(
        topic=lane.partition.topic,
        topic_id=topic_id,
        offset=lane.position,
        newest_ms=lane.newest_ms,
        raised_ms=lane.raised_ms,
        seen_ms=lane.seen_ms,
        replay=(replay.offset, replay.newest_ms, replay.raised_ms),
        raises=tuple((each.offset, each.to_ms) for each in lane.raises),
    )


def restored_lane(
    saved: LaneProgress, number: int, *, lateness_ms: int, default_form: bytes
) -> Lane:
    """Returns a lane at the place where its replay begins."""
    lane = Lane(
        Partition(saved.topic, number),
        saved.replay_mark,
        lateness_ms=lateness_ms,
        default_form=default_form,
    )
    lane.repeat([Raise(offset, to_ms, mattered=True) for offset, to_ms in saved.raises])
    lane.seen_ms = saved.seen_ms
    return lane


def summed(progress: Sequence[Progress], name: str) -> dict[str, int]:
    """Returns the counts of one kind, of all units: `totals`, `fates` or `reasons`."""
    sums: dict[str, int] = {}
    for each in progress:
        for key, count in getattr(each, name).items():
            sums[key] = sums.get(key, 0) + count
    return sums


class Snapshots:
    """The snapshot files of one unit.

    A file is whole before the transaction that names it, and goes only after one that names
    another: whichever life comes next finds the one that its progress names.
    """

    def __init__(self, directory: str | None, *, group: str, unit: int) -> None:
        self._folder = None if directory is None else Path(directory) / f"{group}-{unit}"

    def write(self, content: bytes, *, commit: int, life: str) -> str:
        """Writes the snapshot of a transaction to come, and returns the name to remember.

        Raises:
            InputError: If there is no directory for it.
        """
        folder = self._required_folder()
        folder.mkdir(parents=True, exist_ok=True)
        name = f"{commit:012d}-{life.rpartition(':')[2]}"
        durable.write(folder / f"{name}{_SUFFIX}", content)
        return name

    def read(self, name: str | None) -> bytes | None:
        """Returns a snapshot's content; None if there is no name.

        Raises:
            InputError: If it is not there, or the configuration names no folder.
        """
        if name is None:
            return None
        folder = self._required_folder()
        try:
            return (folder / f"{name}{_SUFFIX}").read_bytes()
        except FileNotFoundError as error:
            raise InputError(
                f"join.snapshot.directory: found no {error.filename}, which this unit's progress"
                " names; expected the folder that the last process of this group wrote to: mount"
                " its volume again, or begin anew under another join.group and join.output.topic"
            ) from error

    def keep(self, name: str) -> None:
        """Removes all of former transactions.

        Not those of later ones: a process that slept through its own replacement comes here, too.
        """
        if self._folder is not None:
            for path in self._folder.glob(f"*{_SUFFIX}"):
                if path.name.partition("-")[0] < name.partition("-")[0]:
                    path.unlink(missing_ok=True)

    def _required_folder(self) -> Path:
        if self._folder is None:
            raise InputError(
                "join.snapshot.directory: found none; expected a folder on a volume that lasts:"
                " what is joined reaches further back than the window, as user histories do"
            )
        return self._folder
