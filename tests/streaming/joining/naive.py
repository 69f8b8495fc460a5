"""The join in plain Python: row by row, once over a whole log and once a piece at a time."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import pyarrow as pa

from tests.pipeline.event_log import START, event

WINDOW_MS = 10_000
SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("timestamp_ms", pa.int64()),
        ("user_id", pa.int64()),
        ("outcomes", pa.string()),
        ("earlier", pa.int64()),  # samples that the user had before
    ]
)

Event = dict[str, Any]
Sample = tuple[str, int, int, str, int]


def key(row: Event) -> tuple[Any, ...]:
    return row["request_id"], row["user_id"], row["item_id"]


def join_whole(events: Iterable[Event], *, watermark_ms: float = float("inf")) -> list[Sample]:
    """Returns the samples of a log whose windows closed before a watermark."""
    events = list(events)
    impressions = [row for row in events if row["action"] == "impression"]
    found: dict[str, list[str]] = {}
    rows = {row["event_id"]: row for row in impressions}
    for row in events:
        if row["action"] == "impression":
            continue
        time = row["timestamp_ms"]
        before = [
            (each["timestamp_ms"], each["event_id"])
            for each in impressions
            if key(each) == key(row) and time - WINDOW_MS <= each["timestamp_ms"] <= time
        ]
        if before:
            found.setdefault(max(before)[1], []).append(row["event_id"])
    closed = [name for name in found if rows[name]["timestamp_ms"] + WINDOW_MS < watermark_ms]
    closed.sort(key=lambda name: (rows[name]["timestamp_ms"], name))
    earlier: Counter[int] = Counter()
    samples: list[Sample] = []
    for name in closed:
        row, user = rows[name], rows[name]["user_id"]
        outcomes = ",".join(sorted(found[name]))
        samples.append((name, row["timestamp_ms"], user, outcomes, earlier[user]))
        earlier[user] += 1
    return samples


class Result:
    def __init__(self, samples: pa.Table, counts: dict[str, int]) -> None:
        self.samples = samples
        self.counts = counts


class NaiveJoiner:
    """The same, piece by piece; with `remembers`, its snapshot holds what users had before."""

    def __init__(self, *, remembers: bool = False) -> None:
        self.remembers = remembers
        self.restore(None, -(2**62))

    def process(self, events: pa.Table, watermark_ms: int) -> Result:
        for row in events.select([*EVENT_COLUMNS]).to_pylist():
            assert row["timestamp_ms"] >= self.watermark_ms, "an event older than the watermark"
            self.events.append(row)
        assert watermark_ms >= self.watermark_ms, "a watermark that goes back"
        before, self.watermark_ms = self.watermark_ms, watermark_ms
        self.events = [row for row in self.events if row["timestamp_ms"] >= before - 3 * WINDOW_MS]
        rows = []
        closed = 0
        for row in self.events:
            closes = row["timestamp_ms"] + WINDOW_MS
            if row["action"] == "impression" and before <= closes < watermark_ms:
                closed += closes >= self.closed_to_ms
        for name, time, user, outcomes, _ in join_whole(self.events, watermark_ms=watermark_ms):
            if time + WINDOW_MS < max(before, self.closed_to_ms):
                continue
            rows.append((name, time, user, outcomes, self.earlier[user] if self.remembers else 0))
            self.earlier[user] += 1
        columns = list(zip(*rows, strict=True)) or [[]] * len(SCHEMA)
        return Result(pa.table([*map(list, columns)], SCHEMA), {"impressions": closed})

    def snapshot(self) -> bytes:
        return json.dumps(sorted(self.earlier.items())).encode() if self.remembers else b""

    def restore(self, snapshot: bytes | None, closed_to_ms: int) -> None:
        self.events: list[Event] = []
        self.earlier: Counter[int] = Counter(dict(json.loads(snapshot)) if snapshot else {})
        self.watermark_ms = -(2**62)
        self.closed_to_ms = closed_to_ms


EVENT_COLUMNS = ("event_id", "request_id", "timestamp_ms", "user_id", "item_id", "action")


def random_log(
    count: int, *, seed: int, users: int = 20, step_ms: int = 40, disorder_ms: int = 2000
) -> list[Event]:
    """Impressions and outcomes in an order that is wrong by at most `disorder_ms`.

    Outcomes come in and after the window, before their impression, without any, and twice.
    """
    draw = random.Random(seed)
    made: list[tuple[float, Event]] = []
    for number in range(count):
        user, item = draw.randrange(users), draw.randrange(5)
        time = number * step_ms
        rows = [event(f"{seed}-{number}", time, user, item)]
        for outcome in range(draw.choice([0, 0, 1, 1, 2])):
            later = time + draw.randrange(-500, 2 * WINDOW_MS)
            name = f"{seed}-{number}-{outcome}"
            rows.append(event(name, max(0, later), user, item, draw.choice(["click", "cart"])))
        made += [(row["timestamp_ms"] - START + draw.random() * disorder_ms, row) for row in rows]
    return [row for _, row in sorted(made, key=lambda pair: pair[0])]


def not_stale(records: Iterable[Sequence[Event]], *, lateness_ms: int) -> tuple[list[Event], int]:
    """Returns the events of one topic-partition that are in time, and how many are not."""
    newest, kept, stale = -(2**62), [], 0
    for rows in records:
        watermark = newest - lateness_ms
        for row in rows:
            newest = max(newest, row["timestamp_ms"])
            if row["timestamp_ms"] >= watermark:
                kept.append(row)
            else:
                stale += 1
    return kept, stale
