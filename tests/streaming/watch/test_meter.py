from __future__ import annotations

import pytest

from streaming.watch.meter import Meter


def report(**values: float) -> dict[str, float]:
    applied = {"samples": 10, "batches": 2, "loss_sum": 3.0, "ahead": 0}
    return applied | {"first_ms": -1, "last_ms": -1} | values


def test_the_share_of_ranges_that_had_been_read_ahead() -> None:
    meter = Meter(now=0.0)
    for ahead in (1, 1, 0, 1):
        meter.add(report(ahead=ahead), worker="a", now=1.0, wall_ms=0)
    assert meter.interval(2.0)["stream/read_ahead_share"] == 0.75


def test_rates_and_means_are_those_since_the_last_time() -> None:
    meter = Meter(now=0.0)
    meter.add(report(drift_sum=1.0), worker="a", now=1.0, wall_ms=0)
    meter.add(report(drift_sum=3.0, loss_sum=5.0), worker="a", now=2.0, wall_ms=0)
    figures = meter.interval(4.0)
    # 20 samples in 4 s; a loss of (3 + 5) / 4 mini-batches; a drift of (1 + 3) / 4.
    assert figures == {
        "train/loss": 2.0,
        "train/drift": 1.0,
        "stream/samples_per_second": 5.0,
        "stream/read_ahead_share": 0.0,
    }
    assert meter.interval(5.0) == {}


def test_a_scalar_with_a_count_is_a_mean_over_it_and_without_any_is_not_told() -> None:
    meter = Meter(now=0.0)
    for pairs in (3, 1):
        drift = report(drift_1_sum=2.0, drift_1_count=pairs, drift_5_sum=0.0, drift_5_count=0)
        meter.add(drift, worker="a", now=1.0, wall_ms=0)
    figures = meter.interval(2.0)
    assert figures["train/drift_1"] == 1.0  # (2 + 2) / (3 + 1)
    assert "train/drift_5" not in figures


def test_staleness_is_the_age_at_training_by_samples() -> None:
    meter = Meter(now=0.0)
    # 99 samples of 1 s of age for each one of 100 s.
    meter.add(
        report(samples=990, first_ms=9_000, last_ms=9_000), worker="a", now=1.0, wall_ms=10_000
    )
    meter.add(
        report(samples=10, first_ms=10_000, last_ms=10_000), worker="b", now=2.0, wall_ms=110_000
    )
    figures = meter.recent(2.0)
    assert figures["stream/staleness_p50_seconds"] == pytest.approx(1.0)
    assert figures["stream/staleness_p99_seconds"] == pytest.approx(1.0)
    meter.add(
        report(samples=10, first_ms=10_000, last_ms=10_000), worker="b", now=2.0, wall_ms=110_000
    )
    assert meter.recent(2.0)["stream/staleness_p99_seconds"] == pytest.approx(100.0)


def test_a_ranges_events_lie_between_its_oldest_and_its_newest() -> None:
    meter = Meter(now=0.0)
    meter.add(report(first_ms=1_000, last_ms=9_000), worker="a", now=1.0, wall_ms=11_000)
    # Ages from 2 s to 10 s: the middle is 6 s.
    assert meter.recent(1.0)["stream/staleness_p50_seconds"] == pytest.approx(6.0, abs=0.5)


def test_what_is_older_than_a_minute_is_forgotten() -> None:
    meter = Meter(now=0.0)
    meter.add(report(first_ms=0, last_ms=0), worker="a", now=0.0, wall_ms=5_000)
    meter.add(report(), worker="b", now=30.0, wall_ms=35_000)
    assert meter.recent(50.0)["cluster/workers_heard"] == 2
    assert meter.recent(70.0) == {"cluster/workers_heard": 1}


def test_events_without_a_time_have_no_age() -> None:
    meter = Meter(now=0.0)
    meter.add(report(), worker="a", now=1.0, wall_ms=5_000)
    assert meter.recent(1.0) == {"cluster/workers_heard": 1}
