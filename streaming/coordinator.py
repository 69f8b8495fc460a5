"""The coordinator: plans ranges, has workers run them, keeps the ledger, saves checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import tensorflow as tf

from models.contract import Model
from pipeline.schema import InputError
from streaming.attempts import Cluster, RangeRunner, RestartNeededError
from streaming.checkpoints.saver import Saved, Saver, Schedule, Snapshot
from streaming.checkpoints.store import CheckpointStore, Freshness, NoSpaceError
from streaming.cluster import Topology, connect
from streaming.config import TrainConfig
from streaming.feed import Feed
from streaming.ledger import Ledger, Totals
from streaming.servers.state import ServerState
from streaming.source import Range, Source
from streaming.watch.endpoints import Endpoints
from streaming.watch.outlets import JsonLines, Outlet, TensorBoard
from streaming.watch.pulse import Pulse
from streaming.watch.telemetry import Telemetry, position_figures
from streaming.worker import reader
from streaming.worker.step import RangeFunction

logger = logging.getLogger(__name__)

_TICK_SECONDS = 0.2
_CALLS_PER_WORKER = 1
_DRAIN_SECONDS = 25.0  # within the 30 that Kubernetes grants by default
_JUDGED_RECORDS = 100
_FIRST_STALLS = 3
_WINDOW = 10_000  # records that are "the latest"


class Coordinator:
    """One life of a training run's coordinator. Delivery: see `streaming.ledger`.

    Each caller's thread has one flight of ranges out at a time, one range per slot of its own, so a
    slot's next sequence number is used only when its last range stands in the ledger. The main
    thread watches, asks the source how far it reaches, and saves.
    """

    def __init__(
        self,
        model: Model,
        source: Source,
        *,
        config: TrainConfig,
        topology: Topology,
        fingerprints: Mapping[str, str],
        connect_to: Callable[[Topology], Cluster] = connect,
    ) -> None:
        self._model = model
        self._source = source
        self._config = config
        self._topology = topology
        self._connect = connect_to
        directory = Path(config.directory)
        self._store = CheckpointStore(
            directory / "checkpoints", keep=config.checkpoint.keep, fingerprints=fingerprints
        )
        self._run_name = reader.run_name(config, fingerprints)
        self._outlets: list[Outlet] = []
        self._stopping = False
        self._changed = threading.Condition()  # guards all below, and the ledger
        self._feed = Feed(source, config, ledger_lock=self._changed)
        self._in_flight = 0
        self._paused = False
        self._error: BaseException | None = None
        self._recent: deque[Totals] = deque()
        self._pulse = Pulse(
            stall_seconds=config.watch.stall_seconds, ready_seconds=config.watch.ready_seconds
        )

    def tell(self, outlet: Outlet) -> None:
        """Sends figures there too, besides `metrics.jsonl` and what `watch` names; before `run`."""
        self._outlets.append(outlet)

    def stop(self) -> None:
        """Asks for an end: no new ranges, drain, save. For signal handlers: takes no lock."""
        self._stopping = True

    def run(self) -> Ledger:
        """Trains to the end of the source, or until `stop`; saves; returns the ledger.

        Raises:
            InputError: If the configuration, the checkpoint or the stream do not fit together,
                more records were rejected than allowed, or the loss is no longer finite.
            SourceUnavailableError: If the source cannot be reached.
            RestartNeededError: If a parameter server was lost, a push was torn, or nothing moves.
        """
        with self._store.owned() as floor, self._pulse.guarded(), self._told():
            self._feed.open()
            self._set_up(floor)
            self._ledger = self._store.restore(self._saver.checkpoint) or self._feed.first_ledger()
            self._feed.begin(self._ledger)
            self._saved_records = self._ledger.totals.records
            self._saved_at = time.monotonic()
            self._state.align_clocks()
            self._check_workers()
            self._train()
            return self._ledger

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Opens what tells of the run, before it waits for anything, and closes it."""
        config, directory = self._config.watch, Path(self._config.directory)
        outlets: list[Outlet] = [JsonLines(directory / "metrics.jsonl"), *self._outlets]
        if config.tensorboard:
            outlets.append(TensorBoard(directory / "tensorboard"))
        if config.port is not None:
            outlets.append(Endpoints(self._pulse, host=config.host, port=config.port))
        self._telemetry = Telemetry(outlets)
        try:
            yield
        finally:
            self._telemetry.close()

    def _set_up(self, floor: int) -> None:
        cluster = self._connect(self._topology)
        self._pulse.progressed()
        self._pulse.connected = True
        flight = self._config.cluster.flight
        callers = len(self._topology.workers) * _CALLS_PER_WORKER
        self._state = ServerState(
            self._model,
            self._topology.ps_devices,
            frequency=self._config.frequency,
            seed=self._config.seed,
            num_slots=callers * flight,
            floor=floor,
        )
        self._state.merge_by(self._config.cluster.merge)
        self._saver = Saver(
            self._store,
            self._state.trackables(),
            background=self._config.checkpoint.background,
        )
        function = RangeFunction(
            self._state, batch_size=self._config.batch_size, flight=flight
        ).build()
        self._cluster = cluster
        self._runner = RangeRunner(cluster, function, floor=floor)
        self._threads = [
            threading.Thread(
                target=self._work,
                args=[range(caller * flight, (caller + 1) * flight)],
                name=f"caller-{caller}",
                daemon=True,
            )
            for caller in range(callers)
        ]

    def _check_workers(self) -> None:
        """Sees that scheduled functions reach Python in the workers, not in this process."""
        reader.register_coordinator()
        whose = tf.function(reader.whereabouts, input_signature=[], autograph=False)
        calls = [self._cluster.schedule(whose) for _ in range(4 * len(self._topology.workers))]
        names = {bytes(call.fetch()) for call in calls}
        if reader.COORDINATOR in names:
            raise RuntimeError("scheduled reads ran in the coordinator; expected in the workers")
        if strangers := [name for name in names if not name.startswith(self._run_name.encode())]:
            raise InputError(
                f"{len(strangers)} workers belong to another run, or were started with another"
                " configuration; expected the coordinator's own: start all of them from one file"
            )
        logger.info("%d of %d workers have answered", len(names), len(self._topology.workers))

    # The main thread.

    def _train(self) -> None:
        self._pulse.progressed()
        self._pulse.training = True
        for thread in self._threads:
            thread.start()
        schedule = Schedule(self._config.checkpoint, now=time.monotonic())
        while not self._finished():
            with self._changed:
                self._changed.wait(_TICK_SECONDS)
            now = time.monotonic()
            self._pulse.beat()
            self._check_health(now)
            self._store.check_owner()
            self._feed.refresh(now)
            self._note_saved(self._finished_save())
            watermark = self._freshness().watermark_ms
            if self._saver.busy or not schedule.due(now, watermark):
                continue
            if self._ledger.totals.records != self._saved_records:
                self._save()
                schedule.saved(time.monotonic(), watermark)
        while self._saver.busy:  # what this thread cannot save twice at a time
            self._note_saved(self._finished_save(wait_seconds=_TICK_SECONDS))
        at = self._saved_records
        if self._ledger.totals.records != at or self._in_flight or not at:
            self._save(last=True)
        self._pulse.training = False
        self._tell()

    def _finished(self) -> bool:
        return self._stopping or self._exhausted()

    def _exhausted(self) -> bool:
        with self._changed:
            return self._in_flight == 0 and self._feed.finished

    def _check_health(self, now: float) -> None:
        if self._error is not None:
            raise self._error
        self._check_rejects(at_least=_JUDGED_RECORDS)
        if self._in_flight == 0 and (self._feed.endless or self._feed.remaining == 0):
            self._pulse.progressed()  # nothing to do is no stall
        self._pulse.obstacle = "the source cannot be read" if self._feed.away else ""
        # A first range waits for functions to be traced and sent, and for connections.
        limit = self._config.watch.stall_seconds * (1 if self._recent else _FIRST_STALLS)
        if self._pulse.still_seconds > limit:
            raise RestartNeededError(f"no range was finished for {limit:g} s")
        if self._telemetry.due(now):
            self._tell()

    def _check_rejects(self, *, at_least: int) -> None:
        """Stops if too many records were rejected, of all or of the latest, if enough were read."""
        with self._changed:
            recent = Totals()
            for totals in self._recent:
                recent.add(totals)
        for what, totals in [("all", self._ledger.totals), ("the latest", recent)]:
            if totals.records >= at_least and totals.reject_share > self._config.max_reject_share:
                raise InputError(
                    f"train.max_reject_share: {totals.rejects} rejected and {totals.lost} lost of"
                    f" {what} {totals.records} records, {totals.reject_share:.2%}; expected at most"
                    f" {self._config.max_reject_share:.2%}: see dead-letters/ in the run's"
                    " directory"
                )

    def _save(self, *, last: bool = False) -> None:
        """Saves the state and the ledger of one moment, at which nothing is in flight.

        Training waits until they are copied; or, if it ends or has no memory for a copy, written.
        """
        paused = time.monotonic()
        self._pause()
        complete = self._exhausted()
        self._check_rejects(at_least=1 if complete else _JUDGED_RECORDS)
        self._pulse.progressed()
        step, ledger = int(self._state.step.numpy()), self._ledger.copy()
        freshness = self._freshness()
        aside = self._saver.background and not last
        if aside:
            self._saver.take()
            self._stood_still(paused)
        ledger.identity = self._feed.identity(ledger.offsets)
        snapshot = Snapshot(ledger=ledger, step=step, freshness=freshness)
        if aside:
            self._saver.write(snapshot)
        else:
            saved = self._saver.write_now(snapshot)
            self._stood_still(paused)
            self._note_saved(saved)
        self._saved_records = ledger.totals.records
        self._pulse.progressed()

    def _pause(self) -> None:
        """Hands out no more ranges, and waits for those in flight."""
        limit = _DRAIN_SECONDS if self._stopping else self._config.watch.stall_seconds
        with self._changed:
            self._paused = True
            drained = self._changed.wait_for(
                lambda: self._in_flight == 0 or self._error is not None, timeout=limit
            )
        if self._error is not None:
            raise self._error
        if not drained:
            raise RestartNeededError(f"ranges in flight did not finish within {limit:g} s")

    def _stood_still(self, since: float) -> None:
        """Hands out ranges again."""
        with self._changed:
            self._paused = False
            self._changed.notify_all()
        self._telemetry.facts["checkpoint/stall_seconds"] = time.monotonic() - since

    def _freshness(self) -> Freshness:
        with self._changed:
            position = self._feed.position()
        former = self._store.restored.newest_event_ms
        newest = [time_ms for time_ms in (former, position.newest_ms) if time_ms is not None]
        return Freshness(
            taken_ms=time.time_ns() // 1_000_000,
            watermark_ms=position.watermark_ms,
            newest_event_ms=max(newest, default=None),
        )

    def _finished_save(self, *, wait_seconds: float = 0.0) -> Saved | None:
        try:
            return self._saver.finished(wait_seconds=wait_seconds)
        except NoSpaceError as error:
            # What was learned is still on the servers: better to go on and try again than to stop.
            logger.error("%s; training goes on", error)  # noqa: TRY400 - its traceback says no more
            self._saved_records = -1
            return None

    def _note_saved(self, saved: Saved | None) -> None:
        """Tells of a checkpoint that is durable now."""
        if saved is None:
            return
        ledger, facts = saved.snapshot.ledger, self._telemetry.facts
        self._saved_at = time.monotonic() - saved.write_seconds
        facts["checkpoint/saves"] = facts.get("checkpoint/saves", 0) + 1
        facts["checkpoint/write_seconds"] = saved.write_seconds
        logger.info(
            "saved %s in %.1f s (training stood still for %.2f s): step %d, %d samples",
            saved.folder.name,
            saved.write_seconds,
            facts["checkpoint/stall_seconds"],
            saved.snapshot.step,
            ledger.totals.samples,
        )
        tell_source = getattr(self._source, "saved", None)
        if tell_source is None:
            return
        try:
            tell_source(ledger.offsets)
        except Exception as error:  # noqa: BLE001 - for dashboards; what counts is the checkpoint
            logger.warning("the source could not be told of %s: %s", saved.folder.name, error)

    def _tell(self) -> None:
        with self._changed:
            totals = dataclasses.asdict(self._ledger.totals)
            gauges = {
                "stream/records_remaining": self._feed.remaining,
                "cluster/workers": len(self._topology.workers),
                "cluster/ranges_in_flight": self._in_flight,
                "checkpoint/age_seconds": time.monotonic() - self._saved_at,
            }
            position = self._feed.position()
            self._telemetry.tell(totals, gauges | position_figures(position))

    # The callers' threads.

    def _work(self, slots: range) -> None:
        try:
            while (taken := self._take(len(slots))) is not None:
                reports = self._runner.run(slots, *taken, failed=lambda: self._error is not None)
                for done, (report, worker) in zip(taken[0], reports, strict=True):
                    self._commit(done, report, worker=worker)
        except BaseException as error:  # noqa: BLE001 - the main thread raises it
            with self._changed:
                self._error = self._error or error
                self._changed.notify_all()

    def _take(self, most: int) -> tuple[list[Range], Range | None] | None:
        """Returns a flight of up to `most` ranges and the one that probably follows it."""
        look_ahead = most * (len(self._topology.workers) - 1) + 1
        while True:
            with self._changed:
                if self._stopping or self._error is not None:
                    return None
                ranges: list[Range] = []
                likely = None
                while len(ranges) < most and not self._paused:
                    taken = self._feed.take(look_ahead=look_ahead, now=time.monotonic())
                    if taken is None:
                        break
                    ranges.append(taken[0])
                    likely = taken[1]
                    self._in_flight += 1
                if ranges:
                    return ranges, likely
                self._changed.wait(_TICK_SECONDS)

    def _commit(self, done: Range, report: Mapping[str, float], *, worker: str) -> None:
        torn = int(report["torn"])
        if torn and self._config.on_torn_push == "restore":
            raise RestartNeededError(f"{done}: a push was torn on {torn} parameter servers")
        if not math.isfinite(report["loss_sum"]):
            raise InputError(
                f"{done}: found a loss of {report['loss_sum']}; expected a finite one. Nothing was"
                " saved since: lower model.learning_rate, or look for huge values in these samples"
            )
        totals = Totals(
            records=done.end - done.start,
            torn=torn,
            **{name: int(report[name]) for name in ("samples", "batches", "rejects", "lost")},
        )
        with self._changed:
            self._ledger.commit(done, totals)
            self._feed.note(done, report)
            self._recent.append(totals)
            while sum(old.records for old in self._recent) - self._recent[0].records >= _WINDOW:
                self._recent.popleft()
            self._telemetry.meter.add(
                report, worker=worker, now=time.monotonic(), wall_ms=1e3 * time.time()
            )
            self._pulse.progressed()
            self._in_flight -= 1
            self._changed.notify_all()
