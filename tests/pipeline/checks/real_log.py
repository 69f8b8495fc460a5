"""A real log, which is not part of the project."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

PATH = Path(__file__).resolve().parents[4] / "shared" / "data" / "taobao.parquet"


def taobao() -> pl.DataFrame:
    """Returns Taobao's events as the columns of a sample, with their UTC `day`."""
    if not PATH.is_file():
        pytest.skip(
            f"found no {PATH.name} in shared/data beside the project; expected Taobao's log"
        )
    seconds = pl.col("timestamp_seconds")
    return (
        pl.read_parquet(PATH)
        .with_columns(
            day=pl.from_epoch(seconds).dt.strftime("%Y-%m-%d"), timestamp_ms=seconds * 1000
        )
        .rename({"behaviour": "scenario"})
        .drop("timestamp_seconds")
    )
