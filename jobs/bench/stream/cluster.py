"""Times one training run on a cluster of its own, or in one process."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.bench.launch import training
from jobs.bench.stream.processor import processor_seconds
from jobs.bench.stream.synthetic import DIM, FREQUENCY, SPECIFICATION, TOPIC

_POLL_SECONDS = 0.05


@dataclasses.dataclass(frozen=True, slots=True)
class Speed:
    """How fast a run was between its start and its end, without either.

    Attributes:
        samples_per_second: By the clock.
        processor_seconds: Per million samples, user and system, of all processes of the run.
    """

    samples_per_second: float
    processor_seconds: float


def run_cluster(
    run: Path,
    samples: Path,
    *,
    source: str,
    address: str,
    train: Mapping[str, Any],
    optimizer: str,
) -> Speed:
    """Trains once on a cluster of its own, with one parameter server.

    Args:
        run: A folder to make.
        samples: The archive.
        source: `memory`, `archive` or `kafka`.
        address: Of the broker.
        train: What section `train` is to have, beside its source.
        optimizer: `model.optimizer`.
    """
    place: dict[str, Any] = {"archive": {"directory": str(samples)}}
    if source == "kafka":
        place = {"kafka": {"bootstrap_servers": [address], "topics": [TOPIC]}}
    settings = run_settings(run, source=place, train=train, optimizer=optimizer)
    with training(
        run,
        settings,
        module="jobs.bench.stream.process",
        environment={"BENCH_SOURCE": source},
    ) as process:
        used = _watch(process, run / "metrics.jsonl")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    # Not from before the first range, nor from after the last, which are start and end.
    begin = next(place for place, line in enumerate(lines) if line["stream/samples"])
    first, last = lines[begin], lines[-2]
    count = last["stream/samples"] - first["stream/samples"]
    if count <= 0:
        raise RuntimeError(f"{run.name}: found one flight of ranges; expected more --samples")
    spent = used[len(lines) - 1] - used[begin + 1]
    return Speed(count / (last["time"] - first["time"]), spent / count * 1e6)


def run_settings(
    run: Path, *, source: Mapping[str, Any], train: Mapping[str, Any], optimizer: str
) -> dict[str, Any]:
    """Returns the configuration of a run; see `run_cluster`."""
    return {
        "specification": SPECIFICATION,
        "model": {"dim": DIM, "hidden": [64], "optimizer": optimizer},
        "train": {
            "directory": str(run),
            "source": source,
            "frequency": FREQUENCY,
            "checkpoint": {"every_seconds": 3600},
            **train,
        },
    }


def _watch(process: subprocess.Popen[bytes], metrics: Path) -> dict[int, float]:
    """Waits for the run's end; returns processor seconds used by its nth line of metrics."""
    used: dict[int, float] = {}
    while process.poll() is None:
        count = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        for line in range(len(used) + 1, count + 1):
            used[line] = processor_seconds(process.pid)
        time.sleep(_POLL_SECONDS)
    return used


def run_module(module: str, *arguments: str | int | Path) -> Speed:
    """Runs a module of this package in a process of its own, that prints a `Speed`'s figures."""
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.bench.stream.{module}", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{module}: exit {done.returncode}\n{done.stderr[-4000:]}")
    return Speed(*json.loads(done.stdout.strip().splitlines()[-1]))
