"""The samples of a join are those of its whole log, each once, however it was cut into lives."""

from __future__ import annotations

import pytest

from tests.streaming.joining.naive import join_whole, not_stale, random_log
from tests.streaming.joining.world import World, totals

pytestmark = pytest.mark.kafka


def once_each(samples):
    assert len({name for name, *_ in samples}) == len(samples), "a sample stands there twice"
    return sorted((name, time, user, outcomes) for name, time, user, outcomes, _ in samples)


def whole(log, **options):
    return sorted((name, time, user, outcomes) for name, time, user, outcomes, _ in join_whole(log, **options))


@pytest.mark.parametrize("rows", [None, 7])
def test_a_closed_join_gives_the_samples_of_its_whole_log(make_world, rows) -> None:
    world, log = make_world(), random_log(600, seed=1)
    world.send(log, rows=rows)
    found = totals(world.join(end="closed", commit={"every_seconds": 0.05, "every_events": 100}))
    assert len(whole(log)) > 200
    assert once_each(world.samples()) == whole(log)
    assert (found["events"], found["samples"]) == (len(log), len(whole(log)))
    assert found["commits"] >= 4 or rows is not None


def test_lives_go_on_where_the_last_one_ended(make_world) -> None:
    world, log = make_world(inputs=2), random_log(900, seed=2)
    world.remembers = True
    lanes = [[r for r in log if (r["action"] == "impression") == first] for first in (True, False)]
    for part in range(6):
        for topic, rows in enumerate(lanes):
            cut = len(rows) // 6 + 1
            world.send(rows[part * cut : (part + 1) * cut], topic=topic, rows=(None, 5)[part % 2])
        end = "closed" if part == 5 else "caught-up"
        last = world.join(end=end, life=f"life {part}")
        if part < 5:
            mine = [[r for r in log if r["user_id"] % 2 == p.unit] for p in last]
            sent = {r["event_id"] for rows in lanes for r in rows[: (part + 1) * (len(rows) // 6 + 1)]}
            for progress, rows in zip(last, mine, strict=True):
                rows = [row for row in rows if row["event_id"] in sent]
                own = [s for s in world.samples() if s[2] % 2 == progress.unit]
                assert once_each(own) == whole(rows, watermark_ms=progress.watermark_ms)
    assert sorted(world.samples()) == sorted(join_whole(log))
    found = totals(world.progress().values())
    assert (found["events"], found["samples"]) == (len(log), len(join_whole(log)))
    assert found["stale"] if "stale" in found else True
