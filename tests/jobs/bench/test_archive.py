"""Archives that benchmarks write are what `headrace samples` writes to those who read them."""

from __future__ import annotations

import hashlib

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.bench.archive import write_archive
from jobs.bench.stream.synthetic import specification, write_samples
from pipeline.manifest import read_manifest, sample_files
from streaming.source import Partition, Range
from streaming.sources.archive import TOPIC, ArchiveSource


def samples(*items: int) -> pa.Table:
    return pa.table(
        {
            "event_id": [str(item) for item in items],
            "timestamp_ms": range(len(items)),
            "user_id": items,
            "item_id": items,
            "scenario": ["any"] * len(items),
            "reward": [1.0] * len(items),
            "history_item_id": [[item, item + 1] for item in items],
        },
        schema=specification().sample_schema,
    )


def test_each_part_is_a_partition_in_its_order(tmp_path) -> None:
    parts = [samples(5, 3, 4), samples(9, 8)]
    folder = tmp_path / "new" / "samples"
    write_archive(folder, parts, specification(), day="2026-01-02", row_group_size=2)
    source = ArchiveSource(folder, specification().sample_schema)
    first, second = Partition(TOPIC, 0), Partition(TOPIC, 1)
    assert source.end_offsets() == {first: 3, second: 2}
    assert source.read(Range(first, 0, 3)).samples.equals(parts[0])
    assert source.read(Range(second, 1, 2)).samples.equals(parts[1].slice(1))


def test_the_manifest_is_of_its_files_and_specification(tmp_path) -> None:
    # Columns that are no samples' are left out, and the others put into the samples' types.
    loose = samples(1, 2, 3).append_column("more", pa.array([0, 0, 0]))
    loose = loose.set_column(5, "reward", loose["reward"].cast(pa.float64()))
    write_archive(tmp_path / "a", [loose], specification(), day="2026-01-02", row_group_size=2)
    (file,) = sample_files(tmp_path / "a")
    assert (file.part, file.day, file.rows) == (0, "2026-01-02", 3)
    assert pq.read_table(file.path, partitioning=None).equals(samples(1, 2, 3))
    assert pq.ParquetFile(file.path).num_row_groups == 2
    manifest = read_manifest(tmp_path / "a")
    assert manifest.specification == specification().fingerprint
    assert manifest.num_parts == 1
    assert manifest.files[0].sha256 == hashlib.sha256(file.path.read_bytes()).hexdigest()


@pytest.mark.parametrize("other", [False, True])
def test_the_samples_of_the_stream_are_those_of_a_specification_with_tables_of_another_size(
    tmp_path, other: bool
) -> None:
    described = specification()
    if other:
        tables = described.tables | {
            "item": described.tables["item"].model_copy(update={"buckets": 77})
        }
        described = described.model_copy(update={"tables": tables})
    write_samples(tmp_path / "s", 400, described if other else None)
    assert read_manifest(tmp_path / "s").specification == described.fingerprint
    assert [file.rows for file in sample_files(tmp_path / "s")] == [100] * 4
