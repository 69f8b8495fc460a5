"""Ranges of numbers: a source that has them, and a flight of one of them."""

from __future__ import annotations

import pyarrow as pa

from streaming.source import Range, ReadResult, Reject

import tensorflow as tf  # isort: skip

from streaming.worker.step import Report


class NumberSource:
    """A record is a sample of eight bytes, or several: item id n at offset n, time 10 n.

    `read` may be told to fail.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.rejects: list[Reject] = []
        self.reads: list[Range] = []
        self.samples_per_record = 1

    def read(self, wanted: Range) -> ReadResult:
        self.reads.append(wanted)
        if self.error is not None:
            raise self.error
        offsets = [
            offset
            for offset in range(wanted.start, wanted.end)
            for _ in range(self.samples_per_record)
        ]
        numbers = pa.array(offsets, pa.int64())
        times = pa.array([10 * offset for offset in reversed(offsets)], pa.int64())
        return ReadResult(pa.table({"item_id": numbers, "timestamp_ms": times}), self.rejects, 0)


def run(function, *, slot: int, sequence: int, start: int, end: int) -> Report:
    """Has a range function learn one range, with no hint what comes after it."""
    report = function(
        tf.constant([[slot, sequence]], tf.int64),
        tf.constant([["numbers", "numbers"]]),
        tf.constant([[0, start, end, 0, 0, 0]], tf.int64),
    )
    return Report(*[values[0] for values in report])
