"""One life of a run after another: where it begins, and on which source."""

from __future__ import annotations

import pytest

from pipeline.schema import InputError
from streaming.attempts import RestartNeededError
from streaming.checkpoints.store import CheckpointStore
from tests.streaming.coordinating import SAMPLES, A, B, Run


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
    with pytest.raises(InputError, match=r"checkpoint_of: found no checkpoint in .*nowhere"):
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
