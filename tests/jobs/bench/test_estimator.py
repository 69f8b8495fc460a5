"""The simulation of Yi et al. 2019, section 5.1, by the functions that workers and servers run."""

from __future__ import annotations

import streaming  # noqa: F401 - before TensorFlow: picks Keras 2

import numpy as np  # isort: skip
import pytest

from jobs.bench import estimator
from jobs.bench.estimator import Setting, errors_at


def test_batches_are_drawn_without_replacement_and_popular_items_are_in_more_of_them() -> None:
    share, turned = estimator.draw_probabilities()
    assert share[999] == pytest.approx(1000**2 / (1000 * 1001 * 2001 / 6))  # the sum of squares
    assert turned[0] == share[999]
    batches = estimator.draw_batches(np.random.default_rng(1), share, 500)
    assert all(len(set(batch)) == 128 for batch in batches.tolist())
    assert np.isin(batches, np.arange(500, 1000)).mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hashes", "settled", "turned"), [(1, 0.113, 0.141), (4, 0.052, 0.060)], ids=["m=1", "m=4"]
)
def test_the_papers_simulation(hashes: int, settled: float, turned: float) -> None:
    # Expected: an independent run of the simulation at alpha .01, 5,000 buckets in all, before and
    # 10,000 mini-batches after the distribution turns around; one seed, so within .015.
    (before, just_after, after), _ = errors_at(Setting(hashes=hashes), [10_000, 11_000, 20_000])
    assert before == pytest.approx(settled, abs=0.015)
    assert after == pytest.approx(turned, abs=0.015)
    assert just_after > 3 * before


def test_a_start_at_the_gaps_that_were_seen_is_right_sooner_than_the_papers() -> None:
    paper, ours = (
        errors_at(Setting(hashes=4, paper_start=start), [100, 1000], steps=2000)[0]
        for start in (True, False)
    )
    assert ours[0] < 0.7 * paper[0]
    assert ours[1] < 0.7 * paper[1]


def test_concurrent_workers_cost_little() -> None:
    # 8 workers of 8 mini-batches: each reads up to 64 mini-batches late.
    (one,), _ = errors_at(Setting(hashes=4, alpha=0.05), [1500], steps=3000)
    (eight,), _ = errors_at(Setting(hashes=4, alpha=0.05, workers=8), [1500], steps=3000)
    assert eight == pytest.approx(one, rel=0.1)
    assert one < 0.09
