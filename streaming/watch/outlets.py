"""Where a run's figures go: a file, the log, TensorBoard."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Protocol

import tensorflow as tf

logger = logging.getLogger(__name__)

_TENSORBOARD_SECONDS = 10.0
_IDLE_SECONDS = 5.0
LOSS = "train/loss"


class Outlet(Protocol):
    """Takes all figures of a moment."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Takes figures by name, `area/noun[_unit]` or `area/noun/topic`, at a step."""

    def close(self) -> None:
        """Ends it; figures written so far are kept."""


class JsonLines:
    """Appends one JSON object per moment to a file; few while nothing is learned."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)
        self._written = -_IDLE_SECONDS

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        now = time.monotonic()
        if LOSS not in figures and now - self._written < _IDLE_SECONDS:
            return
        self._written = now
        self._file.write(json.dumps({"time": time.time(), "step": step} | dict(figures)) + "\n")

    def close(self) -> None:
        self._file.close()


class Lines:
    """Logs one line per moment in which something was learned."""

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        if LOSS in figures:
            logger.info(
                "step %d  samples %d  loss %.4f  %.0f samples/s  %d records to go",
                step,
                figures["stream/samples"],
                figures[LOSS],
                figures["stream/samples_per_second"],
                figures["stream/records_remaining"],
            )

    def close(self) -> None:
        pass


class TensorBoard:
    """Writes event files, a point every few seconds.

    Not by `tf.summary`: its writer is a resource of the context that it was made in, and that ends
    when the coordinator connects to its cluster.
    """

    def __init__(self, directory: Path) -> None:
        with tf.Graph().as_default():  # which this writer wants, and does nothing with
            self._writer = tf.compat.v1.summary.FileWriter(str(directory))
        self._written = -_TENSORBOARD_SECONDS
        # What `tf.summary.scalar` writes, which would want the package tensorboard beside it.
        data = tf.compat.v1.SummaryMetadata.PluginData(plugin_name="scalars")
        self._scalar = tf.compat.v1.SummaryMetadata(
            plugin_data=data, data_class="DATA_CLASS_SCALAR"
        )

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        now = time.monotonic()
        if LOSS not in figures or now - self._written < _TENSORBOARD_SECONDS:
            return
        self._written = now
        points = [
            tf.compat.v1.Summary.Value(
                tag=name, tensor=tf.make_tensor_proto(value, tf.float32), metadata=self._scalar
            )
            for name, value in figures.items()
        ]
        with self._failing_as_files_do():
            self._writer.add_summary(tf.compat.v1.Summary(value=points), step)
            self._writer.flush()

    def close(self) -> None:
        with self._failing_as_files_do():
            self._writer.close()

    @contextlib.contextmanager
    def _failing_as_files_do(self) -> Iterator[None]:
        """Turns what the writer's thread met, such as a full disk, into an OSError."""
        try:
            yield
        except (RuntimeError, LookupError, ValueError) as error:
            self._writer.reopen()  # or it would take everything from now on, and write nothing
            raise OSError(str(error)) from error
