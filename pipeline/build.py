"""One build as a Beam pipeline: logs to the files of some days. Wiring only.

    read > validate > cut by user        each block of a log, to one scratch file
    by user: join > facts > samples      and how often each item was shown and taken, cut by item
    by item: items as of each day        corpora; and look-ups for the samples that need them
    by user: samples with their items

It keeps to what Beam's runners agree on: one output per step; counts travel as data, so that they
are exact even where a runner repeats a bundle; and rows travel as files, so that a worker's memory
holds a part, never the log.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import apache_beam as beam
import numpy as np
from apache_beam.metrics import Metrics
from apache_beam.pvalue import PCollection

from pipeline import schema as s
from pipeline.checks.days import merge_profiles, profile_path
from pipeline.days import Span
from pipeline.events.read import Split, fingerprint_file, read_split
from pipeline.events.rejects import merge_rejects, spill_rejects
from pipeline.events.validate import checks, count_reasons, needed_types, validate
from pipeline.kinds.registry import counts_items
from pipeline.kinds.work import Done, ItemWork, UserWork, part_profile
from pipeline.manifest import FACTS, NEWEST, Report, merge_reports
from pipeline.positions import IntArray
from pipeline.shuffle import Origin, Piece, write_pieces
from pipeline.specification import Specification

logger = logging.getLogger(__name__)

MAX_ITEM_PARTS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What one build is to do; workers get a copy of it.

    Attributes:
        folder: Where the run's files go.
        scratch: Where what is needed on the way goes.
        files: The logs.
        specification: What samples are made of.
        span: The days.
        window_ms: The join window.
        orphans: What becomes of outcomes without impression.
        num_parts: Number of parts of the users.
        lookback_days: How far facts count; None for all of them.
        users: Files of the users' table.
        items: Files of the items' table.
        facts: (kind, path) of earlier days' facts, by part.
    """

    folder: Path
    scratch: Path
    files: list[str]
    specification: Specification
    span: Span
    window_ms: int
    orphans: Literal["drop", "keep"]
    num_parts: int
    lookback_days: int | None
    users: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    facts: Mapping[int, tuple[tuple[str, str], ...]] = dataclasses.field(default_factory=dict)

    @property
    def num_item_parts(self) -> int:
        """Number of parts of the items; each hears of each part of the users."""
        return min(self.num_parts, MAX_ITEM_PARTS)


@dataclasses.dataclass(frozen=True, slots=True)
class Block:
    """A block of a log after validation.

    Attributes:
        origin: File, split and block number.
        pieces: The accepted rows, as (part, piece).
        rejects: A file with the others, or an empty string.
        num_lines: How many rows or lines of the log the block is, blank lines included.
        report: Its counts.
    """

    origin: Origin
    pieces: tuple[tuple[int, Piece], ...]
    rejects: str
    num_lines: int
    report: Report


class ReadAndValidate(beam.DoFn):
    """Splits to blocks."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def setup(self) -> None:
        specification = self._plan.specification
        self._types = needed_types(specification)
        self._rules = checks(specification, outcomes_need_features=self._plan.orphans == "keep")

    def process(self, split: Split) -> Iterator[Block]:
        number = 0
        try:
            for block in read_split(split, self._types):
                events, rejects = validate(block, self._rules)
                logger.info("%s, block %d.%d", split.path, split.number, number)
                Metrics.counter("ReadAndValidate", "accepted").inc(events.num_rows)
                Metrics.counter("ReadAndValidate", "rejected").inc(len(rejects))
                origin = (split.file_number, split.number, number)
                name = "-".join(f"{part:05d}" for part in origin)
                pieces = write_pieces(
                    events,
                    s.USER_ID,
                    num_parts=self._plan.num_parts,
                    path=self._plan.scratch / "blocks" / f"{name}.arrow",
                    origin=origin,
                )
                report = Report(
                    counts={"events_read": events.num_rows + len(rejects)},
                    rejects=count_reasons(rejects),
                    newest_ms=_newest(events[s.TIMESTAMP_MS].to_numpy()),
                )
                spilled = spill_rejects(self._plan.scratch / "rejects" / f"{name}.jsonl", rejects)
                yield Block(origin, tuple(pieces), spilled, block.num_lines, report)
                number += 1
        except s.InputError as error:
            # As data: what a runner makes of an exception is not portable.
            origin = (split.file_number, split.number, number)
            yield Block(origin, (), "", 0, Report(problems=(str(error),)))


def _newest(times: IntArray) -> tuple[int, ...]:
    first = max(len(times) - NEWEST, 0)
    return tuple(np.partition(times, first)[first:].tolist()) if len(times) else ()


@dataclasses.dataclass(kw_only=True)
class BuildDays(beam.PTransform):
    """Splits of event logs to the files of a run; gives one `Report` of all that was done."""

    plan: Plan

    def expand(self, splits: PCollection) -> PCollection:
        blocks = splits | "ReadAndValidate" >> beam.ParDo(ReadAndValidate(self.plan))
        parts = (
            blocks
            | "Pieces" >> beam.FlatMap(_pieces)
            | "ByUser" >> beam.GroupByKey()
            | "MakeUserParts" >> beam.MapTuple(UserWork(self.plan).make)
        )
        reports = [
            blocks | "CountBlocks" >> beam.Map(_report_block),
            self._reject(blocks),
            splits | "Inputs" >> beam.FlatMap(_report_input),
            parts | "CountParts" >> beam.MapTuple(_report_part),
        ]
        if counts_items(self.plan.specification):
            reports += self._with_items(parts)
        made = reports | "MadeReports" >> beam.Flatten()
        profiled = (
            made
            | "FilesOfDays" >> beam.FlatMap(_files_of_days)
            | "ByKindAndDay" >> beam.GroupByKey()
            | "MergeProfiles" >> beam.MapTuple(self._merge_profiles)
        )
        return (
            [made, profiled]
            | "AllReports" >> beam.Flatten()
            | "OneKey" >> beam.Map(_with_one_key)
            | "Gather" >> beam.GroupByKey()
            | "Merge" >> beam.MapTuple(_merge_group)
        )

    def _merge_profiles(self, day: tuple[str, str], parts: Iterable[int]) -> Report:
        paths = [part_profile(self.plan.scratch, *day, part) for part in parts]
        merge_profiles(paths, profile_path(self.plan.folder, *day))
        return Report()

    def _reject(self, blocks: PCollection) -> PCollection:
        return (
            blocks
            | "Rejects" >> beam.Map(_rejects_by_file)
            | "ByFile" >> beam.GroupByKey()
            | "WriteRejects" >> beam.MapTuple(self._write_rejects)
        )

    def _write_rejects(self, file_number: int, blocks: Iterable[tuple[Origin, int, str]]) -> Report:
        merge_rejects(self.plan.folder, self.plan.files[file_number], sorted(blocks))
        return Report()

    def _with_items(self, parts: PCollection) -> list[PCollection]:
        work = ItemWork(self.plan)
        items = (
            parts
            | "TellItems" >> beam.FlatMapTuple(work.tell)
            | "ByItem" >> beam.GroupByKey()
            | "MakeItemParts" >> beam.MapTuple(work.make)
        )
        waiting = parts | "Waiting" >> beam.FlatMapTuple(_waiting)
        ready = items | "Ready" >> beam.FlatMapTuple(self._ready)
        whole = (
            {"waiting": waiting, "ready": ready}
            | "ByPart" >> beam.CoGroupByKey()
            | "WithItems" >> beam.FlatMapTuple(self._finish)
        )
        return [items | "CountItems" >> beam.MapTuple(_report_items), whole]

    def _ready(self, _: int, made: tuple[Report, tuple[int, ...]]) -> Iterator[tuple[int, Any]]:
        for part in range(self.plan.num_parts):
            yield part, made[1]

    def _finish(self, part: int, groups: dict[str, Any]) -> Iterator[Report]:
        days = {day for known in groups["ready"] for day in known}
        for asked in groups["waiting"]:
            yield UserWork(self.plan).finish(part, asked, days)


def _pieces(block: Block) -> Iterator[tuple[int, Piece]]:
    yield from block.pieces


def _rejects_by_file(block: Block) -> tuple[int, tuple[Origin, int, str]]:
    return block.origin[0], (block.origin, block.num_lines, block.rejects)


def _report_block(block: Block) -> Report:
    return block.report


def _report_input(split: Split) -> Iterator[Report]:
    if split.number == 0:
        yield Report(inputs=(fingerprint_file(split.path),))


def _report_part(_: int, done: Done) -> Report:
    return done.report


def _report_items(_: int, made: tuple[Report, tuple[int, ...]]) -> Report:
    return made[0]


def _waiting(part: int, done: Done) -> Iterator[tuple[int, tuple[tuple[str, str], ...]]]:
    if done.waiting:
        yield part, done.waiting


def _files_of_days(report: Report) -> Iterator[tuple[tuple[str, str], int]]:
    for file in report.files:
        if not file.kind.startswith(FACTS):
            yield (file.kind, file.day), file.part


def _with_one_key(report: Report) -> tuple[int, Report]:
    return 0, report


def _merge_group(_: int, reports: Iterable[Report]) -> Report:
    return merge_reports(reports)
