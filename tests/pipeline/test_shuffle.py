from __future__ import annotations

from pathlib import Path

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shuffle import (
    cut_by_key,
    hash_keys,
    read_pieces,
    write_pieces,
)

_MASK = 2**64 - 1


def splitmix(value: int) -> int:
    value = (value + 0x9E3779B97F4A7C15) & _MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def fold(text: str) -> int:
    golden = 0x9E3779B97F4A7C15
    return (
        sum((byte + 1) * pow(golden, i + 1, 2**64) for i, byte in enumerate(text.encode())) & _MASK
    )


def test_splitmix_of_zero_is_the_published_first_output_of_its_generator() -> None:
    assert hash_keys(pa.array([0])).tolist() == [0xE220A8397B1DCDAF]


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_integer_hashes_match_plain_arithmetic(keys: list[int]) -> None:
    assert hash_keys(pa.array(keys, pa.int64())).tolist() == [splitmix(k & _MASK) for k in keys]


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_string_hashes_match_plain_arithmetic(keys: list[str]) -> None:
    assert hash_keys(pa.array(keys)).tolist() == [splitmix(fold(key)) for key in keys]


def test_a_slice_of_strings_hashes_as_the_strings_themselves() -> None:
    keys = pa.array(["", "a", "user-1", "ü"])
    assert hash_keys(keys[1:]).tolist() == hash_keys(keys).tolist()[1:]


def test_parts_are_even() -> None:
    for keys in (pa.array(range(80_000)), pa.array([f"user-{i}" for i in range(80_000)])):
        sizes = [piece.num_rows for _, piece in cut_by_key(pa.table({"k": keys}), "k", num_parts=8)]
        assert len(sizes) == 8
        assert min(sizes) > 9_500  # 10,000 +- 5 standard deviations of 94


def test_a_cut_keeps_every_row_once_in_order_and_whole_keys() -> None:
    table = pa.table({"k": [5, 1, 5, 2, 1, 3], "row": range(6)})
    pieces = dict(cut_by_key(table, "k", num_parts=3))
    rows = [piece["row"].to_pylist() for piece in pieces.values()]
    assert sorted(row for part in rows for row in part) == list(range(6))
    assert all(part == sorted(part) for part in rows)
    owners = {}
    for part, piece in pieces.items():
        for key in piece["k"].to_pylist():
            assert owners.setdefault(key, part) == part


def test_pieces_of_a_cut_are_the_rows_of_their_parts(tmp_path: Path) -> None:
    table = pa.table({"k": [5, 1, 5, 2, 1, 3], "s": ["a", "b", None, "d", "", "f"]})
    path = tmp_path / "folder" / "block.arrow"
    pieces = dict(write_pieces(table, "k", num_parts=3, path=path, origin=(0,)))
    expected = dict(cut_by_key(table, "k", num_parts=3))
    assert set(pieces) == set(expected)
    assert len(pieces) > 1
    for part, piece in pieces.items():
        assert read_pieces([piece]).equals(expected[part])
    assert [p.name for p in path.parent.iterdir()] == ["block.arrow"]


def test_no_rows_make_no_file(tmp_path: Path) -> None:
    empty = pa.table({"k": pa.array([], pa.int64())})
    assert list(write_pieces(empty, "k", num_parts=2, path=tmp_path / "x", origin=(0,))) == []
    assert list(tmp_path.iterdir()) == []


def test_pieces_are_joined_by_origin_in_whatever_order_they_come(tmp_path: Path) -> None:
    pieces = []
    for number in (0, 2, 10):
        table = pa.table({"k": [7], "row": [number]})
        path = tmp_path / f"{number}.arrow"
        pieces += dict(
            write_pieces(table, "k", num_parts=1, path=path, origin=(0, number))
        ).values()
    for arrived in (pieces, pieces[::-1], [pieces[1], pieces[2], pieces[0]]):
        assert read_pieces(arrived)["row"].to_pylist() == [0, 2, 10]
