"""The run that a drill strikes: its launcher, its processes, and what can be seen of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.drills.schedule import SERVERS, WORKERS
from tests.drills.stream import TOPIC
from tests.streaming.counting.samples import specification

ROOT = Path(__file__).parents[2]
_STARTED = re.compile(r"started (\w+) (\d+) \(process (\d+)\)")
_PATIENCE_SECONDS = 600.0

# Every timeout is short: a pause outlasts them all.
STALL_SECONDS = 15.0  # longer than a killed worker takes to come back
PAUSE_SECONDS = 2 * STALL_SECONDS + 3.0  # longer than the watchdog's two stalls
BATCH_SIZE = 20
BATCHES_PER_RANGE = 5
FLIGHT = 2
HASHES, ALPHA, INITIAL_GAP = 4, 0.001, 100.0  # of the estimator


class DrillError(RuntimeError):
    """The run did not do what it must; the message says what was waited for."""


class Training:
    """A run of the counting model on a stream, restarted here when it asks for that."""

    def __init__(
        self, folder: Path, *, bootstrap: str, rows: int, on_torn_push: str, overlap: bool
    ) -> None:
        self.folder, self.rows = folder, rows
        self.directory = folder / "run"
        self.checkpoints = self.directory / "checkpoints"
        self.faults, self.trace = folder / "faults", folder / "trace"
        for made in (self.directory, self.faults, self.trace):
            made.mkdir()
        self._log = folder / "log"
        self._log.touch()
        self._commits = self.trace / "commits"
        self._commits.touch()
        self.config = folder / "config.yaml"
        settings = _settings(self.directory, bootstrap, rows, on_torn_push)
        settings["train"]["cluster"]["overlap"] = overlap
        self.config.write_text(yaml.safe_dump(settings))
        self.starts = 0
        self.launcher: subprocess.Popen[bytes] | None = None

    def start(self, *overrides: str) -> None:
        """Starts the launcher, which starts all others, with `train.x=y` settings."""
        command = [sys.executable, "-m", "tests.streaming.counting.run"]
        command += ["--config", str(self.config), "--local"]
        for override in overrides:
            command += ["--set", override]
        environment = os.environ | {
            "COUNTING_FAULTS": str(self.faults),
            "COUNTING_TRACE": str(self.trace),
        }
        with self._log.open("ab") as log:
            self.launcher = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log
            )
        self.starts += 1

    def tend(self) -> None:
        """Starts the launcher again if it ended with 0 (SIGTERM) or 75, as Kubernetes would."""
        assert self.launcher is not None
        code = self.launcher.poll()
        if code in (0, 75):
            self.start()
        elif code is not None:
            raise DrillError(f"the run ended with {code}; expected 0 or 75")

    def wait_for(self, condition: Callable[[], Any], what: str, *, tend: bool = True) -> Any:
        """Waits until a condition is true, keeps the run alive meanwhile, and returns its value."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not (value := condition()):
            if tend:
                self.tend()
            if time.monotonic() > deadline:
                raise DrillError(f"waited {_PATIENCE_SECONDS:g} s for {what}")
            time.sleep(0.01)
        return value

    def pid(self, role: str, index: int = 0) -> int:
        """Returns a living process of the run, when there is one."""
        return self.wait_for(lambda: self._living(role, index), f"a living {role} {index}")

    def _living(self, role: str, index: int) -> int | None:
        found = [m for m in _STARTED.findall(self.log()) if m[:2] == (role, str(index))]
        if not found or not alive(int(found[-1][2])):
            return None
        return int(found[-1][2])

    def whole(self) -> bool:
        """Whether every worker serves: a range whose worker is away may outlast a drain."""
        log = self.log()
        return all(
            log.rfind(f"worker {index} serves") > log.rfind(f"started worker {index} ")
            for index in range(WORKERS)
        )

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def commits(self) -> list[tuple[float, int, int]]:
        """Returns (monotonic time, coordinator's process id, samples) of each range committed."""
        lines = self._commits.read_text().splitlines()
        split = [line.split() for line in lines]
        return [(float(p[0]), int(p[1]), int(p[2])) for p in split if len(p) == 3]

    def last_commit(self) -> tuple[float, int, int]:
        """Returns the last of `commits`, without reading all of them."""
        with self._commits.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 200))
            lines = file.read().decode().split("\n")[:-1]  # the last one may be half written
        if not lines:
            return 0.0, 0, 0
        moment, pid, samples = lines[-1].split()
        return float(moment), int(pid), int(samples)

    def newest(self) -> Path | None:
        """Returns the newest checkpoint's folder."""
        return max(self.checkpoints.glob("checkpoint-*"), default=None)

    def saving(self) -> bool:
        """Whether a checkpoint is being written now."""
        return any(self.checkpoints.glob(".*/state*")) or any(self.checkpoints.glob(".*/*/state*"))

    def finish(self) -> int:
        """Returns the exit code of a run that is to end by itself."""
        self.wait_for(
            lambda: self.launcher is not None and self.launcher.poll() is not None,
            "the end of the run",
            tend=False,
        )
        return self.launcher.returncode if self.launcher else -1

    def end(self) -> None:
        """Leaves nothing behind."""
        if self.launcher is not None and self.launcher.poll() is None:
            for _, _, pid in _STARTED.findall(self.log()):
                if alive(int(pid)) and _is_ours(int(pid), self.launcher.pid):
                    os.kill(int(pid), signal.SIGCONT)
                    os.kill(int(pid), signal.SIGKILL)
            self.launcher.kill()
            self.launcher.wait()


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in ("Z", "X")


def _is_ours(pid: int, parent: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return int(stat[1]) == parent


def _settings(directory: Path, bootstrap: str, rows: int, on_torn_push: str) -> dict[str, Any]:
    return {
        "specification": specification(rows),
        "model": {},
        "train": {
            "directory": str(directory),
            "source": {
                "kafka": {
                    "bootstrap_servers": [bootstrap],
                    "topics": [TOPIC],
                    "connect_timeout_seconds": 3.0,
                    "stall_timeout_seconds": 3.0,
                }
            },
            "stream": {"end": "never"},
            "batch_size": BATCH_SIZE,
            "batches_per_range": BATCHES_PER_RANGE,
            "frequency": {
                "hashes": HASHES,
                "buckets": 16,
                "alpha": ALPHA,
                "initial_gap": INITIAL_GAP,
            },
            "watch": {"stall_seconds": STALL_SECONDS},
            "cluster": {
                "parameter_servers": SERVERS,
                "workers": WORKERS,
                "flight": FLIGHT,
                "merge": {"rule": "sum"},  # every mini-batch is to count in full
            },
            "checkpoint": {"every_seconds": 1.0},
            "on_torn_push": on_torn_push,
        },
    }
