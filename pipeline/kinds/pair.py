"""Pairs: two views of one user, or of one item, in two scenarios (SASS, pre-training).

    pair_id                   the same in the two rows of a pair, which stand side by side
    view                      0 and 1, in the order of `specification.scenarios`
    timestamp_ms              the last millisecond of the day
    user_id or item_id        whom both views show
    scenario                  where this view shows them
    user or item columns      as of the end of the day; see `pipeline.kinds.views`

Users and items that were shown, or were shown something, on the day, and are known in at least two
scenarios: by an impression or a positive there, as far as `samples.lookback_days` goes back. Of
their pairs of scenarios those with the smallest hashes are taken, at most as many as
`kinds.pair.users` and `.items` say, so none is preferred, and other days take others.

What an impression says of a user (features that are event columns, context) is that of the newest
impression of the day, in whatever scenario; the users' table is read as of the day's end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa

from pipeline import schema as s
from pipeline.days import MS_PER_DAY
from pipeline.kinds.part import DAY, UserPart
from pipeline.kinds.views import UserViews, item_columns, plain, user_columns, user_features
from pipeline.known.facts import NEWEST_MS
from pipeline.known.tables import as_of
from pipeline.shuffle import hash_keys, mix_in
from pipeline.specification import Specification

_PAIRS_AT_ONCE: Final = 1 << 22
_ROW: Final = "row"
_CODE: Final = "code"


def caps(specification: Specification) -> tuple[int, int]:
    """Returns how many pairs of a user, and of an item, there are at most on a day."""
    kind = specification.kinds.pair
    return (0, 0) if kind is None else (kind.users, kind.items)


def user_schema(specification: Specification) -> pa.Schema:
    """See the module."""
    return s.arrow_schema(_identity(specification, s.USER_ID) | user_columns(specification))


def item_schema(specification: Specification) -> pa.Schema:
    """See the module."""
    return s.arrow_schema(_identity(specification, s.ITEM_ID) | item_columns(specification))


def _identity(specification: Specification, key: str) -> dict[str, str]:
    types = {s.PAIR_ID: "int64", s.VIEW: "int64"} | specification.column_types
    return {name: types[name] for name in (s.PAIR_ID, s.VIEW, s.TIMESTAMP_MS, key, s.SCENARIO)}


def make_users(part: UserPart) -> pa.Table:
    """Returns the pairs of users of each day, by (timestamp_ms, pair_id, view)."""
    specification = part.specification
    views = UserViews(part)
    active = _newest(part)
    known = views.known()
    several = known.filter(pl.len().over(s.USER_ID) > 1)
    candidates = active.select(s.USER_ID, DAY).join(several, on=s.USER_ID)
    shown, taken = views.counts(candidates, _after(candidates))
    candidates = candidates.filter((shown > 0) | (taken > 0))
    pairs = choose(candidates, s.USER_ID, specification, at_most=caps(specification)[0])
    # A view may be one of several pairs: each is made once.
    rows, places = np.unique(pairs[_ROW].to_numpy(), return_inverse=True)
    chosen = candidates[rows]
    table = _at_end_of_day(chosen, active, part).to_arrow()
    for name, values in views.columns(chosen, _after(chosen)).items():
        table = table.append_column(name, values)
    return _two_by_two(
        table, places, pairs, _identity(specification, s.USER_ID) | user_columns(specification)
    )


def _after(rows: pl.DataFrame) -> np.ndarray:
    """Returns the first millisecond after the day of each row."""
    return (rows[DAY].to_numpy() + 1) * MS_PER_DAY


def _newest(part: UserPart) -> pl.DataFrame:
    """Returns the newest impression of each user and day."""
    names = [s.EVENT_ID, s.TIMESTAMP_MS, s.USER_ID, *user_features(part.specification)]
    shown = part.in_span(part.impressions).select(
        *names, (pl.col(s.TIMESTAMP_MS) // MS_PER_DAY).alias(DAY)
    )
    keys = [s.USER_ID, DAY]
    newest = shown.filter(pl.col(s.TIMESTAMP_MS) == pl.col(s.TIMESTAMP_MS).max().over(keys))
    ordered = newest.sort(*keys, s.EVENT_ID)
    return ordered.unique(keys, keep="last", maintain_order=True).drop(s.EVENT_ID, s.TIMESTAMP_MS)


def _at_end_of_day(rows: pl.DataFrame, active: pl.DataFrame, part: UserPart) -> pl.DataFrame:
    rows = rows.join(active, on=[s.USER_ID, DAY], how="left", maintain_order="left")
    rows = rows.with_columns((((pl.col(DAY) + 1) * MS_PER_DAY) - 1).alias(s.TIMESTAMP_MS))
    validity, table = part.specification.users, part.tables.users
    if validity is None or table is None:
        return rows
    columns = [name for name in validity.columns if name in rows.columns]
    return as_of(rows.drop(columns), table, key=s.USER_ID, time=s.TIMESTAMP_MS, columns=columns)


def make_items(items: pl.DataFrame, specification: Specification, day: int) -> pa.Table:
    """Returns the pairs of one part of the items, by (pair_id, view).

    Args:
        items: One row for each scenario and item as of the end of the day; see
            `pipeline.known.items`.
        specification: Says what an item is.
        day: The day.
    """
    start = day * MS_PER_DAY
    shown = items.filter(pl.col(NEWEST_MS).max().over(s.ITEM_ID) >= start)
    known = shown.filter(pl.len().over(s.ITEM_ID) > 1).with_columns(
        pl.lit(day, pl.Int64).alias(DAY),
        pl.lit(start + MS_PER_DAY - 1, pl.Int64).alias(s.TIMESTAMP_MS),
    )
    pairs = choose(known, s.ITEM_ID, specification, at_most=caps(specification)[1])
    return _two_by_two(
        known.to_arrow(),
        pairs[_ROW].to_numpy(),
        pairs,
        _identity(specification, s.ITEM_ID) | item_columns(specification),
    )


def _two_by_two(
    views: pa.Table, places: np.ndarray, pairs: pl.DataFrame, columns: dict[str, str]
) -> pa.Table:
    table = views.take(pa.array(places))
    for name in (s.PAIR_ID, s.VIEW):
        table = table.append_column(name, pairs[name].to_arrow())
    return plain(table, columns)


def choose(
    known: pl.DataFrame, key: str, specification: Specification, *, at_most: int
) -> pl.DataFrame:
    """Chooses pairs of scenarios of each key and day, none preferred.

    Args:
        known: [num_views] key, `day` and scenario, each once.
        key: Name of the id.
        specification: Has the scenarios in their order.
        at_most: Of each key and day.

    Returns:
        [2 * num_pairs] `pair_id`, `view` and `row`, the view's row in `known`, by day and pair.
    """
    codes = {name: code for code, name in enumerate(specification.scenarios)}
    views = known.select(
        pl.int_range(pl.len(), dtype=pl.Int64).alias(_ROW),
        key,
        DAY,
        s.SCENARIO,
        pl.col(s.SCENARIO).replace_strict(codes, return_dtype=pl.Int64).alias(_CODE),
    )
    parts = [_pairs(some, key, at_most) for some in _some_at_once(views, key)]
    if not parts:
        parts = [_pairs(views, key, at_most)]
    pairs = pl.concat(parts).sort(DAY, s.PAIR_ID, key, _CODE, f"{_CODE}_right")
    return pairs.select(
        pl.concat_list(_ROW, f"{_ROW}_right").alias(_ROW),
        s.PAIR_ID,
        pl.lit([0, 1], pl.List(pl.Int64)).alias(s.VIEW),
    ).explode(_ROW, s.VIEW)


def _some_at_once(views: pl.DataFrame, key: str) -> Iterator[pl.DataFrame]:
    """Cuts between keys: an item that is known in all of 128 scenarios has 8,128 pairs."""
    sized = views.sort(key, DAY).with_columns(pl.len().over(key, DAY).alias("size"))
    group = (pl.col("size").cum_sum() // _PAIRS_AT_ONCE).last().over(key, DAY)
    for _, some in sized.group_by(group.alias("group"), maintain_order=True):
        yield some.drop("group", "size", strict=False)


def _pairs(views: pl.DataFrame, key: str, at_most: int) -> pl.DataFrame:
    pairs = views.join(views, on=[key, DAY]).filter(pl.col(_CODE) < pl.col(f"{_CODE}_right"))
    # A sum: the order of the two scenarios changes nothing.
    scenarios = hash_keys(pairs[s.SCENARIO].to_arrow()) + hash_keys(
        pairs[f"{s.SCENARIO}_right"].to_arrow()
    )
    hashes = mix_in(mix_in(hash_keys(pairs[key].to_arrow()), scenarios), pairs[DAY].to_numpy())
    hashed = pairs.with_columns(pl.Series(s.PAIR_ID, (hashes >> np.uint64(1)).astype(np.int64)))
    ordered = hashed.sort(key, DAY, s.PAIR_ID, _CODE, f"{_CODE}_right")
    place = pl.int_range(pl.len()).over(key, DAY)
    return ordered.filter(place < at_most).drop(s.SCENARIO, f"{s.SCENARIO}_right")
