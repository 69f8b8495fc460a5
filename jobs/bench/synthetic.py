"""Synthetic event logs: popular items and busy users (Zipf), duplicates, late and lost outcomes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema as s
from pipeline.specification import Specification

START_MS: Final = 1_767_225_600_000
"""2026-01-01T00:00:00Z"""

SCENARIOS: Final = ("feed", "search", "video", "home", "detail")
_SCENARIO_SHARES = (0.4, 0.2, 0.15, 0.15, 0.1)
_OUTCOME_SHARE = 0.3
_LATE_SHARE, _EARLY_SHARE, _ORPHAN_SHARE, _DUPLICATE_SHARE = 0.03, 0.01, 0.01, 0.02
_MEAN_DELAY_MS = 60_000.0
_EVENTS_PER_FILE = 2_000_000

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """How large a synthetic world is.

    Attributes:
        num_users: Distinct users at most.
        num_items: Distinct items at most.
        days: Length of the log.
        window_ms: Join window, after which outcomes are late.
    """

    num_users: int = 200_000
    num_items: int = 100_000
    days: int = 3
    window_ms: int = 3_600_000


def synthetic_specification(*, statistics: bool = False) -> Specification:
    """Returns a specification for these events: four scenarios by clicks, one by play share."""
    table = {"buckets": 1024, "dim": 8}
    candidate = [{"name": s.ITEM_ID, "kind": "id", "table": "items"}]
    if statistics:
        candidate += [
            {"name": name, "kind": "number"} for name in (s.ITEM_IMPRESSIONS, s.ITEM_POSITIVES)
        ]
    return Specification.model_validate(
        {
            "name": "synthetic",
            "scenarios": list(SCENARIOS),
            "labels": {"video": {"play_share": 0.5}},
            "tables": {"users": table, "items": table},
            "features": {
                "query": [
                    {"name": s.USER_ID, "kind": "id", "table": "users"},
                    {"name": s.HISTORY_ITEM_ID, "kind": "ids", "table": "items"},
                ],
                "candidate": candidate,
                "context": [{"name": s.SCENARIO, "kind": "id", "table": "users"}],
            },
        }
    )


def make_events(
    num_events: int, *, seed: int, world: World | None = None, chunk: tuple[int, int] = (0, 1)
) -> pa.Table:
    """Returns a log in no order, equal for equal arguments.

    Args:
        num_events: Number of rows, duplicates included.
        seed: Of all that is random.
        world: Its size.
        chunk: Which of how many stretches of time the impressions fall into; all chunks together,
            of equal sizes, are one log, in which users and items are equally popular throughout.

    Returns:
        [num_events] rows of the fixed event columns.
    """
    world = world or World()
    rng = np.random.default_rng([seed, chunk[0]] if chunk[1] > 1 else seed)
    num_duplicates = int(num_events * _DUPLICATE_SHARE)
    num_unique = num_events - num_duplicates
    num_impressions = int(np.ceil(num_unique / (1 + _OUTCOME_SHARE)))
    shown = _impressions(num_impressions, rng=rng, world=world, chunk=chunk, seed=seed)
    source = rng.choice(num_impressions, num_unique - num_impressions, replace=False)
    taken = _outcomes(shown, source, rng=rng, world=world)
    columns = {name: np.concatenate([shown[name], taken[name]]) for name in shown}
    order = rng.permutation(
        np.concatenate([np.arange(num_unique), rng.choice(num_unique, num_duplicates)])
    )
    numbers = order + chunk[0] * num_unique
    return _to_table({name: column[order] for name, column in columns.items()}, numbers)


def write_synthetic_logs(
    folder: Path, num_events: int, *, seed: int, world: World | None = None
) -> str:
    """Writes a log as Parquet files, each of a stretch of time; returns their glob."""
    num_files = max(4, round(num_events / _EVENTS_PER_FILE))
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num_files):
        rows = num_events // num_files
        events = make_events(rows, seed=seed, world=world, chunk=(number, num_files))
        pq.write_table(events, folder / f"events-{number:04d}.parquet", row_group_size=1 << 18)
    return str(folder / "events-*.parquet")


def _zipf(size: int, count: int, rng: np.random.Generator, names: np.random.Generator) -> Ints:
    weights = 1.0 / np.arange(1, size + 1)
    ranks = np.searchsorted(np.cumsum(weights / weights.sum()), rng.random(count))
    return names.permutation(size)[np.minimum(ranks, size - 1)].astype(np.int64)


def _impressions(
    count: int, *, rng: np.random.Generator, world: World, chunk: tuple[int, int], seed: int
) -> dict[str, npt.NDArray[Any]]:
    number, num_chunks = chunk
    names = np.random.default_rng([seed, 1])  # which user, which item is the most popular
    length = world.days * 86_400_000 // num_chunks
    requests = np.sort(rng.integers(0, length - 3, count // 4 + 1)).repeat(4)[:count]
    times = requests + np.arange(count) % 4  # no two of one item at one time
    return {
        s.REQUEST_ID: number * count + np.arange(count) // 4,
        s.TIMESTAMP_MS: START_MS + number * length + times,
        s.USER_ID: _zipf(world.num_users, count // 4 + 1, rng, names).repeat(4)[:count],
        s.ITEM_ID: _zipf(world.num_items, count, rng, names),
        s.SCENARIO: rng.choice(len(SCENARIOS), count, p=_SCENARIO_SHARES),
        s.ACTION: np.zeros(count, np.int64),
        s.PLAY_SECONDS: np.full(count, np.nan),
        s.DURATION_SECONDS: np.full(count, np.nan),
        s.POSITION: np.arange(count) % 4,
    }


def _outcomes(
    shown: dict[str, npt.NDArray[Any]],
    source: Ints,
    *,
    rng: np.random.Generator,
    world: World,
) -> dict[str, npt.NDArray[Any]]:
    taken = {name: column[source].copy() for name, column in shown.items()}
    count = len(source)
    fate = rng.random(count)
    delay = rng.exponential(_MEAN_DELAY_MS, count).astype(np.int64)
    is_late = fate < _LATE_SHARE
    is_early = (fate >= _LATE_SHARE) & (fate < _LATE_SHARE + _EARLY_SHARE)
    is_orphan = fate > 1 - _ORPHAN_SHARE
    delay = np.where(is_late, world.window_ms + 1 + delay, np.where(is_early, -1 - delay, delay))
    taken[s.TIMESTAMP_MS] = taken[s.TIMESTAMP_MS] + delay
    taken[s.REQUEST_ID] = np.where(is_orphan, -1 - taken[s.REQUEST_ID], taken[s.REQUEST_ID])
    is_play = taken[s.SCENARIO] == SCENARIOS.index("video")
    other = rng.choice([1, 2, 4], count, p=[0.8, 0.1, 0.1])
    taken[s.ACTION] = np.where(is_play, s.ACTIONS.index("play"), other)
    duration = rng.uniform(10, 300, count).round()
    taken[s.DURATION_SECONDS] = np.where(is_play, duration, np.nan)
    taken[s.PLAY_SECONDS] = np.where(is_play, (duration * rng.random(count) * 1.2).round(), np.nan)
    return taken


def _to_table(columns: dict[str, npt.NDArray[Any]], numbers: Ints) -> pa.Table:
    requests = pa.array(columns[s.REQUEST_ID]).cast(pa.string())
    arrays = {
        s.EVENT_ID: pa.array(numbers).cast(pa.string()),
        s.REQUEST_ID: requests,
        s.TIMESTAMP_MS: pa.array(columns[s.TIMESTAMP_MS], pa.int64()),
        s.USER_ID: pa.array(columns[s.USER_ID], pa.int64()),
        s.ITEM_ID: pa.array(columns[s.ITEM_ID], pa.int64()),
        s.SCENARIO: pa.array(SCENARIOS).take(pa.array(columns[s.SCENARIO])),
        s.ACTION: pa.array(s.ACTIONS).take(pa.array(columns[s.ACTION])),
        s.PLAY_SECONDS: pa.array(columns[s.PLAY_SECONDS], pa.float32(), from_pandas=True),
        s.DURATION_SECONDS: pa.array(columns[s.DURATION_SECONDS], pa.float32(), from_pandas=True),
        s.POSITION: pa.array(columns[s.POSITION], pa.int64()),
    }
    return pa.table(arrays)
