"""What a run did, in counts that add up, and how to read its files without mixing two runs.

A run writes to `OUTPUT.runs/RUN/` and becomes visible by one rename of the link `OUTPUT`. Nothing
is ever changed inside a finished run, so a reader that follows the link once, as the functions here
do, sees one run from beginning to end. The run before the current one is kept for such readers.

This module knows no Beam: trainers and publishers import it.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.checks.drift import Finding
from pipeline.schema import InputError

MANIFEST_NAME: Final = "manifest.json"
REJECTED_NAME: Final = "rejected"
FORMAT_VERSION: Final = 2
RETRIEVAL: Final = "retrieval"
FACTS: Final = "facts/"
NEWEST: Final = 1000
"""So many of the newest event times are known to an account."""

_REPORT_NAME: Final = "report.json"
_MAX_REASONS = 20
_REPAIR = "run `headrace samples` first, or point to the folder that it wrote"


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class InputFile(_Entry):
    """An event log that went into a run."""

    path: str
    size_bytes: int
    sha256: str


class OutputFile(_Entry):
    """A file of a run. Samples in it are sorted by (timestamp_ms, event_id) where they have these.

    Attributes:
        path: Relative to the manifest, `KIND/dt=YYYY-MM-DD/part-NNNNN.parquet`.
        kind: The kind of sample, or `facts/...`: what later days look back to.
        day: UTC day of the samples' timestamps.
        part: Shard of the user id, of the item id for kinds of items, below `num_parts`.
        rows: Number of rows.
        sha256: Of the file's bytes.
    """

    path: str
    kind: str = RETRIEVAL
    day: str
    part: Annotated[int, Field(ge=0)]
    rows: Annotated[int, Field(ge=0)]
    sha256: str


class Day(_Entry):
    """A day that is built.

    Attributes:
        day: UTC day, YYYY-MM-DD.
        build: Number of the build that made it; a later one has a greater number.
        complete: Whether the logs reached far enough for all its outcomes.
        counts: Events of this day by what became of them, and rows by kind of sample.
        findings: What its samples differ in from the days before it.
    """

    day: str
    build: int
    complete: bool
    counts: dict[str, int]
    findings: list[Finding] = []


class Build(_Entry):
    """One pass over the logs, for some days.

    Attributes:
        number: Grows with each build of an output.
        days: The days, as a person writes them.
        watermark_ms: Largest event time that was read, or None for no event.
        counts: How many of what; see `pipeline.samples` for the names. They add up:
            events_read = events_accepted + duplicates + the sum of rejects, and
            events_accepted = impressions + the sum of outcomes + outside.
        rejects: Rejected rows per reason.
        outcomes: Outcomes per fate.
        inputs: The logs that were read, by path.
        versions: Of the packages that shape samples.
    """

    number: int
    days: str
    watermark_ms: int | None
    counts: dict[str, int]
    rejects: dict[str, int]
    outcomes: dict[str, int]
    inputs: list[InputFile]
    versions: dict[str, str] = {}


class Manifest(_Entry):
    """The account of a run. It is written last: where it is, the run is whole.

    Attributes:
        format_version: Of this file.
        kinds: Fingerprint of the Arrow schema of each kind of sample.
        config: Fingerprint of the specification and of the settings that shape the samples.
        specification: Fingerprint of the specification alone.
        num_parts: Number of shards that users, and items, were cut into.
        days: The days that are there, oldest first.
        builds: The builds that these days came from, oldest first.
        files: All files, by path.
    """

    format_version: Literal[2] = FORMAT_VERSION
    kinds: dict[str, str]
    config: str
    specification: str
    num_parts: int
    days: list[Day]
    builds: list[Build]
    files: list[OutputFile]

    @property
    def counts(self) -> dict[str, int]:
        """Counts of all builds together."""
        return _sum(build.counts for build in self.builds)

    @property
    def rejects(self) -> dict[str, int]:
        """Rejected rows per reason, of all builds together."""
        return _sum(build.rejects for build in self.builds)

    @property
    def outcomes(self) -> dict[str, int]:
        """Outcomes per fate, of all builds together."""
        return _sum(build.outcomes for build in self.builds)

    @property
    def inputs(self) -> list[InputFile]:
        """The logs that were read, by path; as the newest build saw them."""
        return sorted({f.path: f for b in self.builds for f in b.inputs}.values(), key=_path)

    @property
    def watermark_ms(self) -> int | None:
        """Largest event time that was read, or None for no event."""
        times = [build.watermark_ms for build in self.builds if build.watermark_ms is not None]
        return max(times, default=None)


def _path(file: InputFile) -> str:
    return file.path


class Report(_Entry):
    """Counts of a part of the work. The names are those of `Manifest`.

    Attributes:
        days: Counts that belong to a day.
        newest_ms: The largest event times, at most `NEWEST` of them, in no order.
        problems: Files that could not be read on, each with what was found and expected.
    """

    counts: Mapping[str, int] = {}
    rejects: Mapping[str, int] = {}
    outcomes: Mapping[str, int] = {}
    days: Mapping[str, Mapping[str, int]] = {}
    newest_ms: tuple[int, ...] = ()
    inputs: tuple[InputFile, ...] = ()
    files: tuple[OutputFile, ...] = ()
    problems: tuple[str, ...] = ()

    def save(self, folder: Path) -> None:
        """Leaves the report for the process that started the run: not every runner returns data."""
        aside = folder / f".{_REPORT_NAME}"
        aside.write_text(self.model_dump_json(), encoding="utf-8")
        aside.replace(folder / _REPORT_NAME)

    @classmethod
    def take(cls, folder: Path) -> Report:
        """Returns the saved report and removes its file."""
        path = folder / _REPORT_NAME
        report = cls.model_validate_json(path.read_bytes())
        path.unlink()
        return report


def merge_reports(reports: Iterable[Report]) -> Report:
    """Returns the sum of reports, with its lists sorted."""
    reports = list(reports)
    times = itertools.chain.from_iterable(report.newest_ms for report in reports)
    return Report(
        counts=_sum(report.counts for report in reports),
        rejects=_sum(report.rejects for report in reports),
        outcomes=_sum(report.outcomes for report in reports),
        days={
            day: _sum(report.days.get(day, {}) for report in reports)
            for day in sorted({day for report in reports for day in report.days})
        },
        newest_ms=tuple(heapq.nlargest(NEWEST, times)),
        inputs=tuple(sorted((f for r in reports for f in r.inputs), key=lambda f: f.path)),
        files=tuple(sorted((f for r in reports for f in r.files), key=lambda f: f.path)),
        problems=tuple(sorted({problem for r in reports for problem in r.problems})),
    )


def _sum(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: collections.Counter[str] = collections.Counter()
    for count in counts:
        total.update(count)
    return dict(sorted(total.items()))


def require_good_input(
    report: Report, *, max_reject_share: float, rejected: Path, num_repaired: int = 0
) -> None:
    """Lets a run pass only if its files were whole and few of its rows were rejected.

    Args:
        report: Of the whole run.
        max_reject_share: Largest part of the rows that may be rejected.
        rejected: Where the rejected rows were written, for the message.
        num_repaired: How many of the rejected rows came a second time, repaired.

    Raises:
        InputError: If not; with the reasons and how often each was found.
    """
    if report.problems:
        raise InputError("\n".join(report.problems))
    num_rows, num_rejects = report.counts.get("events_read", 0), sum(report.rejects.values())
    num_rejects -= min(num_repaired, num_rejects)
    if num_rejects <= max_reject_share * num_rows:
        return
    reasons = sorted(report.rejects.items(), key=lambda pair: (-pair[1], pair[0]))
    lines = [f"  {count:>12,}  {reason}" for reason, count in reasons[:_MAX_REASONS]]
    raise InputError(
        f"samples.max_reject_share: found {num_rejects:,} of {num_rows:,} rows rejected"
        f" ({num_rejects / num_rows:.2%}); expected at most {max_reject_share:.2%}:\n"
        + "\n".join(lines)
        + f"\nthe rows are in {rejected}; the former output is unchanged; repair `raw` in a copy"
        " and give that folder to --rejects, or raise the limit"
    )


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


def sample_files(folder: str | Path, kind: str = RETRIEVAL) -> list[SampleFile]:
    """Returns the files of one kind, of the run that `folder` shows now, by part, then by day.

    Their paths go past the link, so that a run that ends meanwhile does not change what they name.

    Raises:
        InputError: If there is no whole run, no such kind, or one of its files is gone.
    """
    run = _current(folder)
    manifest = _read(run)
    if kind not in manifest.kinds:
        raise InputError(
            f"{folder}: found samples of {', '.join(manifest.kinds)}; expected {kind}: declare it"
            " under specification.kinds, and run `headrace samples` again"
        )
    files = [
        SampleFile(part=entry.part, day=entry.day, path=run / entry.path, rows=entry.rows)
        for entry in manifest.files
        if entry.kind == kind
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
