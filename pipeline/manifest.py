"""What a folder of samples says of itself, and how to read it without mixing two runs.

A run writes to `OUTPUT.runs/RUN/` and becomes visible by one rename of the link `OUTPUT`. Nothing
is ever changed inside a finished run, so a reader that follows the link once, as the functions here
do, sees one run from beginning to end. The run before the current one is kept for such readers.

This module knows no Beam: trainers and publishers import it.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.schema import InputError

MANIFEST_NAME: Final = "manifest.json"
REJECTED_NAME: Final = "rejected"
FORMAT_VERSION: Final = 1

_REPAIR = "run `headrace samples` first, or point to the folder that it wrote"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputFile(_Entry):
    """An event log that went into a run."""

    path: str
    size_bytes: int
    sha256: str


class OutputFile(_Entry):
    """A sample file. Its rows are sorted by (timestamp_ms, event_id).

    Attributes:
        path: Relative to the manifest, `dt=YYYY-MM-DD/part-NNNNN.parquet`.
        day: UTC day of the samples' timestamps.
        part: Shard of the user id, below the manifest's `num_parts`.
        rows: Number of samples.
        sha256: Of the file's bytes.
    """

    path: str
    day: str
    part: Annotated[int, Field(ge=0)]
    rows: Annotated[int, Field(ge=0)]
    sha256: str


class Manifest(_Entry):
    """The account of a run. It is written last: where it is, the run is whole.

    Attributes:
        format_version: Of this file.
        sample_schema: Fingerprint of the sample files' Arrow schema.
        config: Fingerprint of the specification and of the settings that shape the samples.
        specification: Fingerprint of the specification alone.
        watermark_ms: Largest event time that was read, or None for no event.
        num_parts: Number of shards that users were cut into.
        counts: How many of what; see `pipeline.samples` for the names. They add up:
            events_read = events_accepted + duplicates + the sum of rejects, and
            events_accepted = impressions + the sum of outcomes.
        rejects: Rejected rows per reason.
        outcomes: Outcomes per fate.
        inputs: The logs that were read, by path.
        files: The sample files, by day and part.
    """

    format_version: Literal[1] = FORMAT_VERSION
    sample_schema: str
    config: str
    specification: str
    watermark_ms: int | None
    num_parts: int
    counts: dict[str, int]
    rejects: dict[str, int]
    outcomes: dict[str, int]
    inputs: list[InputFile]
    files: list[OutputFile]


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class SampleFile:
    """A sample file as readers meet it: its shard, its UTC day, where it is, how many rows."""

    part: int
    day: str
    path: Path
    rows: int


def read_manifest(folder: str | Path) -> Manifest:
    """Returns the manifest of a folder of samples.

    Raises:
        InputError: If there is none, or it is not one that this version writes.
    """
    return _read(_current(folder))


def sample_files(folder: str | Path) -> list[SampleFile]:
    """Returns the files of the run that `folder` shows now, by part, then by day.

    Their paths go past the link, so that a run that ends meanwhile does not change what they name.

    Raises:
        InputError: If there is no whole run, or one of its files is gone.
    """
    run = _current(folder)
    files = [
        SampleFile(part=entry.part, day=entry.day, path=run / entry.path, rows=entry.rows)
        for entry in _read(run).files
    ]
    missing = [str(file.path) for file in files if not file.path.is_file()]
    if missing:
        raise InputError(
            f"{folder}: found no file {missing[0]} ({len(missing)} of {len(files)} files are"
            f" missing); expected all files of {MANIFEST_NAME}; run `headrace samples` again"
        )
    return sorted(files)


def _current(folder: str | Path) -> Path:
    path = Path(folder)
    if not path.is_dir():
        raise InputError(f"{folder}: found no such folder; expected a folder of samples: {_REPAIR}")
    return path.resolve()


def _read(run: Path) -> Manifest:
    path = run / MANIFEST_NAME
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(
            f"{run}: found no {MANIFEST_NAME}, so no whole run; expected a folder of samples:"
            f" {_REPAIR}"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise InputError(
            f"{path}: {where}: {first['msg']}; expected a manifest of format {FORMAT_VERSION};"
            " run `headrace samples` again"
        ) from error
