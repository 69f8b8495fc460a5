"""`headrace train --local` with the real model, from files and from a real broker."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

from jobs.main import main
from pipeline.publish import PublishConfig, publish
from pipeline.specification import Specification
from streaming.checkpoints.store import load_checkpoint
from tests.jobs.training import ROOT, SPECIFICATION, neighbours, train
from tests.sample_folder import write_samples
from tests.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

SAMPLES, PARTS, ITEMS = 20_000, 4, 300


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("samples")
    random = np.random.default_rng(0)
    tables = {}
    for part in range(PARTS):
        columns = neighbours(random.integers(0, ITEMS, SAMPLES // PARTS), part=part)
        schema = Specification(**SPECIFICATION).sample_schema
        tables["2026-01-01", part] = pa.table(columns, schema=schema)
    write_samples(folder, tables, row_group_size=1000)
    return folder


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
    published = publish(config, Specification(**SPECIFICATION).sample_schema)
    assert sum(count.records for count in published.counts) == 40
    _send(kafka, topic, 2, os.urandom(300))  # and one record that nobody can read
    # Each transaction of the publisher ends with an offset of its own in each of its partitions.
    ends = _ends(kafka, topic)
    assert sum(ends) >= 41 + PARTS

    place = {"archive": {"directory": str(samples)}}
    archive = train(tmp_path / "archive", place, watch={"tensorboard": True})
    assert archive.returncode == 0, archive.stderr
    points = _points(tmp_path / "archive" / "run" / "tensorboard")
    assert 0 < points["stream/samples"] <= SAMPLES
    assert points["train/loss"] == pytest.approx(losses(tmp_path / "archive")[0], rel=1e-6)
    source = {"kafka": {"bootstrap_servers": [kafka], "topics": [topic]}}
    streamed = train(tmp_path / "kafka", source, max_reject_share=0.05)
    assert streamed.returncode == 0, streamed.stderr

    from_files, from_kafka = (ledger(tmp_path / name)["totals"] for name in ("archive", "kafka"))
    assert from_files == from_files | {"samples": SAMPLES, "records": SAMPLES, "rejects": 0}
    totals = {"samples": SAMPLES, "records": sum(ends), "rejects": 1, "lost": 0}
    assert from_kafka == from_kafka | totals
    assert {entry["offset"] for entry in ledger(tmp_path / "archive")["offsets"]} == {5000}
    offsets = [entry["offset"] for entry in ledger(tmp_path / "kafka")["offsets"]]
    assert sorted(offsets) == sorted(ends)
    (letter,) = (tmp_path / "kafka" / "run" / "dead-letters").iterdir()
    (row,) = pq.read_table(letter).to_pylist()
    assert (row["topic"], row["partition"], row["offset"]) == (topic, 2, ends[2] - 1)
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


def _points(directory: Path) -> dict[str, float]:
    """Returns the first point of each figure that TensorBoard would show."""
    (path,) = directory.iterdir()
    points: dict[str, float] = {}
    for record in tf.data.TFRecordDataset(str(path)):
        for value in tf.compat.v1.Event.FromString(record.numpy()).summary.value:
            points.setdefault(value.tag, float(tf.make_ndarray(value.tensor)))
    return points


def _ends(address: str, topic: str) -> list[int]:
    consumer = KafkaConsumer(bootstrap_servers=[address])
    places = [TopicPartition(topic, number) for number in range(PARTS)]
    ends = consumer.end_offsets(places)
    consumer.close()
    return [ends[place] for place in places]


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
        "import sys; from pathlib import Path; from tests.jobs.training import train;"
        f"sys.exit({call}.returncode)"
    )
    first = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT)
    try:
        metrics = Path(shared) / "metrics.jsonl"
        wait_until(
            lambda: first.poll() is not None or (metrics.exists() and metrics.stat().st_size > 0),
            seconds=300,
        )
        assert first.poll() is None, "it ended"
        second = train(second_folder, endless, directory=shared)
        assert second.returncode == 2
        assert "another trainer uses this checkpoint directory" in second.stderr
        assert first.poll() is None
    finally:
        _terminate_launcher(first)
    assert first.wait(120) == 0
    assert load_checkpoint(Path(shared) / "checkpoints").ledger["totals"]["samples"] > 0


def _terminate_launcher(parent: subprocess.Popen) -> None:
    """Sends SIGTERM to the launcher, which is the only child of the process that waits for it."""
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
