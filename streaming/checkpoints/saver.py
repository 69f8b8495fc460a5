"""Saving while training goes on: a copy of the state is taken, and written by another thread."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import tensorflow as tf

from streaming.checkpoints.store import CheckpointStore, Freshness
from streaming.config import CheckpointConfig
from streaming.ledger import Ledger
from streaming.servers.shadow import Shadow

logger = logging.getLogger(__name__)

_WORTH = 10  # seconds of training to each of saving, at least, if event time asks for saves


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """What one checkpoint is to say of the state that is copied for it.

    Attributes:
        ledger: A copy of the ledger; nobody else changes it.
        step: Mini-batches applied.
        freshness: Which events are in it.
    """

    ledger: Ledger
    step: int
    freshness: Freshness


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Saved:
    """A checkpoint that is whole and durable.

    Attributes:
        folder: Where.
        snapshot: What it holds.
        write_seconds: How long writing took; training waited for it only if it was the last.
    """

    folder: Path
    snapshot: Snapshot
    write_seconds: float


class Saver:
    """Writes checkpoints, one at a time; for the main thread.

    With `checkpoint.background`, the servers hold everything twice: `take` copies the state, for
    which training has to stand still, and `write` writes the copy in another thread.
    """

    def __init__(
        self, store: CheckpointStore, trackables: Mapping[str, tf.Variable], *, background: bool
    ) -> None:
        """Prepares saves of these variables; makes their copies if `background`."""
        self._store = store
        self.checkpoint = tf.train.Checkpoint(**trackables)
        self._shadow = Shadow(trackables) if background else None
        self._thread: threading.Thread | None = None
        self._done: Saved | None = None
        self._error: BaseException | None = None

    @property
    def background(self) -> bool:
        """Whether training goes on while a checkpoint is written."""
        return self._shadow is not None

    @property
    def busy(self) -> bool:
        """Whether a checkpoint is being written, or was and `finished` has not been asked since."""
        return self._thread is not None

    def take(self) -> None:
        """Copies the state, if saves are in the background; nothing may be in flight."""
        if self._shadow is not None:
            self._shadow.copy()

    def write(self, snapshot: Snapshot) -> None:
        """Begins to write what `take` copied; not while it is busy."""
        if self._shadow is None or self.busy:
            raise RuntimeError("found no copy to write, or one being written; expected one, taken")
        checkpoint = self._shadow.checkpoint

        def work() -> None:
            try:
                self._done = self._write(checkpoint, snapshot)
            except BaseException as error:  # noqa: BLE001 - `finished` raises it
                self._error = error

        self._thread = threading.Thread(target=work, name="saver", daemon=True)
        self._thread.start()

    def write_now(self, snapshot: Snapshot) -> Saved:
        """Writes the state itself, in this thread; nothing may be in flight until it returns."""
        return self._write(self.checkpoint, snapshot)

    def finished(self, *, wait_seconds: float = 0.0) -> Saved | None:
        """Returns what was written since it was last asked, or None; raises what prevented it."""
        if self._thread is None:
            return None
        self._thread.join(wait_seconds)
        if self._thread.is_alive():
            return None
        self._thread = None
        if self._error is not None:
            raise self._error
        done, self._done = self._done, None
        return done

    def _write(self, checkpoint: tf.train.Checkpoint, snapshot: Snapshot) -> Saved:
        started = time.monotonic()
        folder = self._store.save(
            checkpoint, snapshot.ledger, step=snapshot.step, freshness=snapshot.freshness
        )
        return Saved(folder=folder, snapshot=snapshot, write_seconds=time.monotonic() - started)


class Schedule:
    """When a save is due: after some seconds, or when event time has crossed a boundary.

    A boundary is a multiple of `every_event_seconds` since 1970 that the low watermark passes: all
    events before it have been trained on. A run that catches up passes many in a moment: it does
    not spend more than a tenth of its time on saving.

    Attributes:
        cost_seconds: How long the last save took.
    """

    def __init__(self, config: CheckpointConfig, *, now: float) -> None:
        self._config = config
        self._saved_at = now
        self._window: int | None = None
        self.cost_seconds = 0.0

    def due(self, now: float, watermark_ms: int | None) -> bool:
        """Whether it is time to save, given a time in seconds and the low watermark."""
        window = self._window_of(watermark_ms)
        if self._window is None:
            self._window = window  # the first watermark of this life crosses nothing
        crossed = window is not None and self._window is not None and window > self._window
        since = now - self._saved_at
        worth = since >= _WORTH * self.cost_seconds
        return (crossed and worth) or since >= self._config.every_seconds

    def saved(self, now: float, watermark_ms: int | None) -> None:
        """Notes a save."""
        self._saved_at = now
        window = self._window_of(watermark_ms)
        self._window = self._window if window is None else window

    def _window_of(self, watermark_ms: int | None) -> int | None:
        if watermark_ms is None or self._config.every_event_seconds is None:
            return None
        return int(watermark_ms // (1000 * self._config.every_event_seconds))
