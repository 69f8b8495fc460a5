"""The `train` section of a configuration file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from streaming.sources.kafka import KafkaSourceConfig


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ArchiveConfig(_Section):
    """Sample files, replayed with partitions and offsets like a stream."""

    directory: str
    """The output of `headrace samples`."""
    replays: Annotated[int, Field(ge=1)] = 1
    """How often the files are read, one pass after the other."""


class SourceConfig(_Section):
    """Where samples come from: exactly one of the two."""

    archive: ArchiveConfig | None = None
    kafka: KafkaSourceConfig | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.archive is None) == (self.kafka is None):
            raise ValueError("expected exactly one of 'archive' and 'kafka'")
        return self


class FrequencyConfig(_Section):
    """Streaming estimation of sampling probabilities: Yi et al. 2019, Algorithm 3."""

    hashes: Annotated[int, Field(ge=1, le=16)] = 4
    buckets: Annotated[int, Field(ge=2)] = 65_536
    """Buckets per hash."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Weight of a new gap in the moving average."""
    initial_gap: Annotated[float, Field(ge=1)] = 100.0
    """Mean gap, in batches, of an id that was never seen."""


class ClusterConfig(_Section):
    """The processes of `headrace train --local`, and how busy each worker is kept."""

    parameter_servers: Annotated[int, Field(ge=1)] = 1
    workers: Annotated[int, Field(ge=1)] = 2
    ranges_in_flight: Annotated[int, Field(ge=1, le=8)] = 2
    """Ranges scheduled per worker at any time: one to train, the others to hide the latency."""


class CheckpointConfig(_Section):
    """When the whole state is saved, and how many saves are kept."""

    every_seconds: Annotated[float, Field(gt=0)] = 60.0
    keep: Annotated[int, Field(ge=1)] = 3


class TrainConfig(_Section):
    """One training run."""

    directory: str
    """Holds `checkpoints/`, `dead-letters/` and `metrics.jsonl`; on a cluster, shared by all."""
    source: SourceConfig
    follow: bool = False
    """Wait for new samples at the end of the source, instead of ending there."""
    batch_size: Annotated[int, Field(ge=2)] = 1024
    batches_per_range: Annotated[int, Field(ge=1, le=1024)] = 8
    """Mini-batches that a worker learns between exchanges with the parameter servers."""
    seed: int = 1
    frequency: FrequencyConfig = FrequencyConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    stall_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Exit with 75 when no range was finished for so long."""
    max_reject_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Stop with 2 when more than this share of the records read is undecodable or lost."""
    on_torn_push: Literal["restore", "count"] = "restore"
    """Answer to a push that a crash cut in the middle: restart from the checkpoint, or go on."""

    @property
    def samples_per_range(self) -> int:
        """Samples that the planner aims to put into one range."""
        return self.batch_size * self.batches_per_range
