from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from jobs.main import run_job
from jobs.publish import main
from pipeline.specification import Specification
from tests.sample_folder import write_samples

SPECIFICATION = {
    "name": "shop",
    "scenarios": ["home"],
    "tables": {"item": {"buckets": 16}},
    "features": {
        "query": [{"name": "history_item_id", "kind": "ids", "table": "item"}],
        "candidate": [{"name": "item_id", "kind": "id", "table": "item"}],
    },
}


@pytest.fixture
def config(tmp_path: Path, topic: str) -> Path:
    """Three samples in two parts, to be published to a broker that is not there."""
    row = {
        "event_id": "e",
        "timestamp_ms": 1,
        "user_id": 1,
        "item_id": 2,
        "scenario": "home",
        "reward": 1.0,
        "history_item_id": [3],
    }
    schema = Specification.model_validate(SPECIFICATION).sample_schema
    tables = {
        ("2026-01-01", 0): pa.Table.from_pylist([row, row], schema),
        ("2026-01-01", 1): pa.Table.from_pylist([row], schema),
    }
    write_samples(tmp_path / "samples", tables)
    section = {
        "bootstrap_servers": ["127.0.0.1:1"],
        "connect_timeout_seconds": 0.5,
        "directory": str(tmp_path / "samples"),
        "topic": topic,
        "create_partitions": 2,
    }
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump({"specification": SPECIFICATION, "publish": section}))
    return path


@pytest.mark.kafka
def test_publishes_once_and_prints_what_went_where(
    config: Path, kafka: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), "--set", f"publish.bootstrap_servers=['{kafka}']"]

    assert run_job(main, arguments) == 0
    cells = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["0", "1", "2", "0.0"] in cells
    assert ["1", "1", "1", "0.0"] in cells
    assert ["all", "2", "3", "0.0"] in cells

    assert run_job(main, arguments) == 2
    assert "expected an empty one" in capsys.readouterr().err


def test_a_broker_that_is_away_exits_75_with_the_cause(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job(main, ["--config", str(config)]) == 75
    printed, found = capsys.readouterr()
    assert printed == ""
    assert "127.0.0.1:1: asking for the topic: " in found
    assert "ECONNREFUSED" in found
    assert "Traceback" not in found
