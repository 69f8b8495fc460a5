"""Network namespaces that stand in for hosts: each has an address, and no other way out.

They meet in one more namespace with a bridge; nothing of the machine's own network is touched.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

_NAME = re.compile(r"headrace-(\d+)-\w+")


class CannotMakeHostsError(Exception):
    """Why not."""


def _ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotMakeHostsError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def _remove(name: str) -> None:
    """Ends what runs in a namespace, which its maker has started, and removes it."""
    for pid in _ip("netns", "pids", name).split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    _ip("netns", "del", name)


def _remove_left_over() -> None:
    """Removes namespaces whose maker was killed."""
    for line in _ip("netns", "list").splitlines():
        match = _NAME.match(line)
        if match and not Path(f"/proc/{match[1]}").exists():
            _remove(match[0])


@contextlib.contextmanager
def hosts(number: int) -> Iterator[list[tuple[str, str]]]:
    """Gives (namespace, address) of each host.

    Raises:
        CannotMakeHostsError: Without iproute2 or the right to make namespaces.
    """
    if shutil.which("ip") is None:
        raise CannotMakeHostsError("found no program `ip`; expected iproute2")
    _remove_left_over()
    prefix = f"headrace-{os.getpid()}"
    switch = f"{prefix}-switch"
    with contextlib.ExitStack() as cleanup:
        _ip("netns", "add", switch)
        cleanup.callback(_remove, switch)
        _ip("-n", switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", switch, "link", "set", "bridge", "up")
        made = []
        for each in range(number):
            name, address = f"{prefix}-host{each}", f"10.77.0.{each + 1}"
            _ip("netns", "add", name)
            cleanup.callback(_remove, name)
            cable = ["link", "add", "eth0", "type", "veth", "peer", f"port{each}", "netns", switch]
            _ip("-n", name, *cable)
            _ip("-n", switch, "link", "set", f"port{each}", "master", "bridge", "up")
            _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            made.append((name, address))
        yield made


def on(host: str, command: Sequence[str]) -> list[str]:
    """Returns the command that runs on a host."""
    return ["ip", "netns", "exec", host, *command]
