"""A run's saves: which are due, what of the run they hold, and what is told of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, MutableMapping

from streaming.checkpoints.saver import Saved, Saver, Schedule, Snapshot
from streaming.checkpoints.store import NoSpaceError
from streaming.source import Partition
from streaming.watch.pulse import Pulse

logger = logging.getLogger(__name__)

_NOTHING = -1  # no run has so many records
_STALL = "checkpoint/stall_seconds"


class Saves:
    """Keeps account of a run's saves; for the main thread."""

    def __init__(
        self,
        saver: Saver,
        schedule: Schedule,
        *,
        records: int,
        pulse: Pulse,
        facts: MutableMapping[str, float],
        told: Callable[[Mapping[Partition, int]], None],
    ) -> None:
        """Begins an account.

        Args:
            saver: Writes them.
            schedule: When they are due.
            records: How many records the newest checkpoint holds.
            pulse: Is told of long writes.
            facts: Figures of the saves go here.
            told: Is told of the offsets that a checkpoint holds, once it is durable; it may fail.
        """
        self._saver = saver
        self._schedule = schedule
        self._records = records
        self._pulse = pulse
        self._facts = facts
        self._told = told
        self._at = time.monotonic()
        facts[_STALL] = 0.0

    @property
    def age_seconds(self) -> float:
        """For how long the newest checkpoint, or the one that was restored, has been complete."""
        return time.monotonic() - self._at

    @property
    def busy(self) -> bool:
        """Whether one is being written, which `collect` has not told of yet."""
        return self._saver.busy

    def hold(self, records: int) -> bool:
        """Whether so many records are in a checkpoint, or in one that is being written."""
        return records == self._records

    def due(self, watermark_ms: int | None) -> bool:
        """Whether it is time for one, and none is being written."""
        return not self.busy and self._schedule.due(time.monotonic(), watermark_ms)

    def begun(self, watermark_ms: int | None) -> None:
        """Notes that one was due and was dealt with."""
        self._schedule.saved(time.monotonic(), watermark_ms)

    def stood_still(self, seconds: float) -> None:
        """Notes for how long training stood still for it."""
        self._facts[_STALL] = seconds

    def write(self, snapshot: Snapshot) -> None:
        """Begins to write what was copied."""
        self._saver.write(snapshot)
        self._records = snapshot.ledger.totals.records

    def write_now(self, snapshot: Snapshot, *, forgiving: bool) -> Saved | None:
        """Writes the state itself; `settle` tells of it.

        Args:
            snapshot: What it is.
            forgiving: Whether a disk without space is only logged; None is returned then.
        """
        try:
            with self._pulse.busy("writing a checkpoint"):
                saved = self._saver.write_now(snapshot)
        except NoSpaceError as error:
            if not forgiving:
                raise
            self._unsaved(error)
            return None
        self._records = snapshot.ledger.totals.records
        return saved

    def collect(self, *, wait_seconds: float = 0.0) -> None:
        """Tells of a checkpoint that was written meanwhile; raises what prevented it."""
        try:
            self.settle(self._saver.finished(wait_seconds=wait_seconds))
        except NoSpaceError as error:
            self._unsaved(error)

    def settle(self, saved: Saved | None) -> None:
        """Tells of a checkpoint that is durable now."""
        if saved is None:
            return
        ledger, stall = saved.snapshot.ledger, self._facts[_STALL]
        self._at = time.monotonic() - saved.write_seconds
        self._facts["checkpoint/saves"] = self._facts.get("checkpoint/saves", 0) + 1
        self._facts["checkpoint/write_seconds"] = saved.write_seconds
        self._schedule.cost_seconds = stall + saved.write_seconds
        logger.info(
            "saved %s in %.1f s (training stood still for %.2f s): step %d, %d samples",
            saved.folder.name,
            saved.write_seconds,
            stall,
            saved.snapshot.step,
            ledger.totals.samples,
        )
        try:
            self._told(ledger.offsets)
        except Exception as error:  # noqa: BLE001 - for dashboards; what counts is the checkpoint
            logger.warning("the source could not be told of %s: %s", saved.folder.name, error)

    def _unsaved(self, error: NoSpaceError) -> None:
        # What was learned is still on the servers: better to go on and try again than to stop.
        logger.error("%s; training goes on", error)
        self._records = _NOTHING
