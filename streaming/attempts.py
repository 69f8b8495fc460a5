"""Running a flight of ranges on some worker, however many attempts it takes."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import tensorflow as tf

from pipeline.schema import InputError
from streaming.source import Range
from streaming.worker.reader import Status
from streaming.worker.step import COUNTS, SUMS

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 0.5
# What the loss of a worker, or of the way to it, looks like. Anything else would only come again.
PASSING = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,
)


class RestartNeededError(RuntimeError):
    """This life of the coordinator cannot go on; the next one resumes from the checkpoint."""


class Cluster(Protocol):
    """The part of `tf.distribute.coordinator.ClusterCoordinator` that is used."""

    def schedule(self, fn: Any, args: Any = None) -> Any:
        """Has some worker call `fn`; returns an object whose `fetch()` waits for the result."""


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

    def run(
        self,
        slots: Sequence[int],
        ranges: Sequence[Range],
        likely: Range | None,
        *,
        failed: Callable[[], bool],
    ) -> list[tuple[dict[str, float], str]]:
        """Runs a flight of ranges until all are applied.

        Args:
            slots: The caller's own slots, as many as a flight has places.
            ranges: The ranges, so many or fewer.
            likely: The range that probably follows on the same worker.
            failed: Whether the run has failed elsewhere, so that trying again is in vain.

        Returns:
            COUNTS and SUMS by name, and the worker, of each range.

        Raises:
            InputError: If the stream's records are not what the trainer is configured for.
            RestartNeededError: If a parameter server was lost.
        """
        arguments = self._arguments(slots, ranges, likely)
        while True:
            scheduled = self._schedule(arguments)
            try:
                counts, sums, details = scheduled.fetch()
            except tf.errors.OpError as error:
                if failed() or not _is_passing(error):
                    raise
                logger.warning("%s is tried again: %s", ranges[0], type(error).__name__)
                time.sleep(_RETRY_SECONDS)
                continue
            reports = [
                (
                    dict(zip(COUNTS, (int(n) for n in counts[place]), strict=True))
                    | dict(zip(SUMS, (float(value) for value in sums[place]), strict=True)),
                    bytes(details[place]).decode(),
                )
                for place in range(len(ranges))
            ]
            unread = [
                (wanted, Status(int(report["status"])), detail)
                for wanted, (report, detail) in zip(ranges, reports, strict=True)
                if report["status"] != Status.OK
            ]
            if not unread:
                return reports
            _explain(*unread[0])

    def _arguments(
        self, slots: Sequence[int], ranges: Sequence[Range], likely: Range | None
    ) -> tuple[tf.Tensor, ...]:
        marks, topics, numbers = [], [], []
        following = [*ranges[1:], likely]
        for slot, wanted, after in itertools.zip_longest(slots, ranges, following):
            # A place without a range has a number that counts nowhere.
            marks.append([slot, 0 if wanted is None else next(self._sequences)])
            topics.append([_topic(wanted), _topic(after)])
            numbers.append(_numbers(wanted) + _numbers(after))
        return tf.constant(marks, tf.int64), tf.constant(topics), tf.constant(numbers, tf.int64)

    def _schedule(self, arguments: tuple[tf.Tensor, ...]) -> Any:
        # A lost worker shows in `fetch`, if at all; a lost parameter server here.
        try:
            return self._cluster.schedule(self._function, args=arguments)
        except PASSING as error:
            first = str(error).partition("\n")[0][:200]
            raise RestartNeededError(f"the cluster lost a parameter server: {first}") from error


def _is_passing(error: tf.errors.OpError) -> bool:
    # A worker that was started again no longer has the results of its former life.
    return isinstance(error, PASSING) or "remote_handle" in str(error)


def _explain(wanted: Range, status: Status, detail: str) -> None:
    if status == Status.BAD_INPUT:
        raise InputError(detail)
    if status == Status.FAILED:
        raise RuntimeError(f"reading {wanted} failed in a worker: {detail}")
    logger.warning("the source cannot be read at present: %s", detail)
    time.sleep(_RETRY_SECONDS)


def _topic(of: Range | None) -> str:
    return "" if of is None else of.partition.topic


def _numbers(of: Range | None) -> list[int]:
    return [0, 0, 0] if of is None else [of.partition.number, of.start, of.end]
