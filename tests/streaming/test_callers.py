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

    def at_hand(self, now: float) -> int:
        return len(self.left)

    def take(self, *, look_ahead: int, now: float) -> tuple[Range, None] | None:
        return (self.left.pop(0), None) if self.left else None


class Runner:
    """Takes a moment for a flight, and counts how many are out at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out = 0
        self.seen: list[int] = []
        self.flights: list[int] = []

    def run(self, slots, ranges, likely, **_):
        with self._lock:
            self._out += 1
            self.seen.append(self._out)
            self.flights.append(len(ranges))
        time.sleep(0.05)
        with self._lock:
            self._out -= 1
        return [({"samples": 1.0}, "worker 0") for _ in ranges]


def learn(runner: Runner, *, callers: int, flight: int, alone: int = 0) -> None:
    """Has a runner learn all ten ranges, each once."""
    learned: list[int] = []
    threads = Callers(
        Ranges(),
        threading.RLock(),
        enter=lambda wanted, report, worker: learned.append(wanted.start),
        alone=lambda: len(learned) < alone,
    )
    threads.start(runner, callers=callers, flight=flight)
    while not threads.exhausted:
        time.sleep(0.01)
    threads.stop()
    assert sorted(learned) == list(range(10))


@pytest.mark.parametrize("alone", [0, 6])
def test_until_so_many_are_learned_no_flight_is_out_beside_another(alone):
    runner = Runner()
    learn(runner, callers=2, flight=1, alone=alone)
    assert set(runner.seen[:alone]) <= {1}
    assert 2 in runner.seen[alone:]


def test_what_little_there_is_is_shared_by_all():
    runner = Runner()
    learn(runner, callers=4, flight=16)
    assert max(runner.flights) == 3  # 10 by 4, upwards


def test_a_range_that_comes_back_unread_is_handed_out_again():
    class Losing(Runner):
        given_up = 0

        def run(self, slots, ranges, likely, **_):
            reports = super().run(slots, ranges, likely)
            starts = [wanted.start for wanted in ranges]
            if 3 in starts and not self.given_up:
                self.given_up += 1
                reports[starts.index(3)] = None
            return reports

    runner = Losing()
    learn(runner, callers=2, flight=4)
    assert runner.given_up == 1
