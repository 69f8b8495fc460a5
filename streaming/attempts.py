"""Running a flight of ranges on some worker, however many attempts it takes."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import tensorflow as tf

from pipeline.schema import InputError
from streaming.source import Range
from streaming.worker import reader
from streaming.worker.reader import Status
from streaming.worker.step import COUNTS, SUMS

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
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


class Marks(Protocol):
    """The part of `servers.state.ServerState` that tells of ranges which did not come back."""

    def tried(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns [slots, 2] numbers and tries, and [slots] the last number begun to push."""

    def withdraw(self, slot: int, sequence: int) -> int:
        """Sees that a push that has come to no server never counts; returns to how many it has."""


@dataclasses.dataclass(slots=True)
class _Flight:
    """Ranges that are out together.

    Attributes:
        ranges: The ranges.
        places: Where each stands in the call; those that are left are empty.
        answers: Tries of all of them that came back.
    """

    ranges: Sequence[Range]
    places: Sequence[_Place]
    answers: int = 0


class RangeRunner:
    """Has ranges run by workers; safe to use from one thread per slot.

    A range whose worker was lost, before or after its push, is scheduled again with the *same*
    slot and sequence number, and the parameter servers apply what they have not.
    """

    def __init__(self, cluster: Cluster, function: Any, *, marks: Marks, floor: int) -> None:
        """Prepares runs with sequence numbers above `floor`."""
        self._cluster = cluster
        self._function = function
        self._marks = marks
        self._sequences = itertools.count(floor + 1)
        self._out: dict[Sequence[int], _Flight] = {}  # by the slots, each caller's own

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
            leaving: Whether ranges that cannot be read, and were not pushed either, are given up.

        Returns:
            COUNTS and SUMS by name, and the worker, of each range; None for one given up.

        Raises:
            InputError: If the stream is not what it should be.
            RestartNeededError: If a parameter server was lost.
        """
        flight = _Flight(ranges, self._places(slots, ranges, likely))
        self._out[slots] = flight
        reports: dict[int, _Report] = {}
        todo = list(range(len(ranges)))
        while todo:
            try:
                found = self._fetch(flight.places, todo)
            except tf.errors.OpError as error:
                if failed() or not _is_passing(error):
                    raise
                logger.warning("%s is tried again: %s", ranges[todo[0]], type(error).__name__)
                time.sleep(_RETRY_SECONDS)
                continue
            flight.answers += 1
            reports |= _read(found, ranges)
            todo = [place for place in todo if place not in reports]
            if todo and leaving():
                # A worker that was lost may have pushed before, and TensorFlow did not tell.
                todo = [place for place in todo if self._withdraw(flight.places[place])]
            time.sleep(_RETRY_SECONDS if todo else 0)
        del self._out[slots]
        return [reports.get(n) for n in range(len(ranges))]

    def check_losses(self) -> None:
        """Sees that no range ends the workers that have it, one after the other.

        TensorFlow hands the call of a lost worker to another one and does not tell, so what is
        counted is that workers began a range, and that it was neither answered nor pushed.

        Raises:
            InputError: If one has lost too many.
        """
        try:
            tries, pushed = self._marks.tried()
        except PASSING:  # a server was lost: a call will say so
            return
        for flight in list(self._out.values()):
            suspects = []
            for wanted, place in zip(flight.ranges, flight.places, strict=False):
                slot, sequence = place.mark
                lost = tries[slot][1] - flight.answers - 1  # one may be at it
                if tries[slot][0] == sequence > pushed[slot] and lost >= _FATAL:
                    suspects.append(str(wanted))
            if suspects:
                raise InputError(
                    f"{' or '.join(suspects)}: {_FATAL} workers were lost while they had it;"
                    f" expected at most {_FATAL - 1}: see why they end (memory? a decoder that"
                    " crashes?), and give them more memory, lower train.batches_per_range, or pass"
                    " over the range with `headrace offsets`"
                )

    def _withdraw(self, place: _Place) -> int:
        try:
            return self._marks.withdraw(*place.mark)
        except PASSING as error:
            raise RestartNeededError(f"a parameter server does not answer: {error}") from error

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
