"""What ends a run, or asks for its restart, and what looks like it and does not."""

from __future__ import annotations

import threading
import time

import pytest

from pipeline.schema import InputError
from streaming.attempts import RestartNeededError
from streaming.checkpoints.store import CheckpointStore

import tensorflow as tf  # isort: skip

from tests.streaming.coordinating import SAMPLES


def test_too_many_rejects_end_the_run_before_a_save_hides_them(run):
    run.source.rejected = set(range(0, 200, 20))  # 10 of 200 in each partition: 5%
    with pytest.raises(InputError, match=r"were rejected.*at most 1.00%.*dead-let"):
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


def test_reads_in_the_coordinators_process_are_found_out(run, monkeypatch):
    coordinator = run.coordinator()
    monkeypatch.undo()
    with pytest.raises(RuntimeError, match="scheduled reads ran in the coordinator"):
        coordinator.run()


def test_a_worker_of_another_run_is_refused(run):
    run.workers_run = "another"
    with pytest.raises(InputError, match="1 workers belong to another run"):
        run.coordinator().run()


def test_nothing_finished_for_too_long_asks_for_a_restart(run):
    def asleep(call):
        time.sleep(5)
        return call()

    run.cluster.fates = [asleep] * 4
    # The first range of a life may take three times as long as the others.
    with pytest.raises(RestartNeededError, match="no range was finished for 3 s"):
        run.coordinator(watch={"stall_seconds": 1.0}).run()


def test_a_range_that_does_not_end_is_named_with_its_age(run):
    coordinator = run.coordinator(watch={"stall_seconds": 4.0}, stream={"end": "never"})
    hold = threading.Event()

    def held(call):
        coordinator.stop()
        hold.wait(30)
        return call()

    run.cluster.fates = [lambda call: call()] * 3 + [held]
    with pytest.raises(RestartNeededError, match=r"within 4 s: .*, offsets \d+ to \d+ for 4 s"):
        coordinator.run()
    hold.set()


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
