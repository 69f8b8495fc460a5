"""Archives of samples that benchmarks make themselves."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest import MANIFEST_NAME, RETRIEVAL, Manifest, OutputFile
from pipeline.schema import schema_fingerprint
from pipeline.specification import Specification


def write_archive(
    folder: Path,
    parts: Iterable[pa.Table],
    specification: Specification,
    *,
    day: str,
    row_group_size: int | None = None,
) -> None:
    """Writes samples as `headrace samples` would, but in the order given, and all as one day.

    Args:
        folder: Where; it is made.
        parts: The samples of each partition, in the order of its offsets.
        specification: What they are samples of.
        day: The day, `YYYY-MM-DD`.
        row_group_size: Rows per row group at most; None leaves it to Arrow.
    """
    schema = specification.sample_schema
    (folder / RETRIEVAL / f"dt={day}").mkdir(parents=True)
    files = []
    for number, part in enumerate(parts):
        path = f"{RETRIEVAL}/dt={day}/part-{number:05}.parquet"
        samples = part.select(schema.names).cast(schema)
        pq.write_table(samples, folder / path, row_group_size=row_group_size)
        sha256 = hashlib.sha256((folder / path).read_bytes()).hexdigest()
        files.append(
            OutputFile(path=path, day=day, part=number, rows=samples.num_rows, sha256=sha256)
        )
    manifest = Manifest(
        kinds={RETRIEVAL: schema_fingerprint(schema)},
        config="",
        specification=specification.fingerprint,
        num_parts=len(files),
        days=[],
        builds=[],
        files=files,
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())
