"""Time, as an argument: event time that passes so many times as fast as a clock."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """What tells the time and lets it pass."""

    def now(self) -> float:
        """Returns seconds since 1970."""

    def sleep(self, seconds: float) -> None:
        """Returns when so many seconds have passed."""


class SystemClock:
    """The machine's."""

    def now(self) -> float:
        """Returns seconds since 1970."""
        return time.time()

    def sleep(self, seconds: float) -> None:
        """Returns when so many seconds have passed."""
        time.sleep(seconds)


class Pacer:
    """Says how long a record has to wait until event time has come to it."""

    def __init__(self, clock: Clock, *, speed: float | None, shift_ms: int | None = None) -> None:
        """Prepares; event time begins to pass with the first record that is asked for.

        Args:
            clock: Tells the time.
            speed: Event time passes so many times as fast; None for no waiting at all.
            shift_ms: If known, wall-clock time is event time and so many milliseconds: after an
                outage, what should have been sent meanwhile goes out at once.
        """
        self._clock = clock
        self._speed = speed
        self._shift_ms = shift_ms
        self._start: tuple[float, float] | None = None

    def wait(self, first_ms: int | None, due_ms: int | None) -> float:
        """Returns the seconds to wait for a record.

        Args:
            first_ms: Event time of its oldest row.
            due_ms: Event time at which it goes out; None for at once.
        """
        if self._speed is None or due_ms is None or first_ms is None:
            return 0.0
        now = self._clock.now()
        if self._start is None:
            shifted = self._shift_ms is not None
            wall = (first_ms + (self._shift_ms or 0)) / 1e3 if shifted else now
            self._start = wall, first_ms / 1e3
        wall, event = self._start
        return max(0.0, wall + (due_ms / 1e3 - event) / self._speed - now)
