"""`headrace bench stream`: what the cluster costs, and what its sources cost.

The same two-tower model on the same SYNTHETIC samples (Zipf items, ten-item histories), in one run:

  process   one process, samples in memory as tensors, variables in place: no cluster at all
  memory    the cluster (1 parameter server, 2 workers), samples in the workers' memory
  archive   the cluster, samples from Parquet files
  kafka     the cluster, samples from a Kafka broker

Rounds alternate between the four, and each figure is the median of its rounds. A cluster's rate is
taken from its ledger between the first and the last line of metrics, so without start and end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from jobs.bench.report import Cell, write_report
from jobs.settings import EXIT_DONE
from pipeline.manifest import MANIFEST_NAME, Manifest, OutputFile
from pipeline.publish import PublishConfig, publish
from pipeline.schema import InputError, schema_fingerprint
from pipeline.specification import Specification

logger = logging.getLogger(__name__)

_USERS, _ITEMS, _HISTORY, _DIM, _PARTS = 200_000, 100_000, 10, 32, 4
_TOPIC = "bench-stream"
_SPECIFICATION = {
    "name": "bench-stream",
    "scenarios": ["any"],
    "history": {"length": _HISTORY},
    "tables": {
        "user": {"buckets": _USERS, "dim": _DIM},
        "item": {"buckets": _ITEMS, "dim": _DIM},
    },
    "features": {
        "query": [
            {"name": "user_id", "kind": "id", "table": "user"},
            {"name": "history_item_id", "kind": "ids", "table": "item"},
        ],
        "candidate": [{"name": "item_id", "kind": "id", "table": "item"}],
    },
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(
        prog="headrace bench stream",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, help="JSON file for the results")
    parser.add_argument("--samples", type=int, default=800_000, help="samples a round trains on")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per variant")
    parser.add_argument("--batch-sizes", default="1024,4096", help="comma-separated")
    parser.add_argument(
        "--kafka",
        metavar="HOST:PORT",
        default=os.environ.get("HEADRACE_KAFKA"),
        help="a broker to use; without it, the tests' own is started, if this is a checkout",
    )
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        _write_samples(folder / "samples", arguments.samples)
        with _broker(arguments.kafka) as address:
            _publish(folder / "samples", address)
            sizes = [int(size) for size in arguments.batch_sizes.split(",")]
            rates = _measure(folder, address, sizes=sizes, arguments=arguments)
    _report(rates, arguments)
    return EXIT_DONE


Rates = dict[tuple[int, str], list[float]]


def _measure(
    folder: Path, address: str, *, sizes: Sequence[int], arguments: argparse.Namespace
) -> Rates:
    rates: Rates = {}
    for size in sizes:
        for round_number in range(arguments.rounds):
            for variant in ("process", "memory", "archive", "kafka"):
                if variant == "process":
                    rate = _one_process(folder / "samples", size, arguments.samples)
                else:
                    run = folder / f"run-{size}-{variant}-{round_number}"
                    rate = _cluster(run, folder / "samples", variant, address, size)
                rates.setdefault((size, variant), []).append(rate)
                logger.info("batch %d, %s: %.0f samples/s", size, variant, rate)
    return rates


def _report(rates: Rates, arguments: argparse.Namespace) -> None:
    medians = {key: statistics.median(values) for key, values in rates.items()}
    rows: list[dict[str, Cell]] = [
        {
            "batch": size,
            "variant": variant,
            "samples/s": round(medians[size, variant]),
            "lowest": round(min(values)),
            "highest": round(max(values)),
        }
        for (size, variant), values in rates.items()
    ]
    ratios = {}
    for size in sorted({size for size, _ in rates}):
        for name, ours, other in [
            ("kafka_vs_memory", "kafka", "memory"),
            ("archive_vs_memory", "archive", "memory"),
            ("cluster_vs_process", "memory", "process"),
        ]:
            ratios[f"{name}@{size}"] = medians[size, ours] / medians[size, other]
    write_report("stream (synthetic)", rows, ratios=ratios, out=arguments.out)


def _cluster(run: Path, samples: Path, variant: str, address: str, size: int) -> float:
    """Trains once on a cluster of its own; returns samples/s."""
    source: dict[str, Any] = {"archive": {"directory": str(samples)}}
    if variant == "kafka":
        source = {"kafka": {"bootstrap_servers": [address], "topics": [_TOPIC]}}
    settings = {
        "specification": _SPECIFICATION,
        "model": {"dim": _DIM, "hidden": [64]},
        "train": {
            "directory": str(run),
            "source": source,
            "batch_size": size,
            "batches_per_range": max(1, 8192 // size),
            "checkpoint": {"every_seconds": 3600},
            "cluster": {"parameter_servers": 1, "workers": 2},
        },
    }
    run.mkdir()
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    code = "import sys; from jobs.bench.stream import launch; sys.exit(launch(sys.argv[1]))"
    with (run / "log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-c", code, str(run / "config.yaml")],
            env=os.environ | {"BENCH_SOURCE": variant},
            stdout=log,
            stderr=log,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(
            f"{variant}: exit {done.returncode}\n{(run / 'log').read_text()[-4000:]}"
        )
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    first, last = lines[0], lines[-2]
    return (last["stream/samples"] - first["stream/samples"]) / (last["time"] - first["time"])


def launch(config: str) -> int:
    """Runs a benchmark cluster's processes; called in a process of its own."""
    from jobs.local import LocalCluster
    from streaming.config import ClusterConfig

    train = yaml.safe_load(Path(config).read_text())["train"]
    command = [sys.executable, "-m", "jobs.bench.stream_process", "--config", config]
    cluster = ClusterConfig(**train["cluster"])
    return LocalCluster(command, cluster, directory=train["directory"]).run()


def _one_process(samples: Path, size: int, count: int) -> float:
    """Trains once in a process of its own, without a cluster; returns samples/s."""
    code = "import sys; from jobs.bench.stream_alone import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(samples), str(size), str(count)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"process: exit {done.returncode}\n{done.stderr[-4000:]}")
    return float(done.stdout.strip().splitlines()[-1])


def specification() -> Specification:
    """Returns what the samples of this benchmark are."""
    return Specification.model_validate(_SPECIFICATION)


def _write_samples(folder: Path, count: int) -> None:
    schema = specification().sample_schema
    random = np.random.default_rng(1)
    day, files = folder / "dt=2026-01-01", []
    day.mkdir(parents=True)
    for part in range(_PARTS):
        rows = count // _PARTS
        # Zipf with exponent 1.1, folded into the catalogue.
        items = (random.zipf(1.1, rows * (_HISTORY + 1)) % _ITEMS).astype(np.int64)
        history = pa.ListArray.from_arrays(
            np.arange(0, rows * _HISTORY + 1, _HISTORY, dtype=np.int32), items[rows:]
        )
        columns = {
            "event_id": pa.array(np.arange(rows)).cast(pa.string()),
            "timestamp_ms": np.arange(rows),
            "user_id": random.integers(0, _USERS, rows),
            "item_id": items[:rows],
            "scenario": pa.array(["any"] * rows),
            "reward": np.ones(rows, np.float32),
            "history_item_id": history,
        }
        path = day / f"part-{part:05}.parquet"
        pq.write_table(pa.table(columns, schema=schema), path, row_group_size=32_768)
        files.append(
            OutputFile(
                path=f"{day.name}/{path.name}", day="2026-01-01", part=part, rows=rows, sha256=""
            )
        )
    manifest = Manifest(
        sample_schema=schema_fingerprint(schema),
        config="",
        specification="",
        watermark_ms=None,
        num_parts=_PARTS,
        counts={},
        rejects={},
        outcomes={},
        inputs=[],
        files=files,
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())


def _publish(samples: Path, address: str) -> None:
    config = PublishConfig(
        bootstrap_servers=[address],
        directory=samples,
        topic=_TOPIC,
        create_partitions=_PARTS,
        compression="lz4",
    )
    started = time.monotonic()
    counts = publish(config, specification().sample_schema)
    rate = sum(count.samples for count in counts) / (time.monotonic() - started)
    logger.info("published at %.0f samples/s", rate)


@contextlib.contextmanager
def _broker(address: str | None) -> Iterator[str]:
    if address is not None:
        yield address
        return
    # Tests are not shipped, so their broker is a program that may be missing, not an import.
    with subprocess.Popen(
        [sys.executable, "-m", "tests.kafka"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        started = server.stdout.readline().strip() if server.stdout else ""
        if not started:
            said = server.stderr.read().strip().splitlines() if server.stderr else []
            raise InputError(
                "--kafka: found no broker; expected HOST:PORT, or a checkout after 'make kafka':"
                f" {said[-1] if said else 'it said nothing'}"
            )
        yield started
        server.communicate()
