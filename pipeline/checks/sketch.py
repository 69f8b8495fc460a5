"""Distinct values in little memory, in a form that tells which of them are new.

A sketch keeps the `SIZE` smallest distinct hashes of a column: a uniform sample of its distinct
values, and the same one in whatever parts and order they came (bottom-k, or KMV: Bar-Yossef et al.
2002; Beyer et al. 2007). A HyperLogLog is smaller, but cannot say which values are new.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from pipeline.positions import UInt64Array

SIZE: Final = 512
_HEAD: Final = 8192
_HASHES: Final = 2.0**64
_STORED: Final = np.dtype("<u8")


class Sketch(BaseModel):
    """The smallest distinct hashes of a column: 4 KiB at most, whatever the column's length.

    Attributes:
        kept: Sorted hashes, little-endian; fewer than `SIZE` of them are all that there were.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", ser_json_bytes="base64", val_json_bytes="base64"
    )

    kept: bytes = b""

    @property
    def hashes(self) -> UInt64Array:
        """The hashes that were kept, sorted."""
        return np.frombuffer(self.kept, dtype=_STORED).astype(np.uint64)

    @property
    def whole(self) -> bool:
        """Whether every distinct value is kept, so that all that is said is exact."""
        return len(self.kept) < SIZE * _STORED.itemsize

    @property
    def distinct(self) -> float:
        """Number of distinct values: exact if `whole`; else the relative standard error is 4.4 %.

        Of n hashes, spread evenly, the k-th smallest stands near k / n of their range:
        (k - 1) / (its place) is unbiased, with relative standard error 1 / sqrt(k - 2).
        """
        hashes = self.hashes
        return float(len(hashes)) if self.whole else (SIZE - 1) / (float(hashes[-1]) / _HASHES)


def sketch_hashes(hashes: UInt64Array) -> Sketch:
    """Returns the sketch of [num_values] hashes, repeats allowed."""
    smallest = np.unique(hashes[:_HEAD])[:SIZE]
    rest = hashes[_HEAD:]
    if len(rest):
        # To sort everything would cost a hundred times more: what is above the head's SIZE-th
        # smallest cannot be kept, and where there are few values, Arrow is quick to find them.
        if len(smallest) == SIZE:
            rest = rest[rest < smallest[-1]]
        rest = pc.unique(pa.array(rest)).to_numpy()
        smallest = np.union1d(smallest, rest)[:SIZE]
    return Sketch(kept=smallest.astype(_STORED).tobytes())


def merge_sketches(sketches: Sequence[Sketch]) -> Sketch:
    """Returns the sketch of all values, exactly as if they had been sketched together."""
    hashes = [sketch.hashes for sketch in sketches] or [np.empty(0, np.uint64)]
    return sketch_hashes(np.concatenate(hashes))


def new_share(day: Sketch, reference: Sequence[Sketch]) -> tuple[float, int]:
    """Estimates which share of a day's distinct values none of the reference days has.

    Only hashes up to the least bound of all sketches are looked at: there, every sketch is
    complete, so the day's hashes are a uniform sample of its distinct values.

    Returns:
        The share, and how many sampled values it rests on: n of them, unless all sketches are
        whole, give the standard error sqrt(share (1 - share) / n). With no value, (0, 0).
    """
    bounds = [sketch.hashes[-1] for sketch in (day, *reference) if not sketch.whole]
    sample = day.hashes
    if bounds:
        sample = sample[sample <= min(bounds)]
    if not len(sample):
        return 0.0, 0
    seen = np.concatenate([np.empty(0, np.uint64), *(sketch.hashes for sketch in reference)])
    return float(np.mean(~np.isin(sample, seen))), len(sample)
