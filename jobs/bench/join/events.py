"""A SYNTHETIC stream of impressions and outcomes, and the samples that are in it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Final, Self

import duckdb
import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from jobs.bench.report import Cell
from pipeline import schema as s
from pipeline.specification import Specification

SCENARIOS: Final = ("feed", "search", "detail")
ARRIVAL_MS: Final = "arrival_ms"
"""When an event is sent, as event times are counted: from the start of the stream."""
SAMPLE_COLUMNS: Final = (s.EVENT_ID, s.TIMESTAMP_MS, s.USER_ID, s.ITEM_ID, s.SCENARIO)
"""What samples are compared by; every reward is 1."""

_SCENARIO_SHARES = (0.6, 0.25, 0.15)
_OUTCOME_SHARE = 0.3
_LATE_SHARE, _EARLY_SHARE, _ORPHAN_SHARE, _DUPLICATE_SHARE = 0.03, 0.01, 0.01, 0.02
_OTHER_ACTION_SHARE = 0.2  # outcomes that make no positive
_AGAIN_SHARE = 0.002
_ITEMS_PER_REQUEST = 4
_NUM_USERS, _NUM_ITEMS = 200_000, 100_000

Ints = npt.NDArray[np.int64]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stream:
    """How a stream flows.

    Attributes:
        rate: Events per second.
        seconds: For how long.
        window_ms: The join window; outcomes come within a fifth of it on average.
        disorder_ms: An event arrives at most so long after it happened.
        partitions: Of its topic; users are spread over them.
        seed: Of all that is random.
    """

    rate: float
    seconds: float
    window_ms: int
    disorder_ms: int
    partitions: int
    seed: int = 1

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """Returns what `dataclasses.asdict` made a dictionary of."""
        return cls(**content)


def specification(history: int = 0) -> dict[str, Any]:
    """Returns the specification of the samples: clicks are positives, in all scenarios.

    Args:
        history: With how many former positives of the user; 0: without.
    """
    table = {"buckets": 1024, "dim": 8}
    query = [{"name": s.USER_ID, "kind": "id", "table": "users"}]
    if history:
        query.append({"name": s.HISTORY_ITEM_ID, "kind": "ids", "table": "items"})
    return {
        "name": "bench-join",
        "scenarios": list(SCENARIOS),
        **({"history": {"length": history}} if history else {}),
        "tables": {"users": table, "items": table},
        "features": {
            "query": query,
            "candidate": [{"name": s.ITEM_ID, "kind": "id", "table": "items"}],
            "context": [{"name": s.SCENARIO, "kind": "id", "table": "users"}],
        },
    }


def sample_schema() -> pa.Schema:
    """Returns names and types of `SAMPLE_COLUMNS`."""
    schema = Specification.model_validate(specification()).sample_schema
    return pa.schema([schema.field(name) for name in SAMPLE_COLUMNS])


def make_stream(stream: Stream, *, start_ms: int) -> pa.Table:
    """Returns the events in the order in which they arrive; equal for equal arguments.

    Late, early, lost and repeated outcomes are among them, but no event is stale: none arrives
    after one that happened more than `disorder_ms` after it.

    Args:
        stream: How it flows.
        start_ms: Its first moment, in event time.

    Returns:
        The fixed event columns, and `ARRIVAL_MS` from 0 on.
    """
    random = np.random.default_rng(stream.seed)
    length = round(1000 * stream.seconds)
    # From a window before the start on, so that outcomes come from the start on.
    seconds = stream.seconds + stream.window_ms / 1000
    count = stream.rate * seconds / (1 + _OUTCOME_SHARE) / (1 + _DUPLICATE_SHARE)
    shown = _impressions(round(count / _ITEMS_PER_REQUEST), -stream.window_ms, length, random)
    taken = _outcomes(shown, stream.window_ms, random)
    columns = {name: np.concatenate([shown[name], taken[name]]) for name in shown}
    total = len(columns[s.TIMESTAMP_MS])
    rows = np.concatenate([np.arange(total), random.integers(0, total, _duplicates(total))])
    times = columns[s.TIMESTAMP_MS][rows]
    arrivals = times + random.integers(0, stream.disorder_ms + 1, len(rows))
    there = np.flatnonzero((arrivals >= 0) & (arrivals < length))
    order = there[np.argsort(arrivals[there], kind="stable")]
    rows, arrivals = rows[order], arrivals[order]
    actions = np.array([s.IMPRESSION, "click", "favourite"])
    return pa.table(
        {
            s.EVENT_ID: pa.array(rows).cast(pa.string()),
            s.REQUEST_ID: pa.array(columns[s.REQUEST_ID][rows]).cast(pa.string()),
            s.TIMESTAMP_MS: columns[s.TIMESTAMP_MS][rows] + start_ms,
            s.USER_ID: columns[s.USER_ID][rows],
            s.ITEM_ID: columns[s.ITEM_ID][rows],
            s.SCENARIO: pa.array(SCENARIOS).take(pa.array(columns[s.SCENARIO][rows])),
            s.ACTION: pa.array(actions).take(pa.array(columns[s.ACTION][rows])),
            ARRIVAL_MS: arrivals,
        }
    )


def _duplicates(total: int) -> int:
    return int(total * _DUPLICATE_SHARE)


def _impressions(
    requests: int, first: int, end: int, random: np.random.Generator
) -> dict[str, Ints]:
    count = requests * _ITEMS_PER_REQUEST
    users = (_NUM_USERS * random.random(requests) ** 3).astype(np.int64)  # some are busy
    place = np.arange(count) % _ITEMS_PER_REQUEST
    items = random.zipf(1.2, count) * _ITEMS_PER_REQUEST % _NUM_ITEMS + place
    again = (random.random(count) < _AGAIN_SHARE) & (place > 0)
    items = np.where(again, np.roll(items, 1), items).astype(np.int64)  # shown twice
    times = np.sort(random.integers(first, end, requests)).repeat(_ITEMS_PER_REQUEST)
    return {
        s.REQUEST_ID: np.arange(count) // _ITEMS_PER_REQUEST,
        s.TIMESTAMP_MS: times + place,
        s.USER_ID: users.repeat(_ITEMS_PER_REQUEST),
        s.ITEM_ID: items,
        s.SCENARIO: random.choice(len(SCENARIOS), requests, p=_SCENARIO_SHARES).repeat(
            _ITEMS_PER_REQUEST
        ),
        s.ACTION: np.zeros(count, np.int64),
    }


def _outcomes(
    shown: dict[str, Ints], window_ms: int, random: np.random.Generator
) -> dict[str, Ints]:
    total = len(shown[s.TIMESTAMP_MS])
    source = random.integers(0, total, int(total * _OUTCOME_SHARE))
    taken = {name: column[source] for name, column in shown.items()}
    count, fate = len(source), random.random(len(source))
    delay = 1 + random.exponential(window_ms / 5, count).astype(np.int64)
    delay = np.where(fate < _LATE_SHARE, window_ms + delay, delay)
    delay = np.where((fate >= _LATE_SHARE) & (fate < _LATE_SHARE + _EARLY_SHARE), -delay, delay)
    is_orphan = fate > 1 - _ORPHAN_SHARE
    taken[s.TIMESTAMP_MS] = taken[s.TIMESTAMP_MS] + delay
    taken[s.REQUEST_ID] = np.where(is_orphan, -1 - taken[s.REQUEST_ID], taken[s.REQUEST_ID])
    taken[s.ACTION] = np.where(random.random(count) < _OTHER_ACTION_SHARE, 2, 1)
    return taken


def json_lines(events: pa.Table) -> list[bytes]:
    """Returns each event as a JSON object."""
    frame = pl.DataFrame(pl.from_arrow(events.drop_columns([ARRIVAL_MS])))
    return frame.write_ndjson().encode().splitlines()


def naive_join(events: pa.Table, window_ms: int) -> pa.Table:
    """Returns the samples that are in events, whatever their order: plain SQL, over all of them.

    A click belongs to the last impression of its request, user and item that was not after it; of
    several at one time to the one with the greatest event_id. If it came within the window, that
    impression is a sample.

    Returns:
        `SAMPLE_COLUMNS` and no row twice.
    """
    with duckdb.connect() as database:
        database.register("sent", events)
        return database.sql(
            f"""
            WITH events AS (SELECT DISTINCT * EXCLUDE ({ARRIVAL_MS}) FROM sent),
                shown AS (SELECT * FROM events WHERE action = 'impression'),
                taken AS (SELECT * FROM events WHERE action = 'click'),
                joined AS (
                    SELECT
                        taken.event_id,
                        any_value(taken.timestamp_ms) AS at_ms,
                        max((shown.timestamp_ms, shown.event_id)) AS place
                    FROM taken JOIN shown USING (request_id, user_id, item_id)
                    WHERE shown.timestamp_ms <= taken.timestamp_ms
                    GROUP BY taken.event_id
                )
            SELECT {", ".join(f"shown.{name}" for name in SAMPLE_COLUMNS)}
            FROM shown SEMI JOIN (SELECT place[2] AS event_id FROM joined
                WHERE at_ms - place[1] <= {window_ms}) USING (event_id)
            """
        ).to_arrow_table()


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """What samples are, held against those that should be there.

    Attributes:
        expected: How many should be there.
        lost: Of those, how many are not.
        doubled: How many are there again.
        wrong: How many should not be there, or have other columns.
    """

    expected: int
    lost: int
    doubled: int
    wrong: int

    def cells(self) -> dict[str, Cell]:
        """Returns the columns that it is in a table."""
        return {
            "samples": self.expected,
            "lost": self.lost,
            "doubled": self.doubled,
            "wrong": self.wrong,
        }


def judge(found: Sequence[pa.Table], expected: pa.Table) -> Verdict:
    """Holds samples against the naive join's, both with `SAMPLE_COLUMNS`."""
    schema = sample_schema()
    there = pa.concat_tables(
        [schema.empty_table(), *(t.select(schema.names).cast(schema) for t in found)]
    )
    wanted = expected.select(schema.names).cast(schema)
    with duckdb.connect() as database:
        database.register("there", there)
        database.register("wanted", wanted)
        distinct, lost, wrong = database.execute(
            """
            SELECT
                (SELECT count(*) FROM (SELECT DISTINCT * FROM there)),
                (SELECT count(*) FROM (FROM wanted EXCEPT FROM there)),
                (SELECT count(*) FROM (FROM there EXCEPT FROM wanted))
            """
        ).fetchall()[0]
    return Verdict(
        expected=wanted.num_rows, lost=lost, doubled=there.num_rows - distinct, wrong=wrong
    )
