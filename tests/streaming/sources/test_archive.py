from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.schema import InputError, SchemaMismatchError
from streaming.source import Partition, Place, Range
from streaming.sources.archive import ArchiveSource
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


AT_END = {PART_0: 3, PART_3: 16}


def test_a_new_day_is_seen_and_keeps_the_identity(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA)
    before = source.identity(AT_END)

    write_samples(directory, DAYS | {("2026-01-03", 3): samples(16, 20)})

    assert source.end_offsets()[PART_3] == 20
    assert items(source, PART_3, 14, 18) == [14, 15, 16, 17]
    assert source.identity(AT_END) == before
    assert ArchiveSource(directory, SCHEMA).identity(AT_END) == before


def test_a_reader_sees_a_day_that_came_after_it_was_made(directory: Path) -> None:
    reader = ArchiveSource(directory, SCHEMA)
    later = {("2026-01-03", 3): samples(16, 20), ("2026-01-03", 5): samples(50, 51)}
    write_samples(directory, DAYS | later)

    assert items(reader, PART_3, 17, 20) == [17, 18, 19]
    assert items(reader, Partition("archive", 5), 0, 1) == [50]


EARLIER_DAY = DAYS | {("2026-01-01", 0): samples(98, 100)}
LATER_DAY = DAYS | {("2026-01-03", 3): samples(16, 20)}
OLDEST_DAY_REWRITTEN = DAYS | {("2026-01-01", 3): samples(1, 11)}
NEWEST_DAY_REWRITTEN = DAYS | {("2026-01-02", 3): samples(30, 36)}
NEWEST_DAY_LONGER = LATER_DAY | {("2026-01-02", 3): samples(10, 17)}
WITHOUT_PART_3 = {("2026-01-02", 0): samples(100, 103)}


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (EARLIER_DAY, 0),
        (OLDEST_DAY_REWRITTEN, 3),
        (NEWEST_DAY_REWRITTEN, 3),
        (NEWEST_DAY_LONGER, 3),
        (WITHOUT_PART_3, 3),
    ],
)
def test_listed_files_that_a_later_run_changed_end_a_follower(
    directory: Path, changed: dict[tuple[str, int], pa.Table], part: int
) -> None:
    source = ArchiveSource(directory, SCHEMA)
    write_samples(directory, changed)
    with pytest.raises(InputError, match=rf"topic 'archive', part {part}: .* new days only, after"):
        source.end_offsets()


@pytest.mark.parametrize(
    ("changed", "offset", "same"),
    [
        # Part 3 has rows 0..9 on the first day, 10..15 on the second.
        (DAYS, 16, True),
        (LATER_DAY, 16, True),
        (EARLIER_DAY, 16, True),  # in part 0, of which nothing was read
        (OLDEST_DAY_REWRITTEN, 0, True),
        (OLDEST_DAY_REWRITTEN, 1, False),
        (NEWEST_DAY_REWRITTEN, 10, True),
        (NEWEST_DAY_REWRITTEN, 11, False),
        (NEWEST_DAY_LONGER, 10, True),
        (NEWEST_DAY_LONGER, 11, False),
        (WITHOUT_PART_3, 1, False),
    ],
)
@pytest.mark.parametrize("replays", [1, 2])
def test_identity_changes_with_the_rows_before_the_offsets(
    directory: Path,
    changed: dict[tuple[str, int], pa.Table],
    offset: int,
    same: bool,
    replays: int,
) -> None:
    offsets = {PART_0: 0, PART_3: offset}
    before = ArchiveSource(directory, SCHEMA, replays=replays).identity(offsets)
    write_samples(directory, changed)
    after = ArchiveSource(directory, SCHEMA, replays=replays).identity(offsets)
    assert (after == before) is same


@pytest.mark.parametrize(("offset", "same"), [(16, True), (17, False)])
def test_a_new_day_moves_the_offsets_of_later_replays(
    directory: Path, offset: int, same: bool
) -> None:
    before = ArchiveSource(directory, SCHEMA, replays=2).identity({PART_3: offset})
    write_samples(directory, LATER_DAY)
    after = ArchiveSource(directory, SCHEMA, replays=2).identity({PART_3: offset})
    assert (after == before) is same


def test_a_life_does_not_see_new_days_when_it_replays(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA, replays=2)
    write_samples(directory, LATER_DAY)
    assert source.end_offsets() == {PART_0: 6, PART_3: 32}


def test_more_replays_keep_the_identity(directory: Path) -> None:
    identities = [ArchiveSource(directory, SCHEMA, replays=n).identity(AT_END) for n in (1, 2, 5)]
    assert len({str(identity) for identity in identities}) == 1


def test_parts_with_each_others_files_have_another_identity(tmp_path: Path) -> None:
    day, first, second = "2026-01-01", samples(0, 5), samples(5, 10)
    offsets = {PART_0: 5, PART_3: 5}
    write_samples(tmp_path, {(day, 0): first, (day, 3): second})
    before = ArchiveSource(tmp_path, SCHEMA).identity(offsets)
    write_samples(tmp_path, {(day, 0): second, (day, 3): first})
    assert ArchiveSource(tmp_path, SCHEMA).identity(offsets) != before


def test_a_missing_and_a_retyped_column_are_named_with_their_file(directory: Path) -> None:
    table = samples(0, 3).drop_columns(["item_id"])
    wrong = table.set_column(0, "event_id", pa.array([1, 2, 3]))
    write_samples(directory, DAYS | {("2026-01-03", 0): wrong})
    path = directory / "retrieval" / "dt=2026-01-03" / "part-00000.parquet"

    with pytest.raises(SchemaMismatchError) as caught:
        ArchiveSource(directory, SCHEMA)

    assert str(caught.value).splitlines() == [
        f"{path}: column 'event_id': found int64; expected string",
        f"{path}: column 'item_id': found none; expected int64"
        " (columns found: event_id, history_item_id)",
    ]


def test_a_truncated_file_is_named(directory: Path) -> None:
    path = directory / "retrieval" / "dt=2026-01-02" / "part-00003.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=rf"{path}: found a file that is not readable"):
        ArchiveSource(directory, SCHEMA)


def test_a_file_cut_after_it_was_listed_is_named(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA)
    path = directory / "retrieval" / "dt=2026-01-02" / "part-00003.parquet"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=rf"{path}: found a file that is not readable"):
        source.read(Range(PART_3, 10, 12))


def test_a_page_whose_bytes_changed_is_named(directory: Path) -> None:
    source = ArchiveSource(directory, SCHEMA)
    path = directory / "retrieval" / "dt=2026-01-01" / "part-00003.parquet"
    column = pq.ParquetFile(path).metadata.row_group(1).column(1)
    data = bytearray(path.read_bytes())
    data[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    assert items(source, PART_3, 0, 4) == [0, 1, 2, 3]
    with pytest.raises(InputError, match=rf"{path}: found a file that is not readable"):
        source.read(Range(PART_3, 4, 8))


def test_a_file_with_other_rows_than_its_manifest_is_named(directory: Path) -> None:
    path = directory / "retrieval" / "dt=2026-01-01" / "part-00003.parquet"
    path.write_bytes(
        (directory / "retrieval" / "dt=2026-01-02" / "part-00003.parquet").read_bytes()
    )
    with pytest.raises(InputError, match=rf"{path}: .*6 rows, not 10 as in its manifest"):
        ArchiveSource(directory, SCHEMA)


def test_a_folder_without_a_whole_run_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `headrace samples` first"):
        ArchiveSource(tmp_path, SCHEMA)


def replace_run(directory: Path, tables: dict[tuple[str, int], pa.Table]) -> None:
    """Makes `directory` a link to a new run, and removes the run that it was a link to."""
    former = directory.resolve() if directory.is_symlink() else None
    run = directory.with_name(f"{directory.name}-{'b' if former else 'a'}")
    write_samples(run, tables)
    directory.unlink(missing_ok=True)
    directory.symlink_to(run.name)
    if former:
        shutil.rmtree(former)


@pytest.mark.parametrize("replays", [1, 2])
@pytest.mark.parametrize("run", [DAYS, LATER_DAY, NEWEST_DAY_LONGER])
def test_a_listed_file_is_found_in_the_run_that_replaced_its_own(
    tmp_path: Path, replays: int, run: dict[tuple[str, int], pa.Table]
) -> None:
    replace_run(tmp_path / "samples", DAYS)
    source = ArchiveSource(tmp_path / "samples", SCHEMA, replays=replays)
    assert items(source, PART_3, 0, 2) == [0, 1]

    replace_run(tmp_path / "samples", run)

    assert items(source, PART_3, 4, 10) == [4, 5, 6, 7, 8, 9]
    if replays == 2:
        assert items(source, PART_3, 16, 20) == [0, 1, 2, 3]  # still the second pass


def test_a_listed_file_that_no_run_has_any_more_is_named(tmp_path: Path) -> None:
    replace_run(tmp_path / "samples", DAYS)
    source = ArchiveSource(tmp_path / "samples", SCHEMA)
    replace_run(tmp_path / "samples", NEWEST_DAY_REWRITTEN)
    path = tmp_path / "samples-a" / "retrieval" / "dt=2026-01-02" / "part-00003.parquet"
    with pytest.raises(InputError, match=rf"{path}: found no file any more"):
        source.read(Range(PART_3, 8, 12))


def test_listed_files_are_read_on_while_they_are_there(tmp_path: Path) -> None:
    write_samples(tmp_path / "one", DAYS)
    (tmp_path / "samples").symlink_to("one")
    source = ArchiveSource(tmp_path / "samples", SCHEMA)
    write_samples(tmp_path / "two", NEWEST_DAY_REWRITTEN)
    (tmp_path / "samples").unlink()
    (tmp_path / "samples").symlink_to("two")
    assert items(source, PART_3, 8, 12) == [8, 9, 10, 11]


@pytest.mark.parametrize(("number", "start", "end"), [(3, 10, 17), (3, -1, 2), (7, 0, 1)])
def test_offsets_that_are_not_there_are_refused(
    directory: Path, number: int, start: int, end: int
) -> None:
    source = ArchiveSource(directory, SCHEMA)
    with pytest.raises(InputError, match=rf"part {number}: found offsets .* {start} to {end}"):
        source.read(Range(Partition("archive", number), start, end))


def test_offsets_at_a_time_are_the_first_rows_that_reach_it(tmp_path: Path) -> None:
    schema = pa.schema([("timestamp_ms", pa.int64())])

    def rows(*times: int) -> pa.Table:
        return pa.table({"timestamp_ms": pa.array(times, pa.int64())}, schema=schema)

    days = {
        ("1970-01-01", 0): rows(10, 20, 20, 30, 40, 50, 60),  # two row groups: four rows, three
        ("1970-01-02", 0): rows(70, 90),
        ("1970-01-01", 3): rows(15),
    }
    write_samples(tmp_path / "timed", days)
    source = ArchiveSource(tmp_path / "timed", schema)

    assert source.offsets_at(0) == {PART_0: Place(0, 10), PART_3: Place(0, 15)}
    assert source.offsets_at(15) == {PART_0: Place(1, 20), PART_3: Place(0, 15)}
    assert source.offsets_at(20) == {PART_0: Place(1, 20)}
    assert source.offsets_at(41) == {PART_0: Place(5, 50)}
    assert source.offsets_at(71) == {PART_0: Place(8, 90)}
    assert source.offsets_at(91) == {}
