"""A real Apache Kafka broker, on loopback, for one test run."""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.kafka.install import cache_directory, installed_jars, require_java
from tests.kafka.security import Certificates, listeners, scram_users

_LOG4J = Path(__file__).with_name("log4j2.properties")
_FAST_START = ("-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xms64m", "-Xmx384m")
_PR_SET_PDEATHSIG = 1

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
listeners={listeners},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners={listeners}
listener.security.protocol.map={protocols},CONTROLLER:PLAINTEXT
inter.broker.listener.name=BROKER
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:{controller_port}
log.dirs={data}
auto.create.topics.enable=false
offsets.topic.replication.factor=1
offsets.topic.num.partitions=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=1
group.initial.rebalance.delay.ms=0
# A restart after kill -9 waits for the old session to end: 4 s in all, not 12.
broker.session.timeout.ms=2000
broker.heartbeat.interval.ms=500
log.cleaner.backoff.ms=200
"""


class Broker:
    """One broker process with its data, on a port of 127.0.0.1 that it keeps over restarts.

    It ends with this process, however that ends. Its log is `broker.log` in its directory.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        java_options: Sequence[str] = (),
        certificates: Certificates | None = None,
    ) -> None:
        """Chooses ports; nothing runs yet.

        Args:
            directory: Where its data and its log are.
            port: Where it listens, on 127.0.0.1; None for any free port.
            java_options: Options of the process, instead of those for a fast start.
            certificates: With them it listens where `tests.kafka.security.listeners` says, too.

        Raises:
            KafkaMissingError: If Java or the jars are not there.
        """
        self._java, self._jars = require_java(), installed_jars()
        self._java_options = [*_FAST_START, *(java_options or _shared_classes())]
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._security, self._properties = listeners(certificates) if certificates else ({}, "")
        free, self._controller_port, *more = _free_ports(2 + len(self._security))
        self.port = port or free
        self._ports = {"BROKER": self.port} | dict(zip(self._security, more, strict=True))
        self.log = directory / "broker.log"

    @property
    def bootstrap(self) -> str:
        """The address for clients."""
        return self.address("BROKER")

    def address(self, listener: str) -> str:
        """Returns the address of a listener, by its name."""
        return f"127.0.0.1:{self._ports[listener]}"

    def start(self, *, timeout_seconds: float = 60) -> None:
        """Starts the broker, with the data it had, and waits until it serves."""
        properties = self._directory / "server.properties"
        if not properties.exists():
            self._format(properties)
        seen = self.log.stat().st_size if self.log.exists() else 0
        command = [*self._command("kafka.Kafka"), str(properties)]
        die_with_parent = functools.partial(_die_with, os.getpid())
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, preexec_fn=die_with_parent
            )
        atexit.register(self.kill)
        deadline = time.monotonic() + timeout_seconds
        while b"Kafka Server started" not in self.log.read_bytes()[seen:]:
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"the broker did not start:\n{self._log_tail()}")
            time.sleep(0.05)

    def stop(self, *, timeout_seconds: float = 20) -> None:
        """Stops the broker as an operator would."""
        self._end(signal.SIGTERM, timeout_seconds)

    def kill(self) -> None:
        """Ends the broker at once (kill -9)."""
        self._end(signal.SIGKILL, 20)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()

    def _end(self, number: signal.Signals, timeout_seconds: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        atexit.unregister(self.kill)
        process.send_signal(number)
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _format(self, properties: Path) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        protocols = {"BROKER": "PLAINTEXT"} | self._security
        filled = _PROPERTIES.format(
            listeners=",".join(f"{name}://{self.address(name)}" for name in self._ports),
            protocols=",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
            controller_port=self._controller_port,
            data=self._directory / "data",
        )
        properties.write_text(filled + self._properties)
        command = [*self._command("kafka.tools.StorageTool"), "format", "--standalone"]
        command += ["-t", str(uuid.uuid4()), "-c", str(properties)]
        command += scram_users() if self._security else []
        with self.log.open("ab") as log:
            done = subprocess.run(command, stdout=log, stderr=log, check=False)
        if done.returncode:
            properties.unlink()
            raise RuntimeError(f"the broker's storage was not formatted:\n{self._log_tail()}")

    def _command(self, main: str) -> list[str]:
        logging = f"-Dlog4j2.configurationFile={_LOG4J}"
        options = self._java_options if main == "kafka.Kafka" else _FAST_START
        return [self._java, *options, logging, "-cp", f"{self._jars}/*", main]

    def _log_tail(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-30:])


def _shared_classes() -> list[str]:
    archive = cache_directory() / "classes.jsa"
    return [f"-XX:SharedArchiveFile={archive}", "-Xshare:auto"] if archive.exists() else []


def is_free(port: int) -> bool:
    """Returns whether a broker could listen at a port of 127.0.0.1."""
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def _free_ports(count: int) -> list[int]:
    # Held open together, so that they differ.
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def _die_with(parent: int) -> None:
    """In the child: asks Linux to kill it when its parent is gone, so that none is left over."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # gone already
            os.kill(os.getpid(), signal.SIGKILL)
