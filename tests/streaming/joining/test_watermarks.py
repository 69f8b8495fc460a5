"""What is stale and when windows close, against hand-made logs."""

from __future__ import annotations

import pytest

from streaming.joining.step import NEVER
from tests.pipeline.event_log import START, event
from tests.streaming.joining.naive import join_whole, not_stale, random_log
from tests.streaming.joining.world import Running, totals
from tests.waiting import wait_until

pytestmark = pytest.mark.kafka


class Clock:
    def __init__(self) -> None:
        self.time = START / 1000

    def __call__(self) -> float:
        return self.time


@pytest.mark.parametrize("rows", [None, 4])
def test_stale_events_are_counted_and_left_out_however_lives_are_cut(make_world, rows) -> None:
    # Twice as much out of order as may be: some are stale, by their own partition's watermark.
    world, log = make_world(), random_log(800, seed=7, disorder_ms=2000)
    kept, stale = [], 0
    for part in range(4):
        cut = log[part * len(log) // 4 : (part + 1) * len(log) // 4]
        world.send(cut, rows=rows)
        world.join(lateness_seconds=1.0, end="closed" if part == 3 else "caught-up")
    for unit in (0, 1):
        records = []
        for part in range(4):
            cut = log[part * len(log) // 4 : (part + 1) * len(log) // 4]
            own = [row for row in cut if row["user_id"] % 2 == unit]
            size = rows or 1
            records += [own[start : start + size] for start in range(0, len(own), size)]
        some, number = not_stale(records, lateness_ms=1000)
        kept, stale = kept + some, stale + number
    assert stale > 20
    found = totals(world.progress().values())
    assert (found["stale"], found["events"]) == (stale, len(kept))
    assert sorted(s[:4] for s in world.samples()) == sorted(s[:4] for s in join_whole(kept))


def test_an_idle_partition_goes_on_by_the_clock_and_never_faster(make_world) -> None:
    world = make_world(partitions=1)
    clock = world.clock = Clock()
    shown, click = event("shown", 0, 1, 1), event("click", 500, 1, 1, "click")
    running = Running(world.loop(end="never", lateness_seconds=2, idle_seconds=5))
    world.send([shown, click])
    wait_until(lambda: running.count() == 2)

    def watermark(seconds: float) -> int:
        clock.time += seconds
        seen = running.loop._idle_checked
        wait_until(lambda: running.loop._idle_checked > seen + 1)  # one whole round since
        return running.loop._lives[0].unit.watermark_ms - START

    assert watermark(4) == 500 - 2000, "not idle yet"
    assert watermark(2) == 500 - 2000 + 6000
    assert watermark(5) == 500 - 2000 + 11_000
    assert world.samples() == [], "10,000 ms after the impression: open until the watermark is past"
    watermark(1)
    wait_until(lambda: world.samples() == [("shown", START, 1, "click", 0)])
    # A late comer, in time by the events alone, is behind the clock: stale, in the next life too.
    world.send([event("late", 400, 1, 2)])
    wait_until(lambda: running.count("stale") == 1)
    running.stop()
    world.send([event("new", 20_000, 1, 3), event("new click", 20_001, 1, 3, "click")])
    (progress,) = world.join(end="closed", lateness_seconds=2, idle_seconds=5)
    assert [name for name, *_ in world.samples()] == ["shown", "new"]
    assert (progress.totals["events"], progress.totals["stale"]) == (4, 1)


def test_a_partition_without_any_record_follows_the_others_once_idle(make_world) -> None:
    world = make_world(inputs=2, partitions=1)
    clock = world.clock = Clock()
    world.send([event("a", 0, 1, 1), event("a click", 1, 1, 1, "click"), event("b", 20_000, 1, 2)])
    running = Running(world.loop(end="never", lateness_seconds=2, idle_seconds=5))
    wait_until(lambda: running.count() == 3)
    assert running.loop._lives[0].unit.watermark_ms == NEVER
    clock.time += 6
    wait_until(lambda: [name for name, *_ in world.samples()] == ["a"])
    running.stop()


def test_a_partition_that_lags_behind_is_read_first(make_world) -> None:
    # A day of impressions of which each has its click in the other topic: were impressions read
    # as fast as can be, all would be open at once.
    world = make_world(inputs=2, partitions=1)
    log = [event(f"i{n}", n * 10_000, 1, n) for n in range(8640)]
    clicks = [event(f"c{n}", n * 10_000 + 5000, 1, n, "click") for n in range(8640)]
    world.send(log, topic=0)
    world.send(clicks, topic=1)
    open_events = []
    loop = world.loop(end="closed", commit={"every_events": 500}, lateness_seconds=2)
    make = loop._wiring.make_joiner

    def watched():
        joiner = make()
        process = joiner.process

        def noted(events, watermark_ms):
            result = process(events, watermark_ms)
            open_events.append(len(joiner.events))
            return result

        joiner.process = noted
        return joiner

    object.__setattr__(loop._wiring, "make_joiner", watched)
    (progress,) = loop.run()
    assert progress.totals["samples"] == 8640
    assert max(open_events) < 6000
