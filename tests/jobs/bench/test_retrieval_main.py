from __future__ import annotations

import json

import numpy as np
import polars as pl
import pytest

from jobs.bench.main import main


@pytest.fixture
def data(tmp_path):
    """A small log under the name of RetailRocket: two groups of users with items of their own."""
    random = np.random.default_rng(1)
    users = random.integers(0, 40, 3000)
    items = random.integers(0, 25, 3000) + 25 * (users % 2)
    pl.DataFrame(
        {
            "user_id": users,
            "item_id": items,
            "behaviour": ["view"] * 3000,
            "timestamp_seconds": np.arange(3000),
        }
    ).write_parquet(tmp_path / "retailrocket.parquet")
    return tmp_path


def test_variants_are_compared_on_what_is_there_and_what_is_not_is_said(data, tmp_path) -> None:
    out = tmp_path / "out.json"
    arguments = ["retrieval", "--datasets", "taobao,retailrocket", "--data", str(data)]
    arguments += ["--variants", "none;all;mixed", "--seeds", "2", "--passes", "2", "--no-tune"]
    assert main([*arguments, "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    assert list(report["skipped"]) == ["taobao"]
    (result,) = report["results"]
    ways = [(run["variant"], run["seed"]) for run in result["runs"]]
    assert ways == [(v, seed) for v in ("none", "all", "mixed") for seed in (1, 2)]
    assert all(run["equal_time"] is not None for run in result["runs"])
    assert (tmp_path / "out-retailrocket.png").stat().st_size > 1000
    claims = {each["claim"]: each for each in report["verdicts"]}
    assert "§1 Yi et al.: all > none" in claims


def test_simulated_workers_make_a_table_of_their_own(data, tmp_path) -> None:
    out = tmp_path / "stale.json"
    arguments = ["staleness", "--datasets", "retailrocket", "--data", str(data), "--passes", "1"]
    arguments += ["--real-workers", "", "--simulated-workers", "1,3", "--every", "1"]
    assert main([*arguments, "--ways", "sum;touches", "--out", str(out)]) == 0
    report = json.loads(out.read_text())
    ways = [(point["workers"], point["way"]) for point in report["points"]]
    assert ways == [(1, "sum"), (3, "sum"), (3, "touches")]
    (choice,) = report["choices"]
    rates = {point["way"]: point["hit_rate"] for point in report["points"][1:]}
    assert rates[choice["way"]] == max(rates.values())
