"""The processes of a training run: who they are, where they listen, and how a server serves.

Roles: `ps` (parameter servers), `worker` and `coordinator`, which TensorFlow calls `chief`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import json
import logging
import os
import random
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Final

from pipeline.schema import InputError

if TYPE_CHECKING:
    import tensorflow as tf

logger = logging.getLogger(__name__)

ROLES: Final = ("coordinator", "worker", "ps")
_TF_NAMES: Final = {"coordinator": "chief", "worker": "worker", "ps": "ps"}
_PORTS: Final = range(15_000, 32_000)
KEEP_ALIVE_SECONDS: Final = 60
_ORDINAL = re.compile(r"-(\d+)$")
_START_SECONDS = 120.0


@dataclasses.dataclass(frozen=True, slots=True)
class Topology:
    """The addresses (host:port) of all processes of a run, the same in each of them."""

    coordinator: str
    workers: tuple[str, ...]
    ps: tuple[str, ...]

    @property
    def jobs(self) -> dict[str, list[str]]:
        """The addresses under TensorFlow's names of the roles."""
        # The coordinator stands in it by its real address: workers on other hosts answer to it.
        return {"chief": [self.coordinator], "worker": list(self.workers), "ps": list(self.ps)}

    @property
    def ps_devices(self) -> list[str]:
        """One device per parameter server."""
        return [f"/job:ps/replica:0/task:{task}/device:CPU:0" for task in range(len(self.ps))]

    def address(self, role: str, index: int) -> str:
        """Returns where a process listens.

        Raises:
            InputError: If the topology has no such process.
        """
        addresses = self.jobs[_TF_NAMES[role]]
        if not 0 <= index < len(addresses):
            raise InputError(
                f"--index: found {index}; expected 0 to {len(addresses) - 1} for role {role}"
            )
        return addresses[index]


def topology_from_environment(environment: Mapping[str, str]) -> tuple[Topology, str, int]:
    """Reads TF_CONFIG, as Kubernetes operators and TensorFlow itself use it.

    Returns:
        The topology, and this process's role and index.

    Raises:
        InputError: If TF_CONFIG is missing or has another form.
    """
    if "TF_CONFIG" not in environment:
        raise InputError(
            "found none of --local, --role and TF_CONFIG; expected --local, which runs all"
            " processes on this machine; or, for one process of a cluster, --role with --ps,"
            " --workers and --coordinator, or TF_CONFIG"
        )
    try:
        stored = json.loads(environment["TF_CONFIG"])
        jobs, task = stored["cluster"], stored["task"]
        roles = {name: role for role, name in _TF_NAMES.items()}
        topology = Topology(jobs["chief"][0], tuple(jobs["worker"]), tuple(jobs["ps"]))
        return topology, roles[task["type"]], int(task["index"])
    except (KeyError, ValueError, IndexError, TypeError) as error:
        found = environment["TF_CONFIG"][:200]
        raise InputError(
            f"TF_CONFIG: found {found!r}; expected JSON with cluster.{{chief,worker,ps}} and"
            " task.{type,index}; or give --role, --ps, --workers and --coordinator"
        ) from error


def index_from_hostname(hostname: str) -> int:
    """Returns the ordinal of a StatefulSet's pod: 2 for `headrace-worker-2`, 0 without one."""
    match = _ORDINAL.search(hostname)
    return int(match.group(1)) if match else 0


@contextlib.contextmanager
def started_within(seconds: float = _START_SECONDS) -> Iterator[None]:
    """Ends this process with 1 and each thread's traceback if what is inside takes longer.

    A server was seen to hang at its start, when it came back after a kill. All others would wait
    for it for ever; who runs it starts it again.
    """
    stream = os.dup(2)  # which may lead elsewhere while TensorFlow is imported
    faulthandler.dump_traceback_later(seconds, exit=True, file=stream)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
        os.close(stream)


def serve(topology: Topology, role: str, index: int) -> int:
    """Runs a worker or a parameter server until SIGTERM.

    Returns:
        0, on SIGTERM: its work is elsewhere, in the checkpoint or in a retry.
    """
    import tensorflow as tf  # the launcher imports this module and must stay light

    with started_within():
        server = tf.distribute.Server(
            tf.train.ClusterSpec(topology.jobs),
            job_name=_TF_NAMES[role],
            task_index=index,
            protocol="grpc",
        )
    logger.info("%s %d serves at %s", role, index, topology.address(role, index))
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    stopped.wait()  # server.join() would never return
    del server
    os._exit(0)  # TensorFlow's server threads do not end by themselves


def connect(topology: Topology) -> tf.distribute.coordinator.ClusterCoordinator:
    """Connects this process, the coordinator, to its servers; waits until all of them answer.

    The servers drop what a coordinator put there some time after they last heard of it. By
    TensorFlow's default, ten minutes, several lives in a row would fill the servers' memory with
    their predecessors' variables.
    """
    import tensorflow as tf
    from tensorflow.python.eager import context

    context._KEEP_ALIVE_SECS = KEEP_ALIVE_SECONDS
    for call in (context.Context.set_server_def, context.Context.update_server_def):
        call.__defaults__ = (KEEP_ALIVE_SECONDS,)
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(topology.jobs), rpc_layer="grpc", task_type="chief", task_id=0
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    return tf.distribute.coordinator.ClusterCoordinator(strategy)


def free_addresses(count: int) -> list[str]:
    """Returns loopback addresses whose ports are free now.

    Not of the range from which the system takes ports for connections: between this call and the
    moment when a server listens lies the import of TensorFlow.
    """
    ports = random.sample(_PORTS, count * 8)
    free = [port for port in ports if _is_free(port)][:count]
    return [f"127.0.0.1:{port}" for port in free]


def _is_free(port: int) -> bool:
    with socket.socket() as tried:
        try:
            tried.bind(("", port))  # TensorFlow's servers listen on all interfaces
        except OSError:
            return False
    return True
