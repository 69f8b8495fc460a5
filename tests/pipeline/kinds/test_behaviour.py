from __future__ import annotations

import dataclasses
import io
import math

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.days import Span
from pipeline.join.step import JoinRule
from pipeline.kinds import behaviour
from pipeline.kinds.part import UserPart, make_part
from pipeline.known.facts import read_facts
from pipeline.known.tables import Tables
from pipeline.write import slices_by_day, write_slices
from tests.pipeline.event_log import START, event, specification

WINDOW_MS = 50
DAY = 86_400_000
TASKS = {
    "ctr": {"action": "click"},
    "grade": {"grades": {"click": 1, "cart": 2.5}},
    "brand": {"column": "brand", "of": "cart"},
}


def declared(*, columns=None, items=None, features=(), **kind):
    columns = {"brand": "string"} if columns is None else columns
    table = {"kind": "id", "table": "t"}
    return specification(
        columns=columns,
        **({} if items is None else {"items": {"columns": items}}),
        kinds={"behaviour": {"length": 3, "time_buckets_seconds": [0.01, 0.03]} | kind},
        features={
            "query": [{"name": "user_id", **table}],
            "candidate": [{"name": "item_id", **table}, *features],
            "context": [{"name": "scenario", **table}],
        },
    )


def make_whole(events, spec, *, orphans="drop", tables=None, span=None) -> UserPart:
    return make_part(
        pa.Table.from_pylist(events, schema=spec.event_schema),
        spec,
        span=span or Span(None, None, WINDOW_MS),
        rule=JoinRule(window_ms=WINDOW_MS, orphans=orphans),
        facts=read_facts([], spec),
        tables=tables or Tables(),
    )


def make_table(events, spec, **settings) -> pa.Table:
    slices = list(behaviour.make(make_whole(events, spec, **settings)))
    return pa.concat_tables([behaviour.schema(spec).empty_table(), *slices])


def make(events, spec, **settings) -> dict[str, dict]:
    return {row["event_id"]: row for row in make_table(events, spec, **settings).to_pylist()}


def test_a_sample_by_hand() -> None:
    spec = declared(properties=["brand"], tasks=TASKS, length=2)
    events = [
        event("a", 0, 1, 10, brand="x"),
        event("a!", 5, 1, 10, "click", scenario="video"),  # its brand is its impression's
        event("lost", 15, 1, 11, "cart", brand="y"),  # joined with nothing
        event("late", 99, 1, 10, "follow"),  # 99 after its impression: not joined, no brand
        event("of another", 20, 2, 10, "click", brand="z"),
        event("b", 25, 1, 12, brand="w"),
        event("b!", 30, 1, 12, "cart", brand="v"),
        event("b+", 31, 1, 12, "click"),
        event("c", 100, 1, 13),
    ]
    table = make_table(events, spec)
    assert table.schema.equals(behaviour.schema(spec))
    rows = {row["event_id"]: row for row in table.to_pylist()}
    assert list(rows) == ["a", "b", "c"]
    assert rows["b"] == {
        "event_id": "b",
        "timestamp_ms": START + 25,
        "user_id": 1,
        "item_id": 12,
        "scenario": "feed",
        "brand": "w",
        "behaviour_item_id": [10, 11],
        "behaviour_action": ["click", "cart"],
        "behaviour_scenario": ["video", "feed"],
        "behaviour_time_bucket": [1, 1],  # 20 and 10 ms old: at or above the border of 10
        "behaviour_brand": ["x", "y"],
        "label_ctr": 1,
        "label_grade": 2.5,
        "label_brand": "w",  # of what was shown, not of the outcome
        "weight": 1.0,
    }
    lists = {name: value for name, value in rows["c"].items() if name.startswith("behaviour_")}
    assert lists == {
        "behaviour_item_id": [12, 10],  # of four, the last two
        "behaviour_action": ["click", "follow"],
        "behaviour_scenario": ["feed", "feed"],
        "behaviour_time_bucket": [2, 0],  # 69 and 1 ms old
        "behaviour_brand": ["w", ""],
    }
    labels = {name: [row[f"label_{name}"] for row in rows.values()] for name in TASKS}
    assert labels == {"ctr": [1, 1, 0], "grade": [1.0, 2.5, 0.0], "brand": [None, "w", None]}


def test_an_outcome_at_the_very_time_of_the_impression_is_no_behaviour_of_it() -> None:
    spec = declared(properties=[])
    events = [event("x!", 10, 1, 1, "click"), event("a", 10, 1, 2), event("b", 11, 1, 3)]
    found = {name: row["behaviour_item_id"] for name, row in make(events, spec).items()}
    assert found == {"a": [], "b": [1]}


def test_behaviours_of_one_time_are_ordered_by_event_id() -> None:
    spec = declared()
    clicks = [event(name, 5, 1, item, "click") for name, item in (("z", 1), ("a", 2), ("m", 3))]
    for order in (clicks, clicks[::-1]):
        found = make([*order, event("shown", 9, 1, 4)], spec)["shown"]
        assert found["behaviour_item_id"] == [2, 3, 1]


def test_time_buckets_count_the_borders_at_or_below_the_age() -> None:
    spec = declared(length=10, time_buckets_seconds=[0.01, 0.03])
    ages = [1, 9, 10, 11, 29, 30, 31, 1000]
    clicks = [event(f"{age:04}", 1000 - age, 1, age, "click") for age in ages]
    found = make([*clicks, event("shown", 1000, 1, 4)], spec)["shown"]
    assert found["behaviour_item_id"] == ages[::-1]
    assert found["behaviour_time_bucket"] == [2, 2, 2, 1, 1, 1, 0, 0]


def test_a_property_that_is_a_list_is_flattened_with_its_lengths() -> None:
    spec = declared(columns={"tags": "list<string>", "p": "float32"}, properties=["tags", "p"])
    events = [
        event("1", 1, 1, 1, "click", tags=["x", "y"], p=0.5),
        event("2", 2, 1, 2, "click", tags=[]),
        event("3", 3, 1, 3, "click"),
        event("4", 4, 1, 4, "click", tags=["z"], p=2),
        event("a", 5, 1, 5, tags=["s"], p=1),
        event("b", 2, 1, 5),
        event("c", 1, 1, 5),
    ]
    rows = make(events, spec)
    names = ("behaviour_item_id", "behaviour_tags", "behaviour_tags_count")
    assert [rows["a"][name] for name in names] == [[2, 3, 4], ["z"], [0, 0, 1]]
    assert [rows["b"][name] for name in names] == [[1], ["x", "y"], [2]]
    assert [rows["c"][name] for name in names] == [[], [], []]
    missing, unknown, known = rows["a"]["behaviour_p"]
    assert math.isnan(missing) and math.isnan(unknown) and known == 2
    assert rows["a"]["tags"] == ["s"]


def test_properties_and_labels_of_the_items_table_are_as_of_their_own_time() -> None:
    spec = declared(
        columns={},
        items={"price": "int64"},
        properties=["price"],
        tasks={"price": {"column": "price", "of": "click"}},
        features=[{"name": "price", "kind": "number"}],
    )
    prices = pl.DataFrame(
        {
            "item_id": [1, 1],
            "valid_from_ms": [START + 10, START + 20],
            "valid_to_ms": pl.Series([None, None], dtype=pl.Int64),
            "price": [7, 8],
        }
    )
    events = [
        event("1", 9, 1, 1, "cart"),
        event("2", 10, 1, 1, "cart"),
        event("3", 20, 1, 1, "cart"),
        event("a", 19, 1, 1),
        event("a!", 21, 1, 1, "click"),
        event("b", 25, 1, 1),
    ]
    rows = make(events, spec, tables=Tables(items=prices))
    assert [rows["a"][n] for n in ("price", "label_price", "behaviour_price")] == [7, 7, [-1, 7]]
    assert [rows["b"][n] for n in ("price", "label_price")] == [8, None]
    assert rows["b"]["behaviour_price"] == [7, 8, 8]


def test_kept_orphans_are_samples_with_themselves_as_outcome() -> None:
    events = [event("a!", 1, 1, 1, "click"), event("b!", 2, 1, 2, "cart")]
    rows = make(events, declared(tasks=TASKS), orphans="keep")
    assert {name: (row["label_ctr"], row["behaviour_item_id"]) for name, row in rows.items()} == {
        "a!": (1, []),
        "b!": (0, [1]),
    }


def test_idle_impressions_are_sampled_by_their_ids_and_weigh_more() -> None:
    shown = [event(f"e{number}", number, 1, number) for number in range(4000)]
    taken = [event(f"t{n}", n, 1, n, "click", request_id=f"1-{n}") for n in range(0, 4000, 40)]
    few = make([*shown, *taken], declared(idle_share=0.25))
    idle = {name for name, row in few.items() if row["weight"] == 4.0}
    assert {name for name, row in few.items() if row["weight"] == 1.0} == {
        f"e{n}" for n in range(0, 4000, 40)
    }
    assert len(few) == len(idle) + 100
    assert 975 - 140 < len(idle) < 975 + 140  # five standard deviations
    # An impression is kept or not whatever else is in the log.
    assert set(make(shown[:2001:2], declared(idle_share=0.25))) >= idle & {
        row["event_id"] for row in shown[:2001:2]
    }
    every = make([*shown, *taken], declared())
    assert len(every) == 4000 and {row["weight"] for row in every.values()} == {1.0}


def test_files_are_written_in_slices_that_a_day_decides_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(behaviour, "SLICE_VALUES", 12)  # of length 3: four rows
    events = [event(f"e{n:02}", n * DAY // 9, n % 2, n) for n in range(20)]
    events += [event(f"t{n:02}", n * DAY // 9 + 5, n % 2, n, "click") for n in range(20)]
    part = make_whole(events, declared())
    files = [
        write_slices(tmp_path, "behaviour", day, 3, slices)
        for day, slices in slices_by_day(behaviour.make(part))
    ]
    assert [(file.day, file.rows) for file in files] == [
        ("2026-01-01", 9),
        ("2026-01-02", 9),
        ("2026-01-03", 2),
    ]
    metadata = pq.read_metadata(tmp_path / files[0].path)
    assert [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)] == [4, 4, 1]
    monkeypatch.undo()
    found = pa.concat_tables(pq.ParquetFile(tmp_path / file.path).read() for file in files)
    assert found.equals(make_table(events, declared()))


@pytest.mark.parametrize(
    "properties", [["brand", "brand"], ["tags", "tags_count"], ["time_bucket"]]
)
def test_names_that_would_meet_are_refused(properties) -> None:
    with pytest.raises(ValidationError, match=rf"properties: found {properties[-1]}\b.* twice"):
        declared(columns=dict.fromkeys(properties, "int64"), properties=properties)


ACTIONS = ["impression", "impression", "click", "cart"]


@st.composite
def logs(draw):
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 160),
                st.integers(1, 2),
                st.integers(1, 3),
                st.sampled_from(ACTIONS),
                st.sampled_from(["x", "y", None]),
            ),
            min_size=1,
            max_size=40,
        )
    )
    return [event(f"e{n}", *row[:4], brand=row[4]) for n, row in enumerate(rows)]


def as_bytes(rows: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(rows, sink)
    return sink.getvalue()


@settings(max_examples=150, deadline=None)
@given(log=logs(), moment=st.integers(0, 160), seed=st.randoms(use_true_random=False))
def test_the_future_never_changes_a_sample(log, moment, seed) -> None:
    """Events from a moment on are shuffled, changed and deleted.

    Samples before it stay the same byte for byte but for label and weight; and all of them stays
    where the join window ended before the moment.
    """
    spec = declared(properties=["brand"], tasks=TASKS, length=3, idle_share=0.9)
    past = [row for row in log if row["timestamp_ms"] < START + moment]
    future = [row for row in log if row not in past]
    shuffled = list(future)
    seed.shuffle(shuffled)
    changed = [
        row | {"item_id": 9, "user_id": seed.choice([1, 2]), "brand": "new", "scenario": "video"}
        for row in future
    ]
    whole = make_table(log, spec)
    features = [n for n in whole.column_names if not n.startswith("label_") and n != "weight"]
    times = [row["timestamp_ms"] - START for row in whole.to_pylist()]
    for other in ([*past, *shuffled], [*past, *changed], past, [*changed, *past]):
        table = make_table(other, spec)
        found = {name: n for n, name in enumerate(table["event_id"].to_pylist())}
        for n, (name, time) in enumerate(zip(whole["event_id"].to_pylist(), times, strict=True)):
            if time < moment and name in found:  # of an idle one, the future decides if it is kept
                mine, theirs = whole.slice(n, 1), table.slice(found[name], 1)
                assert as_bytes(mine.select(features)) == as_bytes(theirs.select(features))
            if time + WINDOW_MS < moment:
                assert as_bytes(whole.slice(n, 1)) == as_bytes(table.slice(found[name], 1))


@settings(max_examples=60, deadline=None)
@given(log=logs(), cut=st.integers(0, 3))
def test_behaviours_of_facts_count_as_those_of_now_do(log, cut) -> None:
    """What earlier days left as facts, and what a build of all days sees, are one."""
    spec = declared(properties=["brand"], tasks=TASKS)
    step = DAY // 40
    log = [row | {"timestamp_ms": START + (row["timestamp_ms"] - START) * step} for row in log]
    day = START // DAY + cut
    whole = make_table(log, spec)
    before = make_whole(log, spec, span=Span(day - 100, day - 1, WINDOW_MS))
    facts = before.new_facts()["facts/behaviours"].drop("day")
    now = make_whole(log, spec, span=Span(day, day + 100, WINDOW_MS))
    now = dataclasses.replace(now, facts=dataclasses.replace(now.facts, behaviours=facts))
    slices = [*behaviour.make(before), *behaviour.make(now)]
    assert pa.concat_tables([whole.slice(0, 0), *slices]).equals(whole)
