"""What a positive was shown beside: the items of its request that the user did not take."""

from __future__ import annotations

from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.join.labels import IMPRESSION_ROW
from pipeline.join.runs import EMPTY, hash_rows
from pipeline.positions import IntArray, end_positions

TAKEN: Final = "taken"

_REQUEST: Final = (s.REQUEST_ID, s.USER_ID)
_COLUMNS: Final = (*_REQUEST, s.ITEM_ID, s.TIMESTAMP_MS, s.EVENT_ID)


def shown_items(impressions: pl.DataFrame, positive_rows: IntArray) -> pl.DataFrame:
    """Returns the closed impressions, without kept orphans: those were not shown.

    Args:
        impressions: That closed.
        positive_rows: Which of them are positives.

    Returns:
        request_id, user_id, item_id, timestamp_ms, event_id and whether it was `taken`.
    """
    taken = np.zeros(len(impressions), np.bool_)
    taken[positive_rows] = True
    frame = impressions.select(*_COLUMNS, s.ACTION, pl.Series(TAKEN, taken))
    return frame.filter(pl.col(s.ACTION) == s.IMPRESSION).drop(s.ACTION)


def exposed_items(
    positives: pl.DataFrame, shown: pl.DataFrame, *, window_ms: int, length: int
) -> pa.ListArray:
    """Returns, for each positive, the items that were shown with it and not taken.

    These are the items with an impression of the same request and user in [t - w, t], each once, at
    its last such impression; but not the positive's own, nor one that became a positive by any of
    them.

    Args:
        positives: [num_positives] rows with their event columns.
        shown: Rows of `shown_items`; all that could matter are among them.
        window_ms: w.
        length: At most this many items each, the last ones.

    Returns:
        [num_positives, (0 to length)] item ids, oldest first.
    """
    keys = positives.select(_REQUEST).unique(maintain_order=True).with_row_index("key")
    asked = positives.select(*_REQUEST, s.TIMESTAMP_MS, s.ITEM_ID).join(
        keys, on=_REQUEST, how="left", maintain_order="left"
    )
    log = shown.join(keys, on=_REQUEST, how="inner").sort("key", s.TIMESTAMP_MS, s.EVENT_ID)
    by_time = (_ints(log["key"]), _ints(log[s.TIMESTAMP_MS]))
    key, time = _ints(asked["key"]), _ints(asked[s.TIMESTAMP_MS])
    starts = end_positions(by_time, (key, time - window_ms), inclusive=False)
    counts = end_positions(by_time, (key, time), inclusive=True) - starts
    before = np.cumsum(counts) - counts
    rows = np.repeat(starts - before, counts) + np.arange(counts.sum())
    sample = np.repeat(np.arange(len(asked)), counts)
    pairs = log[rows].select(
        pl.Series(IMPRESSION_ROW, sample), s.ITEM_ID, TAKEN, pl.Series("row", rows)
    )
    others = pairs.filter(pairs[s.ITEM_ID] != asked[s.ITEM_ID][sample])
    chosen = (
        others.group_by(IMPRESSION_ROW, s.ITEM_ID)
        .agg(pl.col(TAKEN).any(), pl.col("row").max())
        .filter(~pl.col(TAKEN))
        .sort(IMPRESSION_ROW, "row")
    )
    owners = _ints(chosen[IMPRESSION_ROW])
    ends = np.searchsorted(owners, np.arange(len(asked)), side="right")
    last = np.arange(len(owners)) >= (ends - length)[owners]
    offsets = np.append(0, np.cumsum(np.bincount(owners[last], minlength=len(asked))))
    items = chosen[s.ITEM_ID].filter(pl.Series(last)).to_arrow()
    kind = pa.int64() if pa.types.is_integer(items.type) else pa.string()
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), items.cast(kind))


class Exposures:
    """The impressions that later positives may have been shown beside: those of the last 2w."""

    def __init__(self, *, window_ms: int, length: int) -> None:
        self._window_ms = window_ms
        self._length = length
        self._shown = EMPTY

    def add(self, shown: pl.DataFrame) -> None:
        """Remembers rows of `shown_items`."""
        hashes = hash_rows(shown.select(_REQUEST))
        self._shown = self._shown.add(shown, _ints(shown[s.TIMESTAMP_MS]), hashes=hashes)

    def of(self, positives: pl.DataFrame) -> pa.ListArray:
        """Returns `exposed_items` of positives, which closed with or after all that was added."""
        like = (
            positives.select(_COLUMNS).clear().with_columns(pl.lit(None, pl.Boolean).alias(TAKEN))
        )
        _, shown = self._shown.find(hash_rows(positives.select(_REQUEST)), like)
        return exposed_items(positives, shown, window_ms=self._window_ms, length=self._length)

    def forget(self, watermark_ms: int) -> None:
        """Forgets what no positive that is still to close can have been shown beside."""
        self._shown = self._shown.forget_before(watermark_ms - 2 * self._window_ms)


def _ints(column: pl.Series) -> IntArray:
    return column.cast(pl.Int64).to_numpy()
