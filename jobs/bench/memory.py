"""Work in a process of its own, timed, with the memory of all its processes."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

_INTERVAL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Measured:
    """What a piece of work took.

    Attributes:
        seconds: By its own clock, without the start of processes.
        peak_bytes: Largest sum of the proportional set sizes of its process and all below it: a
            page of a file that several have mapped counts once, and with it pages that the system
            could take back.
    """

    seconds: float
    peak_bytes: int


def measure(work: Callable[..., float], *arguments: Any) -> Measured:
    """Runs `work` in a new process.

    Args:
        work: A function of a module; it returns the seconds that count.
        arguments: What it is called with.

    Raises:
        RuntimeError: If the process fails.
    """
    context = multiprocessing.get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    # Not a daemon: Dask's workers are processes of its own.
    process = context.Process(target=_run, args=(sender, work, arguments))
    process.start()
    sender.close()
    peak = _Peak(process.pid or 0)
    try:
        seconds = json.loads(receiver.recv())
    except EOFError as error:
        raise RuntimeError(f"{work.__name__} failed: see above") from error
    finally:
        peak.stop()
        process.join()
    return Measured(seconds, peak.bytes)


def _run(sender: Any, work: Callable[..., float], arguments: tuple[Any, ...]) -> None:
    sender.send(json.dumps(work(*arguments)))
    sender.close()


class _Peak:
    """Looks at the memory of a process and of all below it, again and again."""

    def __init__(self, pid: int) -> None:
        self.bytes = 0
        self._pid = pid
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stops looking."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_INTERVAL_SECONDS):
            self.bytes = max(self.bytes, self._now())

    def _now(self) -> int:
        total = 0
        try:
            first = psutil.Process(self._pid)
            for process in [first, *first.children(recursive=True)]:
                total += _proportional(process.pid)
        except psutil.NoSuchProcess:
            pass
        return total


def _proportional(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:  # it has ended meanwhile
        return 0
    lines = (line.split() for line in text.splitlines() if line.startswith("Pss:"))
    return sum(int(line[1]) << 10 for line in lines)


def timed(work: Callable[[], object]) -> float:
    """Returns how many seconds a call takes."""
    start = time.monotonic()
    work()
    return time.monotonic() - start
