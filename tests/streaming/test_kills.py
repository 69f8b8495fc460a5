"""Processes are killed with -9 during a run; a counter per sample says what that did.

The counters are rows of a table that the run trains: pushed, checkpointed and restored like any
other. They are read from the run's last checkpoint, not from logs. `tests.drills` does the same to
a stream from a real broker, a hundred times, with every kind of fault.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml

from pipeline.specification import Specification
from streaming.checkpoints.store import load_checkpoint
from tests.sample_folder import write_samples
from tests.streaming.counting.run import CUT, HELD, RELEASED
from tests.streaming.counting.samples import numbered, specification

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

KILLS = 2  # each takes a worker's start, some seconds; for many more there is `make drills`
SAMPLES = 40_000
PARTS = 3
ROOT = Path(__file__).parents[2]
COUNTING_RUN = [sys.executable, "-m", "tests.streaming.counting.run"]
SPECIFICATION = specification(SAMPLES)

# Every mini-batch is to count in full.
CLUSTER = {"parameter_servers": 2, "workers": 2, "flight": 2, "merge": {"rule": "sum"}}


class Run:
    """A counting run in a folder: its configuration, its launcher, its processes."""

    def __init__(self, folder: Path, **train: object) -> None:
        self.folder = folder
        self.faults = folder / "faults"
        if not self.faults.exists():
            self.faults.mkdir()
            _write_counted_samples(folder / "samples")
        settings = {
            "specification": SPECIFICATION,
            "model": {},
            "train": {
                "directory": str(folder / "run"),
                "source": {"archive": {"directory": str(folder / "samples")}},
                "stream": {"end": "never"},
                "batch_size": 50,
                "batches_per_range": 4,
                "watch": {"stall_seconds": 240},
                "cluster": CLUSTER,
                "checkpoint": {"every_seconds": 1.0},
            }
            | train,
        }
        self.config = folder / "config.yaml"
        self.config.write_text(yaml.safe_dump(settings))

    def start(self, **environment: str) -> subprocess.Popen[bytes]:
        log = (self.folder / "log").open("ab")
        env = os.environ | {"COUNTING_FAULTS": str(self.faults), "HEADRACE_LOG": "INFO"}
        return subprocess.Popen(
            [*COUNTING_RUN, "--config", str(self.config), "--local"],
            cwd=ROOT,
            env=env | environment,
            stdout=log,
            stderr=log,
        )

    def finish(self, process: subprocess.Popen[bytes]) -> None:
        """Ends a run that would wait for more samples, when it has saved all that there are."""
        checkpoints = self.folder / "run" / "checkpoints"
        self.wait_for(
            lambda: any(checkpoints.glob("checkpoint-*")) and self.trained() == SAMPLES, process
        )
        process.terminate()
        assert process.wait(60) == 0, self.log()

    def trained(self) -> int:
        """Returns the samples in the newest checkpoint."""
        folder = max((self.folder / "run" / "checkpoints").glob("checkpoint-*"))
        try:
            manifest = json.loads((folder / "manifest.json").read_text())
        except FileNotFoundError:  # it has just been replaced by a newer one
            return 0
        return manifest["ledger"]["totals"]["samples"]

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def counters(self) -> np.ndarray:
        loaded = load_checkpoint(self.folder / "run" / "checkpoints")
        return loaded.parameters["counter"][:, 0]

    def ledger(self) -> dict:
        return load_checkpoint(self.folder / "run" / "checkpoints").ledger

    def wait_for(self, condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 300
        while not condition():
            assert process.poll() is None, f"ended with {process.returncode}:\n{self.log()}"
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def steps_seen(self) -> int:
        return self.log().count(": step ")

    def saves_seen(self) -> int:
        return self.log().count("saved checkpoint-")

    def pids(self, role: str) -> list[int]:
        """Returns the process ids of a role's processes, the newest last."""
        lines = [line for line in self.log().splitlines() if f"started {role} " in line]
        return [int(line.rsplit(" ", 1)[1].rstrip(")")) for line in lines]


def _write_counted_samples(folder: Path) -> None:
    schema = Specification(**SPECIFICATION).sample_schema
    tables = {
        ("2026-01-01", part): numbered(np.arange(part, SAMPLES, PARTS), schema)
        for part in range(PARTS)
    }
    write_samples(folder, tables, row_group_size=2_000)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., tuple[Run, subprocess.Popen[bytes]]]]:
    started = []

    def begin(train: dict | None = None, **environment: str):
        run = Run(tmp_path, **(train or {}))
        process = run.start(**environment)
        started.append(process)
        return run, process

    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


def _assert_every_sample_counts_once(run: Run) -> None:
    counters = run.counters()
    assert len(counters) == SAMPLES
    wrong = np.flatnonzero(counters != 1.0)
    assert len(wrong) == 0, f"{len(wrong)} samples, such as {wrong[:5]}: {counters[wrong[:5]]}"
    assert run.ledger()["totals"]["samples"] == SAMPLES


@pytest.mark.parametrize("overlap", [False, True])
def test_after_the_loss_of_a_worker_its_range_in_flight_is_retried_and_counts_once(start, overlap):
    run, process = start({"cluster": CLUSTER | {"overlap": overlap}})
    for number in range(2):
        for moment in ("before-push", "in-flight", "after-push"):
            (run.faults / f"{moment}-{number}").touch()
    run.wait_for(lambda: run.steps_seen() >= 2 and not any(run.faults.iterdir()), process)
    killed = 0
    while killed < KILLS and process.poll() is None:
        before = len(run.pids("worker"))
        os.kill(run.pids("worker")[-1], signal.SIGKILL)  # at whatever it is doing
        killed += 1
        run.wait_for(lambda before=before: len(run.pids("worker")) > before, process)
    run.finish(process)
    assert len(run.pids("worker")) >= 2 + 6 + killed
    assert len(run.pids("coordinator")) == 1, "only workers should have been started again"
    _assert_every_sample_counts_once(run)


def test_a_range_that_ends_one_worker_after_the_other_ends_the_run_with_its_name(start):
    run, process = start({"cluster": CLUSTER | {"workers": 1}})
    for number in range(8):  # the only worker meets them one after the other, in the same range
        (run.faults / f"before-push-{number}").touch()
    assert process.wait(300) == 2, run.log()
    assert re.search(r"offsets \d+ to \d+: 5 workers were lost while they had it", run.log())


def test_without_the_marks_the_same_kills_are_seen_in_the_counters(start):
    run, process = start(COUNTING_NO_MARKS="1")
    for number in range(3):
        (run.faults / f"after-push-{number}").touch()
    run.finish(process)
    counters = run.counters()
    assert np.all(counters >= 1)
    # Each of the three ranges of 200 samples was pushed, its worker killed, and pushed again.
    assert np.count_nonzero(counters > 1) >= 200


@pytest.mark.parametrize("role", ["ps", "coordinator"])
def test_after_the_loss_of_the_coordinator_or_a_parameter_server_training_resumes(start, role):
    run, process = start()
    run.wait_for(lambda: run.saves_seen() >= 1 and run.steps_seen() >= 3, process)
    os.kill(run.pids(role)[-1], signal.SIGKILL)
    run.wait_for(lambda: len(run.pids("coordinator")) == 2, process)
    run.finish(process)
    assert "restored checkpoint-" in run.log()
    _assert_every_sample_counts_once(run)


def test_a_push_of_a_former_life_does_not_count(start):
    run, process = start()
    run.wait_for(lambda: run.saves_seen() >= 1, process)
    (run.faults / "hold-push").touch()
    run.wait_for((run.faults / HELD).exists, process)
    worker = int((run.faults / HELD).read_text())
    os.kill(run.pids("coordinator")[-1], signal.SIGKILL)
    run.wait_for(lambda: "restored checkpoint-" in run.log(), process)
    steps = run.steps_seen()
    run.wait_for(lambda: run.steps_seen() > steps, process)  # the present life learns
    assert worker in run.pids("worker")[-2:], "it should have lived on with its range"
    (run.faults / RELEASED).touch()  # and now it pushes what it learned in the former one
    run.finish(process)
    _assert_every_sample_counts_once(run)


@pytest.mark.parametrize("answer", ["restore", "count"])
def test_a_push_that_a_crash_cut_in_the_middle_is_detected_and_restored_or_counted(start, answer):
    run, process = start({"on_torn_push": answer})
    run.wait_for(lambda: run.saves_seen() >= 1, process)
    (run.faults / "tear-early").touch()
    run.wait_for((run.faults / HELD).exists, process)
    _, worker = (run.faults / HELD).read_text().split()
    (run.faults / CUT).touch()  # the server has begun the push, and fails
    os.kill(int(worker), signal.SIGKILL)
    (run.faults / HELD).unlink()
    if answer == "restore":
        run.wait_for(lambda: "a push was torn on " in run.log(), process)
        run.finish(process)
        _assert_every_sample_counts_once(run)
        return
    run.finish(process)
    # The servers are pushed to at once, and the failure of one cuts what the other had begun.
    assert run.ledger()["totals"]["torn"] in (1, 2)
    # Of one range, what lies on the server that failed: never more, and nothing twice.
    counters = run.counters()
    assert 0 < np.count_nonzero(counters == 0) <= 200
    assert np.all(counters <= 1)


def test_after_kills_a_run_goes_on_with_other_numbers_of_servers_and_workers(start):
    run, process = start()
    run.wait_for(lambda: run.saves_seen() >= 1, process)
    os.kill(run.pids("worker")[-1], signal.SIGKILL)
    os.kill(run.pids("ps")[-1], signal.SIGKILL)
    run.wait_for(lambda: "restored checkpoint-" in run.log(), process)
    steps = run.steps_seen()
    run.wait_for(lambda: run.steps_seen() > steps, process)
    process.terminate()
    assert process.wait(120) == 0, run.log()
    trained = run.ledger()["totals"]["samples"]
    assert 0 < trained < SAMPLES
    other, process = start({"cluster": CLUSTER | {"parameter_servers": 3, "workers": 1}})
    other.finish(process)
    assert "1 of 1 workers have answered" in other.log()
    _assert_every_sample_counts_once(other)


def test_a_second_trainer_is_refused_and_one_that_slept_through_a_take_over_stops(start):
    run, process = start()
    run.wait_for(lambda: run.saves_seen() >= 1 and run.steps_seen() >= 2, process)
    second = run.start()
    assert second.wait(120) == 2
    assert "another trainer uses this checkpoint directory" in run.log()
    sleeper = run.pids("coordinator")[0]
    os.kill(sleeper, signal.SIGSTOP)
    # As where the lock is lost: on another host, over a file system without locks.
    (run.folder / "run" / "checkpoints" / "coordinator.lock").unlink()
    _, successor = start()
    run.wait_for(lambda: "restored checkpoint-" in run.log(), successor)
    os.kill(sleeper, signal.SIGCONT)
    assert process.wait(120) == 2, "it should stop for good, not fight"
    assert "another trainer has taken over this checkpoint directory" in run.log()
    run.finish(successor)
    _assert_every_sample_counts_once(run)


def test_a_folder_that_vanishes_ends_the_run_with_its_name(start):
    run, process = start()
    run.wait_for(lambda: run.saves_seen() >= 1, process)
    (run.folder / "run").rename(run.folder / "unmounted")
    assert process.wait(120) == 2, run.log()
    assert f"train.directory: {run.folder}/run/checkpoints is gone" in run.log()


def test_sigterm_drains_and_saves_and_the_next_run_goes_on_there(start):
    run, process = start()
    run.wait_for(lambda: run.steps_seen() >= 2, process)
    process.terminate()
    assert process.wait(60) == 0, run.log()
    trained = run.ledger()["totals"]["samples"]
    assert 0 < trained < SAMPLES
    assert np.count_nonzero(run.counters() == 1) == trained
    assert np.count_nonzero(run.counters() == 0) == SAMPLES - trained
    run.finish(run.start())
    _assert_every_sample_counts_once(run)
