"""The `train` section of a configuration file."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, model_validator

from streaming.sources.kafka import KafkaSourceConfig

_AUTO_SKEW_SECONDS = 3600.0


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


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
    """Buckets per hash: at least as many as there are items, or they share gaps."""
    alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01
    """Weight of a new gap: about 1 / (sightings that an estimate remembers)."""
    initial_gap: Annotated[float, Field(ge=1)] = 100.0
    """Mean gap, in mini-batches, of an item until it is seen twice; about items / batch_size. As
    mini-batches pass without the item it grows with them, up to ten times as long.
    `train/unseen_share` is the share of samples whose item was never seen before."""
    per_scenario: bool = False
    """Whether an item's probability is estimated in each scenario for itself. Only with negatives
    of the mini-batch alone, and a topic per scenario."""


class MergeConfig(_Section):
    """How a push merges with what others pushed since its range was pulled; see `servers.merge`."""

    rule: Literal["sum", "touches", "dense-touches", "adagrad", "agreement"] = "dense-touches"
    power: Annotated[float, Field(gt=0)] = 1.0
    """`touches` divides by 1 + touches of others, to this power."""

    @model_validator(mode="after")
    def _power_of_touches(self) -> Self:
        if self.power != 1.0 and self.rule != "touches":
            raise ValueError(
                f"power: found {self.power} with rule {self.rule}, which has none; expected"
                " rule: touches, or no power"
            )
        return self


class ClusterConfig(_Section):
    """The processes of `headrace train --local`; and, wherever they run, how workers exchange."""

    parameter_servers: Annotated[int, Field(ge=1)] = 1
    workers: Annotated[int, Field(ge=1)] = 2
    alone_samples: Annotated[int, Field(ge=0)] = 0
    """Samples of the whole training during which workers take turns, one at a time: near their
    random beginning embeddings all move alike, and what workers learn side by side overshoots."""
    flight: Annotated[int, Field(ge=1, le=16)] = 4
    """Ranges that a worker is given at a time. More cost less coordination; a save waits until a
    flight has landed, and so does what is told of its ranges."""
    overlap: bool = False
    """Whether a worker reads and pulls the next range of a flight before it pushes the one that it
    learns. It then need not wait for the servers, holds one range more in memory, and learns each
    without the one right before, which counts as another's under rules that count touches."""
    merge: MergeConfig = MergeConfig()


class CheckpointConfig(_Section):
    """When the whole state is saved, and how many saves are kept."""

    every_seconds: Annotated[float, Field(gt=0)] = 60.0
    every_event_seconds: Annotated[float, Field(gt=0)] | None = None
    """Also save when the low watermark crosses a multiple of so many seconds of event time."""
    keep: Annotated[int, Field(ge=1)] = 3
    background: bool = True
    """Write from a copy in the parameter servers' memory, which doubles it, while training goes on;
    otherwise training waits until the checkpoint is written."""


class StartConfig(_Section):
    """A first position that has to be looked up: exactly one of the three."""

    timestamp: AwareDatetime | None = None
    """The first record, per partition, whose newest sample is of this time or later."""
    offsets: str | None = None
    """A JSON file of offsets, as `headrace offsets` exports it."""
    checkpoint_of: str | None = None
    """The `train.directory` of another run: from where its newest checkpoint stands."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("expected exactly one of 'timestamp', 'offsets' and 'checkpoint_of'")
        return self


class EndConfig(_Section):
    """An end that has to be watched for: exactly one of the two."""

    timestamp: AwareDatetime | None = None
    """All records, per partition, before the first whose newest sample is of this time or later. A
    partition without such a record ends when the clock is past this time and `idle_timeout`."""
    samples: Annotated[int, Field(ge=1)] | None = None
    """So many applied by all lives of this run, rounded up to whole records: exact to a record if
    records are of one size, else to the ranges in flight."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("expected exactly one of 'timestamp' and 'samples'")
        return self


class StreamConfig(_Section):
    """Which part of the source is read, and in what order."""

    start: Literal["earliest", "latest"] | StartConfig = "earliest"
    """Where a run that has no checkpoint begins; partitions added later begin at their first."""
    end: Literal["now", "never"] | EndConfig = "now"
    """Where it ends: `now` is what the source holds when the coordinator starts."""
    max_skew_seconds: Annotated[float, Field(gt=0)] | Literal["auto"] | None = "auto"
    """How far, in event time, a partition may be ahead of the one furthest behind. `auto`: an hour
    for several topics of Kafka whose records' times are event times, else null. Null: any; then
    partitions advance by equal shares of their lengths. Rule of thumb: at least the samples of a
    range / the rate of the slowest partition, or ranges are cut short."""
    idle_timeout_seconds: Annotated[float, Field(ge=0)] = 10.0
    """A partition that has had nothing to read for so long holds no other back."""
    shuffle_window: Annotated[int, Field(ge=0)] = 8192
    """Samples of a range are shuffled within so many neighbours; 0 keeps their order."""
    read_ahead_bytes: Annotated[int, Field(ge=0)] = 64 << 20
    """Decoded bytes that a worker may hold of the range after its present one; 0: none."""


class WatchConfig(_Section):
    """How a run is watched: where it tells of itself, and when it is taken for stuck."""

    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """The coordinator serves /metrics, /healthz and /readyz here (0: some port); None: it does not.
    """
    host: str = "127.0.0.1"
    """The address to listen on; 0.0.0.0 is all of the machine's."""
    ready_seconds: Annotated[float, Field(gt=0)] = 60.0
    """/readyz fails when no flight came back for so long, unless there is nothing to read."""
    stall_seconds: Annotated[float, Field(gt=0)] = 120.0
    """Exit with 75 when no flight came back for so long: ranges that are learned one after the
    other, see `cluster.flight`, are told of together."""
    tensorboard: bool = False
    """Also write `tensorboard/` in the run's directory."""


class TrainConfig(_Section):
    """One training run."""

    directory: str
    """Holds `checkpoints/`, `dead-letters/` and `metrics.jsonl`; on a cluster, shared by all."""
    source: SourceConfig
    stream: StreamConfig = StreamConfig()
    batch_size: Annotated[int, Field(ge=2)] = 1024
    batches_per_range: Annotated[int, Field(ge=1, le=1024)] = 8
    """Mini-batches that a worker learns between exchanges with the parameter servers."""
    seed: Annotated[int, Field(ge=0)] = 1
    """Of initial parameters, of the order of samples, and of draws from the corpus."""
    frequency: FrequencyConfig = FrequencyConfig()
    cluster: ClusterConfig = ClusterConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    watch: WatchConfig = WatchConfig()
    max_reject_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """Stop with 2 when more than this share of the records read is undecodable; before the end of
    the source, when it is more by three standard deviations."""
    on_torn_push: Literal["restore", "count"] = "restore"
    """Answer to a push that a crash cut in the middle: restart from the checkpoint, or go on."""

    @model_validator(mode="after")
    def _time_goes_on(self) -> Self:
        archive = self.source.archive
        if archive is not None and archive.replays > 1 and self.max_skew_seconds is not None:
            raise ValueError(
                f"stream.max_skew_seconds: found a bound with {archive.replays} replays; expected"
                " none, or one replay: event time begins again with each"
            )
        return self

    @model_validator(mode="after")
    def _reads_give_up_first(self) -> Self:
        kafka, limit = self.source.kafka, self.watch.stall_seconds
        if kafka is not None and kafka.stall_timeout_seconds >= limit:
            raise ValueError(
                f"source.kafka.stall_timeout_seconds: found {kafka.stall_timeout_seconds:g};"
                f" expected less than watch.stall_seconds, {limit:g}: a read that hangs must be"
                " given up, and tried again, before the run is taken for stuck"
            )
        return self

    @property
    def max_skew_seconds(self) -> float | None:
        """How far a partition may be ahead in event time, once `auto` is decided; None: any."""
        wanted = self.stream.max_skew_seconds
        if wanted != "auto":
            return wanted
        kafka = self.source.kafka
        return _AUTO_SKEW_SECONDS if kafka is not None and len(set(kafka.topics)) > 1 else None

    @property
    def uses_record_times(self) -> bool:
        """Whether anything goes by the times that the source knows its records by."""
        ends = (self.stream.start, self.stream.end)
        timed = any(getattr(end, "timestamp", None) is not None for end in ends)
        return timed or self.max_skew_seconds is not None

    @property
    def samples_per_range(self) -> int:
        """Samples that the planner aims to put into one range."""
        return self.batch_size * self.batches_per_range
