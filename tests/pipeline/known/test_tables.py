from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from hypothesis import given
from hypothesis import strategies as st

from pipeline.declarations import ValidityTable
from pipeline.known.tables import as_of, check_tables, read_table
from pipeline.manifest import read_manifest
from pipeline.samples import SamplesConfig, make_samples
from pipeline.schema import InputError
from tests.pipeline.event_log import START, event, specification

LEVELS = ValidityTable(columns={"level": "int64"})
KEY = ("user_id", "int64")
DAY = 86_400_000
STAMP = datetime(2026, 1, 1, tzinfo=UTC)


def validity(*rows: tuple[int, int, int | None, int | None]) -> pl.DataFrame:
    """Rows of user, valid_from_ms, valid_to_ms, level."""
    names = ("user_id", "valid_from_ms", "valid_to_ms", "level")
    return pl.DataFrame(rows, schema=dict.fromkeys(names, pl.Int64), orient="row")


def levels(table: pl.DataFrame, *asked: tuple[int, int]) -> list[int | None]:
    rows = pl.DataFrame(asked, schema={"user_id": pl.Int64, "t": pl.Int64}, orient="row")
    found = as_of(rows, table, key="user_id", time="t", columns=["level"])
    assert found.columns == ["user_id", "t", "level"]
    assert found.select("user_id", "t").equals(rows)  # in their order
    return found["level"].to_list()


def test_a_row_holds_from_its_first_moment_to_before_the_next_one() -> None:
    table = validity((1, 20, None, 8), (1, 10, None, 7), (2, 5, None, 9))
    asked = [(1, 25), (1, 9), (1, 10), (2, 4), (1, 19), (1, 20), (3, 99), (2, 99)]
    assert levels(table, *asked) == [8, None, 7, None, 7, 8, None, 9]


def test_valid_to_ends_a_row_and_nothing_older_comes_back() -> None:
    table = validity((1, 10, None, 7), (1, 20, 30, 8), (1, 40, None, 9))
    assert levels(table, (1, 29), (1, 30), (1, 39), (1, 40)) == [8, None, None, 9]


def test_a_null_that_holds_is_not_the_value_before_it() -> None:
    assert levels(validity((1, 10, None, 7), (1, 20, None, None)), (1, 21)) == [None]


def test_without_rows_all_is_null() -> None:
    assert levels(validity(), (1, 5)) == [None]


ROWS = st.lists(
    st.tuples(
        st.integers(0, 2),
        st.integers(0, 20),
        st.one_of(st.none(), st.integers(0, 25)),
        st.integers(0, 99),
    ),
    max_size=15,
    unique_by=lambda row: row[:2],
)


@given(rows=ROWS, asked=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 25)), max_size=15))
def test_as_of_is_a_loop(rows, asked) -> None:
    expected = []
    for user, time in asked:
        begun = [row for row in rows if row[0] == user and row[1] <= time]
        newest = max(begun, key=lambda row: row[1], default=None)
        held = newest is not None and (newest[2] is None or time < newest[2])
        expected.append(newest[3] if newest is not None and held else None)
    assert levels(validity(*rows), *asked) == expected


def write(path: Path, **columns) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return str(path)


GOOD = {"user_id": [1, 2], "valid_from_ms": [10, 10], "level": [3, 4]}


def test_only_the_rows_that_are_asked_for_are_read_from_all_files(tmp_path) -> None:
    paths = [
        write(tmp_path / "a.parquet", **GOOD, more=["x", "y"]),
        write(tmp_path / "b.parquet", **GOOD | {"valid_from_ms": [20, 20]}, valid_to_ms=[30, 30]),
    ]
    check_tables(paths, LEVELS, KEY, where="samples.users")
    found = read_table(paths, LEVELS, KEY, pl.Series([2, 2, 5]))
    assert found.rows() == [(2, 10, None, 4), (2, 20, 30, 4)]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_times_may_be_arrow_timestamps_of_any_unit(tmp_path, unit) -> None:
    times = [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 2, tzinfo=UTC)]
    kind = pa.timestamp(unit, "UTC")
    path = write(
        tmp_path / "a.parquet",
        user_id=[1, 1],
        valid_from_ms=pa.array(times, kind),
        valid_to_ms=pa.array([None, datetime(2026, 1, 3, tzinfo=UTC)], kind),
        level=[3, 4],
    )
    check_tables([path], LEVELS, KEY, where="samples.users")
    table = read_table([path], LEVELS, KEY)
    asked = [START - 1, START, START + DAY, START + 2 * DAY - 1, START + 2 * DAY]
    assert levels(table, *((1, time) for time in asked)) == [None, 3, 4, 4, None]


def test_numbers_beyond_the_digits_of_float32_are_rounded(tmp_path) -> None:
    path = write(tmp_path / "a.parquet", **GOOD | {"level": [2**24 + 1, 4]})
    floats = ValidityTable(columns={"level": "float32"})
    check_tables([path], floats, KEY, where="samples.users")
    assert read_table([path], floats, KEY)["level"].to_list() == [2.0**24, 4.0]


def test_two_rows_that_begin_together_are_refused(tmp_path) -> None:
    path = write(tmp_path / "a.parquet", **GOOD | {"user_id": [1, 1]})
    with pytest.raises(InputError, match=r"user_id 1: found several rows with the same valid_from"):
        read_table([path], LEVELS, KEY, pl.Series([1]))
    assert not len(read_table([path], LEVELS, KEY, pl.Series([2])))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"level": None}, "level: found no such column; found user_id, valid_from_ms"),
        ({"valid_from_ms": None}, "valid_from_ms: found no such column"),
        ({"user_id": ["a", "b"]}, "user_id: found a column of type string; expected int64"),
        ({"level": ["a", "b"]}, "level: found a column of type string; expected int64"),
        ({"level": [STAMP, STAMP]}, "level: found a column of type timestamp.*; expected int64"),
        ({"valid_to_ms": ["a", "b"]}, "valid_to_ms: found a column of type string; expected int64"),
    ],
)
def test_a_wrong_table_is_refused_by_its_footer(tmp_path, columns, expected) -> None:
    rows = {name: value for name, value in (GOOD | columns).items() if value is not None}
    path = write(tmp_path / "users.parquet", **rows)
    with pytest.raises(InputError, match=rf"samples\.users: {path}: {expected}"):
        check_tables([path], LEVELS, KEY, where="samples.users")


def test_no_file_and_no_parquet_are_refused(tmp_path) -> None:
    with pytest.raises(InputError, match=r"samples\.users: found no file; expected the Parquet"):
        check_tables([], LEVELS, KEY, where="samples.users")
    (tmp_path / "a.parquet").write_text("PAR1")
    with pytest.raises(InputError, match=r"a\.parquet: found no whole Parquet file"):
        check_tables([str(tmp_path / "a.parquet")], LEVELS, KEY, where="samples.users")


def test_a_changed_profile_is_seen_from_its_first_moment_on_and_never_before(tmp_path) -> None:
    """Logs and tables through the whole pipeline: retrieval, behaviour and corpus samples."""
    change = START + DAY + 5_000
    users = {"user_id": [1, 1], "valid_from_ms": [START, change], "level": [3, 4]}
    items = {"item_id": [7, 7], "valid_from_ms": [START + 10, change], "price": [1.5, 2.5]}
    write(tmp_path / "users.parquet", **users)
    write(tmp_path / "items" / "part.parquet", **items)
    times = {"before": 0, "first": DAY + 4_999, "second": DAY + 5_000, "third": 2 * DAY}
    rows = [event(name, time, 1, 7, request_id=name) for name, time in times.items()]
    rows += [row | {"event_id": f"{row['event_id']}!", "action": "click"} for row in rows]
    rows = [
        row | {"timestamp_ms": row["timestamp_ms"] + 1_000 * (n > 3)} for n, row in enumerate(rows)
    ]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ids = {"kind": "id", "table": "t"}
    spec = specification(
        users={"columns": {"level": "int64"}},
        items={"columns": {"price": "float32"}},
        kinds={
            "retrieval": {},
            "behaviour": {
                "properties": ["price"],
                "tasks": {"price": {"column": "price", "of": "click"}},
            },
            "corpus": {},
        },
        features={
            "query": [{"name": "level", **ids}],
            "candidate": [{"name": "item_id", **ids}, {"name": "price", "kind": "number"}],
        },
    )
    config = SamplesConfig(
        inputs=[str(tmp_path / "log.jsonl")],
        users=[str(tmp_path / "users.parquet")],
        items=[str(tmp_path / "items")],
        output=tmp_path / "out",
    )
    make_samples(config, spec, PipelineOptions(["--runner=FnApiRunner"]))
    found: dict[str, list[dict]] = {"retrieval": [], "behaviour": [], "corpus": []}
    for file in read_manifest(tmp_path / "out").files:
        if file.kind in found:
            found[file.kind] += pq.ParquetFile(tmp_path / "out" / file.path).read().to_pylist()
    seen = {
        "before": (3, None),  # the item's first row begins ten milliseconds later
        "first": (3, 1.5),
        "second": (4, 2.5),
        "third": (4, 2.5),
    }
    for kind in ("retrieval", "behaviour"):
        assert {r["event_id"]: (r["level"], r["price"]) for r in found[kind]} == seen
    labels = {row["event_id"]: row["label_price"] for row in found["behaviour"]}
    assert labels == {name: price for name, (_, price) in seen.items()}
    # Behaviours know the price of their own time: the click on the first came after the change.
    (last,) = [row for row in found["behaviour"] if row["event_id"] == "third"]
    assert last["behaviour_price"] == [1.5, 2.5, 2.5]
    assert [row["price"] for row in found["corpus"]] == [1.5, 2.5, 2.5]  # as of each day's end
