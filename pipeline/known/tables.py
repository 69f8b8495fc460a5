"""Tables of users and items whose rows hold for a time, joined as of an event."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import schema as s
from pipeline.declarations import ValidityTable
from pipeline.events.read import conform, find_files, is_accepted
from pipeline.specification import Specification

_SHOWN = 5


@dataclasses.dataclass(frozen=True, slots=True)
class Tables:
    """Rows of the tables with validity, at least those of some users and items; None if undeclared.

    Each has the id, `valid_from_ms`, `valid_to_ms` (null: until the next row) and its columns.
    """

    users: pl.DataFrame | None = None
    items: pl.DataFrame | None = None

    def attach(self, rows: pl.DataFrame, specification: Specification) -> pl.DataFrame:
        """Returns events with the columns that held of their users and items at their times."""
        declared = (
            (specification.users, self.users, s.USER_ID),
            (specification.items, self.items, s.ITEM_ID),
        )
        for validity, table, key in declared:
            if validity is not None and table is not None:
                columns = list(validity.columns)
                rows = as_of(rows, table, key=key, time=s.TIMESTAMP_MS, columns=columns)
        return rows


def find_tables(
    specification: Specification, *, users: Sequence[str], items: Sequence[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Returns the files of the users' and the items' table, none of one that is not declared.

    Raises:
        InputError: If a table is declared and its files are not there, or not as declared, or the
            other way round.
    """
    found: list[tuple[str, ...]] = []
    for name, paths, declared, key in (
        ("users", users, specification.users, s.USER_ID),
        ("items", items, specification.items, s.ITEM_ID),
    ):
        if declared is None:
            if paths:
                raise s.InputError(
                    f"samples.{name}: found files, but no specification.{name}; expected both, or"
                    " neither"
                )
            found.append(())
            continue
        files = tuple(find_files(paths, setting=f"samples.{name}")) if paths else ()
        types = specification.column_types
        check_tables(files, declared, (key, types[key]), where=f"samples.{name}")
        found.append(files)
    return found[0], found[1]


def check_tables(
    paths: Sequence[str], declared: ValidityTable, key: tuple[str, str], *, where: str
) -> None:
    """Looks at the footers of a table's files.

    Args:
        paths: Parquet files.
        declared: The columns that they must have.
        key: Name and type of the id.
        where: What named the files, `samples.users` or `samples.items`.

    Raises:
        InputError: If a file is no Parquet, or lacks a column, or has one of another type.
    """
    if not paths:
        raise s.InputError(f"{where}: found no file; expected the Parquet files of this table")
    wanted = {key[0]: key[1], s.VALID_FROM_MS: "int64", **declared.columns}
    for path in paths:
        try:
            found = pq.read_schema(path)
        except (pa.ArrowException, OSError) as error:
            raise s.InputError(
                f"{where}: {path}: found no whole Parquet file ({str(error).splitlines()[0]})"
            ) from error
        for name, kind in (wanted | {s.VALID_TO_MS: "int64"}).items():
            if name not in found.names and name == s.VALID_TO_MS:
                continue
            if name not in found.names:
                raise s.InputError(
                    f"{where}: {path}: {name}: found no such column; found"
                    f" {', '.join(found.names)}; expected {', '.join(wanted)}"
                )
            time = name in (s.VALID_FROM_MS, s.VALID_TO_MS)
            as_column = s.TIMESTAMP_MS if time else name
            if not is_accepted(found.field(name).type, kind, column=as_column):
                raise s.InputError(
                    f"{where}: {path}: {name}: found a column of type {found.field(name).type};"
                    f" expected {kind}"
                )


def read_table(
    paths: Sequence[str],
    declared: ValidityTable,
    key: tuple[str, str],
    ids: pl.Series | None = None,
) -> pl.DataFrame:
    """Returns the rows of some ids, whatever else the files have.

    Args:
        paths: Parquet files that `check_tables` found good.
        declared: The columns to read.
        key: Name and type of the id.
        ids: The ids that are wanted; None: all.

    Returns:
        The id, `valid_from_ms`, `valid_to_ms` (null: until the next row) and the columns.

    Raises:
        InputError: If a row never holds, or an id has two rows that begin at the same time: one
            would hide the other.
    """
    name, kind = key
    types = {name: kind, s.VALID_FROM_MS: "int64", s.VALID_TO_MS: "int64", **declared.columns}
    frames = []
    for path in paths:
        rows = pl.scan_parquet(path)
        found = rows.collect_schema().names()
        if ids is not None:
            rows = rows.join(pl.LazyFrame({name: ids.unique()}), on=name, how="semi")
        table = rows.select([column for column in types if column in found]).collect().to_arrow()
        frames.append(pl.DataFrame(pl.from_arrow(conform(table, types))))
    table = pl.concat(frames)
    never = table.filter(
        pl.col(s.VALID_FROM_MS).is_null() | (pl.col(s.VALID_TO_MS) <= pl.col(s.VALID_FROM_MS))
    )
    if len(never):
        shown = never[name].unique().sort().head(_SHOWN).to_list()
        raise s.InputError(
            f"{paths[0]}: {name} {', '.join(map(str, shown))}: found {len(never)} rows that never"
            f" hold; expected a {s.VALID_FROM_MS}, and a {s.VALID_TO_MS}, if any, after it"
        )
    twice = table.filter(table.select(name, s.VALID_FROM_MS).is_duplicated())
    if len(twice):
        shown = twice[name].unique().sort().head(_SHOWN).to_list()
        raise s.InputError(
            f"{paths[0]}: {name} {', '.join(map(str, shown))}: found several rows with the same"
            f" {s.VALID_FROM_MS}; expected one, or it is not known which holds"
        )
    return table


def read_tables(
    specification: Specification,
    *,
    users: Sequence[str],
    items: Sequence[str],
    ids: Mapping[str, pl.Series] | None = None,
) -> Tables:
    """Returns the tables that are declared; see `read_table`.

    Args:
        specification: Which there are.
        users: The users' files, as `find_tables` gives them.
        items: The items'.
        ids: The users and items that are wanted, by the name of their column; None: all.
    """
    frames: list[pl.DataFrame | None] = []
    for declared, paths, name in (
        (specification.users, users, s.USER_ID),
        (specification.items, items, s.ITEM_ID),
    ):
        if declared is None:
            frames.append(None)
            continue
        key = (name, specification.column_types[name])
        frames.append(read_table(paths, declared, key, None if ids is None else ids[name]))
    return Tables(*frames)


def as_of(
    rows: pl.DataFrame, table: pl.DataFrame, *, key: str, time: str, columns: Sequence[str]
) -> pl.DataFrame:
    """Returns the rows with the columns that held at their times, nulls where none did.

    A row of the table holds from `valid_from_ms`, inclusive, to the next row of its id or to
    `valid_to_ms`, exclusive.

    Args:
        rows: [num_rows] ids and times, in any order, which is kept.
        table: See `read_table`.
        key: Name of the id, in both.
        time: Name of the time in `rows`.
        columns: What to take from the table.
    """
    history = table.sort(s.VALID_FROM_MS).select(key, s.VALID_FROM_MS, s.VALID_TO_MS, *columns)
    ordered = rows.with_row_index("_row").sort(time, maintain_order=True)
    joined = ordered.join_asof(
        history,
        left_on=time,
        right_on=s.VALID_FROM_MS,
        by=key,
        strategy="backward",
        check_sortedness=False,  # polars cannot, by key, and warns; both were sorted above
    )
    over = pl.col(s.VALID_TO_MS) <= pl.col(time)
    held = [pl.when(over).then(None).otherwise(pl.col(name)).alias(name) for name in columns]
    return (
        joined.with_columns(held)
        .sort("_row")
        .drop("_row", s.VALID_TO_MS, *([s.VALID_FROM_MS] if time != s.VALID_FROM_MS else []))
    )
