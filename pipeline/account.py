"""What the job is told: `SamplesConfig`; and the account that it leaves of a build."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline import schema as s
from pipeline.days import MS_PER_DAY, Span, name_of, parse_day
from pipeline.kinds.registry import wanted
from pipeline.manifest import FACTS, Build, Day, Manifest, OutputFile, Report
from pipeline.specification import Specification

_PACKAGES: Final = ("headrace", "apache-beam", "pyarrow", "polars", "numpy")


class SamplesConfig(BaseModel):
    """What to read, how to join, where to write."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    inputs: Annotated[list[str], Field(min_length=1)]
    """Event logs: files, folders or globs of .parquet, .jsonl and .jsonl.gz files. The workers of a
    runner on several machines need them, and `output`, under the same absolute paths."""
    output: Path
    """Where the samples appear: a link to the current run, beside `OUTPUT.runs/`."""
    users: list[str] = []
    """Parquet files of the users' table (`specification.users`): files, folders or globs."""
    items: list[str] = []
    """The same of the items' table."""
    join_window_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """An outcome counts up to this long after its impression."""
    orphans: Literal["drop", "keep"] = "drop"
    """An outcome without impression: dropped, or its own impression at its own time."""
    lookback_days: Annotated[int, Field(ge=1)] | None = None
    """Histories and statistics reach back so many days; all of them if nothing is said."""
    max_reject_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The run fails if more of the rows than this are rejected."""
    num_parts: Annotated[int, Field(ge=1, le=99_999)] = 8
    """Users are cut into so many parts; one part must fit in a worker's memory."""
    days_at_once: Annotated[int, Field(ge=1)] = 1
    """With a range: so many days are built, and become visible, together."""

    @property
    def window_ms(self) -> int:
        """The join window in milliseconds."""
        return round(self.join_window_seconds * 1000)

    def fingerprint(self, specification: Specification) -> str:
        """Returns 16 hexadecimal digits that name all that shapes the samples but the logs."""
        free = {"inputs", "output", "users", "items", "max_reject_share", "days_at_once"}
        shaping = self.model_dump_json(exclude=free)
        return hashlib.sha256(f"{shaping}{specification.fingerprint}".encode()).hexdigest()[:16]


def account(
    config: SamplesConfig,
    specification: Specification,
    report: Report,
    span: Span,
    former: Manifest | None,
) -> Manifest:
    """Returns the manifest of the days that are built now, and of those that stay."""
    builds = [] if former is None else former.builds
    number = max((build.number for build in builds), default=0) + 1
    built = _built_days(report, span)
    days = [
        Day(
            day=day,
            build=number,
            complete=_is_complete(day, report, config.window_ms),
            counts=dict(report.days.get(day, {})) | _rows(report.files, day),
        )
        for day in built
    ]
    stay = [] if former is None else [day for day in former.days if day.day not in built]
    files = [] if former is None else [file for file in former.files if file.day not in built]
    numbers = {day.build for day in stay}
    build = Build(
        number=number,
        days=str(span),
        watermark_ms=report.watermark_ms,
        counts=dict(report.counts) | _rows(report.files),
        rejects=dict(report.rejects),
        outcomes=dict(report.outcomes),
        inputs=list(report.inputs),
        versions={name: _version(name) for name in _PACKAGES},
    )
    kinds = wanted(specification).items()
    return Manifest(
        kinds={name: s.schema_fingerprint(kind.schema(specification)) for name, kind in kinds},
        config=config.fingerprint(specification),
        specification=specification.fingerprint,
        num_parts=config.num_parts,
        days=sorted([*stay, *days], key=lambda day: day.day),
        builds=[*(build for build in builds if build.number in numbers), build],
        files=sorted([*files, *report.files], key=lambda file: file.path),
    )


def _built_days(report: Report, span: Span) -> set[str]:
    if span.first is None or span.last is None:
        return {*report.days, *(file.day for file in report.files)}
    return {name_of(day) for day in range(span.first, span.last + 1)}


def _is_complete(day: str, report: Report, window_ms: int) -> bool:
    end = (parse_day(day, where="a day") + 1) * MS_PER_DAY
    return report.watermark_ms is not None and report.watermark_ms >= end + window_ms


def _rows(files: Sequence[OutputFile], day: str | None = None) -> dict[str, int]:
    """Returns the number of samples by kind."""
    rows: dict[str, int] = {}
    for file in files:
        if not file.kind.startswith(FACTS) and day in (None, file.day):
            rows[f"{file.kind} samples"] = rows.get(f"{file.kind} samples", 0) + file.rows
    return rows


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
