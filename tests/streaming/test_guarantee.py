"""The delivery guarantee, clause by clause, in the words of `streaming.ledger`.

On a real cluster with processes that die, the first four are shown by `test_kills`, under the same
names, and by `tests.drills`. Here they are fast, and the last three are complete.
"""

from __future__ import annotations

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.schema import InputError
from streaming.checkpoints.store import load_checkpoint

import tensorflow as tf  # isort: skip

from streaming.attempts import RestartNeededError
from tests.streaming.coordinating import SAMPLES, A, lost, lost_after


def test_no_sample_is_lost_and_each_is_applied_once_on_every_parameter_server(run):
    ledger = run.coordinator().run()
    assert ledger.totals.samples == SAMPLES
    # Each of the two servers holds half of the counters, and a clock of its own.
    assert run.counters().tolist() == [1.0] * SAMPLES
    assert load_checkpoint(run.folder / "checkpoints").step == ledger.totals.batches == SAMPLES // 5


@pytest.mark.parametrize("fate", [lost, lost_after])
def test_after_the_loss_of_a_worker_its_range_in_flight_is_retried_and_counts_once(run, fate):
    run.cluster.fates = [fate] * 3
    ledger = run.coordinator().run()
    assert not run.cluster.fates
    assert ledger.totals.samples == SAMPLES
    assert run.counters().tolist() == [1.0] * SAMPLES


def test_a_checkpoint_holds_every_sample_before_the_ledger_once_and_none_after_it(run):
    coordinator = run.coordinator()

    def stop_then(call):
        coordinator.stop()
        return call()

    def died(_):
        raise RestartNeededError("a parameter server is gone")

    run.cluster.fates = [lambda call: call()] * 5 + [stop_then]
    coordinator.run()
    run.cluster.fates = [lambda call: call()] * 5 + [died]  # pushed, and in no checkpoint
    with pytest.raises(RestartNeededError, match="a parameter server is gone"):
        run.coordinator(checkpoint={"every_seconds": 600}).run()
    loaded = load_checkpoint(run.folder / "checkpoints")
    counters, before = loaded.parameters["counter"][:, 0], np.zeros(SAMPLES)
    for entry in loaded.ledger["offsets"]:  # partition p holds the numbers 2 * offset + p
        before[entry["partition"] : 2 * entry["offset"] : 2] = 1
    assert 0 < before.sum() < SAMPLES
    assert counters.tolist() == before.tolist()
    run.coordinator().run()  # training resumes there
    assert run.counters().tolist() == [1.0] * SAMPLES


@pytest.mark.parametrize("answer", ["restore", "count"])
def test_a_push_that_a_crash_cut_in_the_middle_is_detected_and_restored_or_counted(run, answer):
    coordinator = run.coordinator(on_torn_push=answer)

    def cut_on_the_second_server(call):
        # Begun, not applied: as a crash between the two leaves it. The retry must see it.
        applied = coordinator._state.applied[1]
        before = tf.identity(applied)
        call()
        applied.assign(before)
        return lost(call)

    run.cluster.fates = [cut_on_the_second_server]
    if answer == "restore":
        with pytest.raises(RestartNeededError, match="a push was torn on 1 parameter servers"):
            coordinator.run()
        run.coordinator().run()
    else:
        assert coordinator.run().totals.torn == 1
    # Here the cut one had been applied; what matters is that it was neither hidden nor repeated.
    assert run.counters().tolist() == [1.0] * SAMPLES


def test_records_that_cannot_be_decoded_go_to_a_dead_letter_file_with_offset_and_reason(run):
    run.source.rejected = {7, 8}  # in both partitions
    ledger = run.coordinator(max_reject_share=0.5).run()
    assert (ledger.totals.rejects, ledger.totals.samples) == (4, SAMPLES - 4)
    files = [pq.read_table(path).to_pylist() for path in (run.folder / "dead").rglob("*.parquet")]
    letters = sorted((row["partition"], row["offset"], row["reason"]) for f in files for row in f)
    assert letters == [(p, offset, "undecodable") for p in (0, 1) for offset in (7, 8)]


def test_records_that_the_broker_deleted_before_they_were_read_are_counted(run, monkeypatch):
    read = run.source.read

    def with_deleted(wanted):
        result = read(wanted)
        if wanted.partition != A or wanted.start > 3:
            return result
        gone = min(4, wanted.end) - wanted.start  # offsets 0 to 3 of partition A
        samples = result.samples.slice(gone)
        return type(result)(samples=samples, rejects=[], lost=gone)

    monkeypatch.setattr(run.source, "read", with_deleted)
    ledger = run.coordinator(max_reject_share=0.0).run()  # lost records are no rejects
    assert (ledger.totals.lost, ledger.totals.samples) == (4, SAMPLES - 4)
    assert ledger.totals.records == SAMPLES
    assert np.flatnonzero(run.counters() == 0).tolist() == [0, 2, 4, 6]


def test_past_a_set_share_of_rejects_the_trainer_stops(run):
    run.source.rejected = set(range(0, 200, 20))  # 5% of each partition
    with pytest.raises(InputError, match=r"expected at most 1\.00%"):
        run.coordinator(max_reject_share=0.01).run()
    assert run.coordinator(max_reject_share=0.06).run().totals.rejects == 20
