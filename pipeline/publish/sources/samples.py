"""Sample files, as `headrace samples` wrote them, to rows of partitions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest import SampleFile, read_manifest, sample_files
from pipeline.publish.config import PublishConfig
from pipeline.publish.sources.order import EventTimeOrder, merged_steps
from pipeline.publish.sources.rows import PARTITION, Piece, Pieces, Prepared
from pipeline.schema import TIMESTAMP_MS, InputError, conform


class SampleFiles:
    """The samples of a folder, as a `Source`.

    Those of part p go to partition p modulo the number of partitions: a part has all samples of its
    users. In the order of files (by day, then by part) each user's samples are in that of time; in
    the order of time all of a partition are.
    """

    def __init__(self, config: PublishConfig, schema: pa.Schema, partitions: int) -> None:
        """Lists the files that the folder shows now.

        Args:
            config: Names `directory`, kind and days, and says whether samples come in the order of
                time or in that of their files.
            schema: Columns of a sample; others in the files are not sent.
            partitions: Of the topic.

        Raises:
            InputError: If there is no whole run, or none of these days in it, or no column to order
                by.
        """
        by_time, folder = config.speed is not None, config.directory
        if folder is None:
            raise ValueError("publish.directory: found none; expected samples")
        if by_time and TIMESTAMP_MS not in schema.names:
            raise InputError(
                f"publish.speed: found samples without {TIMESTAMP_MS}; expected samples with times"
            )
        # The run that the link shows now, so that files and digests are of one.
        run = folder.resolve() if folder.exists() else folder
        first, last = map(str, config.days or ("", "9999"))
        found = [f for f in sample_files(run, config.kind) if first <= f.day <= last]
        if config.days is not None and not found:
            raise InputError(
                f"publish.days: found no sample of {first} to {last} in {folder}; expected days"
                " that `headrace samples` has built"
            )
        self._files = sorted(found, key=lambda file: (file.day, file.part))
        self.inputs = {
            file.path: file.sha256[:16]
            for file in read_manifest(run).files
            if file.kind == config.kind and first <= file.day <= last
        }
        self.schema = schema
        self._partitions = partitions
        self._rows = config.samples_per_record
        self._order = EventTimeOrder() if by_time else None

    def prepare(self, sent: Sequence[int], told: Callable[[int], None]) -> Prepared:
        """Sorts, if samples go by time; in the order of files, those that were sent stay closed."""
        rows = sum(file.rows for file in self._files)
        days = sorted({file.day for file in self._files})
        if self._order is not None:
            for file in self._files:
                for table in self._tables(file):
                    numbers = np.full(table.num_rows, self._number(file), np.int32)
                    self._order.add(table.append_column(PARTITION, pa.array(numbers)))
                    told(self._order.rows)
            first_ms = self._order.finish()
            return Prepared(rows, sent, merged_steps(self._order), days, first_ms)
        skip, begun = list(sent), set[int]()
        files = []
        for file in self._files:
            number = self._number(file)
            if number not in begun and file.rows <= skip[number]:
                skip[number] -= file.rows
            else:
                begun.add(number)
                files.append(file)
        return Prepared(rows, skip, self._steps(files), days)

    def close(self) -> None:
        """Removes the sorted copy, if there is one."""
        if self._order is not None:
            self._order.close()

    def _steps(self, files: Sequence[SampleFile]) -> Iterator[Pieces]:
        for file in files:
            for table in self._tables(file):
                yield Pieces([Piece(self._number(file), table)])

    def _number(self, file: SampleFile) -> int:
        return file.part % self._partitions

    def _tables(self, file: SampleFile) -> Iterator[pa.Table]:
        try:
            with pq.ParquetFile(file.path) as parquet:
                for batch in parquet.iter_batches(batch_size=self._rows):
                    table = pa.Table.from_batches([batch])
                    yield conform(table, self.schema, where=str(file.path))
        except (pa.ArrowException, OSError) as error:
            cause = " ".join(str(error).split())
            raise InputError(
                f"{file.path}: found a file that is not readable ({cause}); expected a whole"
                " Parquet file: write the samples again with `headrace samples`"
            ) from error
