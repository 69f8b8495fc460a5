"""What is stale and when windows close, against hand-made logs."""

from __future__ import annotations

import json

import pytest
from kafka import KafkaProducer

from streaming.joining import kafka_input
from streaming.joining import loop as loop_module
from streaming.joining.step import FOREVER, NEVER
from streaming.joining.unit import Unit
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


def look_twice(running: Running) -> None:
    """Waits until a whole round of looking for idle partitions, and a commit, are over."""
    for _ in range(2):
        seen = running.loop._idle_checked
        wait_until(lambda: running.loop._idle_checked > seen)  # noqa: B023


def test_an_idle_partition_goes_on_by_the_clock_and_never_faster(make_world) -> None:
    world = make_world(partitions=1)
    clock = world.clock = Clock()
    shown, click = event("shown", 0, 1, 1), event("click", 500, 1, 1, "click")
    running = Running(world.loop(end="never", lateness_seconds=2, idle_seconds=5))
    world.send([shown, click])
    wait_until(lambda: running.count() == 2)

    def watermark() -> int:
        return running.loop._lives[0].unit.watermark_ms - START

    clock.time += 4
    look_twice(running)
    assert watermark() == 500 - 2000, "not idle yet"
    for passed in (6, 11):
        clock.time = START / 1000 + passed
        wait_until(lambda: watermark() >= 500 - 2000 + 1000 * passed)  # noqa: B023
        look_twice(running)
        assert watermark() == 500 - 2000 + 1000 * passed
    assert world.samples() == [], "10,000 ms after the impression: open until the watermark is past"
    clock.time += 1
    wait_until(lambda: world.samples() == [("shown", START, 1, "click", 0)])
    # A late comer, in time by the events alone, is behind the clock: stale, in the next life too.
    world.send([event("late", 400, 1, 2)])
    wait_until(lambda: running.count("stale") == 1)
    running.stop()
    world.send([event("new", 20_000, 1, 3), event("new click", 20_001, 1, 3, "click")])
    (progress,) = world.join(end="closed", lateness_seconds=2, idle_seconds=5)
    assert [name for name, *_ in world.samples()] == ["shown", "new"]
    assert (progress.totals["events"], progress.totals["stale"]) == (4, 1)


def test_a_partition_with_an_open_transaction_is_not_idle(make_world) -> None:
    world = make_world(partitions=1)
    clock = world.clock = Clock()
    running = Running(world.loop(end="never", lateness_seconds=2, idle_seconds=5))
    world.send([event("a", 0, 1, 1)])
    wait_until(lambda: running.count() == 1)
    producer = KafkaProducer(bootstrap_servers=world.kafka, transactional_id=world.name)
    producer.init_transactions()
    producer.begin_transaction()
    value = json.dumps(event("a click", 1, 1, 1, "click")).encode()
    producer.send(world.inputs[0], value, partition=0).get(30)
    clock.time += 60
    look_twice(running)
    assert running.loop._lives[0].unit.watermark_ms == START - 2000
    producer.commit_transaction()
    producer.close()
    wait_until(lambda: running.count() == 2)
    clock.time += 60
    wait_until(lambda: [name for name, *_ in world.samples()] == ["a"])
    running.stop()


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


def test_a_partition_that_has_ended_holds_no_other_back_where_all_is_closed(make_world) -> None:
    """Or all of the others would be held in memory until the end."""
    world, log = make_world(inputs=2, partitions=1), random_log(2_000, seed=12)
    world.send(log)
    loop = world.loop(end="closed", commit={"every_seconds": 0.001})
    opened, seen = Unit.join, []

    def watched(unit: Unit, *, final: bool = False) -> None:
        opened(unit, final=final)
        seen.append((unit.watermark_ms, final))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Unit, "join", watched)
        patch.setattr(loop_module, "_IDLE_SECONDS", 0.0)
        patch.setattr(kafka_input, "_POLL_RECORDS", 100)
        loop.run()
    assert sum(NEVER < watermark < FOREVER for watermark, _ in seen) > 2
    assert sorted(s[:4] for s in world.samples()) == sorted(s[:4] for s in join_whole(log))
