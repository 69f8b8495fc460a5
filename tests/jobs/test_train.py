"""`headrace train --local` with the real model, from files and from a real broker."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from kafka import KafkaProducer

from jobs.main import main
from pipeline.publish import PublishConfig, publish
from pipeline.specification import Specification
from streaming.checkpoints.store import load_checkpoint
from tests.sample_folder import write_samples

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SAMPLES, PARTS, ITEMS = 20_000, 4, 300
ROOT = Path(__file__).parents[2]
SPECIFICATION = {
    "name": "train-test",
    "scenarios": ["any"],
    "tables": {"item": {"buckets": 2000, "dim": 8}},
    "features": {
        "query": [{"name": "history_item_id", "kind": "ids", "table": "item"}],
        "candidate": [{"name": "item_id", "kind": "id", "table": "item"}],
    },
}


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Synthetic: the history holds the candidate's neighbour, so there is something to learn."""
    folder = tmp_path_factory.mktemp("samples")
    random = np.random.default_rng(0)
    tables = {}
    for part in range(PARTS):
        rows = SAMPLES // PARTS
        items = random.integers(0, ITEMS, rows)
        columns = {
            "event_id": [f"{part}-{row}" for row in range(rows)],
            "timestamp_ms": np.arange(rows),
            "user_id": items,
            "item_id": items,
            "scenario": ["any"] * rows,
            "reward": np.ones(rows, np.float32),
            "history_item_id": [[int(item) ^ 1] for item in items],
        }
        schema = Specification(**SPECIFICATION).sample_schema
        tables["2026-01-01", part] = pa.table(columns, schema=schema)
    write_samples(folder, tables, row_group_size=1000)
    return folder


def train(folder: Path, source: dict, **settings: object) -> subprocess.CompletedProcess[str]:
    """Trains in `folder`; returns what the command printed and its exit code."""
    content = {
        "specification": SPECIFICATION,
        "model": {"dim": 8, "hidden": [16]},
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


def ledger(folder: Path) -> dict:
    return load_checkpoint(folder / "run" / "checkpoints").ledger


def losses(folder: Path) -> list[float]:
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.kafka
def test_the_same_samples_from_files_and_from_kafka_give_the_same_totals(tmp_path, kafka, samples):
    topic = f"train-{uuid.uuid4()}"
    config = PublishConfig(
        bootstrap_servers=[kafka],
        directory=samples,
        topic=topic,
        create_partitions=PARTS,
        samples_per_record=500,
    )
    publish(config, Specification(**SPECIFICATION).sample_schema)
    _send(kafka, topic, 2, os.urandom(300))  # and one record that nobody can read

    archive = train(tmp_path / "archive", {"archive": {"directory": str(samples)}})
    assert archive.returncode == 0, archive.stderr
    source = {"kafka": {"bootstrap_servers": [kafka], "topics": [topic]}}
    streamed = train(tmp_path / "kafka", source, max_reject_share=0.05)
    assert streamed.returncode == 0, streamed.stderr

    from_files, from_kafka = (ledger(tmp_path / name)["totals"] for name in ("archive", "kafka"))
    assert from_files == from_files | {"samples": SAMPLES, "records": SAMPLES, "rejects": 0}
    assert from_kafka == from_kafka | {"samples": SAMPLES, "records": 41, "rejects": 1, "lost": 0}
    assert {entry["offset"] for entry in ledger(tmp_path / "archive")["offsets"]} == {5000}
    offsets = [entry["offset"] for entry in ledger(tmp_path / "kafka")["offsets"]]
    assert sorted(offsets) == [10, 10, 10, 11]
    (letter,) = (tmp_path / "kafka" / "run" / "dead-letters").iterdir()
    (row,) = pq.read_table(letter).to_pylist()
    assert (row["topic"], row["partition"], row["offset"]) == (topic, 2, 10)
    for name in ("archive", "kafka"):
        # All may be learned within one second, and so told in one line.
        found = losses(tmp_path / name)
        assert found
        assert max(found) < 1.1 * math.log(250)  # in-batch softmax that knows nothing: log 250

    # Too many rejects stop it, before a checkpoint that would hide them.
    refused = train(tmp_path / "strict", source)
    assert refused.returncode == 2
    assert "train.max_reject_share: 1 " in refused.stderr
    assert "expected at most 1.00%" in refused.stderr


def _send(address: str, topic: str, partition: int, payload: bytes) -> None:
    producer = KafkaProducer(bootstrap_servers=[address])
    producer.send(topic, payload, partition=partition).get(30)
    producer.close()


def test_a_second_trainer_on_the_same_directory_is_refused(tmp_path, samples):
    endless = {"archive": {"directory": str(samples), "replays": 1000}}
    first_folder, second_folder = tmp_path / "first", tmp_path / "second"
    first_folder.mkdir()
    shared = str(tmp_path / "shared")
    call = f"train(Path({str(first_folder)!r}), {endless!r}, directory={shared!r})"
    script = (
        "import sys; from pathlib import Path; from tests.jobs.test_train import train;"
        f"sys.exit({call}.returncode)"
    )
    first = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        metrics = Path(shared) / "metrics.jsonl"
        _wait_for(lambda: metrics.exists() and metrics.stat().st_size > 0, first)
        second = train(second_folder, endless, directory=shared)
        assert second.returncode == 2
        assert "another trainer uses this checkpoint directory" in second.stderr
        assert first.poll() is None
    finally:
        _terminate_launcher(first)
    assert first.wait(120) == 0
    assert load_checkpoint(Path(shared) / "checkpoints").ledger["totals"]["samples"] > 0


def _wait_for(condition, process: subprocess.Popen) -> None:
    import time

    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "it ended"
        assert time.monotonic() < deadline
        time.sleep(0.1)


def _terminate_launcher(parent: subprocess.Popen) -> None:
    """Sends SIGTERM to the launcher, which is the only child of the process that waits for it."""
    import signal

    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    for child in children:
        os.kill(int(child), signal.SIGTERM)


def test_a_broker_that_is_not_there_is_named_at_once_and_exits_75(tmp_path):
    source = {
        "kafka": {
            "bootstrap_servers": ["127.0.0.1:1"],
            "topics": ["samples"],
            "connect_timeout_seconds": 2,
        }
    }
    done = train(tmp_path / "away", source)
    assert done.returncode == 75
    assert "127.0.0.1:1" in done.stderr
    assert "started" not in done.stderr, "no process should be started for nothing"


def test_a_missing_archive_and_a_missing_place_in_the_cluster_are_wrong_input(tmp_path, capsys):
    done = train(tmp_path / "none", {"archive": {"directory": str(tmp_path / "nowhere")}})
    assert done.returncode == 2
    assert "headrace samples" in done.stderr
    config = str(tmp_path / "none" / "config.yaml")
    assert main(["train", "--config", config, "--role", "worker"]) == 2
    assert "found no --ps, --workers, --coordinator" in capsys.readouterr().err
