from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.days import Span
from pipeline.join.step import JoinRule
from pipeline.kinds import retrieval
from pipeline.kinds.part import UserPart, make_part
from pipeline.known.facts import read_facts
from pipeline.known.tables import Tables
from tests.pipeline.event_log import START, event, specification

WINDOW_MS = 50


def make_whole(events, *, orphans="drop", spec=None) -> UserPart:
    spec = spec or specification()
    types = {name: spec.event_schema.field(name) for name in spec.event_types}
    table = pa.Table.from_pylist(events, schema=pa.schema(list(types.values())))
    return make_part(
        table,
        spec,
        span=Span(None, None, WINDOW_MS),
        rule=JoinRule(window_ms=WINDOW_MS, orphans=orphans),
        facts=read_facts([], spec),
        tables=Tables(),
    )


def make(events, *, orphans="drop", spec=None):
    """All samples of a log as one part, by event_id."""
    samples = retrieval.make(make_whole(events, orphans=orphans, spec=spec))
    return {row["event_id"]: row for row in samples.to_pylist()}


def test_samples_have_exactly_the_sample_schema() -> None:
    spec = specification()
    events = [event("a", 0, 1, 1), event("c", 1, 1, 1, "click")]
    samples = retrieval.make(make_whole(events))
    assert samples.schema.equals(spec.sample_schema)
    assert samples.to_pylist() == [
        {
            "event_id": "a",
            "timestamp_ms": START,
            "user_id": 1,
            "item_id": 1,
            "scenario": "feed",
            "reward": 1.0,
            "history_item_id": [],
        }
    ]


def test_a_positive_is_history_from_its_outcome_on_not_from_its_impression() -> None:
    samples = make(
        [
            event("a", 0, 1, 10),
            event("a clicked", 30, 1, 10, "click"),
            event("before", 29, 1, 11),
            event("before clicked", 35, 1, 11, "click"),
            event("tie", 30, 1, 12),
            event("tie clicked", 36, 1, 12, "click"),
            event("after", 31, 1, 13),
            event("after clicked", 37, 1, 13, "click"),
        ]
    )
    histories = {name: row["history_item_id"] for name, row in samples.items()}
    assert histories == {"a": [], "before": [], "tie": [], "after": [10]}


def test_positives_of_one_outcome_time_are_ordered_by_impression_then_event_id() -> None:
    events = []
    for name, shown, item in (("z", 1, 10), ("b", 2, 11), ("a", 2, 12)):
        events += [event(name, shown, 1, item), event(f"{name}!", 9, 1, item, "click")]
    events += [event("last", 10, 1, 13), event("last!", 11, 1, 13, "click")]
    expected = {"last": [12, 11]}  # z, a, b, of which the last two
    for order in (events, events[::-1]):
        assert {"last": make(order)["last"]["history_item_id"]} == expected


def test_samples_are_sorted_by_time_then_event_id() -> None:
    events = []
    for name, time in (("b", 5), ("a", 5), ("c", 1)):
        events += [
            event(name, time, 1, name.encode()[0]),
            event(f"{name}!", 9, 1, name.encode()[0], "click"),
        ]
    assert list(make(events)) == ["c", "a", "b"]


def test_counts_add_up() -> None:
    events = [
        event("a", 0, 1, 1),
        event("a", 0, 1, 1),
        event("a!", 1, 1, 1, "click"),
        event("late", 99, 1, 1, "click"),
        event("lost", 99, 1, 2, "click"),
    ]
    part = make_whole(events)
    assert part.counts == {
        "2026-01-01": {"impressions": 1, "joined": 1, "late": 1, "orphan_dropped": 1}
    }
    assert (part.duplicates, part.outside) == (1, 0)


@st.composite
def logs(draw):
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 60),
                st.integers(1, 2),
                st.integers(1, 3),
                st.sampled_from(["impression", "impression", "click"]),
            ),
            min_size=1,
            max_size=30,
        )
    )
    return [event(f"e{i}", *row) for i, row in enumerate(rows)]


@pytest.mark.parametrize("orphans", ["drop", "keep"])
@settings(max_examples=60, deadline=None)
@given(log=logs(), moment=st.integers(0, 60))
def test_the_future_never_changes_a_sample(orphans, log, moment) -> None:
    """Events from a moment on are deleted, or replaced: earlier samples keep all but their label.

    An outcome at or after the moment may make or unmake a positive (that is the label), never
    change what a sample that is there in both says.
    """
    past = [row for row in log if row["timestamp_ms"] < START + moment]
    future = [row | {"item_id": 9, "request_id": "other"} for row in log if row not in past]
    whole = make(log, orphans=orphans)
    for other in (
        make(past, orphans=orphans) if past else {},
        make(past + future, orphans=orphans),
    ):
        for name, sample in other.items():
            if sample["timestamp_ms"] < START + moment and name in whole:
                assert sample == whole[name]


@settings(max_examples=40, deadline=None)
@given(log=logs(), seed=st.randoms(use_true_random=False))
def test_the_order_of_the_log_does_not_matter(log, seed) -> None:
    shuffled = list(log)
    seed.shuffle(shuffled)
    assert make(shuffled) == make(log)
