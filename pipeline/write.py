"""A run's files, and the one rename that makes them the output.

    OUTPUT            a link to the current run
    OUTPUT.runs/      run-00001/, run-00002/, ... : KIND/dt=YYYY-MM-DD/part-NNNNN.parquet, facts/,
                      rejected/, manifest.json last; and the lock of the run that is being written

A run that builds some days only shares the files of the others with the run before it (hard links),
so that all of it appears by one rename.

A run that is interrupted, or that fails, has changed nothing that a reader sees; the next run
removes what it left. The manifest is written when all other files are on the disk, so a power cut
leaves the former run or the new one, whole. Running again makes a new run with the same files and
replaces the old one.
Everything here works on a file system that all of the runner's workers share.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import durable
from pipeline import schema as s
from pipeline.days import MS_PER_DAY, name_of
from pipeline.manifest import (
    MANIFEST_NAME,
    Manifest,
    OutputFile,
)

_RUN_NAME = re.compile(r"run-(\d{5,})")
_PARQUET: Final[dict[str, Any]] = {
    "compression": "zstd",
    "compression_level": 1,
    # A checksum of each page, which `streaming.sources.archive` compares when it decodes one.
    "write_page_checksum": True,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """A run that is being written, by this process and its workers only.

    Attributes:
        output: The link that readers follow.
        folder: Where this run's files go.
    """

    output: Path
    folder: Path

    @property
    def former(self) -> Path | None:
        """The run that readers see now, which this one replaces; None for the first."""
        return self.output.resolve() if self.output.is_symlink() else None

    @property
    def scratch(self) -> Path:
        """A folder for what this run needs while it is made."""
        return self.folder.with_name(f"{self.folder.name}.scratch")

    def share(self, paths: Iterable[str]) -> None:
        """Takes over files of the former run as they are, without writing them again.

        Args:
            paths: Relative to the run's folder.
        """
        if self.former is None:
            raise ValueError("there is no former run")
        for name in paths:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                path.hardlink_to(self.former / name)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.former / name, path)
                durable.sync(path)

    def commit(self, manifest: Manifest) -> None:
        """Writes the manifest and makes this run the output, in one rename.

        The former run stays until the next one starts, for readers that are in the middle of it.
        """
        # The files' content was synced by who wrote it, in parallel; here, once, their names.
        for folder in [*self.folder.rglob("*/"), self.folder]:
            durable.sync(folder)
        durable.write(self.folder / MANIFEST_NAME, manifest.model_dump_json(indent=2) + "\n")
        link = self.folder.parent / f"link-{uuid.uuid4().hex}"
        # Relative, so that the output can be moved together with its runs.
        link.symlink_to(Path(self.folder.parent.name) / self.folder.name)
        durable.sync(self.folder.parent)  # before the output names what is in it
        link.replace(self.output)
        durable.sync(self.output.parent)


@contextlib.contextmanager
def open_run(output: Path) -> Iterator[Run]:
    """Starts a run beside the current one, alone; removes what interrupted runs have left.

    Raises:
        InputError: If `output` is a folder that is not ours, or another run is writing to it.
    """
    output = output.absolute()  # workers may stand in another folder
    _check_output(output)
    runs = output.with_name(f"{output.name}.runs")
    runs.mkdir(parents=True, exist_ok=True)
    refusal = (
        f"{output}: found another run that is writing there; expected to be the only one: wait for"
        " it, or give another samples.output"
    )
    with durable.locked(runs / "lock", refusal=refusal):
        current = output.resolve().name if output.is_symlink() else ""
        numbers = _clean(runs, current)
        folder = runs / f"run-{max(numbers, default=0) + 1:05d}"
        folder.mkdir()
        if output.exists() and not output.is_symlink():
            output.rmdir()
        yield Run(output, folder)


def _check_output(output: Path) -> None:
    if output.is_symlink() or not output.exists():
        return
    if not output.is_dir() or any(output.iterdir()):
        raise s.InputError(
            f"{output}: found a file or folder that `headrace samples` did not write; expected"
            " nothing, an empty folder, or the link of a former run: move it away"
        )


def _clean(runs: Path, current: str) -> list[int]:
    """Removes all runs but the current one; returns the numbers that were in use."""
    numbers = []
    for path in runs.iterdir():
        match = _RUN_NAME.fullmatch(path.name)
        if match:
            numbers.append(int(match[1]))
            if path.name != current:
                shutil.rmtree(path)
        elif path.name.startswith("link-"):
            path.unlink()
        elif path.name.endswith(".scratch"):
            shutil.rmtree(path)
    return numbers


def by_day(samples: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Yields each UTC day and its rows, of samples in the order of time."""
    days = samples[s.TIMESTAMP_MS].to_numpy() // MS_PER_DAY
    starts = np.flatnonzero(np.diff(days, prepend=-1))
    ends = np.append(starts, len(days))[1:]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        yield int(days[start]), samples.slice(start, end - start)


def slices_by_day(slices: Iterable[pa.Table]) -> Iterator[tuple[int, Iterator[pa.Table]]]:
    """Yields each UTC day and its slices, one after another; each has rows of one day."""
    yield from itertools.groupby(
        slices, lambda rows: int(rows[s.TIMESTAMP_MS][0].as_py() // MS_PER_DAY)
    )


def write_slices(
    folder: Path, kind: str, day: int, part: int, slices: Iterable[pa.Table]
) -> OutputFile:
    """Writes one file of rows that come a slice at a time, each a row group; see `write_day`."""
    path = day_path(kind, day, part)
    (folder / path).parent.mkdir(parents=True, exist_ok=True)
    with durable.replacing(folder / path) as sink:
        num_rows = write_groups(sink, slices, **_PARQUET)
    with (folder / path).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return OutputFile(
        path=path, kind=kind, day=name_of(day), part=part, rows=num_rows, sha256=digest
    )


def write_groups(sink: BinaryIO, tables: Iterable[pa.Table], **options: Any) -> int:
    """Writes at least one table as Parquet, each as a row group, and returns how many rows."""
    num_rows, writer = 0, None
    for table in tables:
        if writer is None:
            writer = pq.ParquetWriter(sink, table.schema, **options)
        writer.write_table(table, row_group_size=table.num_rows)
        num_rows += table.num_rows
    if writer is not None:
        writer.close()
    return num_rows


def day_path(kind: str, day: int, part: int) -> str:
    """Returns where the file of a kind, a day and a part stands in a run's folder."""
    return f"{kind}/dt={name_of(day)}/part-{part:05d}.parquet"


def write_day(folder: Path, kind: str, day: int, part: int, rows: pa.Table) -> OutputFile:
    """Writes one file: rows of one kind, day and part.

    Its name depends on these alone and it appears by rename, so a bundle that a runner tries twice
    writes the same file twice.
    """
    name, path = name_of(day), day_path(kind, day, part)
    digest = _write_parquet(folder / path, rows)
    return OutputFile(path=path, kind=kind, day=name, part=part, rows=rows.num_rows, sha256=digest)


def _write_parquet(path: Path, table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    # Readers of ranges decode whole row groups: small ones keep that cheap and their caches useful.
    pq.write_table(table, sink, row_group_size=65_536, **_PARQUET)
    data = memoryview(sink.getvalue())
    path.parent.mkdir(parents=True, exist_ok=True)
    durable.write(path, data, sync_folder=False)  # `Run.commit` syncs the folders
    return hashlib.sha256(data).hexdigest()
