"""Partitions kept together in event time, by plan and borders alone: streams are lists of times."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.schedule.plan import Pace, Plan
from streaming.source import Partition, Place, Range

A, B, C = (Partition(topic, 0) for topic in ("clicks", "searches", "views"))
HOUR = 3_600_000


class Run:
    """A plan over streams, each a list of its records' times, and the ranges in flight."""

    def __init__(
        self, times: Mapping[Partition, Sequence[int]], *, records_per_range: int = 4, pace: Pace
    ) -> None:
        self.times = {partition: list(of) for partition, of in times.items()}
        self.plan = Plan(dict.fromkeys(times, 0), samples_per_range=records_per_range, pace=pace)
        for partition in times:
            self.plan.measured(partition, records=1, samples=1)
        self.done = dict.fromkeys(times, 0)
        self.ahead: dict[Partition, dict[int, int]] = {partition: {} for partition in times}
        self.in_flight: list[Range] = []
        self.taken: list[Range] = []
        self.asked = 0

    def refresh(self, *, now: float = 0.0, ended: bool = True) -> None:
        """What the feed does: ends first, then times."""
        ends = {partition: len(of) for partition, of in self.times.items()}
        self.plan.extend(ends, now=now, ended=set(ends) if ended else ())
        if behind := self.plan.behind():
            self.plan.anchor(min(self.times[p][offset] for p, offset in behind.items()))
        while (time_ms := self.plan.wanted_time()) is not None:
            self.asked += 1
            self.plan.learn(time_ms, self.offsets_at(time_ms))

    def offsets_at(self, time_ms: int) -> dict[Partition, Place]:
        found = {}
        for partition, times in self.times.items():
            late = [offset for offset, time in enumerate(times) if time >= time_ms]
            if late:
                found[partition] = Place(late[0], times[late[0]])
        return found

    def take(self, *, now: float = 0.0, look_ahead: int = 0) -> Range | None:
        taken = self.plan.take(look_ahead=look_ahead, now=now)
        if taken is None:
            return None
        self.in_flight.append(taken[0])
        self.taken.append(taken[0])
        return taken[0]

    def apply(self, number: int = 0) -> Range:
        done = self.in_flight.pop(number)
        ahead = self.ahead[done.partition]
        ahead[done.start] = done.end
        while self.done[done.partition] in ahead:
            self.done[done.partition] = ahead.pop(self.done[done.partition])
        self.plan.applied(self.done)
        return done

    def skew(self) -> int:
        """How much newer the newest record applied is than the oldest that is not."""
        newest = [self.times[p][offset - 1] for p, offset in self.done.items() if offset]
        newest += [self.times[p][end - 1] for p, of in self.ahead.items() for end in of.values()]
        waiting = [self.times[p][o] for p, o in self.done.items() if o < len(self.times[p])]
        return max(newest) - min(waiting) if newest and waiting else 0

    def everything_once(self) -> bool:
        wanted = [(p, offset) for p, times in self.times.items() for offset in range(len(times))]
        found = [(r.partition, offset) for r in self.taken for offset in range(r.start, r.end)]
        return sorted(found) == sorted(wanted)


def pace(skew_ms: int, *, idle_seconds: float = 10.0) -> Pace:
    return Pace(max_skew_ms=skew_ms, idle_seconds=idle_seconds)


streams = st.lists(
    st.lists(st.integers(0, 10_000), max_size=40).map(sorted), min_size=1, max_size=5
).map(lambda lists: {Partition("t", n): times for n, times in enumerate(lists)})


@settings(max_examples=100)
@given(streams, st.integers(1, 3000), st.integers(1, 8), st.integers(0, 3), st.integers())
def test_the_skew_stays_in_its_bound_and_everything_is_handed_out_once(
    times, max_skew_ms, records_per_range, look_ahead, seed
):
    run = Run(times, records_per_range=records_per_range, pace=pace(max_skew_ms))
    choose = random.Random(seed)
    for _ in range(20_000):
        run.refresh()
        taken = None
        if len(run.in_flight) < 5 and choose.random() < 0.7:
            taken = run.take(look_ahead=look_ahead)
        if taken is None:
            if not run.in_flight:
                taken = run.take(look_ahead=look_ahead)
                if taken is None:
                    break
            else:
                run.apply(choose.randrange(len(run.in_flight)))
                assert run.skew() < max_skew_ms
    assert run.everything_once()
    assert run.plan.remaining == 0


@settings(max_examples=60)
@given(streams, st.integers(1, 3000), st.integers())
def test_a_stream_that_grows_out_of_order_between_its_partitions_is_handed_out_once(
    times, max_skew_ms, seed
):
    choose = random.Random(seed)
    later = {partition: list(of) for partition, of in times.items()}
    run = Run({p: [] for p in times}, pace=pace(max_skew_ms, idle_seconds=2.0))
    now = 0.0
    for _ in range(20_000):
        now += 0.5
        partition = choose.choice(list(later))
        grown = choose.randint(1, 10)
        run.times[partition] += later[partition][:grown]
        del later[partition][:grown]
        complete = not any(later.values())
        run.refresh(now=now, ended=complete)
        if run.take(now=now) is None and run.in_flight:
            run.apply(choose.randrange(len(run.in_flight)))
        if complete and run.plan.remaining == 0 and not run.in_flight:
            break
    assert run.everything_once()


def test_a_backlog_of_three_days_holds_the_fresh_ones_until_it_has_come_up():
    days = 72
    times = {A: [h * HOUR for h in range(days)], B: [71 * HOUR] * 50, C: [70 * HOUR] * 50}
    run = Run(times, records_per_range=1, pace=pace(4 * HOUR))
    while True:
        run.refresh()
        if run.take() is None:
            break
        run.apply()
    order = [r.partition for r in run.taken]
    # C may begin when A has applied its 66th hour, B an hour later: A alone until then.
    assert order[:66] == [A] * 66
    assert set(order[66:80]) == {A, C} or set(order[66:80]) == {A, B, C}
    assert run.everything_once()
    # One request per hour of the backlog, which is a quarter of the skew, and a few.
    assert run.asked < 72 + 12


def test_what_is_in_flight_holds_the_others_as_what_was_not_handed_out():
    run = Run({A: [0, 1, 50, 90], B: [100, 110, 120]}, records_per_range=2, pace=pace(60))
    run.refresh()
    assert run.take() == Range(A, 0, 2)
    # The record of time 90 is more than 60 after 0, and nothing waits for the one of 50.
    assert run.take() is None
    run.refresh()
    assert run.take() is None
    run.apply()
    run.refresh()  # A has reached 50: all up to 110 may be read, B's first for instance
    assert run.take() == Range(A, 2, 4)
    assert run.take() is None  # but that is no full range, and nothing waits for it, either
    run.apply()
    run.refresh()
    assert run.take() == Range(B, 0, 2)


def test_a_gap_in_all_partitions_is_jumped_over_with_few_questions():
    run = Run({A: [0, 10**9], B: [5, 10**9 + 5]}, records_per_range=1, pace=pace(100))
    while True:
        run.refresh()
        if run.take() is None:
            break
        run.apply()
    assert run.everything_once()
    assert run.asked < 20


def test_a_partition_without_records_holds_the_others_only_until_it_counts_as_idle():
    run = Run({A: list(range(0, 1000, 10)), B: [0]}, pace=pace(100, idle_seconds=10.0))

    def drain(now: float) -> int:
        while True:
            run.refresh(now=now, ended=False)
            if run.take(now=now) is None:
                return run.done[A]
            run.apply()

    assert 7 <= drain(now=0.0) <= 10  # B, at 0, lets A go on up to 100 and no further
    assert 7 <= drain(now=9.9) <= 10
    assert drain(now=10.1) == 100  # B had nothing at 0.0, nor since


def test_idleness_begins_when_the_end_was_asked_for_and_reached_not_before():
    times = {A: list(range(0, 1000, 10)), B: [0, 1, 2]}
    run = Run(times, records_per_range=1, pace=pace(100, idle_seconds=10.0))
    run.refresh(now=0.0, ended=False)
    while run.take(now=0.0) is not None:  # B's last record is handed out ...
        if run.in_flight[-1] != Range(B, 2, 3):
            run.apply(len(run.in_flight) - 1)
        run.refresh(now=0.0, ended=False)
    assert run.done[B] == 2
    run.refresh(now=60.0, ended=False)
    assert run.take(now=60.0) is None  # ... but a minute later it is not applied
    run.apply()
    run.refresh(now=61.0, ended=False)  # seen at its end for the first time
    run.refresh(now=70.0, ended=False)
    assert run.plan.holds(B)
    run.refresh(now=71.0, ended=False)
    assert not run.plan.holds(B)


def test_an_ended_partition_holds_no_other():
    run = Run({A: list(range(0, 1000, 10)), B: [0]}, pace=pace(100, idle_seconds=1e9))
    while True:
        run.refresh(ended=True)
        if run.take() is None:
            break
        run.apply()
    assert run.done == {A: 100, B: 1}


def test_a_new_partition_with_older_records_is_waited_for():
    run = Run({A: list(range(1000, 2000, 10))}, records_per_range=2, pace=pace(100))
    for _ in range(10):
        run.refresh(ended=False)
        run.take()
        run.apply()
    at = run.done[A]
    run.times[B], run.done[B], run.ahead[B] = list(range(0, 1000, 100)), 0, {}
    run.plan.add({B: 0})
    run.refresh(ended=False)
    while run.done[B] < 10:
        assert run.take().partition == B
        run.apply()
        run.refresh(ended=False)
    assert run.done[A] == at
    assert run.take() is None or run.taken[-1].partition == A


def test_a_full_range_is_not_cut_short_unless_the_watermark_waits_for_it():
    times = {A: list(range(0, 400)), B: list(range(50, 450))}
    run = Run(times, records_per_range=40, pace=pace(100))
    while True:
        run.refresh()
        if run.take() is None:
            break
        run.apply()
    sizes = [r.end - r.start for r in run.taken]
    assert sum(size < 40 for size in sizes) <= 2  # the two ends, at most


@pytest.mark.parametrize("limit", [0, 3, 7])
def test_no_more_records_are_cut_than_wanted(limit):
    run = Run({A: [0] * 20, B: [0] * 20}, pace=Pace())
    run.refresh()
    cut = 0
    while (taken := run.plan.take(look_ahead=2, now=0.0, max_samples=limit - cut)) is not None:
        cut = run.plan.samples_out
        assert taken[0].end > taken[0].start
    assert run.plan.samples_out == limit


def test_records_that_come_into_a_gap_that_was_jumped_over_are_not_stuck():
    run = Run({A: [0, 1_000], B: []}, records_per_range=1, pace=pace(4, idle_seconds=2.0))
    run.refresh(now=0.0, ended=False)
    assert run.take(now=0.0) == Range(A, 0, 1)
    run.times[B] = [1, 3]  # the grid went on to 1,000 at once
    for _ in range(8):
        run.refresh(now=1.0, ended=False)
        run.take(now=1.0)
        if run.in_flight:
            run.apply()
    assert run.done[B] == 2
