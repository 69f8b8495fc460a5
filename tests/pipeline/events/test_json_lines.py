from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.events.json_lines import parse_json_lines

TYPES = {"n": "int64", "x": "float32", "s": "string", "l": "list<int64>"}


def test_values_are_parsed_and_other_keys_ignored() -> None:
    table, rows, rejects, num_lines = parse_json_lines(
        b'{"n": 1, "x": 2, "s": "a", "l": [3], "more": {"deep": []}}\n{"s": "\\u00fc"}\n', TYPES
    )
    assert table.to_pylist() == [
        {"n": 1, "x": 2.0, "s": "a", "l": [3]},
        {"n": None, "x": None, "s": "ü", "l": None},
    ]
    assert (list(rows), rejects, num_lines) == ([0, 1], [], 2)


@pytest.mark.parametrize(
    ("line", "reason", "detail"),
    [
        (b"nope", "not_json", "expected one JSON object"),
        (b'{"n": 1', "not_json", "expected one JSON object"),
        (b'{"n": 1} {"n": 2}', "not_json", "Extra data"),
        (b"[1]", "not_json", "found a list"),
        (b'{"s": "\xff"}', "not_json", "utf-8"),
        (b'{"n": 1.5}', "wrong_type", "n: found 1.5; expected int64"),
        (b'{"n": "1"}', "wrong_type", "n: found '1'; expected int64"),
        (b'{"n": true}', "wrong_type", "n: found True; expected int64"),
        (b'{"n": 9223372036854775808}', "wrong_type", "n: found 9223372036854775808"),
        (b'{"s": 5}', "wrong_type", "s: found 5; expected string"),
        (b'{"s": "\\ud800"}', "wrong_type", "s: found"),
        (b'{"l": [1, "a"]}', "wrong_type", "l: found [1, 'a']"),
        (b'{"l": 1}', "wrong_type", "l: found 1"),
    ],
)
def test_a_bad_line_is_rejected_and_its_neighbours_stay(line, reason, detail) -> None:
    block = b'{"n": 1}\n' + line + b'\n{"n": 3}\n'
    table, rows, rejects, _ = parse_json_lines(block, TYPES)
    assert table["n"].to_pylist() == [1, 3]
    assert list(rows) == [0, 2]
    assert [(r.row, r.reason, r.raw) for r in rejects] == [(1, reason, line)]
    assert detail in rejects[0].detail


def test_a_reject_keeps_its_line_whole() -> None:
    line = b"x" * 1000
    _, _, rejects, _ = parse_json_lines(line + b"\n", TYPES)
    assert rejects[0].raw == line


def test_blank_lines_are_no_rows_but_are_counted_as_lines() -> None:
    table, rows, rejects, num_lines = parse_json_lines(b'\n{"n": 1}\n  \n{"n": 2}', TYPES)
    assert table["n"].to_pylist() == [1, 2]
    assert (list(rows), rejects, num_lines) == ([1, 3], [], 4)


@pytest.mark.parametrize("block", [b"", b"\n", b"\n\n"])
def test_nothing_gives_no_rows(block) -> None:
    table, rows, rejects, _ = parse_json_lines(block, TYPES)
    assert (table.num_rows, list(rows), rejects) == (0, [], [])


@given(st.sets(st.integers(0, 999), max_size=12))
def test_no_row_is_lost_wherever_the_bad_ones_are(bad: set[int]) -> None:
    lines = ["broken {" if i in bad else json.dumps({"n": i}) for i in range(1000)]
    table, rows, rejects, _ = parse_json_lines("\n".join(lines).encode(), TYPES)
    assert {reject.row for reject in rejects} == bad
    assert table["n"].to_pylist() == list(rows) == [i for i in range(1000) if i not in bad]
