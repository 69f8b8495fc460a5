from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.events.json_lines import Reject
from pipeline.events.rejects import merge_rejects, read_rejects, spill_rejects
from pipeline.schema import InputError

RAW = b'{"user_id": 1, \xff\xfe "a": "\xc3\xbc\n"}'


def merged(folder: Path) -> None:
    first = spill_rejects(folder / "a.jsonl", [Reject(1, "not_json", "d", RAW)])
    second = spill_rejects(folder / "b.jsonl", [Reject(0, "wrong_type", "e", b"x" * 1000)])
    blocks = [((7, 0, 0), 5, first), ((7, 1, 0), 3, ""), ((7, 2, 0), 1, second)]
    merge_rejects(folder / "run", "logs/log.jsonl", blocks)


def test_rejects_have_the_row_of_their_file_and_every_byte(tmp_path: Path) -> None:
    merged(tmp_path)
    (path,) = (tmp_path / "run" / "rejected").glob("log.jsonl-*.jsonl")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["file"], row["row"], row["reason"]) for row in rows] == [
        ("logs/log.jsonl", 2, "not_json"),
        ("logs/log.jsonl", 9, "wrong_type"),
    ]
    read = [reject["raw"] for _, reject in read_rejects(tmp_path / "run")]
    assert read == [RAW, b"x" * 1000]


def test_a_log_without_rejects_has_no_file(tmp_path: Path) -> None:
    merge_rejects(tmp_path, "log.jsonl", [((0, 0, 0), 5, spill_rejects(tmp_path / "a", []))])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_without_rejects_and_a_line_that_is_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found no \.jsonl file; expected rejected rows"):
        list(read_rejects(tmp_path))
    (tmp_path / "x.jsonl").write_text('{"file": "f", "row": 1, "raw": ""}\n{"row": 1}\n')
    with pytest.raises(InputError, match=r"x\.jsonl: line 2: found no rejected row"):
        list(read_rejects(tmp_path))
