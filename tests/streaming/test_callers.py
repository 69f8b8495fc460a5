"""Who is handed what: flights of several threads, without a cluster."""

from __future__ import annotations

import threading
import time

import pytest

from streaming.callers import Callers
from streaming.source import Partition, Range

PARTITION = Partition("clicks", 0)


class Ranges:
    """A feed of ten ranges."""

    def __init__(self) -> None:
        self.left = [Range(PARTITION, start, start + 1) for start in range(10)]

    @property
    def finished(self) -> bool:
        return not self.left

    def take(self, *, look_ahead: int, now: float) -> tuple[Range, None] | None:
        return (self.left.pop(0), None) if self.left else None


class Runner:
    """Takes a moment for a flight, and counts how many are out at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out = 0
        self.seen: list[int] = []

    def run(self, slots, ranges, likely, **_):
        with self._lock:
            self._out += 1
            self.seen.append(self._out)
        time.sleep(0.05)
        with self._lock:
            self._out -= 1
        return [({"samples": 1.0}, "worker 0") for _ in ranges]


@pytest.mark.parametrize("alone", [0, 6])
def test_until_so_many_are_learned_no_flight_is_out_beside_another(alone):
    learned: list[int] = []
    lock = threading.RLock()
    callers = Callers(
        Ranges(),
        lock,
        enter=lambda wanted, report, worker: learned.append(wanted.start),
        alone=lambda: len(learned) < alone,
    )
    runner = Runner()
    callers.start(runner, callers=2, flight=1)
    while not callers.exhausted:
        time.sleep(0.01)
    callers.stop()
    assert sorted(learned) == list(range(10))
    assert set(runner.seen[:alone]) <= {1}
    assert 2 in runner.seen[alone:]
