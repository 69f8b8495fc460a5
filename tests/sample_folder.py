"""Folders of samples as `headrace samples` writes them, for tests of what reads them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest import MANIFEST_NAME, Manifest, OutputFile
from pipeline.schema import schema_fingerprint


def write_samples(
    folder: Path, tables: Mapping[tuple[str, int], pa.Table], *, row_group_size: int = 4
) -> None:
    """Writes or replaces the whole folder: one table per (day, part), and the manifest."""
    files = []
    for (day, part), table in tables.items():
        path = f"retrieval/dt={day}/part-{part:05}.parquet"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(
            table, folder / path, row_group_size=row_group_size, write_page_checksum=True
        )
        sha256 = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        files.append(OutputFile(path=path, day=day, part=part, rows=len(table), sha256=sha256))
    manifest = Manifest(
        kinds={"retrieval": schema_fingerprint(next(iter(tables.values())).schema)},
        config="c",
        specification="s",
        num_parts=1 + max(part for _, part in tables),
        days=[],
        builds=[],
        files=files,
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())
