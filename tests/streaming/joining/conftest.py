"""Fixtures of the join's tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from streaming.joining import lane
from tests.streaming.joining.world import World


@pytest.fixture
def make_world(
    kafka: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., World]]:
    # Replays of small logs, too, begin in the middle of them.
    monkeypatch.setattr(lane, "_SEGMENT_RECORDS", 16)
    made: list[World] = []

    def make(*, at: str = kafka, **options: Any) -> World:
        made.append(World(at, topic, tmp_path, **options))
        return made[-1]

    yield make
    for world in made:
        world.close()
