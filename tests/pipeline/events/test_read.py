from __future__ import annotations

import gzip
import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.events import read
from pipeline.events.read import Split, find_files, fingerprint_file, plan_splits, read_split
from pipeline.schema import InputError

TYPES = {
    "event_id": "string",
    "timestamp_ms": "int64",
    "user_id": "int64",
    "play_seconds": "float32",
}
REQUIRED = ("event_id", "timestamp_ms", "user_id")


def table(num_rows: int = 6) -> pa.Table:
    rows = range(num_rows)
    ids = [f"e{i}" for i in rows]
    return pa.table({"event_id": ids, "timestamp_ms": rows, "user_id": rows, "unused": ids})


def columns_of(num_rows: int) -> dict[str, pa.ChunkedArray]:
    rows = [i + 1 for i in range(num_rows)]
    return {
        "event_id": pa.array([str(i) for i in rows]),
        "timestamp_ms": pa.array(rows),
        "user_id": pa.array(rows),
    }


def read_all(*paths) -> list[str]:
    files = find_files([str(path) for path in paths])
    blocks = [b for split in plan_splits(files, TYPES, REQUIRED) for b in read_split(split, TYPES)]
    return [name for block in blocks for name in block.table["event_id"].to_pylist()]


def json_lines(num_rows: int = 6) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in table(num_rows).to_pylist())


def test_inputs_are_files_folders_and_globs_each_file_once(tmp_path) -> None:
    for name in ("b.parquet", "a.jsonl", "sub/c.json.gz", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = find_files([str(tmp_path), str(tmp_path / "*.parquet")])
    assert found == [str(tmp_path / name) for name in ("a.jsonl", "b.parquet", "sub/c.json.gz")]


def test_an_input_that_names_nothing_is_an_error(tmp_path) -> None:
    with pytest.raises(InputError, match=r"\*\.parquet': found no file; expected a file, a folder"):
        find_files([str(tmp_path / "*.parquet")])
    (tmp_path / "log.csv").touch()
    with pytest.raises(InputError, match=r"log\.csv: found an unknown kind of file"):
        find_files([str(tmp_path / "log.csv")])


def test_parquet_is_read_by_row_groups(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(read, "_ROWS_PER_SPLIT", 4)
    path = tmp_path / "a.parquet"
    pq.write_table(table(11), path, row_group_size=2)
    splits = plan_splits([str(path)], TYPES, REQUIRED)
    assert [(split.start, split.end) for split in splits] == [(0, 2), (2, 4), (4, 6)]
    assert read_all(path) == [f"e{i}" for i in range(11)]


def test_a_column_that_the_file_has_not_is_null_and_others_are_not_read(tmp_path) -> None:
    pq.write_table(table(), tmp_path / "a.parquet")
    (block,) = read_split(Split(0, 0, str(tmp_path / "a.parquet"), 0, 1), TYPES)
    assert block.table.column_names == list(TYPES)
    assert block.table["play_seconds"].null_count == 6


@pytest.mark.parametrize("bytes_per_split", [1, 7, 50, 64, 10_000])
@pytest.mark.parametrize("end", [b"\n", b""])
def test_json_lines_are_read_once_wherever_blocks_end(
    tmp_path, monkeypatch, bytes_per_split, end
) -> None:
    monkeypatch.setattr(read, "_BYTES_PER_SPLIT", bytes_per_split)
    content = json_lines(20).rstrip() + end
    (tmp_path / "a.jsonl").write_bytes(content)
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(content))
    assert read_all(tmp_path / "a.jsonl") == [f"e{i}" for i in range(20)]
    assert read_all(tmp_path / "b.jsonl.gz") == [f"e{i}" for i in range(20)]


def test_an_empty_file_has_no_rows(tmp_path) -> None:
    (tmp_path / "a.jsonl").touch()
    pq.write_table(table(0), tmp_path / "b.parquet")
    assert read_all(tmp_path) == []


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("user_id", pa.array([1, 2], pa.int32())),
        ("user_id", pa.array([1, 2]).dictionary_encode()),
        ("event_id", pa.array(["1", "2"], pa.large_string())),
        ("event_id", pa.array(["1", "2"]).dictionary_encode()),
        ("play_seconds", pa.array([1.0, 2.0], pa.float64())),
        ("play_seconds", pa.array([1, 2], pa.int64())),
        ("timestamp_ms", pa.array([1_000, 2_999], pa.timestamp("us"))),
        ("timestamp_ms", pa.array([1, 2], pa.timestamp("ms", "UTC"))),
    ],
)
def test_a_type_that_means_the_same_is_accepted(tmp_path, column, values) -> None:
    path = tmp_path / "a.parquet"
    columns = columns_of(2) | {column: values}
    pq.write_table(pa.table(columns), path)
    (split,) = plan_splits([str(path)], TYPES, REQUIRED)
    (block,) = read_split(split, TYPES)
    kinds = {"string": str, "int64": int, "float32": float}
    kind = kinds[TYPES[column]]
    assert block.table[column].to_pylist() == [kind(1), kind(2)]


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        ("user_id", pa.array(["a", "b"]), "user_id: found a column of type string; expected int64"),
        ("user_id", pa.array([1.0, 2.0]), "user_id: found a column of type double; expected int64"),
        ("event_id", pa.array([1, 2]), "event_id: found a column of type int64; expected string"),
        ("user_id", pa.array([1, 2], pa.timestamp("ms")), "user_id: found a column of type timest"),
    ],
)
def test_a_column_of_another_type_is_an_error(tmp_path, column, values, message) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns_of(2) | {column: values}), path)
    with pytest.raises(InputError, match=rf"a\.parquet: {message}"):
        plan_splits([str(path)], TYPES, REQUIRED)


def test_a_missing_column_is_an_error_that_lists_what_was_found(tmp_path) -> None:
    pq.write_table(table().drop_columns(["user_id"]), tmp_path / "a.parquet")
    rows = table().drop_columns(["event_id"]).to_pylist()
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    with pytest.raises(InputError) as caught:
        plan_splits(find_files([str(tmp_path)]), TYPES, REQUIRED)
    first, second = str(caught.value).splitlines()
    assert "a.parquet: user_id: found no such column; found event_id, timestamp_ms" in first
    assert "b.jsonl: event_id: found no such column; found timestamp_ms, unused" in second


@pytest.mark.parametrize("keep", [0, 3, 400])
def test_a_truncated_parquet_file_is_an_error(tmp_path, keep) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"a\.parquet: found no whole Parquet file"):
        plan_splits([str(path)], TYPES, REQUIRED)


def test_a_truncated_gzip_file_is_an_error(tmp_path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json_lines(50_000))[:-50])
    with pytest.raises(InputError, match=r"a\.jsonl\.gz: found bytes that cannot be decoded"):
        read_all(path)


def test_a_file_is_fingerprinted(tmp_path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"content")
    entry = fingerprint_file(str(tmp_path / "a.jsonl"))
    assert (entry.size_bytes, entry.sha256) == (7, hashlib.sha256(b"content").hexdigest())
