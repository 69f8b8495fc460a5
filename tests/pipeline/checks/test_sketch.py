"""Distinct counts and new values, against the truth."""

import base64
import json

import numpy as np
import pyarrow as pa
import pytest

from pipeline.checks.sketch import Sketch, merge_sketches, new_share, sketch_hashes
from pipeline.shuffle import hash_keys


def _sketch(*ranges: range) -> Sketch:
    values = np.concatenate([np.arange(r.start, r.stop) for r in ranges])
    return sketch_hashes(hash_keys(pa.array(values, pa.int64())))


@pytest.mark.parametrize("repeats", [1, 50])
def test_few_values_are_counted_exactly(repeats: int) -> None:
    found = sketch_hashes(np.tile(hash_keys(pa.array(range(500))), repeats))
    assert (found.whole, found.distinct) == (True, 500)


def test_no_value_at_all() -> None:
    empty = sketch_hashes(np.empty(0, np.uint64))
    assert empty.distinct == 0
    assert new_share(empty, [_sketch(range(10))]) == (0.0, 0)
    assert new_share(_sketch(range(10)), [empty]) == (1.0, 10)


def test_the_stated_error_of_many_values_holds() -> None:
    # 200 disjoint sets of 20,000 values: the root of the mean squared error is 4.4 %, to a tenth
    # of itself (its own standard error is 1 / sqrt(2 x 200) = 5 % of it), and no bias shows.
    errors = np.array(
        [
            _sketch(range(start, start + 20_000)).distinct / 20_000 - 1
            for start in range(0, 200 * 20_000, 20_000)
        ]
    )
    assert np.sqrt(np.mean(errors**2)) == pytest.approx(0.0443, rel=0.12)
    assert abs(errors.mean()) < 3 * 0.0443 / np.sqrt(200)


@pytest.mark.parametrize(
    "cut", [(1,), (100,), (8192,), (8193, 8194), (20_000, 40_000, 59_999), (0, 60_000)]
)
def test_merged_parts_are_the_sketch_of_all(cut: tuple[int, ...]) -> None:
    rng = np.random.default_rng(5)
    hashes = hash_keys(pa.array(rng.zipf(1.2, 60_000) % 30_000))
    parts = [sketch_hashes(part) for part in np.split(hashes, cut)]
    whole = sketch_hashes(hashes)
    assert not whole.whole
    assert whole.hashes.tolist() == sorted(set(hashes.tolist()))[:512]
    assert merge_sketches(parts) == merge_sketches(parts[::-1]) == whole


def test_what_is_stored_is_the_same_everywhere() -> None:
    # Sketches of earlier versions are compared with those of this one, so the bytes are part of the
    # format: sorted, little-endian, url-safe base64 of SplitMix64 (its first output for seed 1 is
    # 0x910A2DEC89025CC1).
    assert _splitmix64(1) == 0x910A2DEC89025CC1
    stored = b"".join(each.to_bytes(8, "little") for each in sorted(map(_splitmix64, (1, 2, 3))))
    text = base64.urlsafe_b64encode(stored).decode()
    found = _sketch(range(1, 4)).model_dump_json()
    assert json.loads(found) == {"kept": text}
    assert Sketch.model_validate_json(found).distinct == 3


def _splitmix64(seed: int) -> int:
    mixed = (seed + 0x9E3779B97F4A7C15) % 2**64
    mixed = (mixed ^ mixed >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ mixed >> 27) * 0x94D049BB133111EB % 2**64
    return mixed ^ mixed >> 31


def test_new_values_of_small_sets_are_exact() -> None:
    # 8 and 9 of 5..9 are in neither day.
    day, reference = _sketch(range(5, 10)), [_sketch(range(3)), _sketch(range(2, 8))]
    assert new_share(day, reference) == (pytest.approx(0.4), 5)


def test_new_values_of_large_sets_are_estimated_within_the_stated_error() -> None:
    # 30 % of the day's 50,000 values are in none of seven days, which share most of theirs.
    day = _sketch(range(50_000))
    reference = [_sketch(range(15_000 + i, 15_000 + i + 50_000)) for i in range(7)]
    share, sampled = new_share(day, reference)
    assert sampled > 400
    assert abs(share - 0.3) < 4 * np.sqrt(0.3 * 0.7 / sampled)


def test_a_small_day_beside_large_ones() -> None:
    # All of the day's values are known, but the large day's sketch reaches only its smallest
    # hashes: what lies above its bound says nothing about being new.
    share, sampled = new_share(_sketch(range(400)), [_sketch(range(5_000))])
    assert share == 0
    assert 10 < sampled < 100
