"""Topics that do not fit, are gone, were made again, or have lost what is needed."""

from __future__ import annotations

import pytest
from kafka import TopicPartition

from pipeline.schema import InputError
from streaming.joining import kafka_output, loop
from streaming.joining.progress import Snapshots
from streaming.source import SourceUnavailableError
from tests.kafka.topics import create
from tests.streaming.joining.naive import join_whole, random_log
from tests.streaming.joining.world import Running, World, totals
from tests.waiting import wait_until

pytestmark = pytest.mark.kafka

LIVE = {"end": "never", "commit": {"every_seconds": 0.05}}


def test_a_closed_unit_is_not_joined_again(make_world) -> None:
    world = make_world()
    world.send(random_log(50, seed=9))
    before = world.join(end="closed")
    with pytest.raises(InputError, match=r"join.end: found that unit 0 .* closed for good"):
        world.join()
    after = world.progress()
    assert [after[p.unit].totals for p in before] == [p.totals for p in before]


def test_topics_must_have_equal_numbers_of_partitions(make_world) -> None:
    world = make_world()
    create(world.admin, world.output, 3)
    with pytest.raises(
        InputError, match=r"join.output.topic: .* 3 partitions; expected 2, as many"
    ):
        world.join()
    create(world.admin, f"{world.name}-other", 3)
    topics = [*world.inputs, f"{world.name}-other"]
    with pytest.raises(
        InputError, match=r"-in0 with 2, .*-other with 3 partitions; expected equal"
    ):
        world.join(input={"topics": topics})


def test_an_output_that_is_not_there_is_made_only_if_wanted(make_world) -> None:
    world = make_world()
    with pytest.raises(InputError, match=r"join.output.topic: found no topic .*-out .*create=true"):
        world.join(output={"create": False})
    world.join()
    (described,) = world.admin.describe_topics([world.output])
    assert len(described["partitions"]) == 2
    with pytest.raises(InputError, match=r"found no topic nowhere"):
        world.join(rejects_topic="nowhere")


def test_a_progress_topic_that_forgets_is_refused(make_world) -> None:
    world = make_world()
    create(world.admin, f"{world.name}-group-progress", 2)
    expected = r"join.commit.topic: topic .*-progress: found cleanup.policy=delete, which forgets"
    with pytest.raises(InputError, match=expected):
        world.join()


def test_what_decides_of_samples_may_not_change(make_world) -> None:
    world = make_world()
    world.join()
    expected = r"join.lateness_seconds: found 9; expected 2.5, .* set it back"
    with pytest.raises(InputError, match=expected):
        world.join(lateness_seconds=9)
    with pytest.raises(
        InputError, match=r"join.input.units: found \[7\]; expected some of .* to 1"
    ):
        world.join(input={"units": [7]})


def test_a_topic_that_was_made_again_is_found_between_lives_and_in_one(make_world) -> None:
    world, log = make_world(), random_log(300, seed=10)
    world.send(log)
    world.join()
    before = totals(world.progress().values())
    recreate(world)
    world.send(log)
    with pytest.raises(
        InputError, match=r"join.input.topics: found topic .* was deleted and created"
    ):
        world.join()
    running = Running(world.loop(group=f"{world.name}-other", **LIVE))
    wait_until(lambda: running.count() == len(log))
    recreate(world)
    world.send(log)
    running.wait()
    assert "deleted" in str(running.error)  # found gone, or made again
    assert running.count() == len(log)
    assert totals(world.progress().values()) == before


def recreate(world: World) -> None:
    world.admin.delete_topics(world.inputs)
    wait_until(lambda: world.inputs[0] not in world.admin.list_topics())
    for topic in world.inputs:
        create(world.admin, topic, world.partitions)


@pytest.mark.parametrize(("part", "fails"), [(0.5, False), (0.97, True)])
def test_retention_may_take_what_is_closed_and_nothing_that_is_open(
    make_world, part, fails
) -> None:
    world, log = make_world(partitions=1), random_log(2000, seed=11, step_ms=100)
    world.send(log)
    (progress,) = world.join(commit={"every_events": 100})
    needed = progress.lanes[0].replay[0]
    assert 0.5 * len(log) < needed < 0.97 * len(log)
    gone = int(part * len(log))
    world.admin.delete_records({TopicPartition(world.inputs[0], 0): gone})
    if fails:
        message = rf"found offsets from {gone} on; expected them from {needed}, .*retention.ms"
        with pytest.raises(InputError, match=message):
            world.join(end="closed")
    else:
        world.join(end="closed")
        assert sorted(s[:4] for s in world.samples()) == sorted(s[:4] for s in join_whole(log))


def test_retention_that_overtakes_a_join_is_an_error(make_world) -> None:
    world, log = make_world(partitions=1), random_log(200, seed=12)
    world.send(log[:100])
    world.join()
    world.send(log[100:])
    world.admin.delete_records({TopicPartition(world.inputs[0], 0): 120})
    with pytest.raises(InputError, match="found offsets from 120 on; expected them from"):
        world.join()


def test_a_snapshot_that_is_gone_is_an_error(make_world) -> None:
    world = make_world()
    world.remembers = True
    world.send(random_log(300, seed=13))
    world.join()
    with pytest.raises(InputError, match=r"join.snapshot.directory: found none; expected a folder"):
        world.join(snapshot={"directory": None})
    for path in (world.folder / "snapshots").rglob("*.snapshot"):
        path.unlink()
    with pytest.raises(InputError, match=r"join.snapshot.directory: found no .*mount its volume"):
        world.join()
    with pytest.raises(InputError, match=r"join.snapshot.directory: found none; expected a folder"):
        world.join(group=f"{world.name}-other", snapshot={"directory": None})


def test_a_snapshot_of_a_later_life_is_left_alone(tmp_path) -> None:
    folder = Snapshots(str(tmp_path), group="g", unit=3)
    names = [folder.write(b"%d" % n, commit=n, life="host:1:abc") for n in (8, 9, 10)]
    folder.keep(names[1])
    assert [folder.read(name) for name in names[1:]] == [b"9", b"10"]
    with pytest.raises(InputError, match=names[0]):
        folder.read(names[0])


@pytest.mark.slow
def test_a_broker_that_stays_away_ends_a_join_for_it_to_be_run_again(
    own_broker, make_world, monkeypatch
) -> None:
    world = make_world(at=own_broker.bootstrap)
    monkeypatch.setattr(loop, "PATIENCE_SECONDS", 2.0)
    monkeypatch.setattr(kafka_output, "PATIENCE_SECONDS", 31.0)  # a request has 30
    running = Running(world.loop(connect_timeout_seconds=2, **LIVE))
    world.send(random_log(50, seed=16))
    wait_until(lambda: running.count() > 0)
    own_broker.kill()
    running.wait(180)
    assert isinstance(running.error, SourceUnavailableError)
    assert "ECONNREFUSED" in str(running.error)


def test_a_broker_that_stops_and_comes_back_delays_a_join_and_changes_nothing(
    own_broker, make_world
) -> None:
    world, log = make_world(at=own_broker.bootstrap), random_log(1200, seed=14)
    running = Running(world.loop(**LIVE), again=lambda: world.loop(**LIVE))
    for part, end in enumerate([own_broker.stop, own_broker.kill, None]):
        cut = log[part * len(log) // 3 : (part + 1) * len(log) // 3]
        world.send(cut)
        wait_until(lambda: running.count() > part * len(log) // 3)  # noqa: B023
        if end is not None:
            end()
            own_broker.start()
    wait_until(lambda: running.count() == len(log))
    assert running.error is None
    running.stop()
    world.join(end="closed")
    assert sorted(s[:4] for s in world.samples()) == sorted(s[:4] for s in join_whole(log))
