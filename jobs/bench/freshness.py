"""`headrace bench freshness`: from an event's publication to a bundle that knows it.

A publisher sends SYNTHETIC samples to a Kafka broker at a steady rate, with the time of the moment;
`headrace train --local` (1 parameter server, 1 worker) trains on them, saves every so many seconds,
and has an exporter beside it. An event is known by a bundle when the offsets in the bundle's
manifest are beyond the event's; it is fresh from the moment when `CURRENT` names that bundle. What
was published before the first bundle stood, while all processes started, is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import logging
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import yaml

from jobs.bench.report import Cell, add_broker_argument, bench_parser, write_report
from jobs.bench.stream.synthetic import DIM, SPECIFICATION, broker, write_samples
from jobs.settings import EXIT_DONE
from models.bundle import Manifest, current_version, read_manifest
from pipeline.publish import PublishConfig, live_sender
from pipeline.specification import Specification
from streaming.cluster import free_addresses

logger = logging.getLogger(__name__)

_TOPIC, _PARTITIONS, _RECORD = "bench-freshness", 2, 200
_INDEXED_SAMPLES = 20_000
_BYTES_PER_ROW = 2 * DIM * 4  # the vector and its Adagrad sums
_POLL_SECONDS = 0.05
_START_SECONDS = 300.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Seen:
    """A bundle: when `CURRENT` named it first, what it says, and the ages of events new in it."""

    at: float
    manifest: Manifest
    ages: np.ndarray


class Publisher:
    """Sends records to the partitions in turn, and keeps when each one was sent."""

    def __init__(self, address: str, rate: float, specification: Specification) -> None:
        """Prepares `rate` samples per second for the broker at an address."""
        self._config = PublishConfig(
            bootstrap_servers=[address],
            directory=Path("not-read"),
            topic=_TOPIC,
            create_partitions=_PARTITIONS,
        )
        self._rate = rate
        self._specification = specification
        self.sent: list[list[float]] = [[] for _ in range(_PARTITIONS)]
        """Per partition, the time at which the record of each offset was sent."""

    @contextlib.contextmanager
    def publishing(self) -> Iterator[None]:
        """Publishes in a thread, until the end of the `with`."""
        over = threading.Event()
        thread = threading.Thread(target=self._publish, args=[over], name="publisher", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def create_topic(self) -> None:
        """Makes the topic, empty."""
        with live_sender(self._config):
            pass

    def _publish(self, over: threading.Event) -> None:
        random = np.random.default_rng(1)
        period, due = _RECORD / self._rate, time.time()
        with live_sender(self._config) as send:
            for count in range(sys.maxsize):
                # Events happen over the period that the record covers; it is sent at its end.
                due += period
                if over.wait(max(0.0, due - time.time())):
                    return
                times = 1e3 * (due - period * np.linspace(1, 0, _RECORD))
                number = count % _PARTITIONS
                send(number, self._samples(random, times.astype(np.int64)))
                self.sent[number].append(time.time())

    def _samples(self, random: np.random.Generator, times_ms: np.ndarray) -> pa.Table:
        items = random.zipf(1.1, (_RECORD, 11)) % 100_000
        columns = {
            "event_id": pa.array(times_ms).cast(pa.string()),
            "timestamp_ms": times_ms,
            "user_id": random.integers(0, 200_000, _RECORD),
            "item_id": items[:, 0],
            "scenario": pa.array(["any"] * _RECORD),
            "reward": np.ones(_RECORD, np.float32),
            "history_item_id": pa.array(items[:, 1:].tolist(), pa.list_(pa.int64())),
        }
        return pa.table(columns, schema=self._specification.sample_schema)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = bench_parser("freshness", __doc__)
    parser.add_argument("--exports", type=int, default=20, help="bundles to measure")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between saves")
    parser.add_argument("--rate", type=float, default=2000.0, help="samples published per second")
    parser.add_argument(
        "--variables-mb",
        type=int,
        default=0,
        help="size of tables and optimizer slots together; without it, 77 MB",
    )
    add_broker_argument(parser)
    arguments = parser.parse_args(argv)
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as name,
        contextlib.ExitStack() as up,
    ):
        run = _Run(Path(name), up.enter_context(broker(arguments.kafka)), arguments)
        seen = run.measure()
        stalls = run.stalls()
    _report(seen, stalls, arguments)
    return EXIT_DONE


class _Run:
    """One training run in a folder, with what it needs."""

    def __init__(self, folder: Path, address: str, arguments: argparse.Namespace) -> None:
        self._folder, self._arguments = folder, arguments
        content = json.loads(json.dumps(SPECIFICATION)) | {"name": "freshness"}
        if arguments.variables_mb:
            rows = int(arguments.variables_mb * 1e6 / _BYTES_PER_ROW)
            content["tables"]["item"]["buckets"] = rows - content["tables"]["user"]["buckets"]
        self._specification = Specification.model_validate(content)
        self._publisher = Publisher(address, arguments.rate, self._specification)
        self._port = int(free_addresses(1)[0].rpartition(":")[2])
        self._bundles = folder / "bundles" / self._specification.name
        # What the index is made of.
        write_samples(folder / "samples", _INDEXED_SAMPLES, self._specification)
        settings = self._settings(address, content)
        (folder / "config.yaml").write_text(yaml.safe_dump(settings))

    def _settings(self, address: str, specification: dict[str, Any]) -> dict[str, Any]:
        return {
            "specification": specification,
            "samples": {"inputs": ["not-read"], "output": str(self._folder / "samples")},
            "model": {"dim": DIM, "hidden": [64], "optimizer": "adagrad"},
            "train": {
                "directory": str(self._folder / "run"),
                "source": {"kafka": {"bootstrap_servers": [address], "topics": [_TOPIC]}},
                "stream": {"end": "never"},
                "batch_size": 512,
                "batches_per_range": 2,
                "checkpoint": {"every_seconds": self._arguments.every},
                "cluster": {"parameter_servers": 1, "workers": 1},
                "watch": {"port": self._port},
            },
            "export": {"output": str(self._folder / "bundles"), "follow": True, "keep": 3},
        }

    def measure(self) -> list[_Seen]:
        """Trains until enough bundles were seen; returns them, without the first."""
        self._publisher.create_topic()
        command = [sys.executable, "-m", "jobs.main", "train", "--local", "--config"]
        log = self._folder / "log"
        with (
            log.open("wb") as output,
            subprocess.Popen(
                [*command, str(self._folder / "config.yaml")], stdout=output, stderr=output
            ) as train,
        ):
            try:
                self._await_ready(train)
                with self._publisher.publishing():
                    seen = list(self._bundles_seen(train))
            except RuntimeError as error:
                raise RuntimeError(f"{error}\n{log.read_text()[-4000:]}") from error
            finally:
                self._ended = time.time()
                train.send_signal(signal.SIGTERM)
                train.wait()
        return seen

    def _await_ready(self, train: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while time.monotonic() < deadline and train.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/readyz", timeout=5):
                    return
            except urllib.error.URLError:
                time.sleep(0.5)
        raise RuntimeError(f"training was not ready within {_START_SECONDS:g} s")

    def _bundles_seen(self, train: subprocess.Popen[bytes]) -> Iterator[_Seen]:
        known: list[int] | None = None
        name: str | None = None
        left = self._arguments.exports
        while left:
            if train.poll() is not None:
                raise RuntimeError(f"training ended with {train.returncode}")
            time.sleep(_POLL_SECONDS)
            newest = current_version(self._bundles)
            if newest is None or newest == name:
                continue
            name, at = newest, time.time()
            manifest = read_manifest(self._bundles / newest)
            ends = [0] * _PARTITIONS
            for place in manifest.ledger["offsets"]:
                ends[place["partition"]] = place["offset"]
            if known is not None:
                spans = zip(self._publisher.sent, known, ends, strict=True)
                sent = [each for times, start, end in spans for each in times[start:end]]
                seen = _Seen(at, manifest, at - np.array(sent))
                logger.info("%d to go: %s", left, _row(seen))
                left -= 1
                yield seen
            known = ends

    def stalls(self) -> list[float]:
        """Returns seconds for which training stood still, per save before the end was asked for."""
        lines = (self._folder / "run" / "metrics.jsonl").read_text().splitlines()
        stalls: list[float] = []
        for line in map(json.loads, lines):
            stall = line.get("checkpoint/stall_seconds")
            if line["time"] < self._ended and stall is not None and stall not in stalls:
                stalls.append(stall)
        return stalls


def _row(seen: _Seen) -> dict[str, Cell]:
    fresh = seen.manifest.freshness
    copied = seen.at - 1e-3 * fresh.taken_ms if fresh else float("nan")
    newest = (
        seen.at - 1e-3 * fresh.newest_event_ms if fresh and fresh.newest_event_ms else float("nan")
    )
    return {
        "bundle": seen.manifest.version,
        "events": len(seen.ages) * _RECORD,
        "p50 s": _quantile(seen.ages, 50),
        "p99 s": _quantile(seen.ages, 99),
        "copy to bundle s": round(copied, 2),
        "newest event s": round(newest, 2),
    }


def _quantile(values: np.ndarray, percent: float) -> float:
    return round(float(np.percentile(values, percent)), 2) if len(values) else float("nan")


def _report(seen: Sequence[_Seen], stalls: Sequence[float], arguments: argparse.Namespace) -> None:
    ages = np.concatenate([each.ages for each in seen])
    costs = {
        "publication to bundle p50, s": _quantile(ages, 50),
        "publication to bundle p99, s": _quantile(ages, 99),
    }
    if stalls:
        costs |= {"stall p50, s": statistics.median(stalls), "stall max, s": max(stalls)}
    size = arguments.variables_mb or 77
    name = f"freshness (synthetic, {size} MB of variables, a save every {arguments.every:g} s)"
    write_report(name, [_row(each) for each in seen], costs=costs, out=arguments.out)
