"""Profiles by hand, and merged ones against whole ones."""

import itertools
import math
import subprocess
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pipeline.checks.profile import Column, Numbers, Profile, bin_bounds, profile
from tests.pipeline.checks.days import NUMBERS, Population, profile_day


def _column(values: list[Any], kind: pa.DataType, *, number: bool = False) -> Column:
    table = pa.table({"x": pa.array(values, kind)})
    return profile(table, numbers={"x"} if number else ()).columns["x"]


def _numbers(values: list[Any], kind: pa.DataType) -> Numbers:
    found = _column(values, kind, number=True).numbers
    assert found is not None
    return found


def test_numbers_by_hand() -> None:
    found = _numbers([3, 1, 1, None, 0, -2], pa.int64())
    assert (found.count, found.mean, found.low, found.high) == (5, 0.6, -2, 3)
    by_bounds = {bin_bounds(number): count for number, count in found.bins.items()}
    # 16 bins between two powers of two; 0 shares one with what is below 2^-126 / 16.
    assert by_bounds == {
        (-2.125, -2.0): 1,
        (0.0, 2**-130): 1,
        (1.0, 1.0625): 2,
        (3.0, 3.125): 1,
    }


def test_whole_numbers_below_32_have_a_bin_each_and_bins_keep_the_order() -> None:
    values = list(range(-31, 32))
    found = _numbers(values, pa.int64())
    assert list(found.bins.values()) == [1] * len(values)
    assert [math.ceil(bin_bounds(b)[0]) for b in found.bins if b > 0] == list(range(1, 32))
    assert list(found.bins) == sorted(found.bins)


def test_negative_zero_is_zero() -> None:
    assert _numbers([-0.0, 0.0], pa.float32()).bins == {0: 2}


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_sums_are_exact_and_bins_hold_their_values(values: list[float]) -> None:
    found = _numbers(values, pa.float32())
    assert Fraction(found.total, 1 << 149) == sum(map(Fraction, values))
    assert found.count == len(values)
    for value in values:
        assert sum(b[0] <= value < b[1] or -b[0] > -value >= -b[1] for b in _bounds(found)) >= 1


def _bounds(found: Numbers) -> list[tuple[float, float]]:
    return [bin_bounds(number) for number in found.bins]


def test_rows_without_a_value_are_told_apart() -> None:
    nan, infinite = float("nan"), float("inf")
    number = _column([1.0, nan, None, infinite], pa.float32())
    assert (number.nulls, number.not_finite, number.missing) == (1, 2, 3)
    assert number.numbers is not None
    assert (number.numbers.count, number.numbers.total) == (1, 1 << 149)
    lists = _column([[1.0, nan, nan], [], None, [2.0], [None, 3.0, nan]], pa.list_(pa.float32()))
    assert (lists.nulls, lists.empty, lists.not_finite, lists.missing) == (1, 1, 2, 4)
    assert lists.lengths is not None
    assert (lists.lengths.count, lists.lengths.mean, lists.lengths.high) == (4, 7 / 4, 3)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (pa.int64(), [7, 7, 8, None]),
        (pa.string(), ["a", "a", "b", None]),
        (pa.large_string(), ["a", "a", "b", None]),
        (pa.dictionary(pa.int32(), pa.string()), ["a", "a", "b", None]),
        (pa.list_(pa.int64()), [[7, 7], [8], [], None]),
        (pa.list_(pa.string()), [["a"], ["b", "a"], [], None]),
    ],
)
def test_ids_are_counted_by_hash(kind: pa.DataType, values: list[Any]) -> None:
    found = _column(values, kind)
    assert found.ids is not None
    assert sorted(found.ids.buckets)[-3:] == [0, 1, 2]
    assert found.ids.sketch.distinct == 2
    assert found.nulls == 1


def test_a_bucket_is_the_last_byte_of_a_hash() -> None:
    # The hash of 1 is 0x910A2DEC89025CC1, SplitMix64's first output for seed 1.
    found = _column([1, 1], pa.int64()).ids
    assert found is not None
    assert [(bucket, n) for bucket, n in enumerate(found.buckets) if n] == [(0xC1, 2)]


def test_encodings_of_one_column_have_one_profile() -> None:
    values = ["a", "b", "b", "", "ä"]
    kinds = [pa.string(), pa.large_string(), pa.dictionary(pa.int8(), pa.string())]
    assert len({_column(values, kind).model_dump_json() for kind in kinds}) == 1


def test_integers_are_ids_unless_they_are_named_as_numbers() -> None:
    assert _column([1], pa.int64()).form == (False, False)
    assert _column([1], pa.int64(), number=True).form == (False, True)
    assert _column(["1"], pa.string(), number=True).form == (False, False)


def test_times_are_hours_of_the_day_and_event_ids_are_left_out() -> None:
    day = 1_767_225_600_000
    hour = 3_600_000
    found = profile(
        pa.table(
            {"event_id": ["a", "b", "c"], "timestamp_ms": [day, day + 5 * hour, day + 6 * hour - 1]}
        )
    )
    assert list(found.columns) == ["timestamp_ms"]
    numbers = found.columns["timestamp_ms"].numbers
    assert numbers is not None
    assert [(bin_bounds(b)[0], n) for b, n in numbers.bins.items()] == [(0.0, 1), (5.0, 2)]


def test_a_type_that_samples_cannot_have_is_named() -> None:
    with pytest.raises(TypeError, match="'x': found type bool; expected"):
        profile(pa.table({"x": [True]}))


@pytest.mark.parametrize("cuts", [[1], [400, 400, 1999], [0, 700, 1400, 2000]])
def test_merged_parts_are_the_profile_of_the_whole(cuts: list[int]) -> None:
    table = Population(1).day(2000)
    bounds = [0, *cuts, 2000]
    parts = [
        profile_day(table.slice(start, end - start)) for start, end in itertools.pairwise(bounds)
    ]
    whole = profile_day(table)
    assert Profile.merge(parts) == whole
    assert Profile.merge(parts[::-1]).model_dump_json() == whole.model_dump_json()
    left, right = Profile.merge([parts[0], parts[1]]), Profile.merge(parts[2:])
    assert Profile.merge([left, right]) == whole


def test_a_day_without_rows_merges_with_any() -> None:
    table = Population(1).day(10)
    empty, whole = profile_day(table.slice(0, 0)), profile_day(table)
    assert empty.rows == 0
    assert Profile.merge([empty, whole, Profile()]) == whole
    assert Profile.merge([]) == Profile()


def test_profiles_of_other_columns_do_not_merge() -> None:
    one, other = profile(pa.table({"x": [1]})), profile(pa.table({"y": [1]}))
    with pytest.raises(ValueError, match=r"found profiles of columns .*x.*y"):
        Profile.merge([one, other])
    number = profile(pa.table({"x": [1]}), numbers={"x"})
    with pytest.raises(ValueError, match="found a column of ids and one of numbers"):
        Profile.merge([one, number])


def test_json_keeps_everything_and_refuses_another_version() -> None:
    found = profile_day(Population(1).day(3000))
    text = found.model_dump_json()
    assert Profile.model_validate_json(text) == found
    assert len(text) < 50_000
    with pytest.raises(ValidationError, match="version"):
        Profile.model_validate_json(text.replace('"version":1', '"version":2'))


def test_a_profile_is_the_same_in_every_process() -> None:
    code = (
        "from tests.pipeline.checks.days import Population, profile_day;"
        "print(profile_day(Population(3).day(500)).model_dump_json())"
    )
    texts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert texts[0] == texts[1]
    assert texts[0].strip() == profile_day(Population(3).day(500)).model_dump_json()


def test_a_slice_is_profiled_without_its_neighbours() -> None:
    table = Population(2).day(300)
    part = table.slice(100, 50)
    copied = pa.Table.from_pylist(part.to_pylist(), schema=table.schema)
    assert profile(part, numbers=NUMBERS) == profile(copied, numbers=NUMBERS)
    assert part.num_rows == profile(part).rows == 50


def test_a_float64_beyond_float32_is_not_finite() -> None:
    found = _column([1e300, 2.0], pa.float64())
    assert (found.not_finite, found.numbers and found.numbers.count) == (1, 1)
    assert np.isfinite(found.numbers.high if found.numbers and found.numbers.high else np.nan)
