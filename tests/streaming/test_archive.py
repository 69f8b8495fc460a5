from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.schema import InputError, SchemaMismatchError
from streaming.archive import ArchiveSource
from streaming.source import Partition, Range
from tests.sample_folder import write_samples

SCHEMA = pa.schema(
    [
        ("event_id", pa.string()),
        ("item_id", pa.int64()),
        ("history_item_id", pa.list_(pa.int64())),
    ]
)
PART_0, PART_3 = Partition("archive", 0), Partition("archive", 3)


def samples(first: int, end: int) -> pa.Table:
    ids = range(first, end)
    return pa.table(
        {
            "event_id": [f"e{i}" for i in ids],
            "item_id": list(ids),
            "history_item_id": [[i] * (i % 3) for i in ids],
        },
        schema=SCHEMA,
    )


DAYS = {
    ("2026-01-02", 3): samples(10, 16),
    ("2026-01-01", 3): samples(0, 10),
    ("2026-01-02", 0): samples(100, 103),
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Part 3 has items 0..9 on the first day and 10..15 on the second; part 0 has 100..102."""
    write_samples(tmp_path / "samples", DAYS)
    return tmp_path / "samples"


def items(source: ArchiveSource, partition: Partition, start: int, end: int) -> list[int]:
    return source.read(Range(partition, start, end)).samples["item_id"].to_pylist()


def test_offsets_count_rows_of_a_part_from_the_oldest_day(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA)

    assert source.partitions() == [PART_0, PART_3]
    assert source.start_offsets() == {PART_0: 0, PART_3: 0}
    assert source.end_offsets() == {PART_0: 3, PART_3: 16}
    assert items(source, PART_3, 0, 16) == list(range(16))


def test_any_range_gives_its_rows_across_row_groups_and_days(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA)
    for start in range(17):
        for end in range(start, 17):
            assert items(source, PART_3, start, end) == list(range(start, end))


def test_values_of_all_columns_survive(directory: Path) -> None:
    result = ArchiveSource(directory, SCHEMA).read(Range(PART_3, 7, 12))

    assert result.samples.equals(samples(7, 12))
    assert (list(result.rejects), result.lost) == ([], 0)


def test_replays_pass_over_the_whole_part_again(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA, replays=3)

    assert source.end_offsets() == {PART_0: 9, PART_3: 48}
    assert items(source, PART_0, 1, 8) == [101, 102, 100, 101, 102, 100, 101]


def test_a_cache_smaller_than_a_row_group_changes_nothing(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA, cache_bytes=1)
    assert items(source, PART_3, 3, 14) == list(range(3, 14))
    assert items(source, PART_3, 0, 5) == list(range(5))


def test_columns_come_in_the_order_and_encoding_of_the_schema(tmp_path: Path) -> None:
    written = samples(0, 5).append_column("title", pa.array(["t"] * 5))
    written = written.select(["title", "history_item_id", "item_id", "event_id"])
    large = pa.schema(
        [
            ("title", pa.string()),
            ("history_item_id", pa.large_list(pa.int64())),
            ("item_id", pa.int64()),
            ("event_id", pa.large_string()),
        ]
    )
    write_samples(tmp_path, {("2026-01-01", 0): written.cast(large)})

    read = ArchiveSource(tmp_path, SCHEMA).read(Range(PART_0, 1, 5)).samples

    assert read.schema == SCHEMA
    assert read.equals(samples(1, 5))


def test_a_new_day_is_seen_and_keeps_the_identity(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA)
    before = source.identity()

    write_samples(directory, DAYS | {("2026-01-03", 3): samples(16, 20)})

    assert source.end_offsets()[PART_3] == 20
    assert items(source, PART_3, 14, 18) == [14, 15, 16, 17]
    assert source.identity() == before == ArchiveSource(directory, SCHEMA).identity()


def test_a_reader_sees_a_day_that_came_after_it_was_made(directory: Path) -> None:
    reader = ArchiveSource(directory, SCHEMA)
    later = {("2026-01-03", 3): samples(16, 20), ("2026-01-03", 5): samples(50, 51)}
    write_samples(directory, DAYS | later)

    assert items(reader, PART_3, 17, 20) == [17, 18, 19]
    assert items(reader, Partition("archive", 5), 0, 1) == [50]


def test_a_day_in_the_past_is_refused_as_it_would_move_the_offsets(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA)
    write_samples(directory, DAYS | {("2026-01-01", 0): samples(98, 100)})
    with pytest.raises(InputError, match=r"part 0: .* expected new days only after dt=2026-01-02"):
        source.end_offsets()


def alter_the_oldest_day(directory: Path) -> None:
    write_samples(directory, DAYS | {("2026-01-01", 3): samples(1, 11)})


def add_a_day(directory: Path) -> None:
    write_samples(directory, DAYS | {("2026-01-09", 3): samples(0, 1)})


@pytest.mark.parametrize(
    ("replays", "change", "same"),
    [
        (1, add_a_day, True),
        (1, alter_the_oldest_day, False),
        (2, add_a_day, False),
        (2, alter_the_oldest_day, False),
    ],
)
def test_identity_changes_when_offsets_lose_their_meaning(
    directory: Path, replays: int, change: Callable[[Path], None], same: bool
) -> None:
    before = ArchiveSource(directory, SCHEMA, replays=replays).identity()
    change(directory)
    after = ArchiveSource(directory, SCHEMA, replays=replays).identity()
    assert (after == before) is same


def test_more_replays_keep_the_identity(directory: Path) -> None:
    identities = [ArchiveSource(directory, SCHEMA, replays=n).identity() for n in (2, 5)]
    assert identities[0] == identities[1]


def test_a_missing_and_a_retyped_column_are_named_with_their_file(directory: Path) -> None:
    table = samples(0, 3).drop_columns(["item_id"])
    wrong = table.set_column(0, "event_id", pa.array([1, 2, 3]))
    write_samples(directory, DAYS | {("2026-01-03", 0): wrong})
    path = directory / "dt=2026-01-03" / "part-00000.parquet"

    with pytest.raises(SchemaMismatchError) as caught:
        ArchiveSource(directory, SCHEMA)

    assert str(caught.value).splitlines() == [
        f"{path}: column 'event_id': found int64; expected string",
        f"{path}: column 'item_id': found none; expected int64"
        " (columns found: event_id, history_item_id)",
    ]


def test_a_truncated_file_is_named(directory: Path) -> None:
    path = directory / "dt=2026-01-02" / "part-00003.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=rf"{path}: found a file that is not readable"):
        ArchiveSource(directory, SCHEMA)


def test_a_file_cut_after_it_was_listed_is_named(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA)
    path = directory / "dt=2026-01-02" / "part-00003.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=rf"{path}: found a file that is not readable"):
        source.read(Range(PART_3, 10, 12))


def test_a_file_with_other_rows_than_its_manifest_is_named(directory: Path) -> None:
    path = directory / "dt=2026-01-01" / "part-00003.parquet"
    path.write_bytes((directory / "dt=2026-01-02" / "part-00003.parquet").read_bytes())
    with pytest.raises(InputError, match=rf"{path}: .*6 rows, not 10 as in its manifest"):
        ArchiveSource(directory, SCHEMA)


def test_a_folder_without_a_whole_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `headrace samples` first"):
        ArchiveSource(tmp_path, SCHEMA)


@pytest.mark.parametrize("replays", [1, 2])
def test_a_run_that_replaces_the_listed_one_with_the_same_files_is_read_on(
    tmp_path: Path, replays: int
) -> None:
    for run in ("run-1", "run-2"):
        write_samples(tmp_path / run, DAYS)
    link = tmp_path / "samples"
    link.symlink_to("run-1")
    source = ArchiveSource(link, SCHEMA, replays=replays)
    assert items(source, PART_3, 0, 2) == [0, 1]

    link.unlink()
    link.symlink_to("run-2")
    shutil.rmtree(tmp_path / "run-1")

    assert items(source, PART_3, 8, 12) == [8, 9, 10, 11]


@pytest.mark.parametrize(("number", "start", "end"), [(3, 10, 17), (3, -1, 2), (7, 0, 1)])
def test_offsets_that_are_not_there_are_refused(
    directory: Path, number: int, start: int, end: int
) -> None:
    source = ArchiveSource(directory, SCHEMA)
    with pytest.raises(InputError, match=rf"part {number}: found offsets .* {start} to {end}"):
        source.read(Range(Partition("archive", number), start, end))
