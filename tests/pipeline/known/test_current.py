"""Tables in the memory of a live join: what changes under it, and what must not end it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.known.current import CurrentTables
from pipeline.schema import InputError
from pipeline.specification import Specification
from tests.pipeline.event_log import specification


def with_users() -> Specification:
    return specification(users={"columns": {"level": "int64"}})


def write(path: Path, *rows: tuple[int, int, int]) -> None:
    """Rows of user, valid_from_ms, level; by rename."""
    names = ("user_id", "valid_from_ms", "level")
    columns = zip(*rows, strict=True)
    new = path.with_name("new")
    pq.write_table(pa.table(dict(zip(names, columns, strict=True))), new)
    new.rename(path)


class Watch:
    """A clock that is set, and the tables that go by it."""

    def __init__(self, folder: Path) -> None:
        self.now = 100.0
        self.tables = CurrentTables(with_users(), users=[str(folder)], clock=lambda: self.now)

    def level(self, user: int, time_ms: int) -> int | None:
        rows = pl.DataFrame({"user_id": [user], "timestamp_ms": [time_ms], "item_id": [1]})
        (level,) = self.tables.of(rows).attach(rows, with_users())["level"]
        return level


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write(tmp_path / "users.parquet", (1, 10, 5), (1, 20, 6), (2, 10, 7))
    return tmp_path


def test_only_rows_of_those_who_are_asked_for_are_given(folder) -> None:
    rows = pl.DataFrame({"user_id": [2, 2, 3], "item_id": [1, 1, 1]})
    found = Watch(folder).tables.of(rows)
    assert found.users.rows() == [(2, 10, None, 7)]
    assert found.items is None


def test_files_that_change_come_or_go_are_read_again_within_ten_seconds(folder, caplog) -> None:
    caplog.set_level(logging.INFO, "pipeline")
    watch = Watch(folder)
    assert [watch.level(1, 15), watch.level(1, 25)] == [5, 6]
    write(folder / "users.parquet", (1, 10, 8), (2, 10, 7))
    watch.now += 9.9
    assert watch.level(1, 25) == 6
    watch.now += 0.1
    assert watch.level(1, 25) == 8
    write(folder / "more.parquet", (1, 30, 9))
    watch.now += 10
    assert [watch.level(1, 29), watch.level(1, 30)] == [8, 9]
    (folder / "more.parquet").unlink()
    watch.now += 10
    assert watch.level(1, 30) == 8
    assert caplog.text.count("tables were read again") == 3
    watch.now += 10
    assert watch.level(1, 30) == 8
    assert caplog.text.count("tables were read again") == 3


@pytest.mark.parametrize("fault", ["half a file", "no file", "twice", "other columns"])
def test_a_table_that_cannot_be_read_ends_nothing_but_the_start(folder, fault, caplog) -> None:
    watch, path = Watch(folder), folder / "users.parquet"
    if fault == "half a file":
        os.truncate(path, path.stat().st_size // 2)
    elif fault == "no file":
        path.unlink()
    elif fault == "twice":
        write(path, (1, 10, 5), (1, 10, 6))
    else:
        pq.write_table(pa.table({"user_id": [1]}), path)
    watch.now += 10
    assert watch.level(1, 25) == 6
    assert "could not be read again, their former rows hold on: " in caplog.text
    with pytest.raises(InputError, match="user"):
        Watch(folder)
    write(path, (1, 10, 4))
    watch.now += 10
    assert watch.level(1, 25) == 4


def test_a_table_that_is_declared_must_be_given() -> None:
    with pytest.raises(InputError, match=r"samples\.users: found no file; expected the Parquet"):
        CurrentTables(with_users())
