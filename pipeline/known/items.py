"""Items as of the end of a day: counts by scenario, newest columns, draws by exposure.

An item's statistics are those of whole days: what is served tomorrow knows as much, and the live
join too. Workers look items up in Arrow files that they map into memory, cut by ranges of the
item's hash and sorted by it, so that a worker's memory does not grow with the number of items, and
all files together have one order, which a draw goes by, however many they are.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.known.facts import (
    IMPRESSIONS,
    NEWEST_ID,
    NEWEST_MS,
    POSITIVE_COUNT,
    event_item_columns,
    items_schema,
    newest,
)
from pipeline.positions import IntArray
from pipeline.shuffle import hash_keys, range_of
from pipeline.specification import Specification

HASH: Final = "hash"
SCENARIO_CODE: Final = "scenario_code"
EXPOSED_BEFORE: Final = "exposed_before"
_KEYS: Final = (s.SCENARIO, s.ITEM_ID)

Floats = npt.NDArray[np.float64]


def count_items(
    impressions: pl.DataFrame, positives: pl.DataFrame, specification: Specification
) -> pl.DataFrame:
    """Counts what became known of each item, by scenario, from some of the users.

    Args:
        impressions: Of one day.
        positives: That became known on this day.
        specification: Says which columns an item has.

    Returns:
        Rows of `items_schema`, one for each scenario and item.
    """
    columns = event_item_columns(specification)
    shown = (
        impressions.select(
            *_KEYS,
            pl.lit(1, pl.Int64).alias(IMPRESSIONS),
            pl.lit(0, pl.Int64).alias(POSITIVE_COUNT),
            pl.col(s.TIMESTAMP_MS).alias(NEWEST_MS),
            pl.col(s.EVENT_ID).alias(NEWEST_ID),
            *columns,
        )
        if columns
        else _count(
            impressions, IMPRESSIONS, POSITIVE_COUNT, pl.col(s.TIMESTAMP_MS).max().alias(NEWEST_MS)
        )
    )
    taken = _count(positives, POSITIVE_COUNT, IMPRESSIONS)
    return combine([shown, taken], specification)


def _count(rows: pl.DataFrame, name: str, other: str, *more: pl.Expr) -> pl.DataFrame:
    counted = rows.group_by(_KEYS).agg(pl.len().cast(pl.Int64).alias(name), *more)
    return counted.with_columns(pl.lit(0, pl.Int64).alias(other))


def combine(tables: Sequence[pl.DataFrame], specification: Specification) -> pl.DataFrame:
    """Sums counts of the same item and scenario, and keeps the newest columns.

    Args:
        tables: Rows with columns of `items_schema`; those that are missing are null.
        specification: Says which columns an item has.

    Returns:
        Rows of `items_schema`, one for each scenario and item.
    """
    schema = items_schema(specification)
    empty = pl.DataFrame(pl.from_arrow(schema.empty_table()))
    rows = pl.concat([empty, *tables], how="diagonal")
    counted = rows.group_by(_KEYS).agg(
        pl.col(IMPRESSIONS).sum(),
        pl.col(POSITIVE_COUNT).sum(),
        *newest(event_item_columns(specification)),
    )
    return counted.select(schema.names)


def with_totals(items: pl.DataFrame) -> pl.DataFrame:
    """Adds an item's counts over all scenarios, `item_impressions` and `item_positives`.

    Args:
        items: One row for each scenario and item, with the counts of `items_schema`.

    Returns:
        The rows, with the counts named as in samples.
    """
    return items.with_columns(
        pl.col(IMPRESSIONS).sum().over(s.ITEM_ID).alias(s.ITEM_IMPRESSIONS),
        pl.col(POSITIVE_COUNT).sum().over(s.ITEM_ID).alias(s.ITEM_POSITIVES),
    ).rename({IMPRESSIONS: s.ITEM_SCENARIO_IMPRESSIONS, POSITIVE_COUNT: s.ITEM_SCENARIO_POSITIVES})


def write_lookup(path: Path, items: pl.DataFrame, scenarios: Sequence[str]) -> None:
    """Writes one part of the items for `ItemLookup`.

    Args:
        path: Where to.
        items: One row for each scenario and item, with totals.
        scenarios: All scenarios, in the specification's order.
    """
    codes = {name: code for code, name in enumerate(scenarios)}
    hashes = hash_keys(items[s.ITEM_ID].to_arrow())
    table = (
        items.with_columns(
            pl.col(s.SCENARIO).replace_strict(codes, return_dtype=pl.Int32).alias(SCENARIO_CODE),
            pl.Series(HASH, hashes),
        )
        .sort(SCENARIO_CODE, HASH, s.ITEM_ID)
        .with_columns(
            (pl.col(s.ITEM_SCENARIO_IMPRESSIONS).cum_sum() - pl.col(s.ITEM_SCENARIO_IMPRESSIONS))
            .over(SCENARIO_CODE)
            .alias(EXPOSED_BEFORE)
        )
        .to_arrow()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # two tries may meet
    with pa.OSFile(str(aside), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    aside.replace(path)


@dataclasses.dataclass(frozen=True, slots=True)
class _Slice:
    """The rows of one scenario in one file, by hash."""

    first: int
    hashes: npt.NDArray[np.uint64]
    exposed_before: IntArray
    exposure: int


class ItemLookup:
    """Items of all parts as of one day, mapped into memory."""

    def __init__(self, paths: Sequence[Path], scenarios: Sequence[str]) -> None:
        """Opens the files of `write_lookup`.

        Args:
            paths: One for each part of the items, in the order of parts: of `range_of`.
            scenarios: As they were written.
        """
        self._codes = {name: code for code, name in enumerate(scenarios)}
        self._num_parts = max(len(paths), 1)
        tables = [pa.ipc.open_file(pa.memory_map(str(path))).read_all() for path in paths]
        self._table = pa.concat_tables(tables) if tables else None
        self._slices: dict[tuple[int, int], _Slice] = {}
        first = 0
        for part, table in enumerate(tables):
            self._slices |= self._cut(part, table, first)
            first += table.num_rows

    def _cut(self, part: int, table: pa.Table, first: int) -> dict[tuple[int, int], _Slice]:
        codes = _numpy(table[SCENARIO_CODE])
        bounds = np.searchsorted(codes, np.arange(len(self._codes) + 1))
        hashes, before = _numpy(table[HASH]), _numpy(table[EXPOSED_BEFORE])
        counts = _numpy(table[s.ITEM_SCENARIO_IMPRESSIONS])
        slices = {}
        for code in range(len(self._codes)):
            start, end = int(bounds[code]), int(bounds[code + 1])
            if end > start:
                exposure = int(before[end - 1] + counts[end - 1])
                slices[part, code] = _Slice(
                    first + start, hashes[start:end], before[start:end], exposure
                )
        return slices

    def find(self, scenarios: pl.Series, items: pl.Series) -> IntArray:
        """Returns the row of each (scenario, item), -1 where it was not known.

        Args:
            scenarios: [num_queries] names.
            items: [num_queries] ids.
        """
        rows = np.full(len(items), -1, np.int64)
        if self._table is None or not len(items):
            return rows
        hashes = hash_keys(items.to_arrow())
        codes = scenarios.replace_strict(self._codes, return_dtype=pl.Int64).to_numpy()
        parts = range_of(hashes, self._num_parts)
        groups = parts * len(self._codes) + codes
        for group in np.unique(groups):
            found = self._slices.get(divmod(int(group), len(self._codes)))
            if found is None:
                continue
            asked = np.flatnonzero(groups == group)
            places = np.searchsorted(found.hashes, hashes[asked])
            inside = np.minimum(places, len(found.hashes) - 1)
            equal = found.hashes[inside] == hashes[asked]
            rows[asked[equal]] = found.first + inside[equal]
        return self._verified(rows, items)

    def _verified(self, rows: IntArray, items: pl.Series) -> IntArray:
        """Of two ids with one hash, which no log is likely to have, the second is not known."""
        asked = np.flatnonzero(rows >= 0)
        found = pl.Series(pl.from_arrow(self.take(rows[asked], [s.ITEM_ID])[s.ITEM_ID]))
        same = (found == items.gather(asked)).to_numpy()
        rows[asked[~same]] = -1
        return rows

    def totals(self, items: pl.Series, names: Sequence[str]) -> dict[str, IntArray]:
        """Returns counts of items that are the same in all scenarios; 0 for one not known.

        Args:
            items: [num_queries] ids.
            names: Of the counts, such as `item_impressions`.
        """
        rows = np.full(len(items), -1, np.int64)
        for scenario in self._codes:
            asked = np.flatnonzero(rows < 0)
            if len(asked):
                names_of = pl.Series([scenario]).new_from_index(0, len(asked))
                rows[asked] = self.find(names_of, items.gather(asked))
        counts = self.take(rows, names) if self._table is not None else None
        return {
            name: np.zeros(len(items), np.int64)
            if counts is None
            else counts[name].fill_null(0).to_numpy()
            for name in names
        }

    def take(self, rows: IntArray, columns: Sequence[str]) -> pa.Table:
        """Returns columns of rows that `find` or `draw` gave; a row of -1 has nulls."""
        if self._table is None:
            raise s.InputError("no item is known; expected rows of -1 only, and no look-up")
        indices = pa.array(rows, mask=rows < 0)
        return self._table.select(list(columns)).take(indices)

    @property
    def is_empty(self) -> bool:
        """Whether no item is known at all."""
        return self._table is None or not self._table.num_rows

    def exposure(self, scenario: str) -> int:
        """Returns the number of impressions in a scenario."""
        return sum(part.exposure for part in self._parts_of(scenario))

    def _parts_of(self, scenario: str) -> list[_Slice]:
        code = self._codes[scenario]
        found = (self._slices.get((part, code)) for part in range(self._num_parts))
        return [each for each in found if each is not None]

    def draw(self, scenario: str, fractions: Floats) -> IntArray:
        """Returns rows of a scenario, each as likely as its share of the impressions there.

        Args:
            scenario: Its name; `exposure` must not be 0.
            fractions: [num_draws] uniform numbers in [0, 1).

        Returns:
            [num_draws] rows, the same items however many files there are.
        """
        parts = self._parts_of(scenario)
        ends = np.cumsum([part.exposure for part in parts])
        points = np.minimum((fractions * ends[-1]).astype(np.int64), ends[-1] - 1)
        owners = np.searchsorted(ends, points, side="right")
        rows = np.empty(len(points), np.int64)
        for number, part in enumerate(parts):
            mine = np.flatnonzero(owners == number)
            inside = points[mine] - (ends[number] - part.exposure)
            rows[mine] = part.first + np.searchsorted(part.exposed_before, inside, "right") - 1
        return rows


def _numpy(column: pa.ChunkedArray) -> npt.NDArray[Any]:
    """Returns the values of a column without nulls; without a copy if it is one chunk."""
    if column.num_chunks == 1:
        return column.chunk(0).to_numpy()
    return column.to_numpy()


class ItemDays:
    """Items as of each day, opened when they are asked for; the newest few are kept open."""

    _OPEN: Final = 4

    def __init__(self, folder: Path, days: Iterable[int], scenarios: Sequence[str]) -> None:
        """Opens nothing yet.

        Args:
            folder: Has `DAY/part-NNNNN.arrow`.
            days: The days that have files.
            scenarios: As they were written.
        """
        self._folder, self._scenarios = folder, scenarios
        self._days = frozenset(days)
        self._open: dict[int, ItemLookup] = {}

    def before(self, day: int) -> ItemLookup:
        """Returns the items as of the end of the day before a day; none, if it has no files."""
        chosen = day - 1
        if chosen not in self._open:
            if len(self._open) >= self._OPEN:
                self._open.pop(next(iter(self._open)))
            is_known = chosen in self._days
            paths = sorted((self._folder / str(chosen)).glob("part-*.arrow")) if is_known else []
            self._open[chosen] = ItemLookup(paths, self._scenarios)
        return self._open[chosen]


def lookup_path(folder: Path, day: int, part: int) -> Path:
    """Returns where the items of a day and a part stand for `ItemDays`."""
    return folder / str(day) / f"part-{part:05d}.arrow"


def kept(facts: Mapping[int, pl.DataFrame], day: int, lookback_days: int | None) -> list[int]:
    """Returns the days of facts that count as of the end of a day."""
    first = -(1 << 31) if lookback_days is None else day - lookback_days + 1
    return [known for known in facts if first <= known <= day]
