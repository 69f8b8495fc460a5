"""All processes of a training run on this machine, restarted when they die, as Kubernetes would."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from types import FrameType

from jobs.settings import EXIT_BAD_INPUT, EXIT_DONE, EXIT_RETRY
from streaming.cluster import Topology, free_addresses
from streaming.config import ClusterConfig

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_GRACE_SECONDS = 60.0
_RESTARTS_WITHOUT_PROGRESS = 5
_HEALTHY_SECONDS = 30.0


@dataclasses.dataclass(slots=True)
class _Process:
    """One process of the run and what it is."""

    role: str
    index: int
    handle: subprocess.Popen[bytes]

    @property
    def name(self) -> str:
        return f"{self.role} {self.index} (process {self.handle.pid})"


class LocalCluster:
    """Runs `headrace train` in every role, here.

    A worker that dies is started again under its address. When the coordinator ends with anything
    but 0 or 2, everything is started again, and the coordinator resumes from its checkpoint; a lost
    parameter server makes it end so.
    """

    def __init__(self, command: Sequence[str], config: ClusterConfig) -> None:
        """Prepares a cluster.

        Args:
            command: What every process runs, to which its role and all addresses are added.
            config: How many processes.
        """
        self._command = list(command)
        addresses = list(free_addresses(1 + config.workers + config.parameter_servers))
        self._topology = Topology(
            addresses[0],
            tuple(addresses[1 : 1 + config.workers]),
            tuple(addresses[1 + config.workers :]),
        )
        self._servers: list[_Process] = []
        self._coordinator: _Process | None = None
        self._terminated = threading.Event()

    def run(self) -> int:
        """Runs to the coordinator's end and returns its exit code: 0, 2, or 75 after giving up."""
        previous = signal.signal(signal.SIGTERM, self._on_terminate)
        failures = 0
        try:
            while True:
                started = time.monotonic()
                code = self._one_life()
                if code in (EXIT_DONE, EXIT_BAD_INPUT):
                    return code
                healthy = time.monotonic() - started > _HEALTHY_SECONDS
                failures = 1 if healthy else failures + 1
                if self._terminated.is_set() or failures > _RESTARTS_WITHOUT_PROGRESS:
                    return EXIT_RETRY
                logger.warning("the coordinator ended with %d; everything is started again", code)
        finally:
            self._stop_all()
            signal.signal(signal.SIGTERM, previous)

    def _one_life(self) -> int:
        self._stop_all()
        roles = [("ps", len(self._topology.ps)), ("worker", len(self._topology.workers))]
        self._servers = [
            self._start(role, index) for role, count in roles for index in range(count)
        ]
        self._coordinator = self._start("coordinator", 0)
        while (code := self._coordinator.handle.poll()) is None:
            for position, server in enumerate(self._servers):
                ended = server.handle.poll()
                if ended == EXIT_BAD_INPUT:  # it has said why; a new one would say the same
                    return EXIT_BAD_INPUT
                if ended is not None:
                    logger.warning("%s ended with %d; it is started again", server.name, ended)
                    self._servers[position] = self._start(server.role, server.index)
            time.sleep(_POLL_SECONDS)
        return code

    def _start(self, role: str, index: int) -> _Process:
        command = [*self._command, "--role", role, "--index", str(index)]
        command += ["--coordinator", self._topology.coordinator]
        command += ["--workers", ",".join(self._topology.workers)]
        command += ["--ps", ",".join(self._topology.ps)]
        environment = os.environ | {"HEADRACE_PARENT": str(os.getpid())}
        # Each process takes the whole machine for its own and starts a thread per core; sharing
        # the cores out instead is a tenth faster (headrace bench stream).
        share = max(1, (os.cpu_count() or 1) // len(self._topology.workers))
        environment.setdefault("TF_NUM_INTRAOP_THREADS", str(share))
        # A session of its own: Ctrl-C reaches the launcher alone, which drains the coordinator.
        handle = subprocess.Popen(command, env=environment, start_new_session=True)
        process = _Process(role, index, handle)
        logger.info("started %s", process.name)
        return process

    def _on_terminate(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._terminated.set()
        if self._coordinator is not None and self._coordinator.handle.poll() is None:
            self._coordinator.handle.terminate()

    def _stop_all(self) -> None:
        processes = [*self._servers, *([self._coordinator] if self._coordinator else [])]
        for process in processes:
            if process.handle.poll() is None:
                process.handle.terminate()
        deadline = time.monotonic() + _GRACE_SECONDS
        for process in processes:
            try:
                process.handle.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.handle.kill()
                process.handle.wait()
        self._servers, self._coordinator = [], None
