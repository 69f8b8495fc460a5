"""Running a flight of ranges on some worker, however many attempts it takes."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import tensorflow as tf

from pipeline.schema import InputError
from streaming.source import Range
from streaming.worker import reader
from streaming.worker.reader import Status
from streaming.worker.step import COUNTS, SUMS

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
_OUTAGE_SECONDS = 10.0
_SUSPICIOUS = 2  # losses after which the ranges of a flight are tried one by one
_FATAL = 5
# What the loss of a worker, or of the way to it, looks like. Anything else would only come again.
PASSING = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


_Report = tuple[dict[str, float], str]


class RestartNeededError(RuntimeError):
    """This life of the coordinator cannot go on; the next one resumes from the checkpoint."""


class Cluster(Protocol):
    """The part of `tf.distribute.coordinator.ClusterCoordinator` that is used."""

    def schedule(self, fn: Any, args: Any = None) -> Any:
        """Has some worker call `fn`; returns an object whose `fetch()` waits for the result."""


class _Place(NamedTuple):
    """A place of a flight, as the scheduled function takes it; see `step.RangeFunction`."""

    mark: tuple[int, int]
    topics: tuple[str, str]
    numbers: tuple[int, ...]

    def emptied(self) -> _Place:
        """Returns the same place with nothing to do, and a number that counts nowhere."""
        return _Place((self.mark[0], 0), ("", ""), (0,) * len(self.numbers))


class _Losses:
    """The workers that were lost with a flight.

    Attributes:
        lost: Places of which a try was lost: nobody knows what of them was applied.
    """

    def __init__(self, lost: set[int] | None = None) -> None:
        self.lost = lost or set()
        self._count = 0
        self._finished = -1
        self._at = -math.inf

    def add(self, tried: Sequence[int], *, finished: int, now: float) -> None:
        """Notes a loss; it counts against the flight if the cluster got on since the last one.

        A cluster that is cut off loses a range on one worker after the other, in a moment and with
        nothing finished between.
        """
        self.lost |= set(tried)
        if finished != self._finished or now - self._at > _OUTAGE_SECONDS:
            self._count += 1
        self._finished, self._at = finished, now

    @property
    def suspicious(self) -> bool:
        """Whether ranges are tried one by one, to see which of them it is."""
        return self._count >= _SUSPICIOUS

    def check(self, ranges: Sequence[Range]) -> None:
        """Raises if one range has lost too many workers."""
        if self._count >= _FATAL and len(ranges) == 1:
            raise InputError(
                f"{ranges[0]}: {self._count} workers were lost while they had it; expected at most"
                f" {_FATAL - 1}: see why they end (memory? a decoder that crashes?), and give them"
                " more memory, lower train.batches_per_range, or pass over the range with"
                " `headrace offsets`"
            )


class RangeRunner:
    """Has ranges run by workers; safe to use from one thread per slot.

    A range whose worker was lost, before or after its push, is scheduled again with the *same*
    slot and sequence number, and the parameter servers apply what they have not.
    """

    def __init__(self, cluster: Cluster, function: Any, *, floor: int) -> None:
        """Prepares runs with sequence numbers above `floor`."""
        self._cluster = cluster
        self._function = function
        self._sequences = itertools.count(floor + 1)
        self._finished = 0  # flights of all threads; a count that is off by one does no harm

    def run(
        self,
        slots: Sequence[int],
        ranges: Sequence[Range],
        likely: Range | None,
        *,
        failed: Callable[[], bool],
        leaving: Callable[[], bool] = lambda: False,
    ) -> list[_Report | None]:
        """Runs a flight of ranges until all are applied.

        Args:
            slots: The caller's own slots, one for each place of a flight.
            ranges: So many or fewer.
            likely: The range that probably follows on the same worker.
            failed: Whether the run has failed elsewhere, so that trying again is in vain.
            leaving: Whether ranges that cannot be read, and have lost no try, are given up.

        Returns:
            COUNTS and SUMS by name, and the worker, of each range; None for one given up.

        Raises:
            InputError: If the stream is not what it should be, or one range loses many workers.
            RestartNeededError: If a parameter server was lost.
        """
        places = self._places(slots, ranges, likely)
        reports: dict[int, _Report] = {}
        losses, todo = _Losses(), list(range(len(ranges)))
        while todo:
            tried = todo[:1] if losses.suspicious else todo
            try:
                found = self._fetch(places, tried)
            except tf.errors.OpError as error:
                if failed() or not _is_passing(error):
                    raise
                losses.add(tried, finished=self._finished, now=time.monotonic())
                losses.check([ranges[place] for place in tried])
                logger.warning("%s is tried again: %s", ranges[tried[0]], type(error).__name__)
                time.sleep(_RETRY_SECONDS)
                continue
            reports |= _read(found, ranges)
            todo = [place for place in todo if place not in reports]
            if reports.keys() >= set(tried):
                losses = _Losses(losses.lost)  # what was tried was not it
                continue
            if leaving():
                todo = [place for place in todo if place in losses.lost]
            time.sleep(_RETRY_SECONDS if todo else 0)
        self._finished += 1
        return [reports.get(n) for n in range(len(ranges))]

    def _fetch(self, places: Sequence[_Place], tried: Sequence[int]) -> dict[int, _Report]:
        """Runs some places of a flight once."""
        chosen = [p if n in tried else p.emptied() for n, p in enumerate(places)]
        arguments = (
            tf.constant([place.mark for place in chosen], tf.int64),
            tf.constant([place.topics for place in chosen]),
            tf.constant([place.numbers for place in chosen], tf.int64),
        )
        counts, sums, details = self._schedule(arguments).fetch()
        return {
            place: (
                dict(zip(COUNTS, (int(n) for n in counts[place]), strict=True))
                | dict(zip(SUMS, (float(value) for value in sums[place]), strict=True)),
                bytes(details[place]).decode(),
            )
            for place in tried
        }

    def _places(
        self, slots: Sequence[int], ranges: Sequence[Range], likely: Range | None
    ) -> list[_Place]:
        following = [*ranges[1:], likely]
        places = []
        for slot, wanted, after in itertools.zip_longest(slots, ranges, following):
            sequence = 0 if wanted is None else next(self._sequences)
            topics, numbers = (_topic(wanted), _topic(after)), _numbers(wanted) + _numbers(after)
            places.append(_Place((slot, sequence), topics, tuple(numbers)))
        return places

    def _schedule(self, arguments: tuple[tf.Tensor, ...]) -> Any:
        # A lost worker shows in `fetch`, if at all; a lost parameter server here.
        try:
            return self._cluster.schedule(self._function, args=arguments)
        except PASSING as error:
            first = str(error).partition("\n")[0][:200]
            raise RestartNeededError(f"the cluster lost a parameter server: {first}") from error


def check_workers(cluster: Cluster, run_name: str, *, num_workers: int) -> None:
    """Sees that scheduled functions reach Python in the workers, not in this process.

    Raises:
        InputError: If a worker belongs to another run.
    """
    reader.register_coordinator()
    whose = tf.function(reader.whereabouts, input_signature=[], autograph=False)
    calls = [cluster.schedule(whose) for _ in range(4 * num_workers)]
    names = {bytes(call.fetch()) for call in calls}
    if reader.COORDINATOR in names:
        raise RuntimeError("scheduled reads ran in the coordinator; expected in the workers")
    if strangers := [name for name in names if not name.startswith(run_name.encode())]:
        raise InputError(
            f"{len(strangers)} workers belong to another run, or were started with another"
            " configuration; expected the coordinator's own: start all of them from one file"
        )
    logger.info("%d of %d workers have answered", len(names), num_workers)


def _is_passing(error: tf.errors.OpError) -> bool:
    # A worker that was started again no longer has the results of its former life.
    return isinstance(error, PASSING) or "remote_handle" in str(error)


def _read(found: Mapping[int, _Report], ranges: Sequence[Range]) -> dict[int, _Report]:
    """Returns the reports of ranges that were read; tells of the others, or raises."""
    result = {}
    for place, (report, detail) in found.items():
        if report["status"] == Status.OK:
            result[place] = (report, detail)
        else:
            _refuse(ranges[place], Status(int(report["status"])), detail)
            logger.warning("the source cannot be read at present: %s", detail)
    return result


def _refuse(wanted: Range, status: Status, detail: str) -> None:
    if status == Status.BAD_INPUT:
        raise InputError(detail)
    if status == Status.FAILED:
        raise RuntimeError(f"reading {wanted} failed in a worker: {detail}")


def _topic(of: Range | None) -> str:
    return "" if of is None else of.partition.topic


def _numbers(of: Range | None) -> list[int]:
    return [0, 0, 0] if of is None else [of.partition.number, of.start, of.end]
