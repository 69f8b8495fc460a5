"""The account of a build, in one manifest with those of the builds before it."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pipeline import schema as s
from pipeline.checks.days import PROFILES
from pipeline.checks.drift import Finding
from pipeline.days import MS_PER_DAY, Span, name_of, parse_day
from pipeline.events.rejects import SUFFIX, name_of_rejects
from pipeline.kinds.registry import wanted
from pipeline.manifest import (
    FACTS,
    NEWEST,
    REJECTED_NAME,
    Build,
    Day,
    Manifest,
    OutputFile,
    Report,
)
from pipeline.specification import Specification
from pipeline.write import Run

_PACKAGES: Final = ("headrace", "apache-beam", "pyarrow", "polars", "numpy")


def account(
    report: Report,
    specification: Specification,
    *,
    span: Span,
    former: Manifest | None,
    config: str,
    num_parts: int,
) -> Manifest:
    """Returns the manifest of the days that are built now, and of those that stay.

    Args:
        report: Of the build.
        specification: What samples are made of.
        span: What the build was to do.
        former: Of the days that were there.
        config: Fingerprint of all that shapes the samples.
        num_parts: Into how many parts users were cut.
    """
    builds = [] if former is None else former.builds
    number = max((build.number for build in builds), default=0) + 1
    built = built_days(report, span)
    days = [
        Day(
            day=day,
            build=number,
            complete=_is_complete(day, report, span.window_ms),
            counts=dict(report.days.get(day, {})) | _rows(report.files, day),
        )
        for day in built
    ]
    stay = [] if former is None else [day for day in former.days if day.day not in built]
    files = [] if former is None else [file for file in former.files if file.day not in built]
    numbers = {day.build for day in stay}
    kinds = wanted(specification).items()
    return Manifest(
        kinds={name: s.schema_fingerprint(kind.schema(specification)) for name, kind in kinds},
        config=config,
        specification=specification.fingerprint,
        num_parts=num_parts,
        days=sorted([*stay, *days], key=lambda day: day.day),
        builds=[
            *(build for build in builds if build.number in numbers),
            _build(report, number, span),
        ],
        files=sorted([*files, *report.files], key=lambda file: file.path),
    )


def _build(report: Report, number: int, span: Span) -> Build:
    return Build(
        number=number,
        days=str(span),
        watermark_ms=max(report.newest_ms, default=None),
        counts=dict(report.counts) | _rows(report.files),
        rejects=dict(report.rejects),
        outcomes=dict(report.outcomes),
        inputs=list(report.inputs),
        versions={name: _version(name) for name in _PACKAGES},
    )


def with_findings(manifest: Manifest, findings: Mapping[str, list[Finding]]) -> Manifest:
    """Returns the manifest with what was found of the days that are built."""
    days = [
        day.model_copy(update={"findings": findings.get(day.day, day.findings)})
        for day in manifest.days
    ]
    return manifest.model_copy(update={"days": days})


def built_days(report: Report, span: Span) -> set[str]:
    """Returns the days of a build; those without any event too, if they were asked for."""
    if span.first is None or span.last is None:
        return {*report.days, *(file.day for file in report.files)}
    return {name_of(day) for day in range(span.first, span.last + 1)}


def _is_complete(day: str, report: Report, window_ms: int) -> bool:
    """Says whether the logs go on beyond the last outcome of a day.

    By a hundredth as many events as the day has, or a thousand: the clocks of some are fast.
    """
    end = (parse_day(day, where="a day") + 1) * MS_PER_DAY
    beyond = sum(time >= end + window_ms for time in report.newest_ms)
    num_events = sum(report.days.get(day, {}).values())
    return beyond >= min(max(num_events // 100, 1), NEWEST)


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


def shared_files(
    run: Run, manifest: Manifest, former: Manifest, logs: Sequence[str]
) -> Iterator[str]:
    """Yields the files that a run shares with the one before it: those of days that stay.

    Rejects of logs that were not read now are among them, since days that stay were made of these.

    Args:
        run: The run that is made.
        manifest: Its account.
        former: The account of the run before it.
        logs: What was read now.
    """
    if run.former is None:
        return
    files = set(manifest.files)
    yield from (file.path for file in former.files if file in files)
    read = {name_of_rejects(path) for path in logs}
    for path in sorted((run.former / REJECTED_NAME).glob(f"*{SUFFIX}")):
        if path.name not in read:
            yield f"{REJECTED_NAME}/{path.name}"
    builds = {day.day: day.build for day in manifest.days}
    newest = max(builds.values(), default=0)
    for path in sorted((run.former / PROFILES).glob("*/dt=*.json")):
        if builds.get(path.stem.removeprefix("dt="), newest) != newest:
            yield str(path.relative_to(run.former))


def facts_for(
    run: Run, former: Manifest | None, span: Span, *, lookback_days: int | None
) -> dict[int, tuple[tuple[str, str], ...]]:
    """Returns (kind, path) of the facts of the days that a build looks back to, by part."""
    if former is None or run.former is None or span.first is None:
        return {}
    oldest = "" if lookback_days is None else name_of(span.first - lookback_days)
    facts: dict[int, tuple[tuple[str, str], ...]] = {}
    for file in former.files:
        if file.kind.startswith(FACTS) and oldest <= file.day < name_of(span.first):
            found = (file.kind, str(run.former / file.path))
            facts[file.part] = (*facts.get(file.part, ()), found)
    return facts
