"""One training run on a real cluster, on an archive of a data set's training samples."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jobs.bench.launch import training
from models.config import TwoTowerConfig
from pipeline.specification import Specification
from streaming.checkpoints.store import load_checkpoint
from streaming.config import FrequencyConfig, MergeConfig

_TIMEOUT_SECONDS = 600


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """What a cluster's run came to.

    Attributes:
        parameters: Tables and weights, by name.
        samples_per_second: By the clock, between the first and the last line of metrics.
    """

    parameters: Mapping[str, np.ndarray]
    samples_per_second: float


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How a cluster trains.

    Attributes:
        workers: How many.
        batches: Mini-batches between exchanges.
        merge: The rule of a push.
        batch_size: Samples per mini-batch.
        passes: Over the archive.
        seed: Of the parameters.
        overlap: Whether a worker pulls a range before it pushes the one before.
        alone_samples: How many samples workers learn in turns, before they learn side by side.
    """

    workers: int
    batches: int
    merge: MergeConfig
    batch_size: int
    passes: int
    seed: int
    overlap: bool
    alone_samples: int


def train(
    run: Path,
    archive: Path,
    *,
    sections: tuple[Specification, TwoTowerConfig, FrequencyConfig],
    schedule: Schedule,
) -> Trained:
    """Trains once on a cluster of its own, with one parameter server.

    Args:
        run: A folder to make.
        archive: The samples, in one partition.
        sections: What is trained.
        schedule: How.

    Raises:
        RuntimeError: If it failed, with the end of its log.
    """
    with training(run, _settings(run, archive, sections, schedule)) as process:
        process.wait(timeout=_TIMEOUT_SECONDS)
    return Trained(
        parameters=load_checkpoint(run / "checkpoints").parameters,
        samples_per_second=_speed(run / "metrics.jsonl"),
    )


def _settings(
    run: Path,
    archive: Path,
    sections: tuple[Specification, TwoTowerConfig, FrequencyConfig],
    schedule: Schedule,
) -> dict[str, Any]:
    specification, model, frequency = sections
    return {
        "specification": specification.model_dump(mode="json"),
        "model": model.model_dump(mode="json"),
        "train": {
            "directory": str(run),
            "source": {"archive": {"directory": str(archive), "replays": schedule.passes}},
            "stream": {"shuffle_window": 0},  # in order, as the simulation is
            "batch_size": schedule.batch_size,
            "batches_per_range": schedule.batches,
            "seed": schedule.seed,
            "frequency": frequency.model_dump(mode="json"),
            "checkpoint": {"every_seconds": 3600},
            "cluster": {
                "parameter_servers": 1,
                "workers": schedule.workers,
                "overlap": schedule.overlap,
                "alone_samples": schedule.alone_samples,
                "merge": schedule.merge.model_dump(mode="json"),
            },
        },
    }


def _speed(metrics: Path) -> float:
    """Returns samples per second between the first and the last moment of the metrics."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    points = [(line["time"], line["stream/samples"]) for line in lines if "stream/samples" in line]
    if len(points) < 2 or points[-1][0] <= points[0][0]:  # noqa: PLR2004 -- two ends
        return float("nan")
    return float((points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0]))
