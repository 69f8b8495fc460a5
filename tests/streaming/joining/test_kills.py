"""Processes that die, and that are told to end. `python -m tests.streaming.joining.kills`: more."""

from __future__ import annotations

import signal

import pytest

from tests.streaming.joining.kills import drill, start
from tests.streaming.joining.naive import join_whole, random_log
from tests.streaming.joining.world import totals
from tests.waiting import wait_until

pytestmark = [pytest.mark.kafka, pytest.mark.slow]


def test_kills_lose_nothing_and_double_nothing(make_world) -> None:
    found = drill(make_world(), kills=5, seed=2, events=3000)
    assert found["commits"] > 8
    assert found["kills_amid_events"] > 0


def test_sigterm_commits_and_ends_with_0_and_who_is_taken_over_ends_with_2(make_world) -> None:
    world, log = make_world(), random_log(600, seed=15)
    world.remembers = True
    first = start(world, "first")
    world.send(log[:500])
    wait_until(lambda: (world.folder / "snapshots").exists() and len(world.samples()) > 5)
    second = start(world, "second")
    _, said = first.communicate(timeout=60)
    assert first.returncode == 2
    assert "process second has taken over unit" in said
    assert "Traceback" not in said
    world.send(log[500:])
    wait_until(lambda: totals(world.progress().values())["events"] == len(log))
    second.send_signal(signal.SIGTERM)
    assert second.wait(30) == 0, second.communicate()
    world.join(end="closed")
    assert sorted(world.samples()) == sorted(join_whole(log))
