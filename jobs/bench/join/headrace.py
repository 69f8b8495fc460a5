"""Processes of `headrace join`, and what they wrote."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import yaml

from jobs.bench.join.events import SAMPLE_COLUMNS, Stream, specification
from jobs.bench.join.topics import read_committed
from pipeline.topics.record import only_batch
from streaming.joining.progress import EVENTS, STALE, Progress, summed

_END_SECONDS: Final = 600.0


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Join:
    """A join of one topic of events, whose processes may come and go.

    Attributes:
        folder: For its configuration, log and snapshots.
        address: Of the broker.
        name: Of its group; its topics are NAME-events and NAME-samples.
        stream: What is in its topic of events.
        history: See `jobs.bench.join.events.specification`.
        commit_seconds: `join.commit.every_seconds`.
    """

    folder: Path
    address: str
    name: str
    stream: Stream
    history: int = 0
    commit_seconds: float = 0.5

    @property
    def events_topic(self) -> str:
        """The topic that it reads."""
        return f"{self.name}-events"

    @property
    def samples_topic(self) -> str:
        """The topic that it writes."""
        return f"{self.name}-samples"

    @property
    def log(self) -> str:
        """What its processes have said."""
        path = self.folder / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self, *, end: str = "never") -> subprocess.Popen[bytes]:
        """Starts a process."""
        path = self.folder / f"{self.name}-{end}.yaml"
        path.write_text(yaml.safe_dump(self._settings(end)))
        command = [sys.executable, "-m", "jobs.main", "join", "--config", str(path)]
        with (self.folder / f"{self.name}.log").open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | {"COLUMNS": "160"}
            )

    def run(self, *, end: str) -> None:
        """Runs a process to its end.

        Raises:
            RuntimeError: If it fails, with the end of its log.
        """
        process = self.start(end=end)
        try:
            code = process.wait(_END_SECONDS)
        finally:
            end_process(process)
        if code:
            raise self.failure(code)

    def failure(self, code: int) -> RuntimeError:
        """Returns the error for a process that ended with a code of its own."""
        return RuntimeError(f"{self.name}: headrace join ended with {code}\n{self.log[-4000:]}")

    def progress(self) -> list[Progress]:
        """Returns all that its units have said of themselves and that is still there, in order.

        Nothing if none of its processes has ever begun.
        """
        topic = f"{self.name}-progress"
        return [
            Progress.decode(value, where=topic) for value in read_committed(self.address, topic)
        ]

    def totals(self) -> dict[str, int]:
        """Returns the sums over its units of what they have done, by their names."""
        newest = {each.unit: each for each in self.progress()}
        return {STALE: 0, EVENTS: 0} | summed(list(newest.values()), "totals")

    def _settings(self, end: str) -> dict[str, Any]:
        return {
            "specification": specification(self.history),
            "samples": {
                "inputs": ["not-read"],
                "output": "not-written",
                "join_window_seconds": self.stream.window_ms / 1000,
            },
            "join": {
                "bootstrap_servers": [self.address],
                "input": {"topics": [self.events_topic]},
                "output": {"topic": self.samples_topic, "create": True},
                "group": self.name,
                "lateness_seconds": self.stream.disorder_ms / 1000,
                "end": end,
                "commit": {
                    "every_seconds": self.commit_seconds,
                    "topic": f"{self.name}-progress",
                },
                "snapshot": {"directory": str(self.folder / "snapshots"), "every_seconds": 30},
            },
        }


def samples_of(values: Sequence[bytes]) -> list[pa.Table]:
    """Returns the samples in records, with `SAMPLE_COLUMNS`."""
    return [pa.Table.from_batches([only_batch(value)]).select(SAMPLE_COLUMNS) for value in values]


def end_process(process: subprocess.Popen[Any], *, seconds: float = 20.0) -> int:
    """Ends a process that may have ended, at first as an operator would; returns its code."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.kill()
    return process.wait()


def kill(process: subprocess.Popen[Any]) -> float:
    """Ends a process with kill -9, and returns the wall time of that."""
    at = time.time()
    process.kill()
    process.wait()
    return at
