"""The item corpus that negatives are drawn from: every item of a folder of samples."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow.parquet as pq

from pipeline.manifest import SampleFile, sample_files
from pipeline.schema import ITEM_ID, TIMESTAMP_MS, InputError

if TYPE_CHECKING:
    from models.contract import CorpusDraws
    from streaming.worker.corpus import ItemCorpus

_KEY = "model.negatives.corpus.directory"
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
    from streaming.worker.corpus import ItemCorpus

    names = [ITEM_ID, *(each.name for each in draws.inputs if each.name != ITEM_ID)]
    files = corpus_files(directory, names)
    tables = (pq.read_table(file.path, columns=[*names, TIMESTAMP_MS]) for file in files)
    counted = (pl.DataFrame(table).with_columns(pl.lit(1).alias(_COUNT)) for table in tables)
    known = _merged(next(counted))
    for found in counted:
        known = _merged(pl.concat([known, found]))
    ordered = known.sort(ITEM_ID)
    items = ordered.select(names).to_arrow(compat_level=pl.CompatLevel.oldest())
    return ItemCorpus(items, ordered[_COUNT].to_numpy(), draws)


def corpus_files(directory: str | Path, columns: Iterable[str]) -> list[SampleFile]:
    """Returns the files of a corpus, having seen that each has what is read of it.

    Args:
        directory: The output of `headrace samples`.
        columns: The item's id, and what the candidate tower reads.

    Raises:
        InputError: If there are no samples, or they lack a column.
    """
    try:
        files = sample_files(directory)
    except InputError as error:
        raise InputError(f"{_KEY}: {error}") from error
    if not any(file.rows for file in files):
        raise InputError(f"{_KEY}: {directory}: found no samples; expected the corpus of negatives")
    wanted = {ITEM_ID, TIMESTAMP_MS, *columns}
    for file in files:
        if missing := wanted - set(pq.read_schema(file.path).names):
            raise InputError(
                f"{_KEY}: {file.path}: lacks {sorted(missing)}; expected the candidate's columns"
            )
    return files


def _merged(rows: pl.DataFrame) -> pl.DataFrame:
    return (
        rows.sort(TIMESTAMP_MS, maintain_order=True)
        .group_by(ITEM_ID)
        .agg(pl.col(_COUNT).sum(), pl.exclude(_COUNT).last())
        .select(rows.columns)
    )
