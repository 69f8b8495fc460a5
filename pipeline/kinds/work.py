"""What a worker does with one part of the users, and with one part of the items.

Pure functions make the rows; this reads what they need and writes what they give. `Plan` is
`pipeline.build.Plan`.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema as s
from pipeline.checks.days import profile_path, profile_samples, write_profiles
from pipeline.checks.profile import Profile
from pipeline.days import MS_PER_DAY, name_of, parse_day
from pipeline.join.labels import OUTCOME_TIME_MS
from pipeline.join.step import JoinRule
from pipeline.kinds.dropped import report_dropped, take_dropped
from pipeline.kinds.part import DAY, UserPart, days_of, make_part
from pipeline.kinds.registry import KINDS, counts_items, looks_up_items, wanted
from pipeline.known import facts as f
from pipeline.known.items import (
    ItemDays,
    combine,
    count_items,
    kept,
    lookup_path,
    with_totals,
    write_lookup,
)
from pipeline.known.tables import Tables, as_of, read_table, read_tables
from pipeline.manifest import OutputFile, Report, merge_reports
from pipeline.shuffle import Piece, read_pieces, write_pieces
from pipeline.write import by_day, slices_by_day, write_day, write_groups, write_slices

if TYPE_CHECKING:
    from pipeline.build import Plan

Asked: TypeAlias = tuple[tuple[str, str], ...]
"""(kind, path) of samples that wait for their items."""
Told: TypeAlias = tuple[tuple[int, ...], Piece | None]
"""What one part of the users tells one part of the items: all its days, and counts if it has."""


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """What became of one part of the users.

    Attributes:
        report: Its counts and files.
        waiting: Samples that wait for their items.
        counts: How often items were shown and taken, by part of the items.
        days: The days that the part knows of.
    """

    report: Report
    waiting: Asked = ()
    counts: tuple[tuple[int, Piece], ...] = ()
    days: tuple[int, ...] = ()


class UserWork:
    """Makes the files of parts of the users."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def make(self, number: int, pieces: Iterable[Piece]) -> tuple[int, Done]:
        """Joins the events of a part, and writes its facts and samples."""
        plan = self._plan
        events = read_pieces(pieces)
        part = make_part(
            events,
            plan.specification,
            span=plan.span,
            rule=JoinRule(window_ms=plan.window_ms, orphans=plan.orphans),
            facts=f.read_facts(
                plan.facts.get(number, ()), plan.specification, lookback_days=plan.lookback_days
            ),
            tables=self._tables(events),
        )
        files, waiting = self._samples(number, part)
        files += self._facts(number, part)
        counts = tuple(self._tell_items(number, part)) if counts_items(plan.specification) else ()
        fates = {fate for day in part.counts.values() for fate in day} - {"impressions"}
        report = Report(
            counts={
                "events_accepted": events.num_rows - part.duplicates,
                "duplicates": part.duplicates,
                "outside": part.outside,
                "impressions": _total(part, "impressions"),
            },
            outcomes={fate: _total(part, fate) for fate in fates},
            days=part.counts,
            files=tuple(files),
        )
        return number, Done(report, tuple(waiting), counts, tuple(days_of(part)))

    def _tables(self, events: pa.Table) -> Tables:
        plan = self._plan
        ids = {
            name: pl.Series(pl.from_arrow(events[name])).unique() for name in (s.USER_ID, s.ITEM_ID)
        }
        return read_tables(plan.specification, users=plan.users, items=plan.items, ids=ids)

    def _samples(
        self, number: int, part: UserPart
    ) -> tuple[list[OutputFile], list[tuple[str, str]]]:
        plan = self._plan
        files: list[OutputFile] = []
        waiting: list[tuple[str, str]] = []
        for name, kind in wanted(plan.specification).items():
            if kind.in_slices is not None:
                slices: Iterable[pa.Table] = kind.in_slices(part)
            elif kind.of_users is not None:
                slices = (rows for rows in [kind.of_users(part)] if rows.num_rows)
            else:
                continue
            if kind.needs_items(plan.specification):
                path = plan.scratch / "asked" / name / f"part-{number:05d}.parquet"
                path.parent.mkdir(parents=True, exist_ok=True)
                # Aside first: a runner that lost a worker may do this again while others read.
                aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
                with aside.open("wb") as sink:
                    num_rows = write_groups(sink, slices, compression="lz4")
                aside.replace(path)
                waiting += [(name, str(path))] if num_rows else []
            elif kind.in_slices is not None:
                files += _write_slices(plan, name, number, slices)
            else:
                for rows in slices:
                    files += _write(plan, name, number, rows)
        return files, waiting

    def _facts(self, number: int, part: UserPart) -> list[OutputFile]:
        files = []
        for kind, rows in part.new_facts().items():
            for (day,), found in rows.group_by(DAY, maintain_order=True):
                table = _plain(found.drop(DAY))
                files.append(write_day(self._plan.folder, kind, int(day), number, table))
        return files

    def _tell_items(self, number: int, part: UserPart) -> Iterator[tuple[int, Piece]]:
        plan = self._plan
        shown = _with_day(part.in_span(part.impressions), s.TIMESTAMP_MS)
        taken = _with_day(part.in_span(part.positives, OUTCOME_TIME_MS), OUTCOME_TIME_MS)
        counted = [
            count_items(
                shown.filter(pl.col(DAY) == day),
                taken.filter(pl.col(DAY) == day),
                plan.specification,
            ).with_columns(pl.lit(day, pl.Int64).alias(DAY))
            for day in days_of(part)
        ]
        if counted:
            yield from write_pieces(
                _plain(pl.concat(counted)),
                s.ITEM_ID,
                num_parts=plan.num_item_parts,
                path=plan.scratch / "counts" / f"part-{number:05d}.arrow",
                origin=(number,),
                by_range=True,
            )

    def finish(self, number: int, waiting: Asked, days: Iterable[int]) -> Report:
        """Makes samples whole that waited for their items, and writes them."""
        plan, files, reports = self._plan, list[OutputFile](), list[Report]()
        items = ItemDays(plan.scratch / "items", days, plan.specification.scenarios)
        for name, path in waiting:
            in_slices, with_items = KINDS[name].in_slices, KINDS[name].with_items
            if with_items is None:
                raise ValueError(f"{name} does not wait for items")
            if in_slices is not None:
                whole = (with_items(rows, plan.specification, items) for rows in _groups(path))
                files += _write_slices(plan, name, number, whole)
                continue
            samples = with_items(f.read_parquet(Path(path)), plan.specification, items)
            samples, dropped = take_dropped(samples)
            files += _write(plan, name, number, samples)
            reports.append(report_dropped(name, dropped))
        return merge_reports([Report(files=tuple(files)), *reports])


class ItemWork:
    """Makes the files of parts of the items."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def tell(self, _: int, done: Done) -> Iterator[tuple[int, Told]]:
        """Tells every part of the items the days of a part of the users, and its counts."""
        counts = dict(done.counts)
        for part in range(self._plan.num_item_parts):
            yield part, (done.days, counts.get(part))

    def make(self, number: int, told: Iterable[Told]) -> tuple[int, tuple[Report, tuple[int, ...]]]:
        """Counts a part of the items as of each day.

        Returns:
            The part, its report, and the days as of whose end items can be looked up.
        """
        told = list(told)
        plan = self._plan
        facts = self._facts(number, [piece for _, piece in told if piece is not None])
        built = sorted({day for days, _ in told for day in days if self._is_built(day)})
        files = [
            write_day(plan.folder, f.ITEMS, day, number, _plain(facts[day]))
            for day in built
            if day in facts
        ]
        # A sample asks for the day before its own, though nothing may have happened on it.
        asked = {day - 1 for day in built} if looks_up_items(plan.specification) else set()
        for day in sorted({*asked, *built}):
            items = self._as_of(facts, day)
            if day in asked:
                path = lookup_path(plan.scratch / "items", day, number)
                write_lookup(path, items, plan.specification.scenarios)
            if day in built:
                files += self._samples(items, day, number)
        return number, (Report(files=tuple(files)), tuple(sorted(asked)))

    def _is_built(self, day: int) -> bool:
        start, end = self._plan.span.bounds
        return start <= day * MS_PER_DAY < end

    def _facts(self, number: int, pieces: list[Piece]) -> dict[int, pl.DataFrame]:
        """Returns what became known of these items, by day: in earlier builds, and now."""
        plan, found = self._plan, {}
        for kind, path in plan.facts.get(number, ()):
            if kind == f.ITEMS:
                day = parse_day(Path(path).parent.name.removeprefix("dt="), where=path)
                found[day] = pl.DataFrame(pl.from_arrow(f.read_parquet(Path(path))))
        if pieces:
            told = pl.DataFrame(pl.from_arrow(read_pieces(pieces)))
            for (day,), rows in told.group_by(DAY):
                combined = combine([rows.drop(DAY)], plan.specification)
                found[int(day)] = combined.sort(s.SCENARIO, s.ITEM_ID)
        return found

    def _as_of(self, facts: dict[int, pl.DataFrame], day: int) -> pl.DataFrame:
        plan, specification = self._plan, self._plan.specification
        days = kept(facts, day, plan.lookback_days)
        items = with_totals(combine([facts[each] for each in days], specification))
        validity = specification.items
        if validity is None:
            return items
        key = (s.ITEM_ID, specification.column_types[s.ITEM_ID])
        table = read_table(plan.items, validity, key, items[s.ITEM_ID])
        moment = pl.lit((day + 1) * MS_PER_DAY - 1, pl.Int64).alias("_moment")
        columns = list(validity.columns)
        return as_of(
            items.with_columns(moment), table, key=s.ITEM_ID, time="_moment", columns=columns
        ).drop("_moment")

    def _samples(self, items: pl.DataFrame, day: int, number: int) -> list[OutputFile]:
        plan, files = self._plan, []
        for name, kind in wanted(plan.specification).items():
            if kind.of_items is not None:
                samples = kind.of_items(items, plan.specification, day)
                if samples.num_rows:
                    files += _write(plan, name, number, samples)
        return files


def _groups(path: str) -> Iterator[pa.Table]:
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group)


def _write(plan: Plan, kind: str, number: int, samples: pa.Table) -> list[OutputFile]:
    """Writes samples, and profiles of them, a file for each day."""
    files = []
    for day, rows in by_day(samples):
        files.append(write_day(plan.folder, kind, day, number, rows))
        path = part_profile(plan.scratch, kind, name_of(day), number)
        write_profiles(path, [profile_samples(rows, plan.specification)])
    return files


def _write_slices(
    plan: Plan, kind: str, number: int, slices: Iterable[pa.Table]
) -> Iterator[OutputFile]:
    """Does the same with samples that come a slice at a time."""
    for day, rows in slices_by_day(slices):
        found: list[Profile] = []
        yield write_slices(plan.folder, kind, day, number, _profiled(rows, plan, found))
        write_profiles(part_profile(plan.scratch, kind, name_of(day), number), found)


def _profiled(slices: Iterable[pa.Table], plan: Plan, found: list[Profile]) -> Iterator[pa.Table]:
    for rows in slices:
        found.append(profile_samples(rows, plan.specification))
        yield rows


def part_profile(scratch: Path, kind: str, day: str, number: int) -> Path:
    """Returns where the profile of one part of a day's samples waits for those of the others."""
    return profile_path(scratch, kind, day).with_suffix("") / f"{number:05d}.json"


def _total(part: UserPart, name: str) -> int:
    return sum(day.get(name, 0) for day in part.counts.values())


def _with_day(rows: pl.DataFrame, time: str) -> pl.DataFrame:
    return rows.with_columns((pl.col(time) // MS_PER_DAY).alias(DAY))


def _plain(rows: pl.DataFrame) -> pa.Table:
    """Returns a table with Arrow's plain strings and lists in place of polars' large ones."""
    table = rows.to_arrow()
    kinds = [s.ARROW_TYPES.get(_name(field.type), field.type) for field in table.schema]
    names = table.column_names
    return table.cast(pa.schema([pa.field(n, k) for n, k in zip(names, kinds, strict=True)]))


def _name(kind: pa.DataType) -> str:
    name = s.type_name(kind).replace("item: ", "")
    return name.replace("float", "float32") if name in ("float", "list<float>") else name
