"""No sample knows more than it may, whichever days are built together, in however many parts."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st

from pipeline.days import name_of
from pipeline.manifest import Manifest
from pipeline.samples import DayRange
from pipeline.specification import Specification
from tests.pipeline.event_log import START
from tests.pipeline.kinds.building import build, facts_of, table_of, with_columns
from tests.pipeline.kinds.made_up_logs import DAY, logs
from tests.pipeline.kinds.real_logs import DAYPARTS, WINDOW_MS, real_events, real_specification
from tests.pipeline.test_samples import contents, run

Row = dict[str, Any]
OURS = ("scenario", "user_pair", "item_pair", "corpus")
FAST = settings(max_examples=15, phases=[Phase.explicit, Phase.reuse, Phase.generate])


def changed(row: Row, chance: random.Random) -> Row:
    """Another event at the same time or later; of another key, and with other columns."""
    item = row["item_id"] % 4 + 1
    return row | {
        "item_id": item,
        "request_id": f"{row['user_id']}-{item}",
        "scenario": chance.choice(DAYPARTS),
        "action": chance.choice(["impression", "cart", "purchase"]),
        "timestamp_ms": row["timestamp_ms"] + chance.choice([0, 0, 1, DAY]),
        "category": "changed",
        "price": 99.0,
        "device": "changed",
        "hour": 23,
    }


def other_futures(log: list[Row], hidden: list[Row], chance: random.Random) -> list[list[Row]]:
    """Logs in other orders, where what is hidden is gone, or is something else."""
    seen = [row for row in log if row not in hidden]
    logs = [seen, seen + [changed(row, chance) for row in hidden]]
    return [chance.sample(rows, len(rows)) for rows in logs]


def group(folder: Path, log: list[Row], spec: Specification, window_ms: int, event: str) -> bytes:
    """The bytes of one group of scenario samples."""
    report = build(folder, with_columns(log, spec), spec, window_ms=window_ms)
    table = table_of(folder, report, "scenario")
    if table is None:
        return b""
    rows = table.filter(pc.equal(table["event_id"], event)).combine_chunks()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


@FAST
@given(
    log=logs(),
    window_ms=st.sampled_from([1, DAY // 2, DAY]),
    seed=st.integers(0, 1 << 32),
)
def test_no_future_changes_a_group_of_scenario_samples(
    tmp_path_factory: Any, log: list[Row], window_ms: int, seed: int
) -> None:
    """What it may see: all that was known before its day, and of its own user the events up to a
    window behind it: these make the label, and say what is no negative."""
    chance, spec = random.Random(seed), real_specification()
    folder = tmp_path_factory.mktemp("log")
    report = build(folder, with_columns(log, spec), spec, window_ms=window_ms)
    table = table_of(folder, report, "scenario")
    assume(table is not None)
    name = chance.choice(sorted(set(table["event_id"].to_pylist())))
    (sample,) = [row for row in log if row["event_id"] == name]
    time, user = sample["timestamp_ms"], sample["user_id"]
    hidden = [
        row
        for row in log
        if row["timestamp_ms"] >= time // DAY * DAY
        and (row["user_id"] != user or row["timestamp_ms"] > time + window_ms)
    ]
    expected = group(folder, log, spec, window_ms, name)
    for number, other in enumerate(other_futures(log, hidden, chance)):
        found = group(tmp_path_factory.mktemp(f"other{number}"), other, spec, window_ms, name)
        assert found == expected


@FAST
@given(
    log=logs(),
    window_ms=st.sampled_from([1, DAY // 2, DAY]),
    day=st.integers(0, 2),
    seed=st.integers(0, 1 << 32),
)
def test_no_later_day_changes_what_is_as_of_the_end_of_a_day(
    tmp_path_factory: Any, log: list[Row], window_ms: int, day: int, seed: int
) -> None:
    spec = real_specification()
    end = START + (day + 1) * DAY
    hidden = [row for row in log if row["timestamp_ms"] >= end]

    def files_of(rows: list[Row]) -> dict[str, str]:
        if not rows:
            return {}
        folder = tmp_path_factory.mktemp("log")
        report = build(folder, with_columns(rows, spec), spec, window_ms=window_ms)
        return {
            file.path: file.sha256
            for file in report.files
            if file.kind in OURS[1:] and file.day < name_of(end // DAY)
        }

    expected = files_of(log)
    for other in other_futures(log, hidden, random.Random(seed)):
        assert files_of(other) == expected


@FAST
@given(
    log=logs(),
    window_ms=st.sampled_from([1, DAY // 2, DAY]),
    lookback_days=st.sampled_from([None, 1, 2]),
    at_once=st.sampled_from([1, 2]),
)
def test_days_built_one_after_another_are_those_built_at_once(
    tmp_path_factory: Any,
    log: list[Row],
    window_ms: int,
    lookback_days: int | None,
    at_once: int,
) -> None:
    spec = every_kind()
    events = with_columns(log, spec)
    settings = {"window_ms": window_ms, "lookback_days": lookback_days, "num_parts": 2}
    folder = tmp_path_factory.mktemp("whole")
    whole = build(folder, events, spec, **settings)
    expected = {file.path: file.sha256 for file in whole.files}
    found, facts = {}, {}
    first = START // DAY
    # An outcome may make known what was shown on the last day.
    for start in range(first, first + 6, at_once):
        days = (start, start + at_once - 1)
        folder = tmp_path_factory.mktemp("day")
        oldest = name_of(start - lookback_days) if lookback_days else ""
        near = {part: tuple(f for f in files if _day(f) >= oldest) for part, files in facts.items()}
        report = build(folder, events, spec, days=days, facts=near, **settings)
        facts = facts_of(folder, report, facts)
        found |= {file.path: file.sha256 for file in report.files}
    assert found == expected


def _day(fact: tuple[str, str]) -> str:
    return Path(fact[1]).parent.name.removeprefix("dt=")


def files_of(manifest: Manifest, last: str) -> dict[str, str]:
    return {file.path: file.sha256 for file in manifest.files if file.day <= last}


def every_kind() -> Specification:
    kinds = real_specification().kinds.model_dump() | {"retrieval": {}}
    return real_specification(kinds=kinds)


def test_days_of_a_real_log_one_after_another_are_those_at_once(tmp_path: Path) -> None:
    events = real_events("taobao", num_days=5, one_of=24)
    pq.write_table(events, tmp_path / "log.parquet")
    settings = {"spec": every_kind(), "join_window_seconds": WINDOW_MS / 1000, "num_parts": 2}
    first = name_of(pc.min(events["timestamp_ms"]).as_py() // DAY)
    last = name_of(pc.max(events["timestamp_ms"]).as_py() // DAY)
    whole = run(tmp_path / "log.parquet", tmp_path / "whole", **settings)
    days = DayRange(first, last)
    each = run(tmp_path / "log.parquet", tmp_path / "each", days=days, **settings)
    assert files_of(each, last) == files_of(whole, last)
    assert len(each.builds) == 5
    kinds = {file.kind for file in each.files}
    assert {"retrieval", *OURS, "facts/seen", "facts/items", "facts/positives"} == kinds
    for path in files_of(each, last):
        assert (tmp_path / "each" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()


def rows_by_kind(folder: Path, manifest: Manifest) -> dict[str, pl.DataFrame]:
    """All rows of each kind, in an order that does not depend on parts."""
    found = {}
    for kind in manifest.kinds:
        paths = [folder / file.path for file in manifest.files if file.kind == kind]
        rows = pl.concat([pl.from_arrow(pq.ParquetFile(path).read()) for path in paths])
        keys = ("timestamp_ms", "event_id", "pair_id", "user_id", "item_id", "scenario")
        more = ("candidate_number", "view")
        found[kind] = rows.sort([name for name in (*more, *keys) if name in rows.columns])
    return found


def test_parts_files_and_orders_of_a_log_change_no_row(tmp_path: Path) -> None:
    events = real_events("taobao", num_days=4, one_of=16)
    pq.write_table(events, tmp_path / "log.parquet")
    shuffled = pl.DataFrame(pl.from_arrow(events)).sample(fraction=1, shuffle=True, seed=1)
    (tmp_path / "logs").mkdir()
    for number, rows in enumerate(shuffled.iter_slices(len(shuffled) // 4)):
        rows.write_parquet(tmp_path / "logs" / f"{number}.parquet", row_group_size=500)
    settings = {"spec": every_kind(), "join_window_seconds": WINDOW_MS / 1000}
    one = run(tmp_path / "log.parquet", tmp_path / "one", num_parts=3, **settings)
    run(tmp_path / "logs", tmp_path / "many", num_parts=3, **settings)
    ignored = ("manifest.json", "rejected")
    whole, cut = (
        {path: data for path, data in contents(folder).items() if not path.startswith(ignored)}
        for folder in (tmp_path / "one", tmp_path / "many")
    )
    assert whole == cut
    expected = rows_by_kind(tmp_path / "one", one)
    assert all(len(rows) > 100 for rows in expected.values())
    for num_parts in (1, 7):
        folder = tmp_path / f"{num_parts} parts"
        manifest = run(tmp_path / "log.parquet", folder, num_parts=num_parts, **settings)
        found = rows_by_kind(folder, manifest)
        for kind, rows in expected.items():
            assert found[kind].equals(rows), kind


@pytest.mark.parametrize("num_parts", [1, 3])
def test_rows_of_a_group_and_of_a_pair_are_neighbours_and_files_are_sorted(
    tmp_path: Path, num_parts: int
) -> None:
    events = real_events("taobao", num_days=4, one_of=16)
    spec = every_kind()
    report = build(tmp_path, events, spec, window_ms=WINDOW_MS, num_parts=num_parts)
    sizes = {"scenario": 4, "user_pair": 2, "item_pair": 2}
    for file in report.files:
        if file.kind not in sizes:
            continue
        rows = pq.ParquetFile(tmp_path / "run" / file.path).read().to_pylist()
        name, place = (
            ("event_id", "candidate_number") if file.kind == "scenario" else ("pair_id", "view")
        )
        size = sizes[file.kind]
        assert len(rows) == file.rows
        assert [row[place] for row in rows] == list(range(size)) * (len(rows) // size)
        keys = [(row["timestamp_ms"], row[name]) for row in rows]
        assert keys == sorted(keys)
        assert keys[::size] == sorted(set(keys))
