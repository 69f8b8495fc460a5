"""Saves while training goes on, with the fake cluster of the coordinator's tests."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from streaming.checkpoints.saver import Saver, Schedule, Snapshot
from streaming.checkpoints.store import CheckpointStore, Freshness, NoSpaceError, load_checkpoint
from streaming.config import CheckpointConfig
from streaming.ledger import Ledger
from tests.streaming.checkpoints.states import fill, make_state, values
from tests.streaming.coordinating import SAMPLES, Run
from tests.waiting import wait_until

SNAPSHOT = Snapshot(
    ledger=Ledger({}, {}),
    step=7,
    freshness=Freshness(taken_ms=5, watermark_ms=3, newest_event_ms=4),
)


def open_store(folder: Path) -> CheckpointStore:
    return CheckpointStore(folder, keep=3, fingerprints={"specification": "s"})


def test_what_is_trained_after_the_copy_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    state, _ = make_state(2)
    saver = Saver(open_store(tmp_path), state.trackables(), background=True)
    fill(state, 7)
    saver.take()
    fill(state, 1000)
    saver.write(SNAPSHOT)
    saved = saver.finished(wait_seconds=60)
    assert saved.snapshot is SNAPSHOT
    loaded = load_checkpoint(tmp_path)
    assert loaded.parameters["counter"].ravel().tolist() == list(range(7, 17))
    assert loaded.last_seen.tolist() == list(range(7, 17))
    assert loaded.parameters["batches"].tolist() == [7.0]
    assert loaded.freshness == Freshness(taken_ms=5, watermark_ms=3, newest_event_ms=4)


def test_a_copy_is_restored_onto_another_number_of_servers(tmp_path: Path) -> None:
    state, _ = make_state(2)
    saver = Saver(open_store(tmp_path), state.trackables(), background=True)
    fill(state, 7)
    saver.take()
    saver.write(SNAPSHOT)
    saver.finished(wait_seconds=60)
    other, checkpoint = make_state(3)
    open_store(tmp_path).restore(checkpoint)
    assert values(other.tables["counter"]).ravel().tolist() == list(range(7, 17))


def test_a_write_that_fails_is_raised_where_it_is_asked_for(tmp_path: Path, monkeypatch) -> None:
    state, _ = make_state(1)
    store = open_store(tmp_path)
    saver = Saver(store, state.trackables(), background=True)

    def fail(*_, **__):
        raise OSError("no space left on the device")

    monkeypatch.setattr(store, "save", fail)
    saver.write(SNAPSHOT)
    with pytest.raises(OSError, match="no space left"):
        saver.finished(wait_seconds=60)
    assert not saver.busy


def test_a_run_goes_on_while_its_checkpoint_is_written(run: Run, monkeypatch) -> None:
    """The first write does not end before ranges were finished that began after its copy."""
    coordinator = run.coordinator(checkpoint={"every_seconds": 0.01})
    written, first = threading.Event(), threading.Event()
    save = CheckpointStore.save

    def slow(*arguments, **keywords):
        if arguments[2].totals.samples and not first.is_set():  # not the one before training
            first.set()
            assert written.wait(60)
        return save(*arguments, **keywords)

    def count(call):
        if first.is_set() and coordinator._ledger.totals.samples < SAMPLES - 100:
            written.set()
        return call()

    monkeypatch.setattr(CheckpointStore, "save", slow)
    run.cluster.fates = [count] * 40
    assert coordinator.run().totals.samples == SAMPLES
    assert written.is_set()
    assert run.counters().tolist() == [1.0] * SAMPLES
    last = json.loads((run.folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["checkpoint/saves"] >= 2
    assert last["checkpoint/stall_seconds"] < 60


def test_every_checkpoint_holds_what_its_ledger_says_however_training_goes_on(run: Run) -> None:
    coordinator = run.coordinator(
        checkpoint={"every_seconds": 0.01, "keep": 100}, batches_per_range=1
    )
    coordinator.run()
    folders = sorted((run.folder / "checkpoints").glob("checkpoint-*"))
    assert len(folders) >= 2
    for folder in folders:
        manifest = json.loads((folder / "manifest.json").read_text())
        expected = np.zeros(SAMPLES)
        for place in manifest["ledger"]["offsets"]:
            expected[place["partition"] : 2 * place["offset"] : 2] = 1
        newest = run.folder / "one"
        newest.mkdir(exist_ok=True)
        folder.rename(newest / folder.name)
        found = load_checkpoint(newest).parameters["counter"][:, 0]
        assert found.tolist() == expected.tolist(), folder.name


def test_a_stop_during_a_write_saves_all_that_was_trained(run: Run, monkeypatch) -> None:
    coordinator = run.coordinator(checkpoint={"every_seconds": 0.01}, stream={"end": "never"})
    stopped = threading.Event()
    save = CheckpointStore.save

    def stop_in_the_middle(*arguments, **keywords):
        if arguments[2].totals.samples and not stopped.is_set():
            coordinator.stop()
            stopped.set()
        return save(*arguments, **keywords)

    monkeypatch.setattr(CheckpointStore, "save", stop_in_the_middle)
    ledger = coordinator.run()
    assert run.counters().sum() == ledger.totals.samples > 0


@pytest.mark.parametrize("background", [True, False])
def test_what_a_full_disk_kept_from_being_saved_is_saved_at_the_end(
    run: Run, monkeypatch, background: bool
) -> None:
    checkpoint = {"every_seconds": 0.01, "background": background}
    coordinator = run.coordinator(checkpoint=checkpoint, stream={"end": "never"})
    failed = threading.Event()
    save = CheckpointStore.save

    def full_at_first(*arguments, **keywords):
        if not failed.is_set() and coordinator._ledger.totals.samples == SAMPLES:
            failed.set()
            coordinator.stop()
            raise NoSpaceError("no space left for a checkpoint")
        return save(*arguments, **keywords)

    monkeypatch.setattr(CheckpointStore, "save", full_at_first)
    coordinator.run()
    assert failed.is_set()
    assert run.counters().tolist() == [1.0] * SAMPLES


def test_the_source_is_told_what_is_saved_and_may_fail(run: Run, caplog) -> None:
    told = []

    def saved(offsets):
        told.append(dict(offsets))
        raise RuntimeError("no group")

    run.source.saved = saved
    ledger = run.coordinator().run()
    assert told[0] == dict.fromkeys(ledger.offsets, 0)
    assert told[-1] == ledger.offsets
    assert "could not be told of checkpoint-00000001: no group" in caplog.text


def test_without_memory_for_a_copy_training_waits_for_the_write(run: Run) -> None:
    coordinator = run.coordinator(checkpoint={"every_seconds": 0.01, "background": False})
    assert coordinator.run().totals.samples == SAMPLES
    assert not coordinator._saver.background
    assert run.counters().tolist() == [1.0] * SAMPLES


def test_a_runs_endpoints_say_what_its_ledger_says(run: Run, caplog) -> None:
    caplog.set_level("INFO")
    config = {"port": 0, "ready_seconds": 0.5, "stall_seconds": 120}
    coordinator = run.coordinator(stream={"end": "never"}, watch=config)
    hold, held = threading.Event(), threading.Event()

    def wait(call):
        held.set()
        assert hold.wait(60)
        return call()

    run.source.ends = dict.fromkeys(run.source.ends, 20)
    thread = threading.Thread(target=coordinator.run)
    thread.start()
    wait_until(lambda: "metrics and health at" in caplog.text)
    address = caplog.text.split("metrics and health at ")[1].split("/metrics")[0]
    wait_until(lambda: "headrace_stream_samples_total 40.0" in _get(address + "/metrics"))
    wait_until(lambda: _get(address + "/readyz") == "ok\n")
    run.cluster.fates = [wait] * 8
    run.source.ends = dict.fromkeys(run.source.ends, 200)
    assert held.wait(60)
    wait_until(lambda: "no range was finished for" in _get(address + "/readyz"))
    assert _get(address + "/healthz") == "ok\n"
    hold.set()
    wait_until(lambda: "headrace_stream_samples_total 400.0" in _get(address + "/metrics"))
    wait_until(lambda: _get(address + "/readyz") == "ok\n")
    assert "headrace_cluster_workers 2.0" in _get(address + "/metrics")
    coordinator.stop()
    thread.join(60)
    assert not thread.is_alive()


def _get(address: str) -> str:
    try:
        with urllib.request.urlopen(address, timeout=10) as answer:
            return answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.read().decode()


def test_saves_are_due_by_seconds_and_by_boundaries_of_event_time() -> None:
    config = CheckpointConfig(every_seconds=100, every_event_seconds=60)
    schedule = Schedule(config, now=0)
    assert not schedule.due(1, None)
    assert not schedule.due(2, 59_000)  # the first watermark is where it begins
    assert schedule.due(3, 60_000)  # the boundary at 60 s
    schedule.saved(3, 60_000)
    assert not schedule.due(4, 119_999)
    assert schedule.due(5, 120_000)
    schedule.saved(5, 120_000)
    assert not schedule.due(104, 121_000)
    assert schedule.due(105, 121_000)  # 100 s after the last
    schedule.saved(105, 121_000)
    schedule.cost_seconds = 2.0
    assert not schedule.due(124.9, 999_000)  # catching up: not a second of saving to nine others
    assert schedule.due(125.1, 999_000)
