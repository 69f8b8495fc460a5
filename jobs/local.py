"""All processes of a training run on this machine, restarted when they die, as Kubernetes would."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from jobs.settings import EXIT_BAD_INPUT, EXIT_DONE, EXIT_RETRY
from streaming.cluster import Topology, free_addresses
from streaming.config import ClusterConfig

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_SIGNAL_EXIT = 128  # a shell's exit code of a process that died of signal n is 128 + n


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Patience:
    """When a run that does not get on is given up. Progress is a new checkpoint.

    Attributes:
        lives: Coordinators that failed without progress.
        deaths: Deaths of one server, each soon after its start, in one life without progress.
        start_seconds: A server that lived longer than this did not die at its start.
        first_delay: Seconds before the second restart (the first is at once); then it doubles.
        longest_delay: Seconds.
        grace: Seconds from SIGTERM to SIGKILL for the coordinator, which saves.
        server_grace: The same for servers, which have nothing to save. One that is frozen does not
            hear SIGTERM.
    """

    lives: int = 5
    deaths: int = 10
    start_seconds: float = 60.0
    first_delay: float = 0.5
    longest_delay: float = 10.0
    grace: float = 60.0
    server_grace: float = 3.0

    def delay(self, failures: int) -> float:
        """Returns the seconds to wait after this many failures in a row."""
        if failures <= 1:
            return 0.0
        return min(self.longest_delay, self.first_delay * 2.0 ** (failures - 2))


class _Failures:
    """Counts failures between which nothing was saved."""

    def __init__(self, checkpoints: Path | None) -> None:
        self._checkpoints = checkpoints
        self._newest = self._find()
        self._count = 0

    def add(self) -> int:
        """Counts one more, from 1 if there was a new checkpoint since the one before."""
        newest = self._find()
        if newest != self._newest:
            self.forget()
        self._newest = newest
        self._count += 1
        return self._count

    def forget(self) -> None:
        self._count = 0

    def _find(self) -> str:
        if self._checkpoints is None:
            return ""
        return max((path.name for path in self._checkpoints.glob("checkpoint-*")), default="")


@dataclasses.dataclass(slots=True)
class _Process:
    """One process of the run and what it is."""

    role: str
    index: int
    handle: subprocess.Popen[bytes]
    failures: _Failures
    started: float = dataclasses.field(default_factory=time.monotonic)
    restart_at: float | None = None
    replaced: bool = False  # one that died in this life of the coordinator

    @property
    def name(self) -> str:
        return f"{self.role} {self.index} (process {self.handle.pid})"


class _GivenUpError(Exception):
    """It would go on like this for ever."""


class LocalCluster:
    """Runs `headrace train` in every role, here.

    A server (worker or parameter server) that dies is started again under its address. When the
    coordinator ends with anything but 0 or 2, it is started again, and resumes from its checkpoint;
    a lost parameter server makes it end so. Its servers live on if it was killed, or if one of them
    died: then it is known what was wrong, and TensorFlow takes five processor seconds to start.
    They are started again, too, if it gave up itself, or failed twice without progress. SIGTERM and
    Ctrl-C are passed on to the coordinator, which drains and saves while its servers live on;
    Ctrl-C after that kills everything.
    """

    def __init__(
        self,
        command: Sequence[str],
        config: ClusterConfig,
        *,
        directory: str | Path | None = None,
        patience: Patience = Patience(),
    ) -> None:
        """Prepares a cluster.

        Args:
            command: What every process runs, to which its role and all addresses are added.
            config: How many processes.
            directory: `train.directory`, whose checkpoints show progress; without it, there is none
                that counts, and `patience` is for the whole run.
            patience: When to give up.
        """
        self._command = list(command)
        self._config = config
        self._topology = _choose_addresses(config)
        self._checkpoints = Path(directory) / "checkpoints" if directory is not None else None
        self._patience = patience
        self._servers: list[_Process] = []
        self._coordinator: _Process | None = None
        self._stopping = False
        self._killing = False
        self._idle = False  # whether the coordinator waits for a server that never came

    def run(self) -> int:
        """Runs to the coordinator's end; for the main thread, as it handles signals.

        Returns:
            The coordinator's exit code, which is 0, 2 (of any process), or what it ended with last
            when the run was given up or stopped: 75 for an outage; 128 + n for a signal n, which is
            130 after a second Ctrl-C.
        """
        numbers = (signal.SIGINT, signal.SIGTERM)
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            code = self._lives()
        except _GivenUpError as error:
            logger.error("given up: %s", error)  # noqa: TRY400 - its traceback says no more
            code = EXIT_RETRY
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        if self._killing and code != EXIT_DONE:
            return _SIGNAL_EXIT + signal.SIGINT
        return code if code >= 0 else _SIGNAL_EXIT - code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        # Only notes it: whatever is being started or stopped now is finished first.
        del frame
        self._killing = self._killing or (self._stopping and number == signal.SIGINT)
        self._stopping = True

    def _lives(self) -> int:
        code, failures = EXIT_DONE, _Failures(self._checkpoints)
        try:
            while not self._stopping:
                code = self._one_life()
                if code in (EXIT_DONE, EXIT_BAD_INPUT) or self._stopping:
                    break
                count = failures.add()
                if count >= self._patience.lives:
                    logger.error(
                        "given up: the coordinator failed %d times without progress", count
                    )
                    break
                self._make_ready(code, first=count == 1)
                self._pause(self._patience.delay(count))
        finally:
            self._stop_all()
        return code

    def _make_ready(self, code: int, *, first: bool) -> None:
        """Ends what cannot be used by the next life, after a coordinator that ended with a code."""
        for position, server in enumerate(self._servers):
            if (ended := server.handle.poll()) is not None and server.restart_at is None:
                self._servers[position] = self._revive(server, ended)
        known = code < 0 or any(s.role == "ps" and s.replaced for s in self._servers)
        what = "it is" if first and known else "everything is"
        logger.warning("the coordinator ended with %d; %s started again", code, what)
        if not (first and known):
            self._stop_all()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and not self._stopping:
            time.sleep(min(_POLL_SECONDS, seconds))

    def _one_life(self) -> int:
        if not self._servers:
            self._topology = _choose_addresses(self._config)  # the former ones may be taken by now
            roles = [("ps", len(self._topology.ps)), ("worker", len(self._topology.workers))]
            for role, count in roles:
                for index in range(count):
                    self._servers.append(self._start(role, index))
        for server in self._servers:
            server.replaced = False
        self._coordinator = self._start("coordinator", 0)
        return self._attend(self._coordinator)

    def _attend(self, coordinator: _Process) -> int:
        """Keeps the servers alive until the coordinator ends, and returns its exit code."""
        told = False
        while (code := coordinator.handle.poll()) is None:
            if self._killing:
                coordinator.handle.kill()
            elif self._stopping and not told:
                coordinator.handle.terminate()
                told = True
            for position, server in enumerate(self._servers):
                ended = server.handle.poll()
                if ended == EXIT_BAD_INPUT:  # it has said why; a new one would say the same
                    self._idle = not server.replaced
                    return EXIT_BAD_INPUT
                if ended is not None:
                    self._servers[position] = self._revive(server, ended)
            time.sleep(_POLL_SECONDS)
        if told and code == -signal.SIGTERM:
            return EXIT_DONE  # it had not begun: nothing to save
        return code

    def _revive(self, server: _Process, ended: int) -> _Process:
        """Returns the next process in a dead one's place, or the dead one until it is time."""
        now = time.monotonic()
        if server.restart_at is None:
            if now - server.started > self._patience.start_seconds:
                server.failures.forget()
            count = server.failures.add()
            if count >= self._patience.deaths:
                raise _GivenUpError(f"{server.name} ended with {ended}, {count} times at its start")
            delay = self._patience.delay(count)
            server.restart_at = now + delay
            when = f" in {delay:g} s" if delay else ""
            logger.warning("%s ended with %d; it is started again%s", server.name, ended, when)
        if now < server.restart_at:
            return server
        return self._start(server.role, server.index, failures=server.failures, replaced=True)

    def _start(
        self, role: str, index: int, *, failures: _Failures | None = None, replaced: bool = False
    ) -> _Process:
        command = [*self._command, "--role", role, "--index", str(index)]
        command += ["--coordinator", self._topology.coordinator]
        command += ["--workers", ",".join(self._topology.workers)]
        command += ["--ps", ",".join(self._topology.ps)]
        # Each child watches its parent: when the launcher is killed, none is left behind.
        environment = os.environ | {"HEADRACE_PARENT": str(os.getpid())}
        # Each process takes the whole machine for its own and starts a thread per core; sharing
        # the cores out was about a tenth faster with two workers on two cores.
        share = max(1, (os.cpu_count() or 1) // len(self._topology.workers))
        environment.setdefault("TF_NUM_INTRAOP_THREADS", str(share))
        # A session of its own: Ctrl-C reaches the launcher alone, which drains the coordinator.
        handle = subprocess.Popen(command, env=environment, start_new_session=True)
        failures = failures or _Failures(self._checkpoints)
        process = _Process(role, index, handle, failures, replaced=replaced)
        logger.info("started %s", process.name)
        return process

    def _stop_all(self) -> None:
        """Stops the coordinator, which may save yet, and only then what it saves from."""
        if self._coordinator is not None:
            # While it waits in TensorFlow for a server it has nothing to save, and hears no signal.
            grace = self._patience.server_grace if self._idle else self._patience.grace
            self._stop([self._coordinator], grace=grace)
        self._stop(self._servers, grace=self._patience.server_grace)
        self._servers, self._coordinator = [], None

    def _stop(self, processes: Sequence[_Process], *, grace: float) -> None:
        alive = [process.handle for process in processes if process.handle.poll() is None]
        for handle in alive:
            handle.terminate()
        deadline = time.monotonic() + grace
        while any(handle.poll() is None for handle in alive):
            if self._killing or time.monotonic() > deadline:
                for handle in alive:
                    handle.kill()
            time.sleep(_POLL_SECONDS / 10)
        for process in processes:
            process.handle.wait()


def _choose_addresses(config: ClusterConfig) -> Topology:
    addresses = free_addresses(1 + config.workers + config.parameter_servers)
    return Topology(
        addresses[0],
        tuple(addresses[1 : 1 + config.workers]),
        tuple(addresses[1 + config.workers :]),
    )
