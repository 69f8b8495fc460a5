"""One training run on a real cluster, on an archive of a data set's training samples."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from models.config import TwoTowerConfig
from pipeline.manifest import MANIFEST_NAME, Manifest, OutputFile
from pipeline.schema import schema_fingerprint
from pipeline.specification import Specification
from streaming.checkpoints.store import load_checkpoint
from streaming.config import FrequencyConfig, MergeConfig

_DAY = "1970-01-01"
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


def write_archive(samples: pa.Table, specification: Specification, folder: Path) -> None:
    """Writes samples, in their order, as one partition of an archive."""
    schema = specification.sample_schema
    path = folder / f"dt={_DAY}" / "part-00000.parquet"
    path.parent.mkdir(parents=True)
    pq.write_table(samples.select(schema.names).cast(schema), path, row_group_size=32_768)
    manifest = Manifest(
        sample_schema=schema_fingerprint(schema),
        config="",
        specification="",
        watermark_ms=None,
        num_parts=1,
        counts={},
        rejects={},
        outcomes={},
        inputs=[],
        files=[
            OutputFile(
                path=f"{path.parent.name}/{path.name}",
                day=_DAY,
                part=0,
                rows=samples.num_rows,
                sha256="",
            )
        ],
    )
    (folder / MANIFEST_NAME).write_text(manifest.model_dump_json())


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
        archive: As `write_archive` left it.
        sections: What is trained.
        schedule: How.

    Raises:
        RuntimeError: If it failed, with the end of its log.
    """
    _launch(run, _settings(run, archive, sections, schedule))
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


def _launch(run: Path, settings: dict[str, Any]) -> None:
    run.mkdir(parents=True)
    config = run / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    with (run / "log").open("wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "jobs.train", "--config", str(config), "--local"],
            stdout=log,
            stderr=log,
            check=False,
            timeout=_TIMEOUT_SECONDS,
        )
    if done.returncode:
        text = (run / "log").read_text(errors="replace")
        raise RuntimeError(f"{run.name}: exit {done.returncode}\n{text[-4000:]}")


def _speed(metrics: Path) -> float:
    """Returns samples per second between the first and the last moment of the metrics."""
    lines = [json.loads(line) for line in metrics.read_text().splitlines()]
    points = [(line["time"], line["stream/samples"]) for line in lines if "stream/samples" in line]
    if len(points) < 2 or points[-1][0] <= points[0][0]:  # noqa: PLR2004 -- two ends
        return float("nan")
    return float((points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0]))
