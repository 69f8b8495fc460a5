"""The coordinator's decisions, with a cluster that calls functions in this process."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.schema import InputError
from streaming.checkpoints.store import CheckpointStore, load_checkpoint, load_ledger
from streaming.cluster import Topology
from streaming.config import TrainConfig
from streaming.source import Partition, Range, ReadResult, Reject, SourceUnavailableError
from streaming.worker.dead_letters import DeadLetterFiles
from streaming.worker.reader import RangeReader

import tensorflow as tf  # isort: skip

from streaming.attempts import RestartNeededError
from streaming.coordinator import Coordinator
from streaming.worker import reader
from tests.streaming.counting import CountingModel

SAMPLES = 400
A, B = Partition("numbers", 0), Partition("numbers", 1)


class OneProcess(Topology):
    """Two parameter servers and two workers, all of them here."""

    __slots__ = ()

    @property
    def ps_devices(self) -> list[str]:
        return ["/device:CPU:0"] * 2


TOPOLOGY = OneProcess("here:0", ("here:1", "here:2"), ("here:3", "here:4"))


class Call:
    def __init__(self, call: Callable) -> None:
        self.call = call

    def fetch(self):
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), self.call())


class HereCluster:
    """Runs what is scheduled where it is fetched. `fates` may put something between."""

    def __init__(self) -> None:
        self.fates: list[Callable] = []  # each takes the place of one call, and is given it

    def schedule(self, function, args=()):
        call = lambda: function(*args)  # noqa: E731
        if args and self.fates:
            fate = self.fates.pop(0)
            return Call(lambda: fate(call))
        return Call(call)


class NumberSource:
    """Two partitions; A has the even numbers and B the odd ones, one a record."""

    def __init__(self, ends: dict[Partition, int] | None = None) -> None:
        self.ends = ends or {A: SAMPLES // 2, B: SAMPLES // 2}
        self.rejected: set[int] = set()
        self.topic_id = "id-1"
        self.away = False

    def partitions(self):
        return list(self.ends)

    def start_offsets(self):
        return dict.fromkeys(self.ends, 0)

    def end_offsets(self):
        self._answer()
        return dict(self.ends)

    def _answer(self):
        if self.away:
            raise SourceUnavailableError("no broker")

    def identity(self, offsets):
        self._answer()
        return {"numbers": self.topic_id}

    def read(self, wanted: Range) -> ReadResult:
        self._answer()
        offsets = [o for o in range(wanted.start, wanted.end) if o not in self.rejected]
        numbers = [2 * offset + wanted.partition.number for offset in offsets]
        rejects = [
            Reject(o, "undecodable", "noise", b"")
            for o in range(wanted.start, wanted.end)
            if o in self.rejected
        ]
        return ReadResult(pa.table({"item_id": pa.array(numbers, pa.int64())}), rejects, 0)

    def saved(self, offsets):
        pass

    def close(self) -> None:
        pass


class Run:
    """A run in a folder, on a cluster that lives here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = NumberSource()
        self.cluster = HereCluster()
        self.workers_run = ""

    def coordinator(self, **settings: object) -> Coordinator:
        config = TrainConfig(
            directory=str(self.folder),
            source={"archive": {"directory": "not-used"}},
            **{
                "batch_size": 5,
                "batches_per_range": 4,
                "watch": {"stall_seconds": 120.0},
                "cluster": {"flight": 1},  # one range a call, so that tests can say which
            }
            | settings,
        )
        model = CountingModel(SAMPLES)
        fingerprints = {"specification": "s", "model": "m"}
        run = self.workers_run or reader.run_name(config, fingerprints)
        RangeReader(
            self.source, model.inputs, dead_letters=DeadLetterFiles(self.folder / "dead")
        ).register(run)
        return Coordinator(
            model,
            self.source,
            config=config,
            topology=TOPOLOGY,
            fingerprints=fingerprints,
            connect_to=lambda _: self.cluster,
        )

    def counters(self) -> np.ndarray:
        return load_checkpoint(self.folder / "checkpoints").parameters["counter"][:, 0]


@pytest.fixture
def run(tmp_path, monkeypatch) -> Run:
    monkeypatch.setattr(reader, "register_coordinator", lambda: None)
    return Run(tmp_path)


def lost(_):
    raise tf.errors.UnavailableError(None, None, "the worker is gone")


def lost_after(call):
    call()
    raise tf.errors.AbortedError(None, None, "the worker was started again")


def test_every_sample_counts_once_though_attempts_are_lost_before_and_after_the_push(run):
    run.cluster.fates = [lost, lost_after, lost_after, lambda call: call(), lost]
    ledger = run.coordinator().run()
    assert ledger.totals.samples == SAMPLES
    assert ledger.offsets == {A: 200, B: 200}
    assert run.counters().tolist() == [1.0] * SAMPLES


def test_an_error_that_would_only_come_again_is_raised_as_it_is(run):
    def broken(_):
        raise tf.errors.InvalidArgumentError(None, None, "shapes differ")

    run.cluster.fates = [broken]
    with pytest.raises(tf.errors.InvalidArgumentError, match="shapes differ"):
        run.coordinator().run()


def _tear(coordinator: Coordinator):
    """Begins the push on server 1 and cuts it there, then lets the attempt be made again."""

    def torn(call):
        marks = coordinator._state.begun[1]
        sequence = int(np.max(marks.numpy())) + 1
        for slot in range(marks.shape[0]):
            marks[slot].assign(sequence + 10)  # whichever slot this is
        return call()

    return torn


def test_a_torn_push_is_answered_by_a_restart(run):
    coordinator = run.coordinator()
    run.cluster.fates = [_tear(coordinator)]
    with pytest.raises(RestartNeededError, match="a push was torn on 1 parameter servers"):
        coordinator.run()


def test_or_it_is_counted_and_the_run_goes_on(run):
    coordinator = run.coordinator(on_torn_push="count")
    run.cluster.fates = [_tear(coordinator)]
    ledger = coordinator.run()
    assert ledger.totals.torn >= 1
    assert ledger.totals.samples == SAMPLES
    assert np.count_nonzero(run.counters() != 1) > 0  # the torn part is what the count stands for


def test_flights_of_ranges_count_each_range_once(run):
    ledger = run.coordinator(cluster={"flight": 3}).run()  # 20 ranges: the last flights are short
    assert ledger.totals.samples == SAMPLES
    assert ledger.totals.batches == SAMPLES // 5
    assert run.counters().tolist() == [1.0] * SAMPLES


def test_a_second_life_goes_on_where_the_first_was_stopped(run):
    coordinator = run.coordinator(checkpoint={"every_seconds": 0.01})

    def stop_then(call):
        coordinator.stop()
        return call()

    run.cluster.fates = [lambda call: call()] * 5 + [stop_then]
    first = coordinator.run()
    assert 0 < first.totals.samples < SAMPLES
    assert run.counters().sum() == first.totals.samples
    second = run.coordinator().run()
    assert second.totals.samples == SAMPLES
    assert run.counters().tolist() == [1.0] * SAMPLES


def test_a_topic_of_another_life_is_refused(run):
    run.coordinator().run()
    run.source.topic_id = "id-2"
    with pytest.raises(InputError, match="found identity id-2, expected id-1"):
        run.coordinator().run()


def test_a_source_that_lost_its_end_is_refused(run):
    run.coordinator().run()
    run.source.ends = {A: 200, B: 150}
    with pytest.raises(InputError, match="found its end at 150; expected at least 200"):
        run.coordinator().run()


def test_a_new_partition_joins_from_its_start(run):
    run.source.ends = {A: 200}
    run.coordinator().run()
    run.source.ends = {A: 200, B: 200}
    assert run.coordinator().run().offsets == {A: 200, B: 200}
    assert run.counters().tolist() == [1.0] * SAMPLES


def test_too_many_rejects_end_the_run_before_a_save_hides_them(run):
    run.source.rejected = set(range(0, 200, 20))  # 10 of 200 in each partition: 5%
    with pytest.raises(InputError, match=r"could not be decoded.*at most 1.00%.*dead-let"):
        run.coordinator().run()
    assert run.coordinator(max_reject_share=0.2).run().totals.rejects == 20


def test_a_loss_that_is_not_finite_ends_the_run_unsaved(run):
    def to_nan(call):
        report = call()
        return report._replace(sums=tf.fill(report.sums.shape, float("nan")))

    run.cluster.fates = [to_nan]
    with pytest.raises(InputError, match="found a loss of nan; expected a finite one"):
        run.coordinator().run()
    assert run.counters().tolist() == [0.0] * SAMPLES  # only the one from before the first range


def test_nothing_finished_for_too_long_asks_for_a_restart(run):
    def asleep(call):
        time.sleep(5)
        return call()

    run.cluster.fates = [asleep] * 4
    # The first range of a life may take three times as long as the others.
    with pytest.raises(RestartNeededError, match="no range was finished for 3 s"):
        run.coordinator(watch={"stall_seconds": 1.0}).run()


def test_following_trains_what_comes_later_and_survives_a_source_that_is_away(run, caplog):
    run.source.ends = {A: 100, B: 100}
    coordinator = run.coordinator(stream={"end": "never"})
    done = []
    thread = threading.Thread(target=lambda: done.append(coordinator.run()))
    thread.start()
    _wait_until(lambda: _trained(run) >= 200)
    run.source.away = True
    _wait_until(lambda: "cannot be read at present" in caplog.text)
    run.source.away = False
    run.source.ends = {A: 200, B: 200}
    _wait_until(lambda: _trained(run) >= SAMPLES)
    coordinator.stop()
    thread.join(30)
    assert done[0].totals.samples == SAMPLES
    assert run.counters().tolist() == [1.0] * SAMPLES


def _trained(run: Run) -> int:
    path = run.folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["stream/samples"] if lines else 0


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_reads_in_the_coordinators_process_are_found_out(run, monkeypatch):
    coordinator = run.coordinator()
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="scheduled reads ran in the coordinator"):
        coordinator.run()


def test_a_worker_of_another_run_is_refused(run):
    run.workers_run = "another"
    with pytest.raises(InputError, match="1 workers belong to another run"):
        run.coordinator().run()


def test_a_run_begins_where_the_checkpoint_of_another_model_stands(run, tmp_path):
    run.source.ends = {A: 100, B: 100}
    run.coordinator().run()
    other = Run(tmp_path / "other")
    other.source.topic_id = "id-2"
    begin = {"start": {"checkpoint_of": str(run.folder)}}
    with pytest.raises(InputError, match="found identity id-2, expected id-1"):
        other.coordinator(stream=begin).run()
    other.source.topic_id = "id-1"
    ledger = other.coordinator(stream=begin).run()
    assert ledger.totals.samples == 200
    assert other.counters().tolist() == [0.0] * 200 + [1.0] * 200
    with pytest.raises(InputError, match="found no checkpoint; expected one"):
        nowhere = {"start": {"checkpoint_of": str(tmp_path / "nowhere")}}
        Run(tmp_path / "third").coordinator(stream=nowhere).run()


def test_a_run_from_latest_begins_at_the_same_place_in_its_second_life(run):
    def died(_):
        raise RestartNeededError("a parameter server is gone")

    run.source.ends = {A: 50, B: 50}
    coordinator = run.coordinator(stream={"start": "latest", "end": "never"})
    run.cluster.fates = [died]
    save = CheckpointStore.save

    def then_more(*arguments, **keywords):
        run.source.ends = {A: 100, B: 100}
        return save(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointStore, "save", then_more)
        with pytest.raises(RestartNeededError, match="a parameter server is gone"):
            coordinator.run()
    run.source.ends = {A: 150, B: 150}
    assert run.coordinator(stream={"start": "latest"}).run().totals.samples == 200
    assert run.counters().tolist() == [0.0] * 100 + [1.0] * 200 + [0.0] * 100


@pytest.mark.parametrize("background", [True, False])
def test_a_save_that_is_due_while_the_source_is_away_does_not_end_the_run(run, background):
    coordinator = run.coordinator(
        stream={"end": "never"}, checkpoint={"every_seconds": 0.01, "background": background}
    )

    def away(call):
        report = call()
        run.source.away = True
        return report

    run.cluster.fates = [lambda call: call(), away]
    thread = threading.Thread(target=lambda: coordinator.run())
    thread.start()
    _wait_until(lambda: run.source.away and _newest_samples(run) >= 20)
    coordinator.stop()  # SIGTERM in an outage: what was learned is saved, what is out goes back
    thread.join(30)
    assert not thread.is_alive()
    learned = coordinator._ledger.totals.samples
    assert run.counters().sum() == learned == _newest_samples(run)
    run.source.away = False
    assert run.coordinator().run().totals.samples == SAMPLES
    assert run.counters().tolist() == [1.0] * SAMPLES


def _newest_samples(run: Run) -> int:
    return load_ledger(run.folder / "checkpoints").totals.samples


def test_a_long_restore_is_no_hang(run, monkeypatch):
    run.coordinator().run()
    restore, ended, seen = CheckpointStore.restore, [], []
    monkeypatch.setattr("os._exit", ended.append)
    coordinator = run.coordinator(watch={"stall_seconds": 0.5})

    def slow(*arguments):
        time.sleep(2.5)
        seen.append((coordinator._pulse.unhealthy(), coordinator._pulse.unready()))
        return restore(*arguments)

    monkeypatch.setattr(CheckpointStore, "restore", slow)
    coordinator.run()
    assert not ended
    assert seen == [("", "restoring the checkpoint")]


def test_a_range_that_loses_one_worker_after_the_other_is_named(run, monkeypatch):
    monkeypatch.setattr("streaming.attempts._OUTAGE_SECONDS", 0.0)
    monkeypatch.setattr("streaming.attempts._RETRY_SECONDS", 0.0)
    read = run.source.read

    def deadly(wanted):
        if wanted.partition == B and wanted.start <= 70 < wanted.end:
            raise MemoryError
        return read(wanted)

    schedule = run.cluster.schedule

    def losing(function, args=()):
        call = schedule(function, args)

        def fetch():
            report = tf.nest.map_structure(lambda tensor: tensor.numpy(), call.call())
            if any(b"MemoryError" in detail for detail in report.detail):
                lost(None)
            return report

        result = Call(call.call)
        result.fetch = fetch if args else result.fetch
        return result

    monkeypatch.setattr(run.source, "read", deadly)
    monkeypatch.setattr(run.cluster, "schedule", losing)
    with pytest.raises(InputError, match=r"number=1\), start=60, end=80\): 5 workers were lost"):
        run.coordinator(cluster={"flight": 4}).run()


def test_a_range_that_does_not_end_is_named_with_its_age(run):
    coordinator = run.coordinator(watch={"stall_seconds": 1.0}, stream={"end": "never"})
    hold = threading.Event()

    def held(call):
        coordinator.stop()
        hold.wait(30)
        return call()

    run.cluster.fates = [lambda call: call()] * 3 + [held]
    with pytest.raises(RestartNeededError, match=r"within 1 s: Range\(.*for 1 s"):
        coordinator.run()
    hold.set()
