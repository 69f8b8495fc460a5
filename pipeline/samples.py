"""Logs to sample files: what the job is told, and what becomes of its result.

Without a range all days are built anew. With one, the days that are missing are built, some at
once, each build from the events of its own days and the facts of earlier ones; all other days stay
as they are, and each build becomes visible by one rename.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from pipeline import schema as s
from pipeline.account import account, built_days, facts_for, shared_files, with_findings
from pipeline.checks.days import check_days
from pipeline.checks.drift import Finding
from pipeline.days import (
    Span,
    files_for,
    missing_days,
    name_of,
    outdated_days,
    parse_day,
    runs_of,
)
from pipeline.events.read import find_files, plan_splits
from pipeline.events.repair import Repair, count_repaired, repair, repaired_files
from pipeline.events.validate import needed_types, required_columns
from pipeline.kinds.registry import wanted
from pipeline.kinds.scenario import NO_EXPOSURE
from pipeline.known.tables import find_tables
from pipeline.manifest import (
    REJECTED_NAME,
    Manifest,
    Report,
    read_manifest,
    require_good_input,
)
from pipeline.specification import Specification
from pipeline.write import Run, open_run

if TYPE_CHECKING:
    from apache_beam.options.pipeline_options import PipelineOptions

    from pipeline.build import Plan

logger = logging.getLogger(__name__)

_TOLD_FINDINGS: Final = 10


_YEAR_SECONDS: Final = 366 * 86_400


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
    join_window_seconds: Annotated[float, Field(gt=0, le=_YEAR_SECONDS)] = 3600.0
    """An outcome counts up to this long after its impression."""
    orphans: Literal["drop", "keep"] = "drop"
    """An outcome without impression: dropped, or its own impression at its own time."""
    lookback_days: Annotated[int, Field(ge=1, le=36_500)] | None = None
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


@dataclasses.dataclass(frozen=True, slots=True)
class DayRange:
    """The days that a user asks for, as YYYY-MM-DD, both inclusive.

    Attributes:
        first: The first day.
        last: The last day.
        rebuild: Whether days that are there are built again.
    """

    first: str
    last: str
    rebuild: bool = False


def make_samples(
    config: SamplesConfig,
    specification: Specification,
    options: PipelineOptions,
    *,
    days: DayRange | None = None,
    on_build: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Runs the pipeline and makes its result the output, whole or not at all.

    Args:
        config: What to read, how to join, where to write.
        specification: What samples are made of.
        options: Beam's, with the runner.
        days: What to build; without it, all that the logs have, anew.
        on_build: Called with the days of each build when it begins.

    Returns:
        The manifest of the run, which `config.output` shows from now on.

    Raises:
        InputError: If a file is wrong as a whole, too many rows are rejected, or `config.output`
            cannot be written. A former output is unchanged then.
    """
    _check_limits(specification)
    files = [*find_files(config.inputs), *map(str, repaired_files(config.output))]
    tables = find_tables(specification, users=config.users, items=config.items)
    if days is None:
        on_build("all days")
        span = Span(None, None, config.window_ms)
        return _build(config, specification, options, files=files, tables=tables, span=span)
    manifest = _former(config, specification)
    for first, last in _wanted_builds(config, manifest, days):
        span = Span(first, last, config.window_ms)
        on_build(str(span))
        manifest = _build(config, specification, options, files=files, tables=tables, span=span)
    if manifest is None:
        raise s.InputError(f"found no day from {days.first} to {days.last}; expected at least one")
    _tell_of_order(manifest, config)
    return manifest


def _tell_of_order(manifest: Manifest, config: SamplesConfig) -> None:
    """Warns of days that would be others if days were built in another order."""
    newest = max(day.day for day in manifest.days)
    early = sorted(day.day for day in manifest.days if not day.complete and day.day < newest)
    outdated = outdated_days(manifest, lookback_days=config.lookback_days)
    for days, what in (
        (outdated, "look back to a day that was built after them: build them again with --rebuild"),
        (
            early,
            "were built when their outcomes were not all there: build them again, and the days"
            " behind them with --rebuild",
        ),
    ):
        if days:
            logger.warning("%d days, %s to %s, %s", len(days), days[0], days[-1], what)


def _check_limits(specification: Specification) -> None:
    """Raises InputError for a limit of a column that no kind of samples has."""
    schemas = [kind.schema(specification) for kind in wanted(specification).values()]
    columns = sorted({name for schema in schemas for name in schema.names})
    if problems := specification.checks.problems(columns):
        raise s.InputError("\n".join(f"specification.{each}" for each in problems))


def repair_samples(
    config: SamplesConfig,
    specification: Specification,
    options: PipelineOptions,
    *,
    rejects: Path,
    on_build: Callable[[str], None] = lambda _: None,
) -> tuple[Repair, Manifest]:
    """Sends rejected rows through again, and builds the days again that they change.

    Args:
        config: What to read, how to join, where to write.
        specification: What samples are made of.
        options: Beam's, with the runner.
        rejects: A folder of rejected rows, repaired or not.
        on_build: Called with the days of each build when it begins.

    Returns:
        What became of the rows, and the manifest of the output.

    Raises:
        InputError: As `make_samples` does, and if there are no rejected rows.
    """
    repaired = repair(
        rejects,
        config.output,
        specification,
        window_ms=config.window_ms,
        outcomes_need_features=config.orphans == "keep",
    )
    manifest = read_manifest(config.output) if config.output.is_symlink() else None
    if manifest is None or manifest.config != config.fingerprint(specification):
        return repaired, make_samples(config, specification, options, on_build=on_build)
    there = {day.day for day in manifest.days}  # others have them when they are built
    for day in map(name_of, repaired.days):
        if day in there and not _knows_repairs(config, manifest, day):
            days = DayRange(day, day, rebuild=True)
            manifest = make_samples(config, specification, options, days=days, on_build=on_build)
    return repaired, manifest


def _knows_repairs(config: SamplesConfig, manifest: Manifest, day: str) -> bool:
    """Says whether a day was built from all repaired rows that there are."""
    number = parse_day(day, where="a day")
    span = Span(number, number, config.window_ms)
    wanted_files = files_for(map(str, repaired_files(config.output)), span)
    builds = {each.day: each.build for each in manifest.days}
    inputs = {
        file.path
        for build in manifest.builds
        if build.number == builds.get(day)
        for file in build.inputs
    }
    return inputs.issuperset(wanted_files)


def _former(config: SamplesConfig, specification: Specification) -> Manifest | None:
    """Returns the account of the days that are there.

    Raises:
        InputError: If they are samples of another kind, to which no day can be added.
    """
    if not config.output.is_symlink():
        return None
    manifest = read_manifest(config.output)
    if manifest.config != (wanted_config := config.fingerprint(specification)):
        raise s.InputError(
            f"{config.output}: found days of configuration {manifest.config}; expected"
            f" {wanted_config}: the specification, or a setting that shapes samples, has changed."
            " Build all days anew, without --from, or give another samples.output"
        )
    return manifest


def _wanted_builds(
    config: SamplesConfig, manifest: Manifest | None, days: DayRange
) -> list[tuple[int, int]]:
    first = parse_day(days.first, where="--from")
    last = parse_day(days.last, where="--to")
    if first > last:
        raise s.InputError(
            f"--to: found {days.last}, before --from; expected {days.first} or later"
        )
    chosen = range(first, last + 1) if days.rebuild else missing_days(manifest, first, last)
    if not chosen:
        logger.info("all days from %s to %s are there", days.first, days.last)
    if chosen and manifest is not None:
        known = [day.day for day in manifest.days]
        if known and name_of(first) > name_of(parse_day(known[-1], where="") + 1):
            logger.warning("the days between %s and %s were never built", known[-1], days.first)
    return runs_of(list(chosen), at_once=config.days_at_once)


def _build(
    config: SamplesConfig,
    specification: Specification,
    options: PipelineOptions,
    *,
    files: Sequence[str],
    tables: tuple[tuple[str, ...], tuple[str, ...]],
    span: Span,
) -> Manifest:
    # Not at the top: who reads the configuration alone, as the live join, need not wait for Beam.
    import apache_beam as beam

    from pipeline.build import BuildDays, Plan

    chosen = files_for(files, span)
    if not chosen:
        raise s.InputError(
            f"samples.inputs: found {len(files)} logs, none with events of {span}; expected at"
            " least one"
        )
    splits = plan_splits(chosen, needed_types(specification), required_columns(specification))
    logger.info("%s: %d log files, to read in %d pieces", span, len(chosen), len(splits))
    with open_run(config.output) as run:
        former = None if span.first is None else _former(config, specification)
        plan = Plan(
            folder=run.folder,
            scratch=run.scratch,
            files=chosen,
            specification=specification,
            span=span,
            window_ms=config.window_ms,
            orphans=config.orphans,
            num_parts=config.num_parts,
            lookback_days=config.lookback_days,
            users=tables[0],
            items=tables[1],
            facts=facts_for(run, former, span, lookback_days=config.lookback_days),
        )
        with beam.Pipeline(options=options) as root:
            # The one last step: DaskRunner computes what this depends on, nothing else.
            built = root | beam.Create(splits) | BuildDays(plan=plan)
            _ = built | "Save" >> beam.Map(_save, run.folder)
        shutil.rmtree(run.scratch, ignore_errors=True)
        return _publish(run, plan, config, former)


def _publish(run: Run, plan: Plan, config: SamplesConfig, former: Manifest | None) -> Manifest:
    """Makes a build the output, with the days that stay, if it is good."""
    report, specification = Report.take(run.folder), plan.specification
    require_good_input(
        report,
        max_reject_share=config.max_reject_share,
        rejected=run.folder / REJECTED_NAME,
        num_repaired=count_repaired(repaired_files(config.output), plan.files),
    )
    manifest = account(
        report,
        specification,
        span=plan.span,
        former=former,
        config=config.fingerprint(specification),
        num_parts=config.num_parts,
    )
    manifest = with_findings(manifest, _check(run, former, report, specification, plan.span))
    _require_samples(manifest, report)
    if former is not None:
        run.share(shared_files(run, manifest, former, plan.files))
    run.commit(manifest)
    return manifest


def _check(
    run: Run, former: Manifest | None, report: Report, specification: Specification, span: Span
) -> dict[str, list[Finding]]:
    """Compares the days that are built with those before them.

    Raises:
        InputError: If one differs by more than `specification.checks` lets pass.
    """
    built = sorted(built_days(report, span))
    findings = check_days(
        run.folder,
        None if former is None else run.former,
        specification,
        kinds=list(wanted(specification)),
        built=built,
        stay=[] if former is None else [day.day for day in former.days if day.day not in built],
    )
    every = [finding for day in built for finding in findings[day]]
    warned = [finding for finding in every if finding.severity == "warn"]
    # The newest day first: a build of many days ends with what matters now.
    for finding in sorted(warned, key=lambda each: each.day, reverse=True)[:_TOLD_FINDINGS]:
        logger.warning("%s", finding)
    if len(warned) > _TOLD_FINDINGS:
        more = len(warned) - _TOLD_FINDINGS
        logger.warning("and %d more: `headrace samples --report FILE` shows them all", more)
    failed = [str(finding) for finding in every if finding.severity == "fail"]
    if failed:
        lines = "\n".join(f"  {line}" for line in failed)
        raise s.InputError(
            f"specification.checks: found {len(failed)} differences from the days before that are"
            f" past their limit:\n{lines}\nexpected none: the former output is unchanged; what was"
            f" built is in {run.folder} until the next run"
        )
    return findings


def _require_samples(manifest: Manifest, report: Report) -> None:
    """Refuses to replace a former output by nothing."""
    # Scenario samples alone begin on the second day: the first has nothing to draw negatives from.
    waited = any(name.endswith(NO_EXPOSURE) for name in report.counts)
    if not waited and not any(file.kind in manifest.kinds for file in manifest.files):
        raise s.InputError(
            f"found no sample in {report.counts.get('events_read', 0)} events; expected at least"
            " one positive (see specification.labels): the former output, if any, is unchanged"
        )


def _save(report: Report, folder: Path) -> None:
    report.save(folder)
