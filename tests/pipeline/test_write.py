from __future__ import annotations

import os
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.manifest import Manifest, read_manifest, sample_files
from pipeline.schema import InputError
from pipeline.write import by_day, open_run, write_day
from tests.pipeline.event_log import START

DAY_MS = 86_400_000


def manifest(files=()) -> Manifest:
    return Manifest(
        kinds={"retrieval": "s"},
        config="c",
        specification="p",
        num_parts=4,
        days=[],
        builds=[],
        files=list(files),
    )


def samples(*times: int) -> pa.Table:
    ids = [str(i) for i in range(len(times))]
    return pa.table({"event_id": ids, "timestamp_ms": [START + t for t in times]})


def write_part(folder: Path, part: int, rows: pa.Table) -> list:
    return [write_day(folder, "retrieval", day, part, of_day) for day, of_day in by_day(rows)]


def write_run(output, *times: int) -> None:
    with open_run(output) as run:
        run.commit(manifest(write_part(run.folder, 3, samples(*times))))


def test_a_part_has_a_file_for_each_utc_day(tmp_path) -> None:
    files = write_part(tmp_path, 3, samples(0, DAY_MS - 1, DAY_MS, 5 * DAY_MS))
    assert [(f.path, f.day, f.part, f.rows) for f in files] == [
        ("retrieval/dt=2026-01-01/part-00003.parquet", "2026-01-01", 3, 2),
        ("retrieval/dt=2026-01-02/part-00003.parquet", "2026-01-02", 3, 1),
        ("retrieval/dt=2026-01-06/part-00003.parquet", "2026-01-06", 3, 1),
    ]
    rows = [pq.read_table(tmp_path / f.path, partitioning=None).num_rows for f in files]
    assert rows == [2, 1, 1]


def test_no_samples_write_no_file(tmp_path) -> None:
    assert write_part(tmp_path, 0, samples().cast(samples(0).schema)) == []
    assert list(tmp_path.iterdir()) == []


def test_a_part_written_twice_is_there_once_with_the_same_bytes(tmp_path) -> None:
    first = write_part(tmp_path, 3, samples(1, 2))
    assert write_part(tmp_path, 3, samples(1, 2)) == first
    assert [p.name for p in tmp_path.rglob("*.parquet")] == ["part-00003.parquet"]


def test_a_run_is_seen_only_when_it_is_committed(tmp_path) -> None:
    output = tmp_path / "samples"
    with open_run(output) as run:
        files = write_part(run.folder, 3, samples(0))
        with pytest.raises(InputError, match=r"found no such folder.*headrace samples"):
            read_manifest(output)
        run.commit(manifest(files))
    assert [file.rows for file in sample_files(output)] == [1]


def test_a_manifest_is_written_when_all_it_names_is_on_the_disk(tmp_path, monkeypatch) -> None:
    steps = []
    fsync, replace = os.fsync, Path.replace

    def note_sync(descriptor: int) -> None:
        steps.append(("sync", Path(f"/proc/self/fd/{descriptor}").readlink().name))
        fsync(descriptor)

    def note_name(path: Path, target: Path) -> Path:
        steps.append(("name", target.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(Path, "replace", note_name)
    write_run(tmp_path / "samples", 0)
    # Content has a name of its own until it is safe.
    found = [(verb, re.sub(r"\.[0-9a-f]{32}$", "", name)) for verb, name in steps]
    assert found == [
        ("sync", ".part-00003.parquet"),
        ("name", "part-00003.parquet"),
        ("sync", "retrieval"),
        ("sync", "dt=2026-01-01"),
        ("sync", "run-00001"),
        ("sync", ".manifest.json"),
        ("name", "manifest.json"),
        ("sync", "run-00001"),
        ("sync", "samples.runs"),
        ("name", "samples"),
        ("sync", tmp_path.name),
    ]


def test_a_run_that_fails_leaves_the_former_output_and_is_cleaned_by_the_next(tmp_path) -> None:
    output = tmp_path / "samples"
    write_run(output, 0)
    with pytest.raises(KeyError), open_run(output) as run:
        write_part(run.folder, 9, samples(0, 1, 2))
        raise KeyError
    assert [(file.part, file.rows) for file in sample_files(output)] == [(3, 1)]
    write_run(output, 0, 1)
    assert [(file.part, file.rows) for file in sample_files(output)] == [(3, 2)]
    assert not run.folder.exists()


def test_a_new_run_leaves_nothing_of_the_old_one_in_the_output(tmp_path) -> None:
    output = tmp_path / "samples"
    write_run(output, 0, DAY_MS)
    write_run(output, DAY_MS)
    assert [path.name for path in sorted(output.iterdir())] == ["manifest.json", "retrieval"]
    assert [path.name for path in (output / "retrieval").iterdir()] == ["dt=2026-01-02"]


def test_a_reader_in_the_middle_of_a_run_keeps_its_files(tmp_path) -> None:
    output = tmp_path / "samples"
    write_run(output, 0, 1)
    files = sample_files(output)
    write_run(output, 0)
    assert [pq.read_table(f.path, partitioning=None).num_rows for f in files] == [2]


def test_the_output_can_be_moved_with_its_runs(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(Path("data/samples"), 0)
    Path("data").rename("moved")
    assert [file.rows for file in sample_files("moved/samples")] == [1]


def test_only_one_run_writes_at_a_time(tmp_path) -> None:
    with (
        open_run(tmp_path / "samples"),
        pytest.raises(InputError, match="another run"),
        open_run(tmp_path / "samples"),
    ):
        pass


def test_a_folder_of_something_else_is_left_alone(tmp_path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(InputError, match="did not write"), open_run(tmp_path):
        pass
    assert (tmp_path / "precious").exists()


def test_an_empty_folder_may_become_the_output(tmp_path) -> None:
    (tmp_path / "samples").mkdir()
    write_run(tmp_path / "samples", 0)
    assert len(sample_files(tmp_path / "samples")) == 1
