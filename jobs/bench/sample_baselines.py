"""The samples of synthetic events, made in two other ways: to compare speed and to check results.

Both know the rules of `jobs.bench.synthetic.synthetic_specification` only: clicks label a scenario,
but plays of half the duration label `video`; an outcome without impression is dropped.
"""

from __future__ import annotations

import collections
import operator
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import apache_beam as beam
import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from apache_beam.options.pipeline_options import PipelineOptions

Row = dict[str, Any]

_PLAY_SHARE: Final = 0.5

POSITIVES_SQL: Final = """
create temp table event as
    select distinct on (event_id, user_id) * from read_parquet($logs);
create temp table impression as select * from event where action = 'impression';
create temp table positive as
    with joined as (
        select i.*, o.action as taken, o.timestamp_ms as outcome_ms,
               o.play_seconds::double / nullif(o.duration_seconds::double, 0) as share
        from (select * from event where action <> 'impression') o
        asof join impression i
            on o.request_id = i.request_id and o.user_id = i.user_id and o.item_id = i.item_id
            and o.timestamp_ms >= i.timestamp_ms
        where o.timestamp_ms <= i.timestamp_ms + $window_ms
    )
    select event_id, timestamp_ms, user_id, item_id, scenario, min(outcome_ms) as outcome_ms,
           max(case when scenario = 'video' then least(share, 1) else 1 end)::float as reward
    from joined
    where case when scenario = 'video' then taken = 'play' and share >= $play_share
               else taken = 'click' end
    group by all;
"""

HISTORY_SQL: Final = """
create temp table known as
    select user_id, outcome_ms,
           list(item_id) over (
               partition by user_id order by outcome_ms, timestamp_ms, event_id
               rows between $before preceding and current row
           ) as items
    from positive
    qualify row_number() over (
        partition by user_id, outcome_ms order by timestamp_ms desc, event_id desc
    ) = 1;
create temp table sample as
    select p.event_id, p.timestamp_ms, p.user_id, p.item_id, p.scenario, p.reward,
           coalesce(k.items, []) as history_item_id
    from positive p
    asof left join known k on p.user_id = k.user_id and p.timestamp_ms > k.outcome_ms;
"""

_WRITE_SQL = """
copy (
    select *, strftime(make_timestamp(timestamp_ms * 1000), '%Y-%m-%d') as dt
    from sample order by timestamp_ms, event_id
) to '{out}' (format parquet, partition_by (dt), compression zstd, overwrite);
"""


def connect_with_samples(
    logs: str, *, window_ms: int, length: int, threads: int
) -> duckdb.DuckDBPyConnection:
    """Returns a DuckDB connection with the tables `impression`, `positive` and `sample`.

    Args:
        logs: Glob of Parquet logs.
        window_ms: Join window.
        length: Of the history.
        threads: Of DuckDB.
    """
    connection = duckdb.connect(config={"threads": threads})
    values = {
        "$logs": f"'{logs}'",
        "$window_ms": str(window_ms),
        "$play_share": str(_PLAY_SHARE),
        "$before": str(length - 1),
    }
    sql = POSITIVES_SQL + HISTORY_SQL
    for name, value in values.items():
        sql = sql.replace(name, value)
    connection.execute(sql)
    return connection


def run_duckdb(logs: str, out: Path, *, window_ms: int, length: int, threads: int) -> None:
    """Makes sample files with DuckDB."""
    with connect_with_samples(logs, window_ms=window_ms, length=length, threads=threads) as duck:
        duck.execute(_WRITE_SQL.format(out=out))


def run_row_beam(logs: str, out: Path, *, window_ms: int, length: int) -> None:
    """Makes one sample file the usual way in Beam: a row is an element, grouped by user."""
    options = PipelineOptions(["--runner=FnApiRunner"])
    with beam.Pipeline(options=options) as root:
        _ = (
            root
            | beam.io.ReadFromParquet(logs)
            | "KeyByUser" >> beam.Map(lambda row: (row["user_id"], row))
            | beam.GroupByKey()
            | "Samples" >> beam.FlatMap(_user_samples, window_ms=window_ms, length=length)
            | beam.io.WriteToParquet(str(out / "samples"), _SAMPLE_SCHEMA, num_shards=1)
        )


_SAMPLE_SCHEMA = pa.schema(
    {
        "event_id": pa.string(),
        "timestamp_ms": pa.int64(),
        "user_id": pa.int64(),
        "item_id": pa.int64(),
        "scenario": pa.string(),
        "reward": pa.float32(),
        "history_item_id": pa.list_(pa.int64()),
    }
)


def _user_samples(user: tuple[int, Iterable[Row]], *, window_ms: int, length: int) -> Iterator[Row]:
    unique = {row["event_id"]: row for row in user[1]}.values()
    shown = collections.defaultdict(list)
    for row in unique:
        if row["action"] == "impression":
            shown[row["request_id"], row["item_id"]].append(row)
    positives: dict[str, Row] = {}
    for outcome in unique:
        if outcome["action"] != "impression":
            _take(outcome, shown[outcome["request_id"], outcome["item_id"]], window_ms, positives)
    known = sorted(
        positives.values(), key=operator.itemgetter("outcome_ms", "timestamp_ms", "event_id")
    )
    for sample in known:
        before = [p["item_id"] for p in known if p["outcome_ms"] < sample["timestamp_ms"]]
        yield {name: sample[name] for name in _SAMPLE_SCHEMA.names[:-1]} | {
            "history_item_id": before[-length:]
        }


def _take(outcome: Row, shown: list[Row], window_ms: int, positives: dict[str, Row]) -> None:
    time = outcome["timestamp_ms"]
    earlier = [row for row in shown if row["timestamp_ms"] <= time]
    if not earlier:
        return
    impression = max(earlier, key=operator.itemgetter("timestamp_ms", "event_id"))
    reward = _reward(impression["scenario"], outcome)
    if time > impression["timestamp_ms"] + window_ms or reward is None:
        return
    known = positives.setdefault(
        impression["event_id"], {**impression, "outcome_ms": time, "reward": 0.0}
    )
    known["outcome_ms"] = min(known["outcome_ms"], time)
    known["reward"] = max(known["reward"], reward)


def _reward(scenario: str, outcome: Row) -> float | None:
    if scenario != "video":
        return 1.0 if outcome["action"] == "click" else None
    if outcome["action"] != "play" or not outcome["duration_seconds"]:
        return None
    share = outcome["play_seconds"] / outcome["duration_seconds"]
    return min(share, 1.0) if share >= _PLAY_SHARE else None


def checksum(files: str) -> tuple[int, int]:
    """Returns the number of samples in Parquet files and a checksum of all their values."""
    rows = duckdb.sql(
        "select count(*), coalesce(bit_xor(hash(event_id, timestamp_ms, user_id, item_id,"
        f" scenario, reward, history_item_id)), 0) from read_parquet('{files}')"
    ).fetchall()
    return int(rows[0][0]), int(rows[0][1])


def write_logs(events: pa.Table, folder: Path, *, num_files: int) -> str:
    """Writes events as a few Parquet files and returns their glob."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = -(-events.num_rows // num_files)
    for number in range(num_files):
        path = folder / f"events-{number:03d}.parquet"
        pq.write_table(events.slice(number * rows, rows), path, row_group_size=1 << 18)
    return str(folder / "events-*.parquet")
