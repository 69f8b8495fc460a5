"""The item corpus that negatives are drawn from: every item of a folder of samples."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from models.contract import CorpusDraws
from pipeline.manifest import sample_files
from pipeline.schema import ITEM_ID, TIMESTAMP_MS, InputError
from streaming.worker.corpus import ItemCorpus

_COUNT = "num_samples"


def read_corpus(directory: str | Path, draws: CorpusDraws) -> ItemCorpus:
    """Reads every item, with the features of its latest sample and its number of samples.

    File by file, so that memory holds the corpus and one file.

    Args:
        directory: The output of `headrace samples`.
        draws: What the model asks for.

    Raises:
        InputError: If the samples cannot be read, or lack a column.
    """
    names = [ITEM_ID, *(each.name for each in draws.inputs if each.name != ITEM_ID)]
    known: pl.DataFrame | None = None
    for file in sample_files(directory):
        table = _read(file.path, [*names, TIMESTAMP_MS])
        found = pl.DataFrame(table).with_columns(pl.lit(1).alias(_COUNT))
        known = _merged(found if known is None else pl.concat([known, found]))
    if known is None:
        raise InputError(f"{directory}: found no samples; expected the corpus of negatives")
    ordered = known.sort(ITEM_ID)
    items = ordered.select(names).to_arrow(compat_level=pl.CompatLevel.oldest())
    return ItemCorpus(items, ordered[_COUNT].to_numpy(), draws)


def _merged(rows: pl.DataFrame) -> pl.DataFrame:
    return (
        rows.sort(TIMESTAMP_MS, maintain_order=True)
        .group_by(ITEM_ID)
        .agg(pl.col(_COUNT).sum(), pl.exclude(_COUNT).last())
        .select(rows.columns)
    )


def _read(path: Path, columns: list[str]) -> pa.Table:
    missing = set(columns) - set(pq.read_schema(path).names)
    if missing:
        raise InputError(f"{path}: lacks {sorted(missing)}; expected the candidate's columns")
    return pq.read_table(path, columns=columns)
