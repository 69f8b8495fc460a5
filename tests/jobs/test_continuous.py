"""The continuous job on real logs: what is published, joined and trained on is what batch makes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from kafka import KafkaConsumer, TopicPartition

from tests.pipeline.kinds.real_logs import real_events, real_specification
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
PARTITIONS = 2
LOGS = {"taobao": ("keep", 5, 24), "retailrocket": ("drop", 60, 2)}
"""By log: what becomes of orphans, so many days, one of so many users."""

pytestmark = [pytest.mark.kafka, pytest.mark.slow, pytest.mark.timeout(600)]


class Shop:
    """The commands of a shop, each in a process of its own, with one configuration."""

    def __init__(self, folder: Path, kafka: str, name: str, log: str) -> None:
        orphans, num_days, one_of = LOGS[log]
        self.folder, self.kafka, self.name = folder, kafka, name
        self.events = real_events(log, num_days=num_days, one_of=one_of)
        (folder / "log").mkdir()
        pq.write_table(self.events, folder / "log" / "events.parquet")
        self.running: list[subprocess.Popen[bytes]] = []
        specification = real_specification(kinds={"retrieval": {"exposed_negatives": 2}})
        declared = specification.model_dump(mode="json", exclude_unset=True)
        history = {"name": "history_item_id", "kind": "ids", "table": "t"}
        level = {"name": "level", "kind": "number"}
        declared["features"]["query"] += [history, level]
        declared["users"] = {"columns": {"level": "int64"}}
        write_levels(self.events, folder / "users.parquet")
        broker = {"bootstrap_servers": [kafka]}
        self.content: dict[str, Any] = {
            "specification": declared,
            "samples": {
                "inputs": [str(folder / "log")],
                "users": [str(folder / "users.parquet")],
                "output": str(folder / "samples"),
                "join_window_seconds": 86_400,
                "orphans": orphans,
            },
            "publish": broker
            | {
                "events": [str(folder / "log")],
                "topic": f"{name}-events",
                "create_partitions": PARTITIONS,
                "progress_topic": f"{name}-published",
            },
            "join": broker
            | {
                "input": {"topics": [f"{name}-events"]},
                "output": {"topic": f"{name}-samples", "create": True},
                "group": name,
                "snapshot": {"directory": str(folder / "joined"), "every_seconds": 5},
            },
            "model": {"dim": 8, "hidden": [16]},
            "train": {
                "directory": str(folder / "run"),
                "source": {"kafka": broker | {"topics": [f"{name}-samples"]}},
                "batch_size": 128,
            },
        }

    def start(self, command: str, *overrides: str, flags: tuple[str, ...] = ()) -> Any:
        path = self.folder / "shop.yaml"
        path.write_text(yaml.safe_dump(self.content))
        sets = [word for text in overrides for word in ("--set", text)]
        arguments = [command, "--config", str(path), *sets, *flags]
        with (self.folder / f"{command}.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "jobs.main", *arguments],
                cwd=ROOT,
                env=os.environ,
                stdout=log,
                stderr=log,
            )
        self.running.append(process)
        return process

    def run(self, command: str, *overrides: str) -> None:
        self.ended(self.start(command, *overrides), command)

    def ended(self, process: Any, command: str) -> None:
        assert process.wait(300) == 0, (self.folder / f"{command}.log").read_text()[-4000:]

    def batch(self) -> list[dict[str, Any]]:
        """Returns the samples of the batch job, in the order of their ids."""
        self.run("samples")
        files = sorted((self.folder / "samples" / "retrieval").glob("dt=*/*.parquet"))
        return ordered(pa.concat_tables(pq.ParquetFile(path).read() for path in files))

    def joined(self) -> list[dict[str, Any]]:
        """Returns the samples that stand in the topic, in the order of their ids."""
        found = []
        for value in self.records(f"{self.name}-samples"):
            with pa.ipc.open_stream(value) as stream:
                found.append(stream.read_all())
        return ordered(pa.concat_tables(found)) if found else []

    def records(self, topic: str) -> list[bytes]:
        consumer = KafkaConsumer(bootstrap_servers=self.kafka, isolation_level="read_committed")
        try:
            if topic not in consumer.topics():
                return []
            places = [TopicPartition(topic, number) for number in range(PARTITIONS)]
            consumer.assign(places)
            consumer.seek_to_beginning(*places)
            ends = consumer.end_offsets(places)
            found = []
            while any(consumer.position(place) < ends[place] for place in places):
                for records in consumer.poll(timeout_ms=200).values():
                    found += [record.value for record in records]
            return found
        finally:
            consumer.close(autocommit=False)

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.wait()


def write_levels(events: pa.Table, path: Path) -> None:
    """Writes a made-up table of users: each rises a level in the middle of the log."""
    users = np.unique(events["user_id"].to_numpy())
    times = events["timestamp_ms"].to_numpy()
    begins = np.array([times.min(), (times.min() + times.max()) // 2])
    rows = {
        "user_id": np.repeat(users, 2),
        "valid_from_ms": np.tile(begins, len(users)),
        "level": np.repeat(users % 5, 2) + np.tile([0, 1], len(users)),
    }
    pq.write_table(pa.table(rows), path)


def ordered(table: pa.Table) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = table.sort_by("event_id").to_pylist()
    return rows


@pytest.fixture
def shop(request, kafka: str, topic: str, tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path, kafka, topic, request.param)
    yield made
    made.close()


@pytest.mark.parametrize("shop", LOGS, indirect=True)
def test_the_backlog_of_a_real_log_gives_the_samples_of_the_batch(shop) -> None:
    expected = shop.batch()
    shop.run("publish")
    shop.run("join", "join.end=closed")
    assert len(expected) > 1_000
    assert shop.joined() == expected


@pytest.mark.parametrize("shop", ["retailrocket"], indirect=True)
def test_a_real_log_published_joined_and_learned_live_gives_the_samples_of_the_batch(shop) -> None:
    """Publisher and joiner are killed on the way; the trainer reads while both still run."""
    expected = shop.batch()
    speed = np.ptp(shop.events["timestamp_ms"].to_numpy()) / 40_000  # the log takes 40 s

    def publish() -> Any:
        return shop.start("publish", "publish.value_format=json", flags=("--speed", str(speed)))

    publisher = publish()
    wait_until(lambda: len(shop.records(f"{shop.name}-events")) > 0)
    joiner = shop.start("join")
    wait_until(lambda: len(shop.joined()) > len(expected) / 6)
    trainer = shop.start(
        "train", f"train.stream.end={{samples: {len(expected)}}}", flags=("--local",)
    )
    for process in (joiner, publisher):
        assert process.poll() is None
        process.kill()
        process.wait()
    publisher, joiner = publish(), shop.start("join")
    wait_until(lambda: len(shop.joined()) > len(expected) / 2)
    joiner.kill()
    joiner.wait()
    joiner = shop.start("join")
    shop.ended(publisher, "publish")
    joiner.send_signal(signal.SIGTERM)
    shop.ended(joiner, "join")
    shop.run("join", "join.end=closed")
    shop.ended(trainer, "train")

    assert shop.joined() == expected
    assert max(len(row["history_item_id"]) for row in expected) > 10
    assert {row["level"] for row in expected} == set(range(6))
    lines = (shop.folder / "run" / "metrics.jsonl").read_text().splitlines()
    learned = json.loads(lines[-1])
    assert learned["stream/samples"] == len(expected)
    assert learned["stream/rejects"] == learned["stream/lost"] == 0
