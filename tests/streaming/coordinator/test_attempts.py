"""Attempts at a range: lost, torn, hopeless; every sample counts once."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from pipeline.schema import InputError

import tensorflow as tf  # isort: skip

from streaming.attempts import RestartNeededError
from streaming.coordinator import Coordinator
from tests.streaming.coordinating import SAMPLES, A, B, Call, lost, lost_after


def test_every_sample_counts_once_though_attempts_are_lost_before_and_after_the_push(run):
    run.cluster.fates = [lost, lost_after, lost_after, lambda call: call(), lost]
    ledger = run.coordinator().run()
    assert ledger.totals.samples == SAMPLES
    assert ledger.offsets == {A: 200, B: 200}
    assert run.counters().tolist() == [1.0] * SAMPLES


def test_flights_of_ranges_count_each_range_once(run):
    ledger = run.coordinator(cluster={"flight": 3}).run()  # 20 ranges: the last flights are short
    assert ledger.totals.samples == SAMPLES
    assert ledger.totals.batches == SAMPLES // 5
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


def test_a_range_that_loses_one_worker_after_the_other_is_named(run, monkeypatch):
    monkeypatch.setattr("streaming.coordinator._LOSSES_SECONDS", 0.0)
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
    with pytest.raises(InputError, match=r"partition 1, offsets 60 to 79: 5 workers were lost"):
        run.coordinator(cluster={"flight": 4}).run()


@pytest.mark.parametrize("pushed", [True, False])
def test_a_range_that_a_lost_worker_had_is_given_up_only_if_it_was_not_pushed(run, pushed):
    coordinator = run.coordinator(stream={"end": "never"})

    def handed_on(call):
        """As TensorFlow does: another worker gets the call of a lost one, and nobody is told."""
        if pushed:
            call()
        run.source.away = True
        unread = call()
        coordinator.stop()
        if pushed:
            threading.Timer(1.0, returns).start()
        return unread

    def returns():
        run.source.away = False

    run.cluster.fates = [handed_on]
    learned = coordinator.run().totals.samples
    assert run.counters().sum() == learned
    assert run.source.away != pushed  # what was pushed was waited for, and nothing else
    run.source.away = False
    assert run.coordinator().run().totals.samples == SAMPLES
    assert set(run.counters()) == {1.0}
