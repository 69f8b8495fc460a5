"""Whether a process still gets on: for probes from outside, and for its own watchdog."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator

logger = logging.getLogger(__name__)

_WATCH_SECONDS = 1.0
_EXIT_RETRY = 75
_BUSY_STALLS = 10


class Pulse:
    """When the main thread was last alive, and when the run last made progress.

    Attributes:
        connected: Whether the cluster was reached. Before, pods may take as long as they like.
        training: Whether ranges are handed out.
        obstacle: What keeps the run from its work at present, or nothing.
    """

    def __init__(
        self,
        *,
        stall_seconds: float,
        ready_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begins with a beat.

        Args:
            stall_seconds: The main thread hangs when it was not alive for so long.
            ready_seconds: The run is not ready when it made no progress for so long.
            clock: Seconds.
        """
        self._stall_seconds = stall_seconds
        self._ready_seconds = ready_seconds
        self._clock = clock
        self.connected = self.training = False
        self.obstacle = ""
        self._busy = ""
        self.progressed()

    def beat(self) -> None:
        """The main thread is alive."""
        self._alive = self._clock()

    def progressed(self) -> None:
        """A range was finished, or there was nothing to do."""
        self._alive = self._progress = self._clock()

    @contextlib.contextmanager
    def busy(self, what: str) -> Iterator[None]:
        """While the main thread is in a call whose length grows with the state.

        Restoring or writing tens of gigabytes is no hang: only ten times as long is.
        """
        self.beat()
        self._busy = what
        try:
            yield
        finally:
            self._busy = ""
            self.progressed()

    @property
    def still_seconds(self) -> float:
        """Seconds since the last progress."""
        return self._clock() - self._progress

    def unhealthy(self) -> str:
        """Returns why this process should be killed, or nothing."""
        hung = self._clock() - self._alive
        limit = self._stall_seconds * (_BUSY_STALLS if self._busy else 1)
        if self.connected and hung > limit:
            return f"the main thread did nothing for {hung:.0f} s{self._while()}"
        return ""

    def hung(self) -> str:
        """Returns why this process ends itself, or nothing: later than others may kill it."""
        limit = 2 * self._stall_seconds * (_BUSY_STALLS if self._busy else 1)
        still = self._clock() - self._alive
        if self.connected and still > limit:
            return f"nothing was done for {still:.0f} s{self._while()}"
        return ""

    def _while(self) -> str:
        return f", while {self._busy}" if self._busy else ""

    def unready(self) -> str:
        """Returns why nothing is being trained, or nothing."""
        if not self.connected:
            return "waiting for the cluster"
        if self._busy:
            return self._busy
        if not self.training:
            return "not training yet, or no longer"
        if self.still_seconds > self._ready_seconds:
            return f"no range was finished for {self.still_seconds:.0f} s"
        return self.obstacle or self.unhealthy()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        """Ends the process if the main thread hangs, in a call to a frozen server for instance."""
        over = threading.Event()

        def watch() -> None:
            while not over.wait(_WATCH_SECONDS):
                if reason := self.hung():
                    logger.error(
                        "%s; expected at most train.watch.stall_seconds, %g, twice (ten times that"
                        " to restore or to write); to be started again",
                        reason,
                        self._stall_seconds,
                    )
                    os._exit(_EXIT_RETRY)

        threading.Thread(target=watch, name="watchdog", daemon=True).start()
        try:
            yield
        finally:
            over.set()
