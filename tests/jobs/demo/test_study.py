"""What the demo measures, on tables small enough to check by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from jobs.demo import study


def _samples(rows: list[tuple[int, int, int]]) -> pa.Table:
    users, items, times = zip(*rows, strict=True)
    return pa.table({"user_id": users, "item_id": items, "timestamp_ms": times})


def test_seen_is_strictly_before_the_question_and_by_the_same_user() -> None:
    log = _samples([(1, 10, 100), (1, 11, 200), (1, 12, 300), (2, 13, 50), (1, 99, 10)])
    future = _samples([(1, 11, 200), (1, 12, 300), (3, 10, 400)])
    candidates = pa.table({"item_id": [10, 11, 12, 13]})
    # Item 99 is no candidate; user 2's item is not user 1's; 11 is not before itself.
    assert study.seen_before(future, log, candidates).rows() == [(0, 0), (1, 0), (1, 1)]


def test_metrics_give_a_curve_and_a_rate_over_all(tmp_path: Path) -> None:
    lines = [
        {"stream/samples": 100, "train/loss": 3.0, "stream/samples_per_second": 50.0},  # 2 s
        {"stream/samples": 400, "train/loss": 2.0, "stream/samples_per_second": 100.0},  # 3 s
        {"stream/samples": 400, "stream/records_remaining": 0},  # nothing was trained
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve, rate = study.read_metrics(path)
    np.testing.assert_array_equal(curve, [[100, 3.0], [400, 2.0]])
    assert rate == pytest.approx(400 / 5)


def test_no_metrics_are_no_rate(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.touch()
    curve, rate = study.read_metrics(path)
    assert curve.shape == (0, 2)
    assert rate == 0.0
