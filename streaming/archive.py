"""Sample files, read with partitions and offsets as if they were a stream."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.schema import InputError, check_columns, conform, schema_fingerprint
from streaming.source import Partition, Range, ReadResult

TOPIC: Final = "archive"
_PART_FILE: Final = re.compile(r"part-(\d+)\.parquet")
_FOOTER_TAIL: Final = 8  # A Parquet file ends with its footer, the footer's length and a magic.


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    """One part of one day.

    Attributes:
        path: Where it is.
        name: Its path below the archive: `dt=2026-01-31/part-00003.parquet`.
        row_ends: For each row group, the number of the file's rows up to its end.
        fingerprint: Hash of the footer, which has sizes, places and statistics of every column.
        metadata: The footer, parsed.
    """

    path: Path
    name: str
    row_ends: tuple[int, ...]
    fingerprint: str
    metadata: pq.FileMetaData

    @property
    def rows(self) -> int:
        return self.row_ends[-1] if self.row_ends else 0


@dataclasses.dataclass(frozen=True, slots=True)
class _Log:
    """One partition: its files in the order of time, and the rows up to the end of each."""

    files: tuple[_File, ...]
    row_ends: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.row_ends[-1]


class ArchiveSource:
    """Replays `DIR/dt=YYYY-MM-DD/part-NNNNN.parquet` as partitions with offsets.

    Each part number is a partition of the topic `archive`; an offset is a row's number in the
    part's files, oldest day first. The whole is passed over `replays` times: the row of an offset
    is `offset % rows`, its replay `offset // rows`. Nothing is ever lost or rejected: a file is
    whole or an error.

    Identity: with one replay, later days may be appended and are seen by `end_offsets`, so the
    identity covers the schema and the files of the oldest day. With several, a new day would move
    the offsets of every later replay, so the files are listed once and the identity covers them
    all. Neither covers the number of replays, which may be raised to train on.

    Memory: decoded row groups are kept, the last used first, up to `cache_bytes`.
    """

    def __init__(
        self,
        directory: str | Path,
        schema: pa.Schema,
        *,
        replays: int = 1,
        cache_bytes: int = 256 << 20,
    ) -> None:
        """Lists the files and reads their footers.

        Raises:
            InputError: If there are no sample files, or one is not readable.
            SchemaMismatchError: If a file lacks a column or has one of another type.
        """
        if replays < 1:
            raise InputError(f"replays: found {replays}; expected 1 or more")
        self._directory = Path(directory)
        self._schema = schema
        self._replays = replays
        self._groups = _RowGroupCache(schema, cache_bytes)
        self._known: dict[Path, _File] = {}
        self._logs = self._list_logs()

    def partitions(self) -> Sequence[Partition]:
        """Returns one partition per part number, in their order."""
        return sorted(self._logs)

    def start_offsets(self) -> dict[Partition, int]:
        """Returns 0 for each: an archive forgets nothing."""
        return dict.fromkeys(self.partitions(), 0)

    def end_offsets(self) -> dict[Partition, int]:
        """Returns the number of rows, all replays counted; days appended meanwhile are included."""
        self._append_new_days()
        return {
            partition: log.rows * self._replays for partition, log in sorted(self._logs.items())
        }

    def identity(self) -> dict[str, str]:
        """Returns a fingerprint of what the meaning of offsets rests on; see the class."""
        files = sorted(
            {file.name: file for log in self._logs.values() for file in log.files}.items()
        )
        if self._replays == 1:
            oldest = files[0][0].partition("/")[0]
            files = [(name, file) for name, file in files if name.startswith(f"{oldest}/")]
        lines = [schema_fingerprint(self._schema)]
        lines += [f"{name} {file.rows} {file.fingerprint}" for name, file in files]
        return {TOPIC: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]}

    def read(self, wanted: Range) -> ReadResult:
        """Reads a range, whole.

        Raises:
            InputError: If the archive has no such rows, or a file is not readable any more.
        """
        if wanted.partition not in self._logs or wanted.end > self._end(wanted.partition):
            self._append_new_days()
        log = self._logs.get(wanted.partition)
        if log is None or not 0 <= wanted.start <= wanted.end <= log.rows * self._replays:
            last = 0 if log is None else log.rows * self._replays
            raise InputError(
                f"{self._directory}: part {wanted.partition.number}: found offsets 0 to {last};"
                f" expected offsets {wanted.start} to {wanted.end}"
            )
        pieces = list(self._pieces(log, wanted.start, wanted.end))
        samples = pa.concat_tables(pieces) if pieces else self._schema.empty_table()
        return ReadResult(samples=samples, rejects=(), lost=0)

    def close(self) -> None:
        """Drops the decoded row groups."""
        self._groups.clear()

    def _pieces(self, log: _Log, start: int, end: int) -> Iterator[pa.Table]:
        """Yields the rows from `start` to `end`, one slice per row group."""
        offset = start
        while offset < end:
            row = offset % log.rows
            file_index = bisect.bisect_right(log.row_ends, row)
            file = log.files[file_index]
            row -= log.row_ends[file_index] - file.rows
            group = bisect.bisect_right(file.row_ends, row)
            length = min(file.row_ends[group] - row, end - offset)
            first = file.row_ends[group - 1] if group else 0
            yield self._groups.get(file, group).slice(row - first, length)
            offset += length

    def _end(self, partition: Partition) -> int:
        return self._logs[partition].rows * self._replays

    def _append_new_days(self) -> None:
        if self._replays > 1:
            return
        logs = self._list_logs()
        for partition, log in self._logs.items():
            before = tuple(file.name for file in log.files)
            now = tuple(file.name for file in logs[partition].files) if partition in logs else ()
            if now[: len(before)] != before:
                raise InputError(
                    f"{self._directory}: part {partition.number}: found the files {_short(now)};"
                    f" expected new days only after {before[-1]}, since offsets count rows from"
                    " the oldest day"
                )
        self._logs = logs

    def _list_logs(self) -> dict[Partition, _Log]:
        numbered: dict[int, list[_File]] = {}
        for path in sorted(self._directory.glob("dt=*/part-*.parquet")):
            match = _PART_FILE.fullmatch(path.name)
            if match is None:
                continue
            if path not in self._known:
                self._known[path] = self._open(path)
            if self._known[path].rows:
                numbered.setdefault(int(match[1]), []).append(self._known[path])
        if not numbered:
            raise InputError(
                f"{self._directory}: found no samples; expected dt=YYYY-MM-DD/part-NNNNN.parquet"
                " files, as `headrace samples` writes them"
            )
        return {
            Partition(TOPIC, number): _Log(
                files=tuple(files),
                row_ends=tuple(itertools.accumulate(file.rows for file in files)),
            )
            for number, files in numbered.items()
        }

    def _open(self, path: Path) -> _File:
        try:
            parquet = pq.ParquetFile(path, memory_map=True)
            footer_bytes = parquet.metadata.serialized_size + _FOOTER_TAIL
            with path.open("rb") as file:
                file.seek(-footer_bytes, 2)
                footer = file.read()
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(path, error) from error
        check_columns(parquet.schema_arrow, self._schema, where=str(path))
        groups = range(parquet.metadata.num_row_groups)
        rows = (parquet.metadata.row_group(group).num_rows for group in groups)
        return _File(
            path=path,
            name=path.relative_to(self._directory).as_posix(),
            row_ends=tuple(itertools.accumulate(rows)),
            fingerprint=hashlib.sha256(footer).hexdigest()[:16],
            metadata=parquet.metadata,
        )


class _RowGroupCache:
    """Decoded row groups, the last used kept, bounded in bytes (one group is always kept)."""

    def __init__(self, schema: pa.Schema, max_bytes: int) -> None:
        self._schema = schema
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tables: OrderedDict[tuple[Path, int], pa.Table] = OrderedDict()

    def get(self, file: _File, group: int) -> pa.Table:
        """Returns a row group with the columns of the schema."""
        key = (file.path, group)
        if key in self._tables:
            self._tables.move_to_end(key)
            return self._tables[key]
        table = self._decode(file, group)
        self._tables[key] = table
        self._bytes += table.nbytes
        while self._bytes > self._max_bytes and len(self._tables) > 1:
            self._bytes -= self._tables.popitem(last=False)[1].nbytes
        return table

    def clear(self) -> None:
        self._tables.clear()
        self._bytes = 0

    def _decode(self, file: _File, group: int) -> pa.Table:
        try:
            with pq.ParquetFile(file.path, metadata=file.metadata, memory_map=True) as parquet:
                table = parquet.read_row_group(group, columns=self._schema.names)
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file.path, error) from error
        # One chunk per column, so that a range inside the group is a slice without copies.
        return conform(table, self._schema, where=str(file.path)).combine_chunks()


def _unreadable(path: Path, error: Exception) -> InputError:
    cause = " ".join(str(error).split())
    return InputError(
        f"{path}: found a file that is not readable ({cause}); expected a whole Parquet file:"
        " if it was cut or altered, write the samples again with `headrace samples`"
    )


def _short(names: Iterable[str]) -> str:
    names = tuple(names)
    return ", ".join(names) if len(names) <= 4 else f"{names[0]}, ..., {names[-1]}"  # noqa: PLR2004
