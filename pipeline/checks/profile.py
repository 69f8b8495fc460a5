"""What is kept of a table of samples: counts, histograms over fixed bins, and sketches.

Profiles of parts merge into exactly the profile of the whole, in any order: every field is a sum of
integers, a minimum, a maximum or a `Sketch`. Bins do not depend on the data, or days could not be
compared.
"""

from __future__ import annotations

import collections
import functools
from collections.abc import Collection, Iterable, Sequence
from fractions import Fraction
from typing import Final, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import BaseModel, ConfigDict

from pipeline import schema as s
from pipeline.checks.sketch import Sketch, merge_sketches, sketch_hashes
from pipeline.shuffle import hash_keys

FORMAT_VERSION: Final = 1
NUM_BUCKETS: Final = 256
# Every row has its own: nothing in them can drift.
UNIQUE_COLUMNS: Final = frozenset({s.EVENT_ID})

# A bin of numbers is the upper 13 bits of a float32: its sign, its exponent, and 4 bits of its
# mantissa. So a bin is 3 to 6 % wide, and whole numbers below 32 have a bin each.
_BIN_SHIFT: Final = 19
_MANTISSA_BITS: Final = 23
_EXPONENT_BINS_SHIFT: Final = _MANTISSA_BITS - _BIN_SHIFT
_SMALLEST_EXPONENT: Final = 149  # 2^-149 is the smallest float32 above 0
_MS_PER_HOUR: Final = 3_600_000
_HOURS_PER_DAY: Final = 24

FloatArray = npt.NDArray[np.float32]
IntArray = npt.NDArray[np.int64]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Numbers(_Value):
    """Numbers, looked at as float32.

    Attributes:
        bins: Number of values per bin, bins in the order of their numbers; see `bin_bounds`.
        total: Their exact sum in units of 2^-149, so that merging parts loses nothing.
        low: The smallest, or None if there is none.
        high: The largest.
    """

    bins: dict[int, int] = {}
    total: int = 0
    low: float | None = None
    high: float | None = None

    @property
    def count(self) -> int:
        """Number of values."""
        return sum(self.bins.values())

    @property
    def mean(self) -> float | None:
        """Their mean, or None if there is none."""
        count = self.count
        return float(Fraction(self.total, count << _SMALLEST_EXPONENT)) if count else None


class Ids(_Value):
    """Values that are equal or not, and no more: ids and strings.

    Attributes:
        buckets: [256] number of values per bucket of their hash.
        sketch: Of the distinct ones.
    """

    buckets: tuple[int, ...] = (0,) * NUM_BUCKETS
    sketch: Sketch = Sketch()


class Column(_Value):
    """One column of the samples.

    Attributes:
        nulls: Rows that are null.
        empty: Rows that are an empty list.
        not_finite: Rows that are, or hold, a NaN or an infinity, which are left out of `numbers`.
        lengths: Of the lists, for a column of lists.
        ids: The values or, of a column of lists, the items; if they are ids.
        numbers: The same, if they are numbers.
    """

    nulls: int = 0
    empty: int = 0
    not_finite: int = 0
    lengths: Numbers | None = None
    ids: Ids | None = None
    numbers: Numbers | None = None

    @property
    def missing(self) -> int:
        """Rows without a value to learn from: null, an empty list, not finite."""
        return self.nulls + self.empty + self.not_finite

    @property
    def form(self) -> tuple[bool, bool]:
        """What can be compared with what: whether it holds lists, whether numbers."""
        return self.lengths is not None, self.numbers is not None


class Profile(_Value):
    """Some samples of one kind: a part of a day, a day, or several days.

    Attributes:
        version: Of the bins and hashes; profiles of two versions cannot be compared.
        rows: Number of samples.
        columns: By name, without those that differ in every row.
    """

    version: Literal[1] = FORMAT_VERSION
    rows: int = 0
    columns: dict[str, Column] = {}

    @classmethod
    def merge(cls, profiles: Iterable[Self]) -> Self:
        """Returns the profile of all their rows: of the parts of a day, or of several days.

        Raises:
            ValueError: If they differ in their columns; one without rows fits all.
        """
        found = [profile for profile in profiles if profile.rows]
        names = {tuple(sorted(profile.columns)) for profile in found}
        if len(names) > 1:
            raise ValueError(f"found profiles of columns {sorted(names)}; expected the same in all")
        columns = {
            name: merge_columns([profile.columns[name] for profile in found])
            for name in (found[0].columns if found else ())
        }
        return cls(rows=sum(profile.rows for profile in found), columns=columns)


def profile(
    table: pa.Table,
    *,
    numbers: Collection[str] = (),
    skip: Collection[str] = UNIQUE_COLUMNS,
) -> Profile:
    """Returns the profile of some samples of one kind.

    Args:
        table: The samples.
        numbers: The integer columns (or lists) that hold quantities; others hold ids. Columns of
            floats always hold quantities, columns of strings never.
        skip: Columns to leave out, since they differ in every row.

    Raises:
        TypeError: If a column has a type that samples cannot have.
    """
    columns = {}
    for name in table.schema.names:
        if name in skip:
            continue
        column = table[name].combine_chunks()
        if name == s.TIMESTAMP_MS:
            columns[name] = _profile_hours(column)
        else:
            columns[name] = _profile_column(name, column, is_number=name in numbers)
    return Profile(rows=table.num_rows, columns=columns)


def merge_columns(columns: Sequence[Column]) -> Column:
    """Returns the column of all rows.

    Raises:
        ValueError: If they differ in form.
    """
    if len({column.form for column in columns}) > 1:
        raise ValueError("found a column of ids and one of numbers; expected the same in all")
    lengths = [column.lengths for column in columns if column.lengths is not None]
    ids = [column.ids for column in columns if column.ids is not None]
    numbers = [column.numbers for column in columns if column.numbers is not None]
    return Column(
        nulls=sum(column.nulls for column in columns),
        empty=sum(column.empty for column in columns),
        not_finite=sum(column.not_finite for column in columns),
        lengths=_merge_numbers(lengths) if lengths else None,
        ids=_merge_ids(ids) if ids else None,
        numbers=_merge_numbers(numbers) if numbers else None,
    )


def bin_bounds(number: int) -> tuple[float, float]:
    """Returns the bounds between which the values of a bin of `Numbers` lie.

    Bin n >= 0 holds the values from the first, below the second; bin -1 - n holds their negatives.
    """
    first = max(number, -1 - number)
    edges = np.array([first, first + 1]) << _BIN_SHIFT
    low, high = (float(edge) for edge in edges.astype(np.uint32).view(np.float32))
    return (low, high) if number >= 0 else (-high, -low)


def _merge_numbers(parts: Sequence[Numbers]) -> Numbers:
    counts: collections.Counter[int] = collections.Counter()
    for part in parts:
        counts.update(part.bins)
    return Numbers(
        bins=dict(sorted(counts.items())),
        total=sum(part.total for part in parts),
        low=min((part.low for part in parts if part.low is not None), default=None),
        high=max((part.high for part in parts if part.high is not None), default=None),
    )


def _merge_ids(parts: Sequence[Ids]) -> Ids:
    return Ids(
        buckets=tuple(int(count) for count in np.sum([part.buckets for part in parts], axis=0)),
        sketch=merge_sketches([part.sketch for part in parts]),
    )


def _profile_hours(times_ms: pa.Array) -> Column:
    """A day's samples differ in their times, but hours of the day come again every day."""
    hours = times_ms.drop_null().to_numpy() // _MS_PER_HOUR % _HOURS_PER_DAY
    return Column(nulls=times_ms.null_count, numbers=_profile_numbers(hours.astype(np.float32)))


def _profile_column(name: str, column: pa.Array, *, is_number: bool) -> Column:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if not _is_list(column.type):
        return _profile_values(name, column, None, is_number=is_number)
    present = column.drop_null()
    lengths = pc.list_value_length(present).to_numpy()
    items = _profile_values(name, pc.list_flatten(present), present, is_number=is_number)
    return items.model_copy(
        update={
            "nulls": column.null_count,
            "empty": int(np.count_nonzero(lengths == 0)),
            "lengths": _profile_numbers(lengths.astype(np.float32)),
        }
    )


def _profile_values(
    name: str, values: pa.Array, lists: pa.Array | None, *, is_number: bool
) -> Column:
    """Profiles values, or the items of lists."""
    kind, nulls = values.type, values.null_count
    if not pa.types.is_floating(kind) and not (is_number and pa.types.is_integer(kind)):
        return Column(nulls=nulls, ids=_profile_ids(name, values.drop_null()))
    with np.errstate(over="ignore"):  # a float64 beyond float32 is infinite to a model, too
        found = values.drop_null().to_numpy(zero_copy_only=False).astype(np.float32)
    finite = np.isfinite(found)
    if finite.all():
        return Column(nulls=nulls, numbers=_profile_numbers(found))
    rows = ~finite
    if lists is not None:
        parents = pc.list_parent_indices(lists).filter(values.is_valid()).to_numpy()
        rows = np.unique(parents[rows])
    not_finite = np.count_nonzero(rows) if lists is None else len(rows)
    return Column(nulls=nulls, not_finite=int(not_finite), numbers=_profile_numbers(found[finite]))


def _profile_ids(name: str, values: pa.Array) -> Ids:
    kind = values.type
    if pa.types.is_integer(kind):
        hashes = hash_keys(values)
        counts = _count_buckets(hashes)
        return Ids(buckets=counts, sketch=sketch_hashes(hashes))
    if not _is_text(kind):
        raise TypeError(f"column {name!r}: found type {kind}; expected integers, floats or strings")
    encoded = values.dictionary_encode()
    hashes = hash_keys(encoded.dictionary.cast(pa.large_string()))
    weights = np.bincount(encoded.indices.to_numpy(), minlength=len(hashes))
    return Ids(buckets=_count_buckets(hashes, weights), sketch=sketch_hashes(hashes))


def _count_buckets(
    hashes: npt.NDArray[np.uint64], weights: IntArray | None = None
) -> tuple[int, ...]:
    # The last byte of a hash, wherever this machine keeps it.
    buckets = hashes.astype("<u8", copy=False).view(np.uint8)[::8]
    # Sums of whole numbers below 2^53 are exact in float64.
    counts = np.bincount(buckets, weights=weights, minlength=NUM_BUCKETS)
    return tuple(int(count) for count in counts)


def _profile_numbers(values: FloatArray) -> Numbers:
    """Profiles finite numbers."""
    if not len(values):
        return Numbers()
    bits = (values + np.float32(0)).view(np.uint32)  # + 0 turns -0.0 into 0.0
    counts = np.bincount(bits >> _BIN_SHIFT)
    found = np.flatnonzero(counts)
    half = 1 << (31 - _BIN_SHIFT)  # from here on the sign is negative
    numbers = np.where(found < half, found, half - 1 - found)
    bins = zip(numbers.tolist(), counts[found].tolist(), strict=True)
    return Numbers(
        bins=dict(sorted(bins)),
        total=_exact_sum(bits, counts),
        low=float(values.min()),
        high=float(values.max()),
    )


def _exact_sum(bits: npt.NDArray[np.uint32], bin_counts: IntArray) -> int:
    """Sums float32 given as bits, in units of 2^-149.

    Values of one sign and exponent differ in their mantissas alone, whole numbers below 2^23,
    and float64 adds 2^30 of those without an error.
    """
    mantissas = np.bincount(bits >> _MANTISSA_BITS, weights=bits & ((1 << _MANTISSA_BITS) - 1))
    counts = np.zeros(len(mantissas) << _EXPONENT_BINS_SHIFT, np.int64)
    counts[: len(bin_counts)] = bin_counts
    total = 0
    for key in np.flatnonzero(counts.reshape(len(mantissas), -1).any(axis=1)).tolist():
        sign, exponent = -1 if key >> 8 else 1, key & 0xFF
        count = int(counts[key << _EXPONENT_BINS_SHIFT :][: 1 << _EXPONENT_BINS_SHIFT].sum())
        # The leading one of a mantissa is not stored, but for exponent 0.
        whole = int(mantissas[key]) + (count << _MANTISSA_BITS if exponent else 0)
        total += sign * (whole << max(exponent - 1, 0))
    return total


@functools.lru_cache
def _is_list(kind: pa.DataType) -> bool:
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


@functools.lru_cache
def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )
