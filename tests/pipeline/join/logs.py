"""Random logs, random ways to cut them, and the same join once more in plain Python."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import strategies as st

from pipeline.join import histories, runs
from pipeline.join.step import FOREVER_MS
from pipeline.specification import Specification
from tests.pipeline.event_log import START, event, specification

WINDOW_MS = 10
EXPOSED = 2
Row = dict[str, Any]


def randoms() -> st.SearchStrategy[random.Random]:
    """What random logs are made with: drawn piece by piece they would be small and alike."""
    return st.integers(0, 2**32).map(random.Random)


@st.composite
def logs(draw: st.DrawFn) -> list[Row]:
    """Events in the order they arrive, some twice: ties, several impressions per key, orphans.

    Most arrive in about the order of their times, so that watermarks get on.
    """
    rng, size = draw(randoms()), draw(st.integers(1, 40))
    shown = [_place(rng) for _ in range(size)]
    rows = []
    for place in shown:
        rows.append((rng.randint(0, 70), "impression", place))
        if rng.random() < 0.7:
            delay = rng.choice([-11, -10, -1, 0, 1, 3, 5, 9, 10, 11, 19, 20, 21])
            action = rng.choice(["click", "click", "play", "cart"])
            other = place if rng.random() < 0.9 else _place(rng)
            rows.append((rows[-1][0] + delay, action, other))
    rows.sort(key=lambda row: row[0] + rng.choice([0, 0, 0, 3, 12]))
    # Ids say nothing of the order, and some name events of two users.
    names = [f"e{i // 2 if i % 3 else i}" for i in range(len(rows))]
    rng.shuffle(names)
    log: dict[tuple, Row] = {}
    for name, (time, action, (user, item, request, scenario)) in zip(names, rows, strict=True):
        row = event(
            name, time, user, item, action, scenario=scenario, request_id=request,
            play_seconds=rng.choice([None, 2.0, 6.0, 20.0]),
            duration_seconds=rng.choice([None, 0.0, 8.0, 10.0]),
        )  # fmt: skip
        log.setdefault(identity(row), row)
    arrived = list(log.values())
    for _ in range(rng.randint(0, 5)):
        position = rng.randrange(len(arrived))
        arrived.insert(position + rng.randint(1, 9), arrived[position])
    return arrived


def _place(rng: random.Random) -> tuple[int, int, str, str]:
    """User, item, request, scenario."""
    scenario = rng.choice(["feed", "feed", "video"])
    return rng.randint(1, 2), rng.randint(1, 4), rng.choice(["r", "r", "s"]), scenario


@st.composite
def cut(draw: st.DrawFn, log: list[Row]) -> list[tuple[list[Row], int]]:
    """(events, watermark) of each call: no later event is older than a watermark; all closes."""
    rng = draw(randoms())
    places = sorted(rng.randint(0, len(log)) for _ in range(rng.randint(0, 12)))
    calls, watermark = [], START - 100
    for start, end in zip([0, *places], [*places, len(log)], strict=True):
        left = [row["timestamp_ms"] for row in log[end:]]
        highest = min(left, default=START + 200)
        watermark = max(watermark, highest - rng.choice([0, 0, 0, 1, 5, 30]))
        calls.append((log[start:end], watermark))
    return [*calls, ([], rng.choice([FOREVER_MS, START + 300]))]


def event_table(rows: list[Row], spec: Specification) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=spec.event_schema)


def spec_with(*, history: int = 2, ids: str = "int64") -> Specification:
    return specification(
        history={"length": history},
        user_id=ids,
        item_id=ids,
        kinds={"retrieval": {"exposed_negatives": EXPOSED}},
    )


def with_string_ids(log: list[Row]) -> list[Row]:
    return [
        row | {"user_id": f"user {row['user_id']}", "item_id": f"item {row['item_id']}"}
        for row in log
    ]


@contextlib.contextmanager
def small_pieces() -> Iterator[None]:
    """Chunks, runs and histories as small as if the log were long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "MAX_CHUNK_ROWS", 4)
        patch.setattr(runs, "MAX_RUN_ROWS", 8)
        patch.setattr(histories, "CLEAN_ABOVE_ROWS", 1)
        yield


class Oracle:
    """The join of a whole log by loops over rows. Keys of its dicts are (event_id, user_id)."""

    def __init__(self, log: list[Row], *, orphans: str) -> None:
        self.unique: dict[tuple, Row] = {}
        for row in log:
            self.unique.setdefault(identity(row), row)
        self.shown = {i: r for i, r in self.unique.items() if r["action"] == "impression"}
        self.owner: dict[tuple, tuple] = {}
        self.fates: Counter[str] = Counter()
        for name, row in self.unique.items():
            if row["action"] != "impression":
                fate = self._decide(name, row, orphans)
                self.fates[fate] += 1
        self.impressions = set(self.shown) | set(self.owner.values())

    def _decide(self, name: tuple, row: Row, orphans: str) -> str:
        now = row["timestamp_ms"]
        same = [shown for shown in self.shown.values() if key(shown) == key(row)]
        past = [s for s in same if now - 2 * WINDOW_MS <= s["timestamp_ms"] <= now]
        if past:
            last = max(past, key=lambda s: (s["timestamp_ms"], s["event_id"]))
            if now > last["timestamp_ms"] + WINDOW_MS:
                return "late"
            self.owner[name] = identity(last)
            return "joined"
        if orphans == "keep":
            self.owner[name] = name
            return "orphan_kept"
        soon = [s for s in same if now < s["timestamp_ms"] <= now + WINDOW_MS]
        return "early" if soon else "orphan_dropped"

    def positives(self) -> dict[tuple, tuple[float, int]]:
        """Reward and outcome time of each."""
        found: dict[tuple, tuple[float, int]] = {}
        for outcome, impression in self.owner.items():
            row, shown = self.unique[outcome], self.unique[impression]
            reward = self._reward(row, shown)
            if reward is not None:
                best, first = found.get(impression, (0.0, FOREVER_MS))
                found[impression] = (max(best, reward), min(first, row["timestamp_ms"]))
        return found

    def _reward(self, row: Row, shown: Row) -> float | None:
        if shown["scenario"] == "feed":
            return 1.0 if row["action"] == "click" else None
        duration = row["duration_seconds"]
        duration = shown["duration_seconds"] if duration is None else duration
        if row["action"] != "play" or not duration or row["play_seconds"] is None:
            return None
        share = row["play_seconds"] / duration
        return min(share, 1.0) if share >= 0.5 else None

    def samples(self, *, history: int, exposed: int) -> dict[tuple, tuple]:
        """(reward, history, exposed items) of each positive."""
        positives = self.positives()
        known = sorted(
            (time, self.unique[name]["timestamp_ms"], name[0], name)
            for name, (_, time) in positives.items()
        )
        found = {}
        for name, (reward, _) in positives.items():
            now, user = self.unique[name]["timestamp_ms"], name[1]
            before = [n for time, *_, n in known if time < now and n[1] == user][-history:]
            items = [self.unique[n]["item_id"] for n in before]
            found[name] = (reward, items, self._exposed(self.unique[name], positives)[-exposed:])
        return found

    def _exposed(self, row: Row, positives: dict) -> list[Any]:
        now, request = row["timestamp_ms"], (row["request_id"], row["user_id"])
        beside = sorted(
            (r["timestamp_ms"], r["event_id"], r["item_id"], i in positives)
            for i, r in self.shown.items()
            if (r["request_id"], r["user_id"]) == request
            and now - WINDOW_MS <= r["timestamp_ms"] <= now
        )
        taken = {item for *_, item, is_taken in beside if is_taken} | {row["item_id"]}
        latest = dict.fromkeys(item for *_, item, _ in reversed(beside) if item not in taken)
        return list(latest)[::-1]


def identity(row: Row) -> tuple:
    return row["event_id"], row["user_id"]


def key(row: Row) -> tuple:
    return row["request_id"], row["user_id"], row["item_id"]
