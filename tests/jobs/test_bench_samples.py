from __future__ import annotations

import json

import pyarrow as pa
import pytest

from jobs.bench.main import main
from jobs.bench.synthetic import World, make_events


def test_the_benchmark_compares_equal_samples_and_writes_its_ratios(tmp_path) -> None:
    assert main(["samples", "--events", "2000", "--out", str(tmp_path / "out.json")]) == 0
    report = json.loads((tmp_path / "out.json").read_text())
    assert [row["way"] for row in report["rows"]] == [
        "headrace",
        "headrace on Dask",
        "duckdb",
        "row beam",
    ]
    assert len({row["checksum"] for row in report["rows"]}) == 1
    assert report["rows"][0]["samples"] > 200
    assert all(report["ratios"][name] > 0 for name in ("vs_duckdb_at_2000", "vs_row_beam_at_2000"))


def test_synthetic_events_depend_on_their_seed_alone() -> None:
    world = World(num_users=50, num_items=50)
    events = make_events(1000, seed=1, world=world)
    assert events.equals(make_events(1000, seed=1, world=world))
    assert not events.equals(make_events(1000, seed=2, world=world))


def test_synthetic_popularity_is_skewed_and_events_are_delivered_twice() -> None:
    events = make_events(20_000, seed=1, world=World(num_users=500, num_items=500))
    shares = sorted(pa.compute.value_counts(events["item_id"]).field("counts").to_pylist())
    assert shares[-1] / 20_000 == pytest.approx(1 / 6.79, rel=0.1)  # Zipf: 1 / (1 + ... + 1/500)
    assert len(set(events["event_id"].to_pylist())) == 19_600
