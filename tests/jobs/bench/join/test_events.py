"""The stream that the joiners are held against each other on, and the judge."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from jobs.bench.join.events import (
    ARRIVAL_MS,
    SAMPLE_COLUMNS,
    Stream,
    Verdict,
    json_lines,
    judge,
    make_stream,
    naive_join,
    sample_schema,
)
from jobs.bench.join.producer import _ticks, moved

WINDOW_MS = 1000
STREAM = Stream(rate=2000, seconds=20, window_ms=WINDOW_MS, disorder_ms=300, partitions=2)


def event(name: str, time_ms: int, action: str = "impression", **columns: Any) -> dict[str, Any]:
    return {
        "event_id": name,
        "request_id": "r",
        "timestamp_ms": time_ms,
        "user_id": 1,
        "item_id": 2,
        "scenario": "feed",
        "action": action,
        ARRIVAL_MS: 0,
    } | columns


def samples_in(*events: dict[str, Any]) -> list[str]:
    schema = make_stream(STREAM, start_ms=0).schema
    table = pa.Table.from_pylist(list(events), schema)
    found = naive_join(table, WINDOW_MS)
    assert found.column_names == list(SAMPLE_COLUMNS)
    backwards = naive_join(table.take(list(range(table.num_rows))[::-1]), WINDOW_MS)
    assert sorted(backwards.to_pylist(), key=str) == sorted(found.to_pylist(), key=str)
    return sorted(found["event_id"].to_pylist())


def test_a_click_makes_a_sample_until_the_window_ends_and_not_before_its_impression():
    assert samples_in(event("a", 0), event("x", 1000, "click")) == ["a"]
    assert samples_in(event("a", 0), event("x", 1001, "click")) == []
    assert samples_in(event("a", 5), event("x", 5, "click")) == ["a"]
    assert samples_in(event("a", 5), event("x", 4, "click")) == []
    assert samples_in(event("a", 0), event("x", 1, "favourite")) == []
    assert samples_in(event("a", 0), event("x", 1, "click", request_id="other")) == []


def test_a_click_belongs_to_the_last_impression_and_the_greatest_name_of_one_time():
    twice = [event("a", 0), event("b", 10)]
    assert samples_in(*twice, event("x", 500, "click")) == ["b"]
    assert samples_in(*twice, event("x", 9, "click")) == ["a"]
    assert samples_in(*twice, event("x", 9, "click"), event("y", 10, "click")) == ["a", "b"]
    assert samples_in(event("c", 0), event("b", 0), event("x", 1, "click")) == ["c"]


def test_events_that_come_twice_count_once():
    assert samples_in(event("a", 0), event("a", 0), event("x", 1, "click")) == ["a"]
    assert samples_in(event("a", 0), event("x", 1, "click"), event("x", 1, "click")) == ["a"]


def test_the_stream_has_its_rate_in_the_order_of_arrival_and_no_stale_event():
    events = make_stream(STREAM, start_ms=5000)
    arrivals = events[ARRIVAL_MS].to_numpy()
    times = events["timestamp_ms"].to_numpy() - 5000
    assert (np.diff(arrivals) >= 0).all()
    assert 0 <= arrivals.min() < arrivals.max() < 20_000
    seconds = np.bincount(arrivals // 1000)
    assert len(seconds) == 20
    assert (np.abs(seconds / 2000 - 1) < 0.15).all()
    assert ((arrivals - times >= 0) & (arrivals - times <= 300)).all()
    newest_before = np.maximum.accumulate(times)
    assert (times >= newest_before - 300).all()
    assert (np.diff(times) < 0).any()
    assert make_stream(STREAM, start_ms=5000).equals(events)


def test_the_stream_has_all_that_is_difficult():
    events = pl.DataFrame(pl.from_arrow(make_stream(STREAM, start_ms=0)))
    assert 0.015 < 1 - events["event_id"].n_unique() / len(events) < 0.025
    events = events.unique("event_id")
    key = ["request_id", "user_id", "item_id"]
    shown = events.filter(pl.col("action") == "impression")
    assert 0 < shown.group_by(key).len().filter(pl.col("len") > 1).height < 0.01 * len(shown)
    taken = events.filter(pl.col("action") == "click").join(
        shown.group_by(key).agg(first=pl.col("timestamp_ms").min()), on=key, how="left"
    )
    delay = taken["timestamp_ms"] - taken["first"]
    assert 0.005 < delay.is_null().mean() < 0.1  # lost, or from before the start
    assert 0.01 < (delay > WINDOW_MS).mean() < 0.06
    assert 0 < (delay < 0).mean() < 0.03
    samples = naive_join(pa.table(events.to_arrow()), WINDOW_MS)
    assert 0.1 * len(shown) < samples.num_rows < 0.3 * len(shown)


def test_json_has_the_columns_of_events_and_nothing_else():
    events = make_stream(STREAM, start_ms=0).slice(0, 3)
    rows = [json.loads(line) for line in json_lines(events)]
    assert rows == events.drop_columns([ARRIVAL_MS]).to_pylist()


def test_each_event_is_sent_when_it_has_arrived_and_at_most_20_ms_later():
    events = make_stream(STREAM, start_ms=0)
    ticks = list(_ticks(events, 70_000))
    sent = pa.concat_tables([part for _, part in ticks])
    assert sent.equals(moved(events, 70_000))
    due_ms = np.repeat([1000 * due for due, _ in ticks], [part.num_rows for _, part in ticks])
    waits = due_ms - 70_000 - events[ARRIVAL_MS].to_numpy()
    assert ((waits > 0) & (waits <= 20)).all()


def rows(*names: str, item: int = 2) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {"event_id": n, "timestamp_ms": 1, "user_id": 1, "item_id": item, "scenario": "feed"}
            for n in names
        ],
        sample_schema(),
    )


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ([rows("a", "b"), rows("c")], Verdict(3, lost=0, doubled=0, wrong=0)),
        ([rows("a", "b")], Verdict(3, lost=1, doubled=0, wrong=0)),
        ([rows("a", "b", "c"), rows("a", "a")], Verdict(3, lost=0, doubled=2, wrong=0)),
        ([rows("a", "b", "c", "d")], Verdict(3, lost=0, doubled=0, wrong=1)),
        ([rows("a", "b"), rows("c", item=9)], Verdict(3, lost=1, doubled=0, wrong=1)),
        ([], Verdict(3, lost=3, doubled=0, wrong=0)),
    ],
)
def test_the_judge_tells_lost_doubled_and_wrong_samples(found, verdict):
    assert judge(found, rows("a", "b", "c")) == verdict
