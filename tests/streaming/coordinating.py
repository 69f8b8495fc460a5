"""A run whose whole cluster is this process, for tests of what the coordinator decides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from streaming.checkpoints.store import load_checkpoint
from streaming.cluster import Topology
from streaming.config import TrainConfig
from streaming.source import Partition, Range, ReadResult, Reject, SourceUnavailableError
from streaming.worker.dead_letters import DeadLetterFiles
from streaming.worker.reader import RangeReader, run_name

import tensorflow as tf  # isort: skip

from streaming.coordinator import Coordinator
from tests.streaming.counting.model import CountingModel

SAMPLES = 400
A, B = Partition("numbers", 0), Partition("numbers", 1)


class OneProcess(Topology):
    """Two parameter servers and two workers, all of them here."""

    __slots__ = ()

    @property
    def ps_devices(self) -> list[str]:
        return ["/device:CPU:0"] * 2


# One range a call, so that tests can say which; and every mini-batch counts in full.
_ONE_BY_ONE = {"flight": 1, "merge": {"rule": "sum"}}

TOPOLOGY = OneProcess("here:0", ("here:1", "here:2"), ("here:3", "here:4"))


class Call:
    def __init__(self, call: Callable) -> None:
        self.call = call

    def fetch(self):
        return tf.nest.map_structure(lambda tensor: tensor.numpy(), self.call())


class HereCluster:
    """Runs what is scheduled where it is fetched. `fates` may put something between."""

    def __init__(self) -> None:
        self.fates: list[Callable] = []  # each takes the place of one call, and is given it

    def schedule(self, function, args=()):
        call = lambda: function(*args)  # noqa: E731
        if args and self.fates:
            fate = self.fates.pop(0)
            return Call(lambda: fate(call))
        return Call(call)


class NumberSource:
    """Two partitions; A has the even numbers and B the odd ones, one a record."""

    def __init__(self, ends: dict[Partition, int] | None = None) -> None:
        self.ends = ends or {A: SAMPLES // 2, B: SAMPLES // 2}
        self.rejected: set[int] = set()
        self.topic_id = "id-1"
        self.away = False

    def partitions(self):
        return list(self.ends)

    def start_offsets(self):
        return dict.fromkeys(self.ends, 0)

    def end_offsets(self):
        self._answer()
        return dict(self.ends)

    def _answer(self):
        if self.away:
            raise SourceUnavailableError("no broker")

    def identity(self, offsets):
        self._answer()
        return {"numbers": self.topic_id}

    def read(self, wanted: Range) -> ReadResult:
        self._answer()
        offsets = [o for o in range(wanted.start, wanted.end) if o not in self.rejected]
        numbers = [2 * offset + wanted.partition.number for offset in offsets]
        rejects = [
            Reject(o, "undecodable", "noise", b"")
            for o in range(wanted.start, wanted.end)
            if o in self.rejected
        ]
        return ReadResult(pa.table({"item_id": pa.array(numbers, pa.int64())}), rejects, 0)

    def saved(self, offsets):
        pass

    def close(self) -> None:
        pass


class Run:
    """A run in a folder, on a cluster that lives here."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.source = NumberSource()
        self.cluster = HereCluster()
        self.workers_run = ""

    def coordinator(self, **settings: object) -> Coordinator:
        config = TrainConfig(
            directory=str(self.folder),
            source={"archive": {"directory": "not-used"}},
            **{
                "batch_size": 5,
                "batches_per_range": 4,
                "watch": {"stall_seconds": 120.0},
            }
            | settings
            | {"cluster": _ONE_BY_ONE | settings.get("cluster", {})},
        )
        model = CountingModel(SAMPLES)
        fingerprints = {"specification": "s", "model": "m"}
        run = self.workers_run or run_name(config, fingerprints)
        RangeReader(
            self.source, model.inputs, dead_letters=DeadLetterFiles(self.folder / "dead")
        ).register(run)
        return Coordinator(
            model,
            self.source,
            config=config,
            topology=TOPOLOGY,
            fingerprints=fingerprints,
            connect_to=lambda _: self.cluster,
        )

    def counters(self) -> np.ndarray:
        return load_checkpoint(self.folder / "checkpoints").parameters["counter"][:, 0]


def lost(_):
    raise tf.errors.UnavailableError(None, None, "the worker is gone")


def lost_after(call):
    call()
    raise tf.errors.AbortedError(None, None, "the worker was started again")
