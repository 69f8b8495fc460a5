"""A real cluster with every source of negatives: draws in the workers, the bank on the servers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.specification import Specification
from tests.jobs import training
from tests.sample_folder import write_samples

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

ROWS, ITEMS = 6_000, 60
SPECIFICATION = training.SPECIFICATION | {
    "name": "negatives-test",
    "scenarios": ["home", "search"],
    "columns": {"shown": "list<int64>"},
    "hard_negatives": "shown",
    "tables": {"item": {"buckets": 500, "dim": 8}},
}


def write(folder: Path) -> None:
    """Writes samples; beside the candidate of each, two other items were shown."""
    random = np.random.default_rng(0)
    items = random.integers(0, ITEMS, ROWS)
    columns = training.neighbours(items) | {
        "scenario": random.choice(["home", "search"], ROWS),
        "shown": [[int(item) + 2, int(item) + 3] for item in items],
    }
    schema = Specification(**SPECIFICATION).sample_schema
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    write_samples(folder, {("2026-01-01", 0): table}, row_group_size=1000)


def train(folder: Path, model: dict, *, per_scenario: bool) -> subprocess.CompletedProcess[str]:
    return training.train(
        folder,
        {"archive": {"directory": str(folder / "samples"), "replays": 2}},
        specification=SPECIFICATION,
        model=model,
        batch_size=100,
        frequency={"per_scenario": per_scenario},
        cluster={"parameter_servers": 2, "workers": 1},
    )


def test_all_sources_at_once_learn_and_tell_the_drift(tmp_path: Path) -> None:
    write(tmp_path / "samples")
    done = train(
        tmp_path,
        {
            "logq": "positive-excluded",
            "learn_temperature": True,
            "negatives": {
                "corpus": {"count": 20, "smoothing": 0.5},
                "bank": {"size": 1200, "warm_up_steps": 10},
                "hard": True,
            },
        },
        per_scenario=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line]
    used = [line["train/bank_rows"] for line in lines if "train/bank_rows" in line]
    drifts = [line["train/drift_1"] for line in lines if "train/drift_1" in line]
    assert lines[-1]["stream/samples"] == 2 * ROWS
    assert all(np.isfinite(losses))
    assert used[-1] > 0
    # Vectors of length 1 that are a mini-batch apart have moved, and not far.
    assert drifts
    assert all(0 < drift < 1 for drift in drifts)


def test_an_estimate_per_scenario_is_refused_where_mini_batches_mix_scenarios(
    tmp_path: Path,
) -> None:
    write(tmp_path / "samples")
    done = train(tmp_path, {}, per_scenario=True)
    assert done.returncode == 2
    assert "train.frequency.per_scenario: found 2 scenarios in 0 topics" in done.stderr
