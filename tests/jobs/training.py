"""`headrace train --local` on synthetic samples with something to learn."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import yaml

ROOT = Path(__file__).parents[2]
SPECIFICATION: dict[str, Any] = {
    "name": "train-test",
    "scenarios": ["any"],
    "tables": {"item": {"buckets": 2000, "dim": 8}},
    "features": {
        "query": [{"name": "history_item_id", "kind": "ids", "table": "item"}],
        "candidate": [{"name": "item_id", "kind": "id", "table": "item"}],
    },
}


def neighbours(items: np.ndarray, *, part: int = 0) -> dict[str, Any]:
    """Returns the columns of samples whose history holds the candidate's neighbour."""
    return {
        "event_id": [f"{part}-{row}" for row in range(len(items))],
        "timestamp_ms": np.arange(len(items)),
        "user_id": items,
        "item_id": items,
        "scenario": ["any"] * len(items),
        "reward": np.ones(len(items), np.float32),
        "history_item_id": [[int(item) ^ 1] for item in items],
    }


def train(
    folder: Path,
    source: dict[str, Any],
    *,
    specification: dict[str, Any] = SPECIFICATION,
    model: dict[str, Any] | None = None,
    **settings: object,
) -> subprocess.CompletedProcess[str]:
    """Trains in `folder`; returns what the command printed and its exit code."""
    content = {
        "specification": specification,
        "model": {"dim": 8, "hidden": [16]} | (model or {}),
        "train": {
            "directory": str(folder / "run"),
            "source": source,
            "batch_size": 250,
            "cluster": {"parameter_servers": 1, "workers": 2},
        }
        | settings,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return subprocess.run(
        [sys.executable, "-m", "jobs.main", "train", "--config", folder / "config.yaml", "--local"],
        cwd=ROOT,
        env=os.environ | {"HEADRACE_LOG": "INFO"},
        capture_output=True,
        text=True,
        check=False,
    )
