"""A process that works beside a run, such as the exporter: the run does not need it."""

from __future__ import annotations

import logging
import os
import subprocess
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from jobs.settings import EXIT_BAD_INPUT

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.2
_NICENESS = 5  # training comes first


class Companion:
    """Keeps a process alive inside a `with`; at its end, lets it finish what it is at.

    One that ends with 2 has said why, and stays away; otherwise it is started again.
    """

    def __init__(
        self, name: str, command: Sequence[str], *, delay: float = 5.0, grace: float = 120.0
    ) -> None:
        """Prepares a companion.

        Args:
            name: What to call it.
            command: What to run.
            delay: Seconds until it is started again.
            grace: Seconds from SIGTERM to SIGKILL.
        """
        self._name, self._command = name, list(command)
        self._delay, self._grace = delay, grace
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=name, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        self._thread.join()

    def _keep(self) -> None:
        environment = os.environ | {"HEADRACE_PARENT": str(os.getpid())}
        while not self._over.is_set():
            # A session of its own: Ctrl-C reaches the launcher alone.
            handle = subprocess.Popen(
                ["nice", "-n", str(_NICENESS), *self._command],
                env=environment,
                start_new_session=True,
            )
            logger.info("started the %s (process %d)", self._name, handle.pid)
            while handle.poll() is None and not self._over.wait(_POLL_SECONDS):
                pass
            if handle.poll() is None:
                self._end(handle)
                return
            if handle.returncode == EXIT_BAD_INPUT:
                logger.error("the %s ended with 2, and is not started again", self._name)
                return
            logger.warning("the %s ended with %d", self._name, handle.returncode)
            self._over.wait(self._delay)

    def _end(self, handle: subprocess.Popen[bytes]) -> None:
        handle.terminate()
        try:
            handle.wait(self._grace)
        except subprocess.TimeoutExpired:
            logger.warning("the %s did not end within %g s", self._name, self._grace)
            handle.kill()
            handle.wait()
