"""The coordinator: plans ranges, has workers run them, keeps the ledger, saves checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from models.contract import Model
from pipeline.schema import InputError
from streaming.attempts import Cluster, RangeRunner, RestartNeededError, check_workers
from streaming.callers import Callers
from streaming.checkpoints.saver import Saver, Schedule, Snapshot
from streaming.checkpoints.saves import Saves
from streaming.checkpoints.store import CheckpointStore, Freshness
from streaming.cluster import Topology, connect
from streaming.config import TrainConfig
from streaming.feed import Feed
from streaming.ledger import Ledger, Totals
from streaming.rejects import RejectLimit
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
_OWNER_SECONDS = 1.0
_LOSSES_SECONDS = 5.0
_FIRST_STALLS = 3


class Coordinator:
    """One life of a training run's coordinator. Delivery: see `streaming.ledger`.

    Callers' threads have ranges run (`streaming.callers`). The main thread, here, watches, asks the
    source how far it reaches, and saves.
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
        self._learned = False
        self._owned_at = self._looked_at = time.monotonic()
        self._lock = threading.RLock()  # guards the feed, the ledger and what callers share
        self._feed = Feed(source, config, ledger_lock=self._lock)
        self._callers = Callers(
            self._feed,
            self._lock,
            enter=self._enter,
            alone=lambda: self._ledger.totals.samples < config.cluster.alone_samples,
        )
        kafka = config.source.kafka
        topic = None if kafka is None or kafka.dead_letters is None else kafka.dead_letters.topic
        self._rejects = RejectLimit(
            config.max_reject_share,
            kept_in=f"topic {topic}" if topic else f"{directory / 'dead-letters'}",
        )
        self._pulse = Pulse(
            stall_seconds=config.watch.stall_seconds, ready_seconds=config.watch.ready_seconds
        )

    def tell(self, outlet: Outlet) -> None:
        """Sends figures there too, besides `metrics.jsonl` and what `watch` names; before `run`."""
        self._outlets.append(outlet)

    def stop(self) -> None:
        """Asks for an end: no new ranges, drain, save. For signal handlers: takes no lock."""
        self._callers.stop()

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
            self._begin()
            check_workers(self._cluster, self._run_name, num_workers=len(self._topology.workers))
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
        self._num_callers = len(self._topology.workers)
        with self._pulse.busy("making the variables"):
            self._state = ServerState(
                self._model,
                self._topology.ps_devices,
                frequency=self._config.frequency,
                seed=self._config.seed,
                num_slots=self._num_callers * flight,
                floor=floor,
            )
            self._state.merge_by(self._config.cluster.merge)
            self._saver = Saver(
                self._store,
                self._state.trackables(),
                background=self._config.checkpoint.background,
            )
        function = RangeFunction(
            self._state,
            batch_size=self._config.batch_size,
            flight=flight,
            overlap=self._config.cluster.overlap,
        ).build()
        self._cluster = cluster
        self._runner = RangeRunner(cluster, function, marks=self._state, floor=floor)

    def _begin(self) -> None:
        """Goes back to where the newest checkpoint stands, or makes the first one.

        Without it, a life that is lost early would have no successor: `latest` is another place by
        then. And a disk that is too small is found out before anything is learned.
        """
        with self._pulse.busy("restoring the checkpoint"):
            restored = self._store.restore(self._saver.checkpoint)
        self._ledger = restored or self._feed.first_ledger()
        self._feed.begin(self._ledger)
        self._saves = Saves(
            self._saver,
            Schedule(self._config.checkpoint, now=time.monotonic()),
            records=self._ledger.totals.records,
            pulse=self._pulse,
            facts=self._telemetry.facts,
            told=self._source.saved,
        )
        with self._pulse.busy("aligning the servers' clocks"):
            self._state.align_clocks()
        if restored is None:
            first = self._identified(self._snapshot())
            self._saves.settle(self._saves.write_now(first, forgiving=False))

    # The main thread.

    def _train(self) -> None:
        self._pulse.progressed()
        self._pulse.training = True
        self._callers.start(
            self._runner, callers=self._num_callers, flight=self._config.cluster.flight
        )
        tick = min(_TICK_SECONDS, self._config.checkpoint.every_seconds)
        while not (self._callers.stopping or self._callers.exhausted):
            with self._lock:
                if self._callers.error is None:
                    self._callers.idle.wait(tick)
            self._look()
            self._save_if_due()
        while self._saves.busy:  # what this thread cannot save twice at a time
            self._pulse.beat()
            self._saves.collect(wait_seconds=_TICK_SECONDS)
        self._rejects.check(self._ledger.totals, complete=self._callers.exhausted)
        if not self._saves.hold(self._ledger.totals.records) or self._callers.in_flight:
            self._save(last=True)
        self._pulse.training = False
        self._tell()

    def _look(self) -> None:
        """Sees that all is well, and that the feed is filled."""
        now = time.monotonic()
        self._pulse.beat()
        if self._callers.error is not None:
            raise self._callers.error
        with self._lock:
            self._rejects.check(self._ledger.totals)
        self._check_progress()
        if now - self._looked_at >= _LOSSES_SECONDS:
            self._looked_at = now
            self._runner.check_losses()
        if self._telemetry.due(now):
            self._tell()
        self._check_owner(now)
        self._feed.refresh(now)
        self._saves.collect()

    def _check_progress(self) -> None:
        if self._callers.in_flight == 0 and (self._feed.endless or self._feed.remaining == 0):
            self._pulse.progressed()  # nothing to do is no stall
        self._pulse.obstacle = "the source cannot be read" if self._feed.away else ""
        # A first range waits for functions to be traced and sent, and for connections.
        limit = self._config.watch.stall_seconds * (1 if self._learned else _FIRST_STALLS)
        if self._pulse.still_seconds > limit:
            raise RestartNeededError(
                f"no range was finished for {limit:g} s; out are {self._callers.oldest()}"
            )

    def _check_owner(self, now: float) -> None:
        """Sees once a second that the folder is still this life's; one that is away may return."""
        if now - self._owned_at < _OWNER_SECONDS:
            return
        try:
            self._store.check_owner()
            self._owned_at = now
        except OSError as error:
            logger.warning("%s cannot be read at present: %s", self._config.directory, error)
            if now - self._owned_at > self._config.watch.stall_seconds:
                raise RestartNeededError(f"train.directory cannot be read: {error}") from error

    def _save_if_due(self) -> None:
        watermark = self._freshness().watermark_ms
        if self._saves.due(watermark) and not self._saves.hold(self._ledger.totals.records):
            self._save()
            self._saves.begun(watermark)

    def _save(self, *, last: bool = False) -> None:
        """Saves the state and the ledger of one moment, at which nothing is in flight.

        Training waits until they are copied; or, if it ends or has no memory for a copy, written.
        """
        paused = time.monotonic()
        self._callers.pause(limit=self._config.watch.stall_seconds)
        if not self._ledger.settled:
            self._skip_save(last=last)
            return
        self._rejects.check(self._ledger.totals, complete=self._callers.exhausted)
        self._pulse.progressed()
        snapshot = self._snapshot()
        if self._saver.background and not last:
            with self._pulse.busy("copying the state"):
                self._saver.take()
            self._go_on(paused)
            self._saves.write(self._identified(snapshot))
        else:
            saved = self._saves.write_now(self._identified(snapshot), forgiving=not last)
            self._go_on(paused)
            self._saves.settle(saved)
        self._pulse.progressed()

    def _skip_save(self, *, last: bool) -> None:
        """Gives up a save because ranges came back unread, and later ones are learned already."""
        if last:
            raise RestartNeededError(
                "the source cannot be read, and records behind those that are missing were learned:"
                " no save can be taken of that, so what was learned since the last one is learned"
                " again"
            )
        logger.warning("the source cannot be read at present; a save is put off until it can")
        self._callers.resume()

    def _snapshot(self) -> Snapshot:
        return Snapshot(
            ledger=self._ledger.copy(),
            step=int(self._state.step.numpy()),
            freshness=self._freshness(),
        )

    def _identified(self, snapshot: Snapshot) -> Snapshot:
        """Adds what the offsets are counted in: as last known, while the source is away.

        That is what they *are* counted in: workers compare with each range that they read, and the
        next life does before it reads any.
        """
        snapshot.ledger.identity = self._feed.identity(snapshot.ledger.offsets)
        return snapshot

    def _go_on(self, paused: float) -> None:
        """Hands out ranges again."""
        self._callers.resume()
        self._saves.stood_still(time.monotonic() - paused)

    def _freshness(self) -> Freshness:
        with self._lock:
            position = self._feed.position()
        former = self._store.restored.newest_event_ms
        newest = [time_ms for time_ms in (former, position.newest_ms) if time_ms is not None]
        return Freshness(
            taken_ms=time.time_ns() // 1_000_000,
            watermark_ms=position.watermark_ms,
            newest_event_ms=max(newest, default=None),
        )

    def _tell(self) -> None:
        with self._lock:
            totals = dataclasses.asdict(self._ledger.totals)
            gauges = {
                "stream/records_remaining": self._feed.remaining,
                "cluster/workers": len(self._topology.workers),
                "cluster/ranges_in_flight": self._callers.in_flight,
                "checkpoint/age_seconds": self._saves.age_seconds,
            }
            gauges |= position_figures(self._feed.position())
            figures = self._telemetry.collect(totals, gauges)
        self._telemetry.tell(figures)

    def _enter(self, done: Range, report: Mapping[str, float], worker: str) -> None:
        """Enters a finished range into the ledger; called by callers' threads, with the lock."""
        torn = int(report["torn"])
        if torn and self._config.on_torn_push == "restore":
            raise RestartNeededError(f"{done}: a push was torn on {torn} parameter servers")
        if not math.isfinite(report["loss_sum"]):
            raise InputError(
                f"{done}: found a loss of {report['loss_sum']}; expected a finite one, and finite"
                " parameters. Nothing of it was pushed or saved: lower model.learning_rate, or look"
                " for huge values in these samples"
            )
        totals = Totals(
            records=done.end - done.start,
            torn=torn,
            **{name: int(report[name]) for name in ("samples", "batches", "rejects", "lost")},
        )
        self._ledger.commit(done, totals)
        self._feed.note(done, report)
        self._rejects.note(totals)
        self._learned = True
        now, wall_ms = time.monotonic(), 1e3 * time.time()
        self._telemetry.meter.add(report, worker=worker, now=now, wall_ms=wall_ms)
        self._pulse.progressed()
