"""A build without Beam: what its workers do, one after another, in this process."""

from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.build import Plan
from pipeline.days import Span
from pipeline.kinds.work import ItemWork, UserWork
from pipeline.manifest import FACTS, Report, merge_reports
from pipeline.shuffle import write_pieces
from pipeline.specification import Specification

Facts = dict[int, tuple[tuple[str, str], ...]]


def build(
    folder: Path,
    events: pa.Table,
    specification: Specification,
    *,
    window_ms: int,
    days: tuple[int, int] | None = None,
    num_parts: int = 1,
    lookback_days: int | None = None,
    **more: Any,
) -> Report:
    """Builds days, or all of them, into `folder/run`; validated events."""
    plan = Plan(
        folder=folder / "run",
        scratch=folder / "scratch",
        files=[],
        specification=specification,
        span=Span(*(days or (None, None)), window_ms),
        window_ms=window_ms,
        num_parts=num_parts,
        lookback_days=lookback_days,
        **({"orphans": "drop"} | more),
    )
    pieces = write_pieces(
        events, "user_id", num_parts=num_parts, path=folder / "events.arrow", origin=(0,)
    )
    users, items = UserWork(plan), ItemWork(plan)
    parts = [users.make(part, [piece]) for part, piece in pieces]
    told = collections.defaultdict(list)
    for number, done in parts:
        for part, what in items.tell(number, done):
            told[part].append(what)
    made = [items.make(part, what)[1] for part, what in told.items()]
    known = {day for _, days in made for day in days}
    finished = [users.finish(number, done.waiting, known) for number, done in parts]
    reports = [done.report for _, done in parts] + [report for report, _ in made] + finished
    return merge_reports(reports)


def facts_of(folder: Path, report: Report, former: Facts | None = None) -> Facts:
    """The facts of a build, by part, behind those of former ones."""
    facts = dict(former or {})
    for file in report.files:
        if file.kind.startswith(FACTS):
            found = (file.kind, str(folder / "run" / file.path))
            facts[file.part] = (*facts.get(file.part, ()), found)
    return facts


def table_of(folder: Path, report: Report, kind: str) -> pa.Table | None:
    """All rows of a kind, in the order of files' paths."""
    paths = [folder / "run" / file.path for file in report.files if file.kind == kind]
    tables = [pq.ParquetFile(path).read() for path in sorted(paths)]
    return pa.concat_tables(tables) if tables else None


def rows_of(folder: Path, report: Report, kind: str) -> list[dict[str, Any]]:
    table = table_of(folder, report, kind)
    return [] if table is None else table.to_pylist()


def bytes_of(folder: Path, report: Report) -> dict[str, str]:
    """The files by path, with what is in them."""
    return {file.path: file.sha256 for file in report.files}


def with_columns(rows: list[dict[str, Any]], specification: Specification) -> pa.Table:
    """Events by hand, as a validated table."""
    schema = specification.event_schema
    frame = pl.DataFrame(rows, strict=False, infer_schema_length=None)
    names = [name for name in schema.names if name in frame.columns]
    return frame.select(names).to_arrow().cast(pa.schema([schema.field(n) for n in names]))
