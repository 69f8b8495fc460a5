"""Sample files, read with partitions and offsets as if they were a stream."""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import itertools
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest import RETRIEVAL, OutputFile, read_manifest
from pipeline.schema import TIMESTAMP_MS, InputError, check_columns, conform
from streaming.source import Partition, Place, Range, ReadResult

TOPIC: Final = "archive"


class _GoneError(Exception):
    """A listed file is not there any more; the message is its path."""


@dataclasses.dataclass(frozen=True, slots=True)
class _File:
    """One part of one day.

    Attributes:
        path: Where it is.
        entry: What the manifest says of it.
        row_ends: For each row group, the number of the file's rows up to its end.
        newest_ms: The newest event time of each row group, None where its footer does not say.
        metadata: Its footer.
    """

    path: Path
    entry: OutputFile
    row_ends: tuple[int, ...]
    newest_ms: tuple[int | None, ...]
    metadata: pq.FileMetaData

    @property
    def rows(self) -> int:
        return self.entry.rows

    @property
    def name(self) -> str:
        return f"{self.entry.path} {self.entry.sha256}"

    @property
    def content(self) -> str:
        return f"{self.rows} {self.entry.sha256}"


@dataclasses.dataclass(frozen=True, slots=True)
class _Log:
    """One partition: its files in the order of time, and the rows up to the end of each."""

    files: tuple[_File, ...]
    row_ends: tuple[int, ...]

    @property
    def rows(self) -> int:
        return self.row_ends[-1]

    def files_before(self, offset: int) -> tuple[_File, ...]:
        """Returns the files that have a row before an offset; replays come back to all of them."""
        starts = (0, *self.row_ends[:-1])
        return tuple(f for f, start in zip(self.files, starts, strict=True) if start < offset)


class ArchiveSource:
    """Replays the output of `headrace samples` as partitions with offsets.

    Each part number is a partition of the topic `archive`; an offset is a row's number in the
    part's files, oldest day first. The whole is passed over `replays` times: the row of an offset
    is `offset % rows`, its replay `offset // rows`. Nothing is ever lost or rejected: a file is
    whole or an error.

    What may change: a later run may append days, which `end_offsets` then sees, while this process
    lives or later. With several replays, a new day would move the offsets of every later replay, so
    the files are listed once in a process's life. Files that were listed stay as they were listed:
    if a later run has others in their place, `end_offsets` refuses to go on, while reads of the
    listed ones go on as long as they are there (the run before the current one is kept). Whether
    the next life may go on with the changed archive is for `identity` to say: it may, if nothing
    changed before its offsets. It covers neither later files nor the number of replays, which may
    be raised to train on.

    So append days that are final. The newest day is final only when the join window after it has
    passed and was in the logs, too: until then, clicks after midnight change the samples of before.

    What is checked: that each file is there, is Parquet, and has the columns and the number of rows
    of its manifest; when a page is read, its checksum if it has one. The sha256 in the manifest is
    taken at its word, as what identifies a file: the bytes are not read for it.

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
        """Lists the files of the manifest and reads their footers.

        Raises:
            InputError: If there is no whole run, or one of its files is not readable.
            SchemaMismatchError: If a file lacks a column or has one of another type.
        """
        if replays < 1:
            raise InputError(f"replays: found {replays}; expected 1 or more")
        self._directory = Path(directory)
        self._schema = schema
        self._replays = replays
        self._groups = _RowGroupCache(schema, cache_bytes)
        self._opened: dict[tuple[Path, OutputFile], _File] = {}
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
        return {partition: self._rows(partition) for partition in self.partitions()}

    def offsets_at(self, time_ms: int) -> dict[Partition, Place]:
        """Returns the first row of `time_ms` or later, per partition that has one.

        The first replay is looked through: later ones go back in event time.
        """
        found = {p: self._first_at(log, time_ms) for p, log in self._logs.items()}
        return {partition: place for partition, place in found.items() if place is not None}

    def identity(self, offsets: Mapping[Partition, int]) -> dict[str, str]:
        """Returns a fingerprint of the rows before the offsets; days appended leave it the same."""
        lines = []
        for partition, offset in sorted(offsets.items()):
            if partition.topic == TOPIC and offset > 0:
                log = self._logs.get(partition)
                files = log.files_before(offset) if log else ()
                lines += [f"part {partition.number}", *(file.content for file in files)]
        return {TOPIC: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:32]}

    def read(self, wanted: Range) -> ReadResult:
        """Reads a range, whole.

        Raises:
            InputError: If the archive has no such rows, or a file is not readable any more.
        """
        log = self._log_with(wanted)
        try:
            pieces = list(self._pieces(log, wanted.start, wanted.end))
        except _GoneError:
            self._find_again()
            try:
                pieces = list(self._pieces(self._logs[wanted.partition], wanted.start, wanted.end))
            except _GoneError as error:
                raise InputError(
                    f"{error}: found no file any more, and no other of its name and sha256 in"
                    f" {self._directory}; expected each sample file for as long as it is read"
                ) from error
        samples = pa.concat_tables(pieces) if pieces else self._schema.empty_table()
        return ReadResult(samples=samples, rejects=(), lost=0)

    def saved(self, offsets: Mapping[Partition, int]) -> None:
        """Does nothing: nobody watches an archive's offsets."""

    def close(self) -> None:
        """Drops the decoded row groups."""
        self._groups.clear()

    def _first_at(self, log: _Log, time_ms: int) -> Place | None:
        before = 0
        for file in log.files:
            for group, newest in enumerate(file.newest_ms):
                if newest is None or newest >= time_ms:
                    times = self._groups.get(file, group).column(TIMESTAMP_MS).to_numpy()
                    late = np.flatnonzero(times >= time_ms)
                    if late.size:
                        first = file.row_ends[group - 1] if group else 0
                        return Place(before + first + int(late[0]), int(times[late[0]]))
            before += file.rows
        return None

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

    def _log_with(self, wanted: Range) -> _Log:
        """Returns the log that has all of a range's rows."""
        if self._rows(wanted.partition) < wanted.end:
            self._append_new_days()
        last = self._rows(wanted.partition)
        if not 0 <= wanted.start <= wanted.end <= last:
            raise InputError(
                f"{self._directory}: part {wanted.partition.number}: found offsets 0 to {last};"
                f" expected offsets {wanted.start} to {wanted.end}"
            )
        return self._logs[wanted.partition]

    def _rows(self, partition: Partition) -> int:
        """Returns the end offset: rows, all replays counted."""
        log = self._logs.get(partition)
        return 0 if log is None else log.rows * self._replays

    def _append_new_days(self) -> None:
        if self._replays == 1:
            self._list_again()

    def _list_again(self) -> None:
        logs = self._list_logs()
        for partition, log in self._logs.items():
            before = [file.name for file in log.files]
            now = [file.name for file in logs[partition].files] if partition in logs else []
            if now[: len(before)] != before:
                raise InputError(
                    f"{self._directory}: topic {TOPIC!r}, part {partition.number}: found other"
                    " files than those that were listed; expected new days only, after"
                    f" {log.files[-1].entry.path}, since offsets count rows from the oldest day:"
                    " append days that are final. Started again, training goes on if nothing"
                    " changed before its offsets"
                )
        self._logs = logs

    def _find_again(self) -> None:
        """Finds listed files that are gone in the current run, which replaced the listed one."""
        run = self._directory.resolve()
        entries = {(e.path, e.sha256): e for e in _listed(run)}

        def found(file: _File) -> _File:
            same = entries.get((file.entry.path, file.entry.sha256))
            return file if same is None or file.path.exists() else self._open(run, same)

        self._logs = {
            partition: dataclasses.replace(log, files=tuple(found(file) for file in log.files))
            for partition, log in self._logs.items()
        }

    def _list_logs(self) -> dict[Partition, _Log]:
        # Past the link, once: a run that ends meanwhile does not change what is read here.
        run = self._directory.resolve()
        numbered: dict[int, list[_File]] = {}
        for entry in sorted(_listed(run), key=lambda entry: entry.day):
            if entry.rows:
                numbered.setdefault(entry.part, []).append(self._open(run, entry))
        if not numbered:
            raise InputError(
                f"{self._directory}: found no samples; expected at least one: were all events"
                " rejected, or outside the labels of the specification?"
            )
        listed = itertools.chain.from_iterable(numbered.values())
        self._opened = {(file.path, file.entry): file for file in listed}  # forgets former runs'
        return {
            Partition(TOPIC, number): _Log(
                files=tuple(files),
                row_ends=tuple(itertools.accumulate(file.rows for file in files)),
            )
            for number, files in numbered.items()
        }

    def _open(self, run: Path, entry: OutputFile) -> _File:
        path = run / entry.path
        if (path, entry) not in self._opened:
            self._opened[path, entry] = _open_file(path, entry, self._schema)
        return self._opened[path, entry]


def _listed(run: Path) -> list[OutputFile]:
    return [entry for entry in read_manifest(run).files if entry.kind == RETRIEVAL]


def _open_file(path: Path, entry: OutputFile, schema: pa.Schema) -> _File:
    try:
        with pq.ParquetFile(path, memory_map=True) as parquet:
            metadata, found = parquet.metadata, parquet.schema_arrow
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    check_columns(found, schema, where=str(path))
    if metadata.num_rows != entry.rows:
        raise _unreadable(path, f"{metadata.num_rows} rows, not {entry.rows} as in its manifest")
    groups = range(metadata.num_row_groups)
    return _File(
        path,
        entry,
        row_ends=tuple(itertools.accumulate(metadata.row_group(g).num_rows for g in groups)),
        newest_ms=tuple(_newest_ms(metadata, group) for group in groups),
        metadata=metadata,
    )


def _newest_ms(metadata: pq.FileMetaData, group: int) -> int | None:
    """Returns the newest event time in a row group, or None if its footer does not say."""
    if TIMESTAMP_MS not in metadata.schema.names:
        return None
    column = metadata.schema.names.index(TIMESTAMP_MS)
    statistics = metadata.row_group(group).column(column).statistics
    return statistics.max if statistics is not None and statistics.has_min_max else None


class _RowGroupCache:
    """Decoded row groups, the last used kept, bounded in bytes (one group is always kept)."""

    def __init__(self, schema: pa.Schema, max_bytes: int) -> None:
        self._schema = schema
        self._max_bytes = max_bytes
        self._bytes = 0
        self._tables: OrderedDict[tuple[Path, str, int], pa.Table] = OrderedDict()

    def get(self, file: _File, group: int) -> pa.Table:
        """Returns a row group with the columns of the schema."""
        key = (file.path, file.entry.sha256, group)
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
            with pq.ParquetFile(
                file.path,
                metadata=file.metadata,
                memory_map=True,
                page_checksum_verification=True,
            ) as parquet:
                table = parquet.read_row_group(group, columns=self._schema.names)
        except FileNotFoundError as error:
            raise _GoneError(file.path) from error
        except (pa.ArrowException, OSError) as error:
            raise _unreadable(file.path, error) from error
        # One chunk per column, so that a range inside the group is a slice without copies.
        return conform(table, self._schema, where=str(file.path)).combine_chunks()


def _unreadable(path: Path, error: object) -> InputError:
    cause = " ".join(str(error).split())
    return InputError(
        f"{path}: found a file that is not readable ({cause}); expected a whole Parquet file:"
        " if it was cut or altered, write the samples again with `headrace samples`"
    )
