"""One process of the cluster that `headrace bench stream` measures.

It differs from `headrace train` in its source alone: `BENCH_SOURCE=memory` serves the archive's
samples, decoded beforehand, out of this process's memory.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from jobs.main import run_job
from jobs.train import TrainingProcess, argument_parser, run_role
from streaming.source import Partition, Place, Range, ReadResult, Source
from streaming.sources.archive import ArchiveSource


class MemorySource:
    """An archive's samples in memory, whole: reading a range is a slice."""

    def __init__(self, archive: ArchiveSource) -> None:
        self._archive = archive
        self._tables = {
            partition: archive.read(Range(partition, 0, end)).samples.combine_chunks()
            for partition, end in archive.end_offsets().items()
        }

    def partitions(self) -> Sequence[Partition]:
        """See `Source`, as for the methods that follow."""
        return self._archive.partitions()

    def start_offsets(self) -> dict[Partition, int]:
        return self._archive.start_offsets()

    def end_offsets(self) -> dict[Partition, int]:
        return self._archive.end_offsets()

    def offsets_at(self, time_ms: int) -> dict[Partition, Place]:
        return self._archive.offsets_at(time_ms)

    def identity(self, offsets: Mapping[Partition, int]) -> dict[str, str]:
        return self._archive.identity(offsets)

    def read(self, wanted: Range) -> ReadResult:
        piece = self._tables[wanted.partition].slice(wanted.start, wanted.end - wanted.start)
        return ReadResult(piece, [], 0)

    def saved(self, offsets: Mapping[Partition, int]) -> None:
        """Nothing hears of it."""

    def close(self) -> None:
        self._tables.clear()


class BenchProcess(TrainingProcess):
    """A process that may read from memory."""

    def _source(self) -> Source:
        source = super()._source()
        if os.environ.get("BENCH_SOURCE") == "memory" and isinstance(source, ArchiveSource):
            return MemorySource(source)
        return source


def main() -> int:
    """Runs the role that the flags name."""
    return run_role(argument_parser().parse_args(), BenchProcess)


if __name__ == "__main__":
    sys.exit(run_job(lambda _: main()))
