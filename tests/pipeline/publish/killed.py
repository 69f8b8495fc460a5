"""A publisher in a process of its own, to be killed."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from typing import Any

# Imported once, by the server that the publishers are forked off: TensorFlow's and Beam's friends.
import pipeline.publish.sources.events
from pipeline.publish import Progress, PublishConfig, publish
from pipeline.publish.pacing import SystemClock
from tests.pipeline.publish.jobs import SCHEMA

_FASTER = 40

_ = pipeline.publish.sources.events


class FastClock(SystemClock):
    """Forty times as fast, so that transactions are short."""

    def now(self) -> float:
        return _FASTER * time.time()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds / _FASTER)


def publisher(settings: dict[str, Any]) -> tuple[ForkServerProcess, Connection]:
    """Starts to publish; the connection has a number for each record, and ends with the process."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(settings, there))
    process.start()
    there.close()
    return process, here


def _run(settings: dict[str, Any], told: Connection) -> None:
    def tell(now: Progress) -> None:
        if now.doing == "sending":
            told.send(now.records)
            time.sleep(0.002)

    publish(PublishConfig(**settings), SCHEMA, on_progress=tell, clock=FastClock())
