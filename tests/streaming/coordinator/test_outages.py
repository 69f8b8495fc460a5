"""A stream without an end, whose source is away for a while."""

from __future__ import annotations

import json
import threading

import pytest

from streaming.checkpoints.newest import load_ledger
from tests.streaming.coordinating import SAMPLES, A, B, Run
from tests.waiting import wait_until


def test_following_trains_what_comes_later_and_survives_a_source_that_is_away(run, caplog):
    run.source.ends = {A: 100, B: 100}
    coordinator = run.coordinator(stream={"end": "never"})
    done = []
    thread = threading.Thread(target=lambda: done.append(coordinator.run()))
    thread.start()
    wait_until(lambda: _trained(run) >= 200)
    run.source.away = True
    wait_until(lambda: "cannot be read at present" in caplog.text)
    run.source.away = False
    run.source.ends = {A: 200, B: 200}
    wait_until(lambda: _trained(run) >= SAMPLES)
    coordinator.stop()
    thread.join(30)
    assert done[0].totals.samples == SAMPLES
    assert run.counters().tolist() == [1.0] * SAMPLES


def _trained(run: Run) -> int:
    path = run.folder / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return json.loads(lines[-1])["stream/samples"] if lines else 0


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
    wait_until(lambda: run.source.away and _newest_samples(run) >= 20)
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
