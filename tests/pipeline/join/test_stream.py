"""Samples of a log without an end: those of the batch, whatever is cut, lost and repeated."""

from __future__ import annotations

import dataclasses
import tempfile
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.days import Span
from pipeline.join.histories import Histories
from pipeline.join.step import FOREVER_MS, JoinRule
from pipeline.join.stream import SampleJoiner
from pipeline.kinds import retrieval
from pipeline.kinds.part import make_part
from pipeline.known.current import CurrentTables
from pipeline.known.facts import read_facts
from pipeline.known.tables import Tables, read_tables
from pipeline.schema import InputError
from tests.pipeline.event_log import START, event, specification, with_statistics
from tests.pipeline.join.logs import (
    EXPOSED,
    WINDOW_MS,
    Oracle,
    cut,
    event_table,
    identity,
    logs,
    randoms,
    small_pieces,
    spec_with,
    with_string_ids,
)

ORPHANS = pytest.mark.parametrize("orphans", ["drop", "keep"])
FATES = ("joined", "late", "early", "orphan_dropped", "orphan_kept")


def start(spec, orphans) -> SampleJoiner:
    return SampleJoiner(spec, WINDOW_MS, orphans)


@dataclasses.dataclass
class Whole:
    samples: pa.Table
    counts: dict[str, int]


def whole(log, spec, orphans, tables=None) -> Whole:
    part = make_part(
        event_table(log, spec),
        spec,
        span=Span(None, None, WINDOW_MS),
        rule=JoinRule(window_ms=WINDOW_MS, orphans=orphans),
        facts=read_facts([], spec),
        tables=tables or Tables(),
    )
    samples = retrieval.make(part)
    counts: Counter[str] = Counter()
    for day in part.counts.values():
        counts.update(day)
    counts["events_accepted"] = counts.total()
    counts.update(duplicates=part.duplicates, samples=samples.num_rows)
    return Whole(samples, dict(counts))


def by_event(samples: pa.Table) -> dict:
    return {identity(row): row for row in samples.to_pylist()}


def total(results) -> dict[str, int]:
    return {name: sum(r.counts[name] for r in results) for name in results[0].counts}


@ORPHANS
@pytest.mark.parametrize("ids", ["int64", "string"])
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_a_stream_gives_the_samples_of_the_batch_byte_by_byte(data, orphans, ids) -> None:
    log = data.draw(logs())
    if ids == "string":
        log = with_string_ids(log)
    calls = data.draw(cut(log))
    spec = spec_with(ids=ids)
    part = whole(log, spec, orphans)
    joiner = start(spec, orphans)
    with small_pieces():
        results = [joiner.process(event_table(rows, spec), time) for rows, time in calls]
    order = [("timestamp_ms", "ascending"), ("event_id", "ascending"), ("user_id", "ascending")]
    for result in results:
        assert result.samples.equals(result.samples.sort_by(order))
    samples = pa.concat_tables([result.samples for result in results]).sort_by(order)
    assert samples.schema.equals(part.samples.schema)
    assert samples.equals(part.samples)
    assert {name: n for name, n in total(results).items() if n} == {
        name: n for name, n in part.counts.items() if n
    }


CHANGES = st.lists(
    st.tuples(
        st.integers(1, 4), st.integers(-5, 70), st.sampled_from([None, 4]), st.integers(0, 9)
    ),
    max_size=12,
    unique_by=lambda row: row[:2],
)
"""Rows of a table: id, second it begins, seconds it holds, value."""


@ORPHANS
@settings(max_examples=25, deadline=None)
@given(log=logs(), users=CHANGES, items=CHANGES, data=st.data())
def test_tables_with_validity_are_seen_as_by_the_batch(data, log, users, items, orphans) -> None:
    spec = specification(
        users={"columns": {"level": "int64"}},
        items={"columns": {"price": "int64"}},
        features={
            "query": [{"name": "level", "kind": "number"}],
            "candidate": [
                {"name": "item_id", "kind": "id", "table": "t"},
                {"name": "price", "kind": "number"},
            ],
        },
    )
    with tempfile.TemporaryDirectory() as name:
        files = {}
        for rows, column, key in ((users, "level", "user_id"), (items, "price", "item_id")):
            begins = [START + 1000 * row[1] for row in rows]
            holds = [row[2] for row in rows]
            table = {
                key: [row[0] for row in rows],
                "valid_from_ms": begins,
                "valid_to_ms": [
                    None if h is None else b + 1000 * h for b, h in zip(begins, holds, strict=True)
                ],
                column: [row[3] for row in rows],
            }
            schema = pa.schema([(column, pa.int64()) for column in table])
            files[key] = f"{name}/{key}.parquet"
            pq.write_table(pa.table(table, schema), files[key])
        given_files = {"users": [files["user_id"]], "items": [files["item_id"]]}
        tables = CurrentTables(spec, **given_files)
        part = whole(log, spec, orphans, read_tables(spec, **given_files))
        joiner = SampleJoiner(spec, WINDOW_MS, orphans, tables=tables)
        calls = data.draw(cut(log))
        with small_pieces():
            found = [joiner.process(event_table(r, spec), time).samples for r, time in calls]
    order = [("timestamp_ms", "ascending"), ("event_id", "ascending"), ("user_id", "ascending")]
    assert pa.concat_tables(found).sort_by(order).equals(part.samples)


@ORPHANS
@settings(max_examples=40, deadline=None)
@given(log=logs())
def test_samples_are_those_of_loops_over_rows(log, orphans) -> None:
    expected = Oracle(log, orphans=orphans).samples(history=2, exposed=EXPOSED)
    samples = by_event(whole(log, spec_with(), orphans).samples)
    found = {
        name: (row["reward"], row["history_item_id"], row["exposed_item_id"])
        for name, row in samples.items()
    }
    assert found == {n: (pytest.approx(r), h, e) for n, (r, h, e) in expected.items()}


@ORPHANS
@pytest.mark.parametrize("form", ["as it was", "with older", "at once"])
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_a_joiner_that_is_restored_goes_on_as_if_it_had_never_stopped(data, orphans, form) -> None:
    """At any of the calls it is lost, and comes back from a snapshot and a replay."""
    log = data.draw(logs())
    calls = data.draw(cut(log))
    losses = data.draw(st.lists(st.integers(0, len(calls) - 2), max_size=3))
    spec = spec_with()
    steady, joiner = start(spec, orphans), start(spec, orphans)
    with small_pieces():
        for number, (rows, watermark) in enumerate(calls):
            expected = steady.process(event_table(rows, spec), watermark)
            found = joiner.process(event_table(rows, spec), watermark)
            assert found.samples.equals(expected.samples)
            assert found.counts == expected.counts
            if number in losses:
                snapshot, joiner = joiner.snapshot(), start(spec, orphans)
                joiner.restore(snapshot, watermark)
                replay(joiner, calls[: number + 1], spec, form)


def replay(joiner, calls, spec, form) -> None:
    closed_to = calls[-1][1]
    bound = closed_to - (1000 if form == "with older" else 3 * WINDOW_MS)
    pieces = [
        ([r for r in rows if r["timestamp_ms"] >= bound], watermark) for rows, watermark in calls
    ]
    if form == "at once":
        rows = [row for rows, _ in pieces for row in rows]
        pieces = [(rows[i : i + 20], closed_to) for i in range(0, len(rows), 20)]
    for rows, watermark in pieces:
        result = joiner.process(event_table(rows, spec), watermark)
        assert result.samples.num_rows == 0
        assert {result.counts[name] for name in ("impressions", "samples", *FATES)} == {0}


@ORPHANS
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_no_sample_knows_its_future(data, orphans) -> None:
    log = data.draw(logs())
    spec = spec_with()
    samples = by_event(whole(log, spec, orphans).samples)
    if not samples:
        return
    name = data.draw(st.sampled_from(sorted(samples)))
    now = samples[name]["timestamp_ms"]
    own = next(row for row in log if identity(row) == name)
    last = now + WINDOW_MS
    other = changed(data, log, lambda row: row["timestamp_ms"] > last)
    assert by_event(whole(other, spec, orphans).samples)[name] == samples[name]
    names = ("request_id", "user_id", "item_id")
    other = changed(
        data, log,
        lambda row: row["timestamp_ms"] >= now and any(row[n] != own[n] for n in names),
    )  # fmt: skip
    kept = by_event(whole(other, spec, orphans).samples)[name]
    assert kept["history_item_id"] == samples[name]["history_item_id"]


def changed(data, log, is_future) -> list:
    """The log with its future deleted, or changed in each event, and shuffled."""
    rng = data.draw(randoms())
    future = [row for row in log if is_future(row)]
    rng.shuffle(future)
    rows = [row for row in log if not is_future(row)]
    for row in future:
        kind = rng.choice(["drop", "same", "click", "impression", "later"])
        if kind == "later":
            rows.append(row | {"timestamp_ms": row["timestamp_ms"] + 7})
        elif kind != "drop":
            rows.append(row if kind == "same" else row | {"action": kind, "item_id": 9})
    return rows


def test_exposed_items_are_those_of_the_request_that_were_not_taken() -> None:
    rows = [
        event("too old", -11, 1, 9, request_id="r"),
        event("a", -10, 1, 2, request_id="r"),
        event("other request", -5, 1, 8, request_id="s"),
        event("other user", -5, 2, 8, request_id="r"),
        event("taken", -5, 1, 3, request_id="r"),
        event("taken!", 5, 1, 3, "click", request_id="r"),
        event("late", -4, 1, 5, request_id="r"),
        event("late!", 7, 1, 5, "click", request_id="r"),
        event("own, before", -3, 1, 1, request_id="r"),
        event("p", 0, 1, 1, request_id="r"),
        event("p!", 1, 1, 1, "click", request_id="r"),
        event("a again", 0, 1, 2, request_id="r"),
        event("later", 1, 1, 4, request_id="r"),
    ]
    samples = by_event(whole(rows, spec_with(), "drop").samples)
    assert samples["p", 1]["exposed_item_id"] == [5, 2]
    assert samples["taken", 1]["exposed_item_id"] == [9, 2]


@pytest.mark.parametrize(("lookback_days", "known"), [(None, 2), (3, 1), (2, 0)])
def test_histories_look_back_as_far_as_those_of_the_batch(lookback_days, known) -> None:
    day = 86_400_000
    spec = spec_with(history=5)
    log = []
    for number, at in enumerate([0, 2 * day, 5 * day]):  # the second one is 3 days before
        log += [
            event(f"shown {number}", at, 1, number, request_id=f"{number}"),
            event(f"taken {number}", at + 5, 1, number, "click", request_id=f"{number}"),
        ]
    joiner = SampleJoiner(spec, WINDOW_MS, "drop", lookback_days=lookback_days)
    with small_pieces():
        found = [
            joiner.process(event_table([row], spec), row["timestamp_ms"]).samples for row in log
        ]
        found.append(joiner.process(event_table([], spec), FOREVER_MS).samples)
        joiner.process(event_table([], spec), FOREVER_MS)
    samples = pa.concat_tables(found).to_pylist()
    assert [row["item_id"] for row in samples] == [0, 1, 2]
    assert len(samples[-1]["history_item_id"]) == known
    part = make_part(
        event_table(log, spec),
        spec,
        span=Span(None, None, WINDOW_MS),
        rule=JoinRule(window_ms=WINDOW_MS, orphans="drop"),
        facts=read_facts([], spec, lookback_days=lookback_days),
        tables=Tables(),
    )
    assert pa.concat_tables(found).equals(retrieval.make(part))


def test_what_nobody_looks_back_to_is_forgotten() -> None:
    day, spec = 86_400_000, spec_with(history=5)
    sizes = {}
    for lookback_days in (None, 2):
        joiner = SampleJoiner(spec, WINDOW_MS, "drop", lookback_days=lookback_days)
        with small_pieces():
            for user in range(40):  # each comes once
                rows = [
                    event(f"{user}", user * day, user, 1),
                    event(f"{user}!", user * day + 5, user, 1, "click"),
                ]
                joiner.process(event_table(rows, spec), START + user * day + day // 2)
        sizes[lookback_days] = pa.ipc.open_file(joiner.snapshot()).read_all().num_rows
    assert sizes[None] == 40
    assert sizes[2] < 12


def test_a_specification_with_counts_of_all_users_is_refused() -> None:
    with pytest.raises(InputError, match="found item_impressions, item_positives; expected none"):
        SampleJoiner(with_statistics(), WINDOW_MS, "drop")


def test_without_exposures_there_is_no_such_column_and_without_history_no_snapshot() -> None:
    spec = spec_with()
    features = spec.features.model_dump()
    features["query"] = features["query"][:1]
    plain = type(spec).model_validate(spec.model_dump() | {"features": features})
    joiner = SampleJoiner(plain, WINDOW_MS, "drop")
    rows = [event("a", 0, 1, 1), event("a!", 1, 1, 1, "click")]
    samples = joiner.process(event_table(rows, plain), FOREVER_MS).samples
    assert samples.schema.equals(plain.sample_schema)
    assert (samples.num_rows, joiner.snapshot()) == (1, b"")


def test_a_snapshot_of_other_ids_or_no_snapshot_at_all_is_refused() -> None:
    joiner = start(spec_with(ids="string"), "drop")
    with pytest.raises(InputError, match="snapshot: column 'user_id': found int64; expected"):
        joiner.restore(start(spec_with(), "drop").snapshot(), START)
    with pytest.raises(InputError, match="snapshot: found 3 bytes that are no Arrow file"):
        joiner.restore(b"abc", START)


def test_a_user_s_old_positives_are_dropped_but_the_last_ones() -> None:
    spec = spec_with(history=3)
    joiner = start(spec, "drop")
    with small_pieces():
        for time in range(0, 1500, 5):
            user = 1 if time else 2
            rows = [event(f"e{time}", time, user, time)]
            rows.append(event(f"c{time}", time, user, time, "click"))
            result = joiner.process(event_table(rows, spec), START + time)
    assert result.samples["history_item_id"].to_pylist() == [[1465, 1470, 1475]]
    restored = Histories(spec)
    restored.load(joiner.snapshot())
    assert restored.num_rows < 20
    rows = [event("back", 1500, 2, 1), event("back!", 1500, 2, 1, "click")]
    last = joiner.process(event_table(rows, spec), FOREVER_MS).samples
    assert last["history_item_id"].to_pylist()[-1] == [0]


def test_what_an_open_impression_can_still_ask_for_is_not_dropped() -> None:
    spec = spec_with(history=2)
    joiner = start(spec, "drop")
    rows = [event("asks", 5, 1, 50), event("asks!", 6, 1, 50, "click")]
    for item, (shown, clicked) in enumerate([(0, 1), (0, 2), (0, 8), (1, 9)]):
        rows.append(event(f"e{item}", shown, 1, item))
        rows.append(event(f"c{item}", clicked, 1, item, "click"))
    with small_pieces():
        closed = joiner.process(event_table(rows, spec), START + 12).samples
        last = joiner.process(event_table([], spec), FOREVER_MS).samples
    assert closed.num_rows == 4
    assert last["history_item_id"].to_pylist() == [[0, 1]]
