"""The whole pipeline, logs to sample files: wiring only, and what the job configures.

It keeps to what Beam's runners agree on: one output per step, and the counts travel as data, so
that they are exact even where a runner repeats a bundle.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import apache_beam as beam
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.pvalue import PCollection
from pydantic import BaseModel, ConfigDict, Field

from pipeline import schema as s
from pipeline.events.json_lines import Reject
from pipeline.events.read import Split, find_files, fingerprint_file, plan_splits, read_split
from pipeline.events.validate import checks, count_reasons, needed_types, required_columns, validate
from pipeline.manifest import (
    REJECTED_NAME,
    Manifest,
    Report,
    merge_reports,
    require_good_input,
)
from pipeline.retrieval import UserPart, make_user_part
from pipeline.shuffle import CutByKey, Origin, Piece, join_pieces
from pipeline.specification import Specification
from pipeline.statistics import STATISTICS, AttachItemStatistics
from pipeline.write import open_run, write_part, write_rejects

logger = logging.getLogger(__name__)


class SamplesConfig(BaseModel):
    """What to read, how to join, where to write."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    inputs: Annotated[list[str], Field(min_length=1)]
    """Event logs: files, folders or globs of .parquet, .jsonl and .jsonl.gz files. The workers of a
    runner on several machines need them, and `output`, under the same absolute paths."""
    output: Path
    """Where the samples appear: a link to the current run, beside `OUTPUT.runs/`."""
    join_window_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """An outcome counts up to this long after its impression."""
    orphans: Literal["drop", "keep"] = "drop"
    """An outcome without impression: dropped, or its own impression at its own time."""
    max_reject_share: Annotated[float, Field(ge=0, le=1)] = 0.01
    """The run fails if more of the rows than this are rejected."""
    num_parts: Annotated[int, Field(ge=1, le=99_999)] = 8
    """Users are cut into so many parts; one part must fit in a worker's memory."""

    @property
    def window_ms(self) -> int:
        """The join window in milliseconds."""
        return round(self.join_window_seconds * 1000)

    def fingerprint(self, specification: Specification) -> str:
        """Returns 16 hexadecimal digits that name all that shapes the samples but the logs."""
        shaping = self.model_dump_json(exclude={"inputs", "output", "max_reject_share"})
        return hashlib.sha256(f"{shaping}{specification.fingerprint}".encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, slots=True)
class Validated:
    """A block of a file after validation.

    Attributes:
        origin: File, split and block number.
        events: The accepted rows.
        rejects: The others, by row in the block.
        num_lines: How many rows or lines of the file the block is, blank lines included.
        problem: Why the file could not be read on, or an empty string.
    """

    origin: Origin
    events: pa.Table
    rejects: list[Reject]
    num_lines: int
    problem: str = ""


class ReadAndValidate(beam.DoFn):
    """Splits to `Validated` blocks."""

    def __init__(self, specification: Specification, *, outcomes_need_features: bool) -> None:
        self._specification = specification
        self._outcomes_need_features = outcomes_need_features

    def setup(self) -> None:
        self._types = needed_types(self._specification)
        self._rules = checks(
            self._specification, outcomes_need_features=self._outcomes_need_features
        )

    def process(self, split: Split) -> Iterator[Validated]:
        block_number = 0
        try:
            for block in read_split(split, self._types):
                events, rejects = validate(block, self._rules)
                logger.info("%s, block %d.%d", split.path, split.number, block_number)
                Metrics.counter("ReadAndValidate", "accepted").inc(events.num_rows)
                Metrics.counter("ReadAndValidate", "rejected").inc(len(rejects))
                origin = (split.file_number, split.number, block_number)
                yield Validated(origin, events, rejects, block.num_lines)
                block_number += 1
        except s.InputError as error:
            # As data: what a runner makes of an exception is not portable.
            origin = (split.file_number, split.number, block_number)
            empty = s.arrow_schema(self._types).empty_table()
            yield Validated(origin, empty, [], 0, str(error))


@dataclasses.dataclass(kw_only=True)
class MakeSampleFiles(beam.PTransform):
    """Splits of event logs to sample files; gives one `Report` of all that was done."""

    files: list[str]
    folder: str
    config: SamplesConfig
    specification: Specification

    def expand(self, splits: PCollection) -> PCollection:
        needed = self.config.orphans == "keep"
        blocks = splits | "ReadAndValidate" >> beam.ParDo(
            ReadAndValidate(self.specification, outcomes_need_features=needed)
        )
        parts = (
            blocks
            | "Accepted" >> beam.Map(_accepted)
            | "ByUser" >> CutByKey(column=s.USER_ID, num_parts=self.config.num_parts)
            | "MakeUserParts" >> beam.MapTuple(self._make_part)
        )
        reports = [
            blocks | "CountBlocks" >> beam.Map(_report_block),
            self._reject(blocks),
            splits | "Inputs" >> beam.FlatMap(_report_input),
            parts | "CountParts" >> beam.MapTuple(_report_part),
            self._with_statistics(parts) | "WriteParts" >> beam.MapTuple(self._write_part),
        ]
        return (
            reports
            | "AllReports" >> beam.Flatten()
            | "OneKey" >> beam.Map(_with_one_key)
            | "Gather" >> beam.GroupByKey()
            | "Merge" >> beam.MapTuple(_merge_group)
        )

    def _reject(self, blocks: PCollection) -> PCollection:
        return (
            blocks
            | "Rejects" >> beam.Map(_rejects_by_file)
            | "ByFile" >> beam.GroupByKey()
            | "WriteRejects" >> beam.MapTuple(self._write_rejects)
        )

    def _with_statistics(self, parts: PCollection) -> PCollection:
        schema = self.specification.sample_schema
        if not set(STATISTICS) & set(schema.names):
            return parts | "Samples" >> beam.MapTuple(_samples_of)
        return parts | "ItemStatistics" >> AttachItemStatistics(
            schema=schema, num_parts=self.config.num_parts
        )

    def _make_part(self, part: int, pieces: Iterable[Piece]) -> tuple[int, UserPart]:
        config = self.config
        made = make_user_part(
            join_pieces(pieces),
            self.specification,
            window_ms=config.window_ms,
            orphans=config.orphans,
        )
        Metrics.counter("MakeUserParts", "samples").inc(made.samples.num_rows)
        logger.info("part %d of %d: %d samples", part, config.num_parts, made.samples.num_rows)
        return part, made

    def _write_part(self, part: int, samples: pa.Table) -> Report:
        return Report(files=tuple(write_part(Path(self.folder), part, samples)))

    def _write_rejects(
        self, file_number: int, blocks: Iterable[tuple[Origin, int, list[Reject]]]
    ) -> Report:
        ordered = [(num_lines, rejects) for _, num_lines, rejects in sorted(blocks, key=_origin)]
        write_rejects(Path(self.folder), file_number, self.files[file_number], ordered)
        return Report()


def _accepted(block: Validated) -> tuple[Origin, pa.Table]:
    return block.origin, block.events


def _rejects_by_file(block: Validated) -> tuple[int, tuple[Origin, int, list[Reject]]]:
    return block.origin[0], (block.origin, block.num_lines, block.rejects)


def _origin(element: tuple[Origin, int, list[Reject]]) -> Origin:
    return element[0]


def _report_block(block: Validated) -> Report:
    return Report(
        counts={"events_read": block.events.num_rows + len(block.rejects)},
        rejects=count_reasons(block.rejects),
        watermark_ms=pc.max(block.events[s.TIMESTAMP_MS]).as_py(),
        problems=(block.problem,) if block.problem else (),
    )


def _report_input(split: Split) -> Iterator[Report]:
    if split.number == 0:
        yield Report(inputs=(fingerprint_file(split.path),))


def _report_part(_: int, made: UserPart) -> Report:
    return Report(counts=made.counts, outcomes=made.outcomes)


def _samples_of(part: int, made: UserPart) -> tuple[int, pa.Table]:
    return part, made.samples


def _with_one_key(report: Report) -> tuple[int, Report]:
    return 0, report


def _merge_group(_: int, reports: Iterable[Report]) -> Report:
    return merge_reports(reports)


def make_samples(
    config: SamplesConfig, specification: Specification, options: PipelineOptions
) -> Manifest:
    """Runs the pipeline and makes its result the output, whole or not at all.

    Args:
        config: What to read, how to join, where to write.
        specification: What samples are made of.
        options: Beam's, with the runner.

    Returns:
        The manifest of the run, which `config.output` shows from now on.

    Raises:
        InputError: If a file is wrong as a whole, too many rows are rejected, or `config.output`
            cannot be written. A former output is unchanged then.
    """
    files = find_files(config.inputs)
    types = needed_types(specification)
    splits = plan_splits(files, types, required_columns(specification))
    logger.info("%d log files, to read in %d pieces", len(files), len(splits))
    with open_run(config.output) as run:
        transform = MakeSampleFiles(
            files=files, folder=str(run.folder), config=config, specification=specification
        )
        with beam.Pipeline(options=options) as root:
            # The one last step: DaskRunner computes what this depends on, nothing else.
            _ = root | beam.Create(splits) | transform | "Save" >> beam.Map(_save, run.folder)
        report = Report.take(run.folder)
        require_good_input(
            report,
            max_reject_share=config.max_reject_share,
            rejected=run.folder / REJECTED_NAME,
        )
        _require_samples(report)
        manifest = Manifest(
            sample_schema=s.schema_fingerprint(specification.sample_schema),
            config=config.fingerprint(specification),
            specification=specification.fingerprint,
            watermark_ms=report.watermark_ms,
            num_parts=config.num_parts,
            counts=dict(report.counts),
            rejects=dict(report.rejects),
            outcomes=dict(report.outcomes),
            inputs=list(report.inputs),
            files=list(report.files),
        )
        run.commit(manifest)
    return manifest


def _require_samples(report: Report) -> None:
    """Refuses to replace a former output by nothing."""
    if not report.files:
        raise s.InputError(
            f"found no sample in {report.counts.get('events_read', 0)} events; expected at least"
            " one positive (see specification.labels): the former output, if any, is unchanged"
        )


def _save(report: Report, folder: Path) -> None:
    report.save(folder)
