"""Reading a range inside a worker, and how a graph on the worker reaches Python there.

A scheduled function's `tf.py_function` runs in the *coordinator's* process. The raw `PyFunc` op
instead looks its token up where it executes, in a registry that TensorFlow keeps private. This
module is the only one that touches it; `whereabouts` is the self-test by which the coordinator sees
at start that scheduled functions reach Python in the workers, not in itself.
"""

from __future__ import annotations

import enum
import hashlib
import json
import logging
import threading
import time
import uuid
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from tensorflow.python.ops import script_ops

from models.contract import FeatureValue, Input
from models.features import column_arrays, feature_value
from pipeline.schema import TIMESTAMP_MS, InputError
from streaming.config import StreamConfig, TrainConfig
from streaming.servers.order import independent
from streaming.source import (
    Partition,
    Range,
    Reject,
    Source,
    SourceUnavailableError,
)
from streaming.worker.dead_letters import DeadLetters

logger = logging.getLogger(__name__)

_READ_TOKEN = "headrace.read_range"
_WHERE_TOKEN = "headrace.whereabouts"
COORDINATOR = b"coordinator"
COUNTS = ("status", "samples", "rejects", "lost", "first_ms", "last_ms", "ahead")
_AHEAD = COUNTS.index("ahead")
NO_TIME = -1
_TELL_SECONDS = 10.0


class Status(enum.IntEnum):
    """How a read ended; anything but OK means that nothing may be learned from it."""

    OK = 0
    UNAVAILABLE = 1
    BAD_INPUT = 2
    FAILED = 3


class _Read(NamedTuple):
    """A range as it was read: what the graph is given, and the rejects, which are not kept yet."""

    columns: list[np.ndarray]
    rejects: Sequence[Reject] = ()


class RangeReader:
    """Reads ranges in a worker: never raises, since an error in a closure ends the whole run.

    A read ahead of the next range overlaps with training on this one, if the next one fits into
    `read_ahead_bytes`: by the largest record so far it is judged before it is read, and by its own
    size afterwards. Samples are shuffled by a seed made from the range, so a retry sees the same
    order. Rejected records are kept before the range counts, and not before it is asked for: what
    is read ahead may be learned elsewhere.
    """

    def __init__(
        self,
        source: Source,
        inputs: Sequence[Input],
        *,
        dead_letters: DeadLetters,
        stream: StreamConfig | None = None,
        seed: int = 0,
    ) -> None:
        self._source = source
        self._inputs = list(inputs)
        self._dead_letters = dead_letters
        self._stream = stream or StreamConfig()
        self._seed = seed
        self._last_bytes = 0
        self._bytes_per_record = 0.0
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-ahead")
        self._ahead: tuple[Range, Future[_Read | None]] | None = None
        self._lock = threading.Lock()
        self._name = ""
        self._untold, self._told = 0, -_TELL_SECONDS
        self._latest: tuple[Range, Reject] | None = None

    def register(self, run: str, *, name: str | None = None) -> None:
        """Makes this reader reachable from graphs that run in this process.

        Args:
            run: Name of the run that this worker belongs to, as `run_name` gives it.
            name: The worker's own name in it, or a new one; its ranges' reports carry it.
        """
        # Not the process id: in its own container every process has the id 1.
        self._name = name or uuid.uuid4().hex
        whole = f"{run}/{self._name}".encode()
        _register({_READ_TOKEN: self._read_for_graph, _WHERE_TOKEN: lambda: whole})

    def _read_for_graph(self, topics: np.ndarray, numbers: np.ndarray) -> list[np.ndarray]:
        number, start, end, next_number, next_start, next_end = (int(n) for n in numbers)
        wanted = Range(Partition(topics[0].decode(), number), start, end)
        likely = Range(Partition(topics[1].decode(), next_number), next_start, next_end)
        if start == end and next_start == next_end:  # a place of the flight that was left empty
            return self._nothing(Status.OK, self._name)
        with self._lock:
            columns = self._take(wanted)
            expected = (next_end - next_start) * self._bytes_per_record
            if next_end > next_start and expected <= self._stream.read_ahead_bytes:
                self._ahead = (likely, self._pool.submit(self._read_if_small, likely))
        return columns

    def _take(self, wanted: Range) -> list[np.ndarray]:
        ahead, self._ahead = self._ahead, None
        found = None
        if ahead is not None and ahead[0] == wanted:
            found = ahead[1].result()
        elif ahead is not None:
            ahead[1].cancel()
        hit = found is not None
        # The pool has one thread, as source and dead letters may have one user at a time.
        if found is None:
            found = self._pool.submit(self._read, wanted).result()
        columns = found.columns
        if found.rejects:
            columns = self._pool.submit(self._kept, wanted, found).result()
        self._tell()
        columns[0][_AHEAD] = hit
        return columns

    def _read_if_small(self, likely: Range) -> _Read | None:
        found = self._read(likely)
        return found if self._last_bytes <= self._stream.read_ahead_bytes else None

    def _kept(self, wanted: Range, found: _Read) -> list[np.ndarray]:
        """Returns the columns once the rejects are kept."""
        try:
            self._dead_letters.write(wanted, found.rejects)
        except Exception as error:  # noqa: BLE001 - it is told by a status
            return self._nothing(*_failure(wanted, error))
        self._untold += len(found.rejects)
        self._latest = (wanted, found.rejects[-1])
        return found.columns

    def _tell(self) -> None:
        """Logs rejects, the first at once, then how many more: all are in the dead letters."""
        if self._latest is None or time.monotonic() - self._told < _TELL_SECONDS:
            return
        wanted, reject = self._latest
        logger.warning(
            "rejected %d records, the latest of %s: offset %d, %s: %s",
            self._untold,
            wanted,
            reject.offset,
            reject.reason,
            reject.detail,
        )
        self._untold, self._latest, self._told = 0, None, time.monotonic()

    def _read(self, wanted: Range) -> _Read:
        """Reads [counts, detail] and the columns, flat, in the order of the inputs."""
        try:
            result = self._source.read(wanted)
            order = shuffled(
                wanted,
                result.samples.num_rows,
                window=self._stream.shuffle_window,
                seed=self._seed,
            )
            columns = self._flatten(result.samples.take(pa.array(order)))
            self._measure(wanted, result.samples)
        except Exception as error:  # noqa: BLE001 - it is told by a status
            return _Read(self._nothing(*_failure(wanted, error)))
        counts = [int(Status.OK), result.samples.num_rows, len(result.rejects), result.lost]
        counts += [*_event_times(result.samples), 0]
        told = [np.array(counts, np.int64), np.array(self._name.encode(), object)]
        return _Read([*told, *columns], result.rejects)

    def _nothing(self, status: Status, detail: str) -> list[np.ndarray]:
        empty = pa.table({i.name: pa.array([], type=_arrow_type(i)) for i in self._inputs})
        counts = np.array([int(status), 0, 0, 0, NO_TIME, NO_TIME, 0], np.int64)
        return [counts, np.array(detail.encode(), object), *self._flatten(empty)]

    def _measure(self, wanted: Range, samples: pa.Table) -> None:
        self._last_bytes = sum(samples.column(column.name).nbytes for column in self._inputs)
        per_record = self._last_bytes / max(1, wanted.end - wanted.start)
        self._bytes_per_record = max(self._bytes_per_record, per_record)

    def _flatten(self, samples: pa.Table) -> list[np.ndarray]:
        return [
            array
            for column in self._inputs
            for array in column_arrays(samples.column(column.name), column)
        ]


def _failure(wanted: Range, error: Exception) -> tuple[Status, str]:
    """Returns what the coordinator is told of an error."""
    if isinstance(error, (SourceUnavailableError, OSError)):  # a shared volume may be away, too
        return Status.UNAVAILABLE, str(error)
    if isinstance(error, InputError):
        return Status.BAD_INPUT, str(error)
    logger.error("reading %s failed", wanted, exc_info=error)
    return Status.FAILED, f"{type(error).__name__}: {error}"


# TensorFlow's registry holds weak references only.
_REGISTERED: dict[str, Callable[..., Any]] = {}


def _register(functions: dict[str, Callable[..., Any]]) -> None:
    _REGISTERED.update(functions)
    script_ops._py_funcs._funcs.update(functions)


def register_function(token: str, function: Callable[..., Any]) -> None:
    """Makes a function reachable by `tf.raw_ops.PyFunc` from graphs that run in this process."""
    _register({token: function})


def run_name(config: TrainConfig, fingerprints: Mapping[str, str]) -> str:
    """Names a run by its configuration: workers of another one must not answer for it."""
    text = config.model_dump_json() + json.dumps(dict(fingerprints), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def register_coordinator() -> None:
    """Makes `whereabouts` say COORDINATOR where it runs in this process."""
    _register({_WHERE_TOKEN: lambda: COORDINATOR})


def whereabouts() -> tf.Tensor:
    """Returns the name of the process that runs this graph: the self-test of the registry."""
    (name,) = tf.raw_ops.PyFunc(input=[], token=_WHERE_TOKEN, Tout=[tf.string])
    return tf.ensure_shape(name, [])


def read_range(
    topics: tf.Tensor, numbers: tf.Tensor, inputs: Sequence[Input]
) -> tuple[tf.Tensor, tf.Tensor, dict[str, FeatureValue]]:
    """Reads a range where this graph runs.

    Args:
        topics: [2] string: topic of the range, and of the range that is likely to follow here.
        numbers: [6] int64: partition number, start and end of the range, and the same of the range
            that is likely to follow (start = end: none).
        inputs: The columns to read.

    Returns:
        counts ([7] int64, named by COUNTS; the times are those of the range's oldest and newest
        sample in milliseconds, or NO_TIME; `ahead` is 1 if it had been read ahead), detail (string
        scalar) and the features by name, raw.
    """
    types: list[tf.DType] = [tf.int64, tf.string]
    for column in inputs:
        types += [column.dtype, tf.int64] if column.ragged else [column.dtype]
    outputs = list(tf.raw_ops.PyFunc(input=[topics, numbers], token=_READ_TOKEN, Tout=types))
    independent(outputs[0])
    counts, detail = tf.ensure_shape(outputs[0], [len(COUNTS)]), tf.ensure_shape(outputs[1], [])
    rest = iter(outputs[2:])
    features: dict[str, FeatureValue] = {}
    for column in inputs:
        tensors = [next(rest) for _ in range(2 if column.ragged else 1)]
        features[column.name] = feature_value(tensors, column)
    return counts, detail, features


def shuffled(wanted: Range, num_samples: int, *, window: int, seed: int = 0) -> np.ndarray:
    """Returns [num_samples] int64 numbers of a range's samples in the order to learn them.

    Samples change places within blocks of `window` neighbours (0: none do), by a seed made from the
    run's and the range, so that a retry sees the same order.
    """
    numbers = np.arange(num_samples)
    if window == 0:
        return numbers
    # crc32, not hash(): the builtin differs from process to process.
    topic = zlib.crc32(wanted.partition.topic.encode())
    place = [topic, wanted.partition.number, wanted.start]
    generator = np.random.default_rng([*place, seed] if seed else place)
    starts = range(0, num_samples, window)
    blocks = [generator.permutation(numbers[at : at + window]) for at in starts]
    return np.concatenate(blocks) if blocks else numbers


def _event_times(samples: pa.Table) -> list[int]:
    """Returns the event times of the oldest and the newest sample, in milliseconds."""
    if TIMESTAMP_MS not in samples.column_names:
        return [NO_TIME, NO_TIME]
    found = pc.min_max(samples.column(TIMESTAMP_MS)).as_py()
    return [NO_TIME if time is None else time for time in (found["min"], found["max"])]


def _arrow_type(column: Input) -> pa.DataType:
    scalar = {tf.int64: pa.int64(), tf.string: pa.string(), tf.float32: pa.float32()}[column.dtype]
    return pa.list_(scalar) if column.ragged or column.size is not None else scalar
