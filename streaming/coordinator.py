"""The coordinator: plans ranges, has workers run them, keeps the ledger, saves checkpoints."""

from __future__ import annotations

import dataclasses
import itertools
import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tensorflow as tf

from models.contract import Model
from pipeline.schema import InputError
from streaming import reader
from streaming.checkpoint import CheckpointStore
from streaming.cluster import Topology, connect
from streaming.config import TrainConfig
from streaming.ledger import Ledger, Plan, Totals
from streaming.reader import Status
from streaming.source import Partition, Range, Source, SourceUnavailableError
from streaming.state import ServerState
from streaming.step import COUNTS, RangeFunction

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.2
_RETRY_SECONDS = 0.5
_PROBES = 8
_NOTHING = [0, 0, 0]
_SOURCE_SECONDS = 1.0
_EXIT_RETRY = 75
_JUDGED_RECORDS = 100


class RestartNeededError(RuntimeError):
    """This life of the coordinator cannot go on; the next one resumes from the checkpoint."""


class MetricWriter:
    """Appends metrics to a file, one JSON object per line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values of `area/noun` names at a step."""
        self._file.write(json.dumps({"time": time.time(), "step": step} | dict(scalars)) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@dataclasses.dataclass(slots=True)
class _Progress:
    """What happened since the last line of metrics."""

    samples: int = 0
    batches: int = 0
    loss_sum: float = 0.0
    since: float = 0.0


class Coordinator:
    """One life of a training run's coordinator.

    Delivery: see `streaming.ledger`. One thread per slot has one range in flight at a time, so a
    slot's next sequence number is used only when its last range stands in the ledger. A range whose
    worker was lost, before or after its push, is scheduled again with the *same* slot and
    sequence, and the parameter servers apply what they have not.
    """

    def __init__(
        self,
        model: Model,
        source: Source,
        *,
        config: TrainConfig,
        topology: Topology,
        fingerprints: Mapping[str, str],
    ) -> None:
        self._model = model
        self._source = source
        self._config = config
        self._topology = topology
        directory = Path(config.directory)
        self._store = CheckpointStore(
            directory / "checkpoints", keep=config.checkpoint.keep, fingerprints=fingerprints
        )
        self._metrics_path = directory / "metrics.jsonl"
        self._changed = threading.Condition()  # guards all below
        self._in_flight = 0
        self._paused = False
        self._stopping = False
        self._error: BaseException | None = None
        self._progress = _Progress()
        self._last_commit = 0.0
        self._main_seen = self._source_seen = time.monotonic()
        self._sized = False

    def stop(self) -> None:
        """Asks for an end: no new ranges, drain, save. For signal handlers: takes no lock."""
        self._stopping = True

    def run(self) -> Ledger:
        """Trains to the end of the source, or until `stop`; saves; returns the ledger.

        Raises:
            InputError: If the configuration, the checkpoint or the stream do not fit together, or
                more records were rejected than allowed.
            SourceUnavailableError: If the source cannot be reached at the start.
            RestartNeededError: If a parameter server was lost or a push was torn.
        """
        with self._store.owned() as floor:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
            source_start = self._source.start_offsets()
            self._set_up(floor)
            self._ledger = self._store.restore(self._checkpoint) or Ledger(
                source_start, self._source.identity()
            )
            self._state.align_clocks()
            self._ledger.check_identity(self._source.identity())
            self._check_workers()
            self._metrics = MetricWriter(self._metrics_path)
            self._train()
            self._metrics.close()
            return self._ledger

    def _watch(self) -> None:
        """Ends the process if the main thread hangs, in a save to a frozen server for instance."""
        limit = 2 * self._config.stall_seconds
        while time.monotonic() - self._main_seen < limit:
            time.sleep(1.0)
        logger.error("the coordinator did nothing for %.0f s; it ends, to be started again", limit)
        os._exit(_EXIT_RETRY)

    def _set_up(self, floor: int) -> None:
        self._sequences = itertools.count(floor + 1)
        self._cluster = connect(self._topology)
        slots = len(self._topology.workers) * self._config.cluster.ranges_in_flight
        self._state = ServerState(
            self._model,
            self._topology.ps_devices,
            frequency=self._config.frequency,
            seed=self._config.seed,
            num_slots=slots,
            floor=floor,
        )
        self._checkpoint = tf.train.Checkpoint(**self._state.trackables())
        self._range_function = RangeFunction(
            self._state, batch_size=self._config.batch_size
        ).build()
        self._threads = [
            threading.Thread(target=self._work, args=[slot], name=f"slot-{slot}", daemon=True)
            for slot in range(slots)
        ]

    def _check_workers(self) -> None:
        """Proves that a scheduled function reaches Python in its worker, not in this process."""
        whose = tf.function(reader.worker_pid, input_signature=[], autograph=False)
        for _ in range(2 * len(self._topology.workers)):
            pid = int(self._cluster.schedule(whose).fetch())
            if pid == os.getpid():
                raise RestartNeededError("reads run in the coordinator; expected in the workers")

    # The main thread.

    def _train(self) -> None:
        now = time.monotonic()
        self._progress.since = self._last_commit = now
        self._plan = Plan(self._ledger.offsets)
        self._plan.extend(self._ends())  # a source that is away now is no empty source
        for thread in self._threads:
            thread.start()
        saved_at, saved_records = now, -1
        while not self._finished():
            with self._changed:
                self._changed.wait(_TICK_SECONDS)
            now = time.monotonic()
            self._main_seen = now
            self._check_health(now)
            if self._config.follow and now - self._source_seen >= _SOURCE_SECONDS:
                self._extend_plan(now)
            due = now - saved_at >= self._config.checkpoint.every_seconds
            if due and self._ledger.totals.records != saved_records:
                self._save()
                saved_at, saved_records = time.monotonic(), self._ledger.totals.records
        if self._ledger.totals.records != saved_records or self._in_flight:
            self._save()
        self._write_metrics()

    def _finished(self) -> bool:
        if self._stopping:
            return True
        with self._changed:
            idle = self._in_flight == 0
        return idle and not self._config.follow and self._plan.remaining == 0

    def _extend_plan(self, now: float) -> None:
        """Asks the source how far it reaches now; one that is away is asked again, for a while."""
        try:
            self._plan.extend(self._ends())
            self._source_seen = now
        except SourceUnavailableError as error:
            if now - self._source_seen > self._config.stall_seconds:
                raise
            logger.warning("the source cannot be read at present: %s", error)

    def _ends(self) -> dict[Partition, int]:
        ends = self._source.end_offsets()
        if not self._sized:
            self._size_ranges(ends)
        return ends

    def _check_health(self, now: float) -> None:
        if self._error is not None:
            raise self._error
        self._check_rejects(at_least=_JUDGED_RECORDS)
        waiting = self._in_flight > 0 or self._plan.remaining > 0
        if not waiting:
            self._last_commit = now
        if now - self._last_commit > self._config.stall_seconds:
            raise RestartNeededError(
                f"no range was finished for {self._config.stall_seconds:.0f} s"
            )
        if now - self._progress.since >= 1.0 and self._progress.batches:
            self._write_metrics()

    def _check_rejects(self, *, at_least: int) -> None:
        """Stops if too many of the records were rejected, once there are enough to judge by."""
        totals = self._ledger.totals
        too_many = totals.reject_share > self._config.max_reject_share
        if too_many and totals.records >= at_least:
            raise InputError(
                f"train.max_reject_share: {totals.rejects} rejected and {totals.lost} lost of"
                f" {totals.records} records, {totals.reject_share:.2%}; expected at most"
                f" {self._config.max_reject_share:.2%}: see dead-letters/ in the run's directory"
            )

    def _size_ranges(self, ends: Mapping[Partition, int]) -> None:
        """Finds how many records make a range, by reading one that has samples."""
        starts = self._source.start_offsets()
        probes = (
            Range(partition, offset, offset + 1)
            for partition, end in ends.items()
            for offset in range(starts[partition], min(end, starts[partition] + _PROBES))
        )
        for probe in probes:
            samples = self._source.read(probe).samples.num_rows
            if samples:
                wanted = self._config.samples_per_range
                self._plan.records_per_range = max(1, wanted // samples)
                self._sized = True
                return

    def _save(self) -> None:
        """Drains and saves: nothing is in flight while the state is written."""
        with self._changed:
            self._paused = True
            drained = self._changed.wait_for(
                lambda: self._in_flight == 0 or self._error is not None,
                timeout=self._config.stall_seconds,
            )
        if self._error is not None:
            raise self._error
        if not drained:
            raise RestartNeededError("ranges in flight did not finish before a save")
        self._check_rejects(at_least=1 if self._finished() else _JUDGED_RECORDS)
        step = int(self._state.step.numpy())
        folder = self._store.save(self._checkpoint, self._ledger, step=step)
        logger.info("saved %s: step %d, %d samples", folder.name, step, self._ledger.totals.samples)
        with self._changed:
            self._paused = False
            self._changed.notify_all()

    def _write_metrics(self) -> None:
        now = time.monotonic()
        with self._changed:
            progress, self._progress = self._progress, _Progress(since=now)
            totals = dataclasses.asdict(self._ledger.totals)
        scalars: dict[str, float] = {f"stream/{name}": count for name, count in totals.items()}
        if progress.batches:
            scalars["train/loss"] = progress.loss_sum / progress.batches
            scalars["stream/samples_per_second"] = progress.samples / (now - progress.since)
        scalars["stream/records_remaining"] = self._plan.remaining
        self._metrics.write(totals["batches"], scalars)
        logger.info(
            "step %d  samples %d  loss %.4f  %.0f samples/s  %d records to go",
            totals["batches"],
            totals["samples"],
            scalars.get("train/loss", float("nan")),
            scalars.get("stream/samples_per_second", 0.0),
            scalars["stream/records_remaining"],
        )

    # The slots' threads.

    def _work(self, slot: int) -> None:
        try:
            while (taken := self._take()) is not None:
                self._commit(taken[0], self._run_range(slot, *taken))
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _take(self) -> tuple[Range, Range | None] | None:
        while True:
            with self._changed:
                if self._stopping or self._error is not None:
                    return None
                taken = None
                if not self._paused:
                    taken = self._plan.take(look_ahead=len(self._topology.workers))
                if taken is not None:
                    self._in_flight += 1
                    return taken
                self._changed.wait(_TICK_SECONDS)

    def _run_range(self, slot: int, wanted: Range, likely: Range | None) -> dict[str, float]:
        arguments = (
            tf.constant([slot, next(self._sequences)], tf.int64),
            tf.constant(wanted.partition.topic),
            tf.constant(_numbers(wanted) + _hint(wanted, likely), tf.int64),
        )
        while True:
            # A lost parameter server makes `schedule` raise; a lost worker, at most `fetch`.
            scheduled = self._schedule(arguments)
            try:
                counts, loss_sum, detail = scheduled.fetch()
            except tf.errors.UnknownError:
                raise  # a Python exception in a worker: it would only come again
            except tf.errors.OpError as error:
                if self._error is not None:
                    raise
                logger.warning("%s is tried again: %s", wanted, type(error).__name__)
                time.sleep(_RETRY_SECONDS)
                continue
            report = dict(zip(COUNTS, (int(n) for n in counts), strict=True))
            if report["status"] == Status.OK:
                return report | {"loss_sum": float(loss_sum)}
            self._explain(Status(report["status"]), bytes(detail).decode())

    def _schedule(self, arguments: tuple[tf.Tensor, ...]) -> Any:
        try:
            return self._cluster.schedule(self._range_function, args=arguments)
        except (tf.errors.OpError, ValueError) as error:
            first = str(error).splitlines()[0][:200]
            raise RestartNeededError(f"the cluster lost a parameter server: {first}") from error

    @staticmethod
    def _explain(status: Status, detail: str) -> None:
        if status != Status.UNAVAILABLE:
            raise InputError(detail)
        logger.warning("the source cannot be read at present: %s", detail)
        time.sleep(_RETRY_SECONDS)

    def _commit(self, done: Range, report: Mapping[str, float]) -> None:
        torn = int(report["torn"])
        if torn and self._config.on_torn_push == "restore":
            raise RestartNeededError(f"{done}: a push was torn on {torn} parameter servers")
        totals = Totals(
            records=done.end - done.start,
            torn=torn,
            **{name: int(report[name]) for name in ("samples", "batches", "rejects", "lost")},
        )
        with self._changed:
            self._ledger.commit(done, totals)
            self._progress.samples += totals.samples
            self._progress.batches += totals.batches
            self._progress.loss_sum += report["loss_sum"]
            self._last_commit = time.monotonic()
            self._in_flight -= 1
            self._changed.notify_all()


def _numbers(wanted: Range) -> list[int]:
    return [wanted.partition.number, wanted.start, wanted.end]


def _hint(wanted: Range, likely: Range | None) -> list[int]:
    # The function has one topic argument: ranges of other topics are read when they come.
    same = likely is not None and likely.partition.topic == wanted.partition.topic
    return _numbers(likely) if likely is not None and same else _NOTHING
