"""What the coordinator knows of the source: how far it reaches, how large its records are."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any

from streaming.config import TrainConfig
from streaming.ledger import Ledger
from streaming.schedule.plan import Plan
from streaming.source import Partition, Range, Source, SourceUnavailableError

logger = logging.getLogger(__name__)

_SOURCE_SECONDS = 1.0
_LINGER_SECONDS = 5.0
_PROBED_PARTITIONS = 8


class Feed:
    """Keeps the plan filled from the source. For the main thread, `take` for any.

    Attributes:
        away: Whether the source could not be read when it was last asked.
    """

    def __init__(
        self, source: Source, config: TrainConfig, *, ledger_lock: AbstractContextManager[Any]
    ) -> None:
        self._source = source
        self._ledger_lock = ledger_lock
        self._config = config
        self._sized = False
        self._seen = time.monotonic()
        self.away = False
        self._plan = Plan({})

    def open(self) -> Ledger:
        """Asks the source where it starts; returns the ledger of a run that has no checkpoint."""
        self._starts, self._first_ends = self._source.start_offsets(), self._source.end_offsets()
        return Ledger({}, {})

    def begin(self, ledger: Ledger) -> None:
        """Plans from a ledger on.

        Raises:
            InputError: If the ledger's offsets are not of this source, or beyond its end.
        """
        ledger.check_identity(self._source.identity(ledger.offsets))
        ledger.adopt(self._starts, self._first_ends)
        self._ledger = ledger
        self._plan = Plan(
            ledger.offsets, linger_seconds=_LINGER_SECONDS if self.endless else 0.0
        )
        self._extend(time.monotonic())
        self._seen = time.monotonic()

    def refresh(self, now: float) -> None:
        """Asks the source how far it reaches now; one that is away is asked again, for a while.

        Raises:
            SourceUnavailableError: If it has been away for `watch.stall_seconds`.
        """
        if not self.endless or now - self._seen < _SOURCE_SECONDS:
            return
        try:
            self._extend(now)
            self._seen, self.away = now, False
        except SourceUnavailableError as error:
            if now - self._seen > self._config.watch.stall_seconds:
                raise
            self.away = True
            logger.warning("the source cannot be read at present: %s", error)

    def take(self, *, look_ahead: int, now: float) -> tuple[Range, Range | None] | None:
        """Returns the next range and a later one, or None for none now; see `Plan.take`."""
        return self._plan.take(look_ahead=look_ahead, now=now)

    def identity(self, offsets: Mapping[Partition, int]) -> dict[str, str]:
        """Returns what these offsets of the ledger are counted in."""
        return self._source.identity(offsets)

    @property
    def endless(self) -> bool:
        """Whether new records are waited for at the end of the source."""
        return self._config.stream.end != "now"

    @property
    def remaining(self) -> int:
        """Records that can be read and have not been handed out."""
        return self._plan.remaining

    def _extend(self, now: float) -> None:
        ends = self._source.end_offsets()
        if not self._sized:
            self._size_ranges(ends)
        if not set(ends) <= set(self._ledger.offsets):
            starts = self._source.start_offsets()
            with self._ledger_lock:
                self._ledger.adopt(starts, {})
            self._plan.add(starts)
        self._plan.extend(ends, now=now)

    def _size_ranges(self, ends: Mapping[Partition, int]) -> None:
        """Finds how many records make a range, by the largest of a few."""
        starts = self._source.start_offsets()
        filled = [partition for partition, end in ends.items() if end > starts[partition]]
        places = [
            Range(partition, offset, offset + 1)
            for partition in filled[:_PROBED_PARTITIONS]
            for offset in {starts[partition], (starts[partition] + ends[partition]) // 2}
        ]
        samples = max((self._source.read(place).samples.num_rows for place in places), default=0)
        if samples:
            wanted = self._config.samples_per_range
            self._plan.records_per_range = max(1, wanted // samples)
            self._sized = True
