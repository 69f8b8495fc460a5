"""The threads that have ranges run: who is handed what, and what is still out."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping

from streaming.attempts import RangeRunner, RestartNeededError
from streaming.feed import Feed
from streaming.source import Range

_TICK_SECONDS = 0.2
_TOLD_RANGES = 5


class Callers:
    """Each caller has one flight of ranges out at a time, one range per slot of its own.

    So a slot's next sequence number is used only when its last range stands in the ledger, or went
    back untouched. All but `stop` is for the main thread.

    Attributes:
        idle: Shares the lock; notified when the main thread may have something to do.
        error: What ended a caller, or None.
        stopping: Whether no more is handed out, for good.
    """

    def __init__(
        self,
        feed: Feed,
        lock: threading.RLock,
        *,
        enter: Callable[[Range, Mapping[str, float], str], None],
        alone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Prepares threads.

        Args:
            feed: Where ranges come from.
            lock: Guards the ledger, the feed and all here.
            enter: Enters a finished range, its report and its worker; called with the lock.
            alone: Whether no flight may be out beside another; called with the lock.
        """
        self._feed = feed
        self._changed = threading.Condition(lock)
        self._enter, self._alone = enter, alone
        self.idle = threading.Condition(lock)  # of its own: not each range wakes the main thread
        self._out: dict[Range, float] = {}
        self._returned: deque[Range] = deque()
        self._paused = False
        self.error: BaseException | None = None
        self.stopping = False

    def start(self, runner: RangeRunner, *, callers: int, flight: int) -> None:
        """Starts the threads; flights have up to `flight` ranges."""
        self._runner = runner
        self._num_callers = callers
        self._look_ahead = flight * (callers - 1) + 1
        for caller in range(callers):
            slots = range(caller * flight, (caller + 1) * flight)
            name = f"caller-{caller}"
            threading.Thread(target=self._work, args=[slots], name=name, daemon=True).start()

    def stop(self) -> None:
        """Hands out no more. For signal handlers: takes no lock."""
        self.stopping = True

    @property
    def in_flight(self) -> int:
        """Ranges that are out."""
        return len(self._out)

    @property
    def exhausted(self) -> bool:
        """Whether all has been handed out that is to be, and has come back."""
        with self._changed:
            return not self._out and not self._returned and self._feed.finished

    def pause(self, *, limit: float) -> None:
        """Hands out no more, until `resume`, and waits for what is out.

        Ranges that cannot be read at present come back untouched, and are handed out again later.

        Raises:
            RestartNeededError: If that took more than `limit` seconds.
        """
        with self._changed:
            self._paused = True
            drained = self.idle.wait_for(
                lambda: not self._out or self.error is not None, timeout=limit
            )
            if self.error is not None:
                raise self.error
            if not drained:
                raise RestartNeededError(
                    f"{self.in_flight} ranges in flight did not finish within {limit:g} s:"
                    f" {self.oldest()}"
                )

    def resume(self) -> None:
        """Hands out ranges again."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def oldest(self) -> str:
        """Names the ranges that have been out for longest, and for how long."""
        now = time.monotonic()
        with self._changed:
            oldest = sorted(self._out.items(), key=lambda item: item[1])[:_TOLD_RANGES]
        return "; ".join(f"{wanted} for {now - since:.0f} s" for wanted, since in oldest)

    def _leaving(self) -> bool:
        return self.stopping or self._paused

    def _work(self, slots: range) -> None:
        try:
            while (taken := self._take(len(slots))) is not None:
                reports = self._runner.run(
                    slots, *taken, failed=lambda: self.error is not None, leaving=self._leaving
                )
                self._give_back(taken[0], reports)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            with self._changed:
                self.error = self.error or error
                self._changed.notify_all()
                self.idle.notify_all()

    def _give_back(
        self, ranges: list[Range], reports: list[tuple[dict[str, float], str] | None]
    ) -> None:
        with self._changed:
            for wanted, report in zip(ranges, reports, strict=True):
                if report is None:
                    self._returned.append(wanted)
                else:
                    self._enter(wanted, *report)
                del self._out[wanted]
            if not self._out:
                self.idle.notify_all()
            self._changed.notify_all()

    def _take(self, most: int) -> tuple[list[Range], Range | None] | None:
        """Returns a flight of up to `most` ranges and the one that probably follows it."""
        while True:
            with self._changed:
                if self.stopping or self.error is not None:
                    return None
                if not self._paused and not (self._out and self._alone()):
                    ranges, likely = self._cut(most)
                    if ranges:
                        self._out |= dict.fromkeys(ranges, time.monotonic())
                        return ranges, likely
                    self.idle.notify_all()  # the main thread may know of more
                self._changed.wait(_TICK_SECONDS)

    def _cut(self, most: int) -> tuple[list[Range], Range | None]:
        ranges: list[Range] = []
        while self._returned and len(ranges) < most:
            ranges.append(self._returned.popleft())
        likely = None
        # What little there is, is for all.
        share = -(-self._feed.at_hand(time.monotonic()) // self._num_callers)
        while len(ranges) < min(most, max(share, 1)):
            taken = self._feed.take(look_ahead=self._look_ahead, now=time.monotonic())
            if taken is None:
                break
            ranges.append(taken[0])
            likely = taken[1]
        return ranges, likely
