"""The samples of a join are those of its whole log, each once, however it was cut into lives."""

from __future__ import annotations

import pytest
from kafka import KafkaProducer

from tests.streaming.joining.naive import join_whole, random_log
from tests.streaming.joining.world import Running, totals
from tests.waiting import wait_until

pytestmark = pytest.mark.kafka

LIVE = {"end": "never", "commit": {"every_seconds": 0.05}}


@pytest.mark.parametrize("rows", [None, 7])
def test_a_closed_join_gives_the_samples_of_its_whole_log(make_world, rows) -> None:
    world, log = make_world(), random_log(600, seed=1)
    world.remembers = True
    world.send(log, rows=rows)
    found = totals(world.join(end="closed", commit={"every_events": 100}))
    samples = world.samples()
    assert len(samples) > 200
    assert sorted(samples) == sorted(join_whole(log))
    assert (found["events"], found["samples"]) == (len(log), len(samples))


@pytest.mark.parametrize("remembers", [False, True])
def test_lives_go_on_where_the_last_one_ended(make_world, remembers) -> None:
    world, log = make_world(inputs=2), random_log(900, seed=2)
    world.remembers = remembers
    sent, lives = [], 6
    for life in range(lives):
        part = log[life * len(log) // lives : (life + 1) * len(log) // lives]
        for topic, shown in enumerate([True, False]):
            own = [row for row in part if (row["action"] == "impression") == shown]
            world.send(own, topic=topic, rows=(None, 5)[life % 2])
        sent += part
        last = world.join(end="closed" if life == lives - 1 else "caught-up", life=f"life {life}")
        samples = world.samples()
        for progress in last:
            own = [row for row in sent if row["user_id"] % 2 == progress.unit]
            expected = join_whole(own, watermark_ms=progress.watermark_ms)
            found = [sample for sample in samples if sample[2] % 2 == progress.unit]
            assert sorted(name for name, *_ in found) == sorted(name for name, *_ in expected)
    expected = join_whole(log)
    samples = world.samples()
    assert sorted(each[:4] for each in samples) == sorted(each[:4] for each in expected)
    if remembers:
        assert sorted(samples) == sorted(expected)
    found = totals(world.progress().values())
    assert (found["events"], found["samples"]) == (len(log), len(expected))
    assert "stale" not in found
    with_name = {progress.snapshot for progress in world.progress().values()}
    files = {path.stem for path in (world.folder / "snapshots").rglob("*.snapshot")}
    assert with_name - {None} == files
    assert bool(files) == remembers


def test_a_running_join_stops_when_told_and_another_life_goes_on(make_world) -> None:
    world, log = make_world(), random_log(900, seed=3)
    thirds = [log[part * len(log) // 3 : (part + 1) * len(log) // 3] for part in range(3)]
    before = 0
    for part, events in enumerate(thirds):
        running = Running(world.loop(life=f"life {part}", **LIVE))
        for start in range(0, len(events), 100):
            world.send(events[start : start + 100])
        enough = before + len(events) // 2
        wait_until(lambda: running.count() > enough)  # noqa: B023
        # Amid its work: what it has read is committed, what it has not is the next one's.
        before = totals(running.stop())["events"]
    world.join(end="closed")
    assert sorted(s[:4] for s in world.samples()) == sorted(s[:4] for s in join_whole(log))
    assert totals(world.progress().values())["events"] == len(log)


def test_two_joiners_at_once_the_first_ends_and_nothing_is_doubled(make_world) -> None:
    world, log = make_world(), random_log(900, seed=4)
    first = Running(world.loop(life="first", **LIVE))
    half = len(log) // 2
    world.send(log[:half])
    wait_until(lambda: first.count() > half // 2)
    second = Running(world.loop(life="second", **LIVE))
    for start in range(half, len(log), 50):
        world.send(log[start : start + 50])
    first.wait()
    assert "process second has taken over unit" in str(first.error)
    assert "one process for each unit" in str(first.error)
    wait_until(lambda: second.count() == len(log))
    second.stop()
    world.join(end="closed")
    assert sorted(s[:4] for s in world.samples()) == sorted(s[:4] for s in join_whole(log))
    assert totals(world.progress().values())["samples"] == len(join_whole(log))


def test_processes_share_the_units(make_world) -> None:
    world, log = make_world(partitions=3), random_log(400, seed=5)
    world.send(log)
    units = [{"units": "0/2"}, {"units": "1/2"}]
    counts = [[p.unit for p in world.join(end="closed", input=each)] for each in units]
    assert counts == [[0, 2], [1]]
    assert sorted(s[:4] for s in world.samples()) == sorted(s[:4] for s in join_whole(log))


def test_what_a_dead_life_left_open_is_never_seen(make_world, monkeypatch) -> None:
    world, log = make_world(partitions=1), random_log(600, seed=6)
    world.send(log)
    loop = world.loop(life="dead", end="closed")
    commits = []
    commit = KafkaProducer.commit_transaction

    def dies(producer: KafkaProducer) -> None:
        commits.append(1)
        if len(commits) == 2:  # the first one takes the unit over
            raise SystemExit("killed before its commit")
        commit(producer)

    with monkeypatch.context() as patched, pytest.raises(SystemExit, match="killed before"):
        patched.setattr(KafkaProducer, "commit_transaction", dies)
        patched.setattr(KafkaProducer, "abort_transaction", lambda _producer: None)
        loop.run()
    left = world.records(world.output, isolation="read_uncommitted")
    assert left, "the fault did not happen: nothing was sent"
    world.join(end="closed", life="next")
    assert sorted(s[:4] for s in world.samples()) == sorted(s[:4] for s in join_whole(log))
    assert totals(world.progress().values())["samples"] == len(join_whole(log))
