"""What `headrace bench alignment` publishes, and what it reads off a run."""

import json

import numpy as np
import pytest

from jobs.bench.alignment import drift
from jobs.bench.alignment.main import _figures
from pipeline.specification import Specification


def test_the_stream_is_of_its_last_hours_in_order_and_its_users_change_their_minds():
    schema = Specification.model_validate(drift.SPECIFICATION).sample_schema
    samples = drift._samples(20_000, drift.HOURS, schema, np.random.default_rng(0))
    times = samples.column("timestamp_ms").to_numpy()
    assert (np.diff(times) >= 0).all()
    hours = (times - drift.START_MS) / drift.HOUR_MS
    assert 0 <= hours.min() < 0.1
    assert 71.9 < hours.max() < 72
    group = samples.column("user_id").to_numpy() % 20 == 0
    block = samples.column("item_id").to_numpy() // 10
    favourites = [
        np.bincount(block[group & (hours // drift.PHASE_HOURS == phase)]).argmax()
        for phase in range(6)
    ]
    assert favourites == [0, 13, 26, 39, 12, 25]


def test_the_figures_are_the_largest_skew_and_losses_weighted_by_mini_batches(tmp_path):
    skews = [{"stream/samples": 5, "stream/max_skew_seconds": s} for s in (0.0, 7200.0)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps(line) for line in skews))
    late = drift.START_MS + 70 * drift.HOUR_MS
    ranges = [
        {"topic": "home", "last_ms": drift.START_MS, "batches": 1, "loss_sum": 6.0},
        {"topic": "home", "last_ms": late, "batches": 2, "loss_sum": 8.0},
        {"topic": "search", "last_ms": late, "batches": 1, "loss_sum": 1.0},
        {"topic": "video", "last_ms": late, "batches": 1, "loss_sum": 3.0},
    ]
    (tmp_path / "ranges.jsonl").write_text("\n".join(json.dumps(line) for line in ranges))
    figures = _figures(tmp_path)
    assert figures["largest skew, h"] == 2.0
    assert figures["loss, all"] == pytest.approx(18 / 5)
    assert figures["loss, last 6 h"] == pytest.approx(12 / 4)
    assert figures["loss, last 6 h of home"] == pytest.approx(4.0)
