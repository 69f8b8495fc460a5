"""The Taobao and RetailRocket logs as events, with tables of users and items.

Real: users, items, behaviours, times to the second. A page view (pv, view) becomes an impression;
favourites, carts and purchases become outcomes of the request "USER-ITEM", so that an outcome
belongs to the user's last view of the item. Of Taobao, page views are there only for items that
were also bought: never take a click-through or conversion rate from it. Most of its outcomes have
no view at all.

Made up, from hashes of the ids alone, so that each kind of column is there:

- `scenario`: night, morning, afternoon, evening, six hours of UTC each. No true serving scenes.
- `category`, one of 200, and `tags`, none to two of 50: columns of each event.
- The items' table: `price_level`, 1 to 5, from the log's first day on. A third of the items change
  it when the middle day begins; one in fifty has none from then on (`valid_to_ms`).
- The users' table: `level`, 0 to 4. Half of the users rise by one when the middle day begins; one
  in twenty has no row before it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from pipeline import schema as s
from pipeline.days import MS_PER_DAY, name_of
from pipeline.schema import InputError
from pipeline.shuffle import hash_keys

LOGS: Final = ("taobao", "retailrocket")
SCENARIOS: Final = ("night", "morning", "afternoon", "evening")
ACTIONS: Final = {
    "pv": s.IMPRESSION,
    "view": s.IMPRESSION,
    "fav": "favourite",
    "cart": "cart",
    "buy": "purchase",
}
CATEGORY, TAGS, PRICE_LEVEL, LEVEL = "category", "tags", "price_level", "level"

_MS_PER_SCENARIO: Final = MS_PER_DAY // len(SCENARIOS)
_NUM_CATEGORIES, _NUM_TAGS, _NUM_PRICES, _NUM_LEVELS = 200, 50, 5, 4


def convert(name: str, data: Path, out: Path) -> dict[str, int]:
    """Writes `OUT/logs/dt=YYYY-MM-DD/events.parquet`, `OUT/users.parquet` and `OUT/items.parquet`.

    Args:
        name: Of the log, one of `LOGS`.
        data: Folder that has `NAME.parquet`.
        out: Where to; the same files are written again.

    Returns:
        The number of rows, by what they are.

    Raises:
        InputError: If the file is not there.
    """
    path = data / f"{name}.parquet"
    if not path.is_file():
        raise InputError(f"{path}: found no such file; expected it there, or --data DIR")
    events = to_events(pl.read_parquet(path))
    days = (events[s.TIMESTAMP_MS] // MS_PER_DAY).rename("day")
    for (day,), rows in events.with_columns(days).group_by("day", maintain_order=True):
        _write(rows.drop("day"), out / "logs" / f"dt={name_of(int(day))}" / "events.parquet")
    first, last = int(days.min()), int(days.max())  # type: ignore[arg-type]  # polars: any literal
    users = user_table(events[s.USER_ID], first, (first + last + 1) // 2)
    items = item_table(events[s.ITEM_ID], first, (first + last + 1) // 2)
    _write(users, out / "users.parquet")
    _write(items, out / "items.parquet")
    return {
        "events": len(events),
        "days": days.n_unique(),
        "rows of users": len(users),
        "rows of items": len(items),
    }


def _write(rows: pl.DataFrame, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows.to_arrow(), path, compression="zstd")


def to_events(log: pl.DataFrame) -> pl.DataFrame:
    """Returns events by time; event ids are their numbers in this order.

    Args:
        log: user_id, item_id, behaviour and timestamp_seconds.
    """
    ordered = log.with_columns(pl.col(s.USER_ID, s.ITEM_ID).cast(pl.Int64)).sort(
        "timestamp_seconds", s.USER_ID, s.ITEM_ID, "behaviour"
    )
    time = pl.col("timestamp_seconds") * 1000
    events = ordered.select(
        pl.format("e{}", pl.int_range(pl.len()).cast(pl.String).str.zfill(7)).alias(s.EVENT_ID),
        pl.format("{}-{}", s.USER_ID, s.ITEM_ID).alias(s.REQUEST_ID),
        time.alias(s.TIMESTAMP_MS),
        s.USER_ID,
        s.ITEM_ID,
        (time % MS_PER_DAY // _MS_PER_SCENARIO)
        .replace_strict(dict(enumerate(SCENARIOS)), return_dtype=pl.String)
        .alias(s.SCENARIO),
        pl.col("behaviour").replace_strict(ACTIONS, return_dtype=pl.String).alias(s.ACTION),
    )
    known = _item_properties(events[s.ITEM_ID].unique(maintain_order=True))
    return events.join(known, on=s.ITEM_ID, how="left", maintain_order="left")


def _item_properties(items: pl.Series) -> pl.DataFrame:
    first, second = _digits(items, _NUM_TAGS, shift=8), _digits(items, _NUM_TAGS, shift=16)
    tags = [
        [f"tag-{number}" for number in pair[:count]]
        for *pair, count in zip(first, second, _digits(items, 3, shift=24), strict=True)
    ]
    return pl.DataFrame(
        {
            s.ITEM_ID: items,
            CATEGORY: _digits(items, _NUM_CATEGORIES, shift=0),
            TAGS: pl.Series(tags, dtype=pl.List(pl.String)),
        }
    )


def _digits(ids: pl.Series, base: int, *, shift: int) -> pl.Series:
    """Returns numbers below `base` that look like chance and are an id's alone."""
    hashes = hash_keys(ids.to_arrow()) >> np.uint64(shift)
    return pl.Series((hashes % np.uint64(base)).astype(np.int64))


def item_table(items: pl.Series, first: int, middle: int) -> pl.DataFrame:
    """Returns the items' table.

    Args:
        items: Ids, repeats allowed.
        first: Day that the log begins.
        middle: Day that prices change.
    """
    items = items.unique().sort()
    price = _digits(items, _NUM_PRICES, shift=32) + 1
    changes, ends = _digits(items, 3, shift=40) == 0, _digits(items, 50, shift=48) == 0
    start = pl.DataFrame({s.ITEM_ID: items, s.VALID_FROM_MS: _start(first, items)}).with_columns(
        pl.when(ends).then(_start(middle, items)).alias(s.VALID_TO_MS), price.alias(PRICE_LEVEL)
    )
    later = start.filter(changes & ~ends).with_columns(
        pl.lit(middle * MS_PER_DAY, pl.Int64).alias(s.VALID_FROM_MS),
        pl.col(PRICE_LEVEL) % _NUM_PRICES + 1,
    )
    return pl.concat([start, later]).sort(s.ITEM_ID, s.VALID_FROM_MS)


def user_table(users: pl.Series, first: int, middle: int) -> pl.DataFrame:
    """Returns the users' table; see `item_table`."""
    users = users.unique().sort()
    level = _digits(users, _NUM_LEVELS, shift=32)
    rises, comes = _digits(users, 2, shift=40) == 0, _digits(users, 20, shift=48) == 0
    start = pl.DataFrame(
        {s.USER_ID: users, s.VALID_FROM_MS: _start(first, users), LEVEL: level}
    ).filter(~comes)
    later = pl.DataFrame(
        {s.USER_ID: users, s.VALID_FROM_MS: _start(middle, users), LEVEL: level + 1}
    ).filter(comes | rises)
    return pl.concat([start, later]).sort(s.USER_ID, s.VALID_FROM_MS)


def _start(day: int, ids: pl.Series) -> pl.Series:
    return pl.Series([day * MS_PER_DAY], dtype=pl.Int64).new_from_index(0, len(ids))
