from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pipeline.known.items import ItemDays, ItemLookup, lookup_path, with_totals, write_lookup
from pipeline.shuffle import cut_by_key, hash_keys

SCENARIOS = ["feed", "video"]


def items(num: int, *, shown: int = 3) -> pl.DataFrame:
    """Item i is shown i % `shown` times in feed, and each fourth once in video."""
    numbers = range(num)
    rows = [("feed", i, i % shown, 1) for i in numbers] + [("video", i, 1, 0) for i in numbers[::4]]
    schema = ["scenario", "item_id", "impressions", "positives"]
    return with_totals(pl.DataFrame(rows, schema=schema, orient="row"))


def lookup(folder: Path, table: pl.DataFrame, num_parts: int) -> ItemLookup:
    parts = dict(cut_by_key(table.to_arrow(), "item_id", num_parts=num_parts, by_range=True))
    paths = []
    for part in range(num_parts):
        rows = pl.from_arrow(parts[part]) if part in parts else table.clear()
        paths.append(folder / f"part-{part:05}.arrow")
        write_lookup(paths[-1], rows, SCENARIOS)
    return ItemLookup(paths, SCENARIOS)


@pytest.mark.parametrize("num_parts", [1, 3, 50])
def test_items_are_found_by_scenario_and_id_or_not_at_all(tmp_path: Path, num_parts: int) -> None:
    found = lookup(tmp_path, items(20), num_parts)
    asked = pl.Series(["feed", "video", "video", "feed"]), pl.Series([7, 8, 7, 99])
    rows = found.find(*asked)
    assert (rows >= 0).tolist() == [True, True, False, False]
    names = ["item_id", "scenario", "item_scenario_impressions", "item_impressions"]
    taken = found.take(rows, names)
    assert taken["item_id"].to_pylist() == [7, 8, None, None]
    assert taken["scenario"].to_pylist() == ["feed", "video", None, None]
    assert taken["item_scenario_impressions"].to_pylist() == [1, 1, None, None]
    assert taken["item_impressions"].to_pylist() == [1, 3, None, None]


def test_draws_are_the_same_items_for_any_number_of_parts(tmp_path: Path) -> None:
    table = items(200)
    fractions = np.random.default_rng(0).random(1_000)
    drawn = []
    for num_parts in (1, 3, 16):
        found = lookup(tmp_path / str(num_parts), table, num_parts)
        rows = found.draw("feed", fractions)
        drawn.append(found.take(rows, ["item_id"])["item_id"].to_pylist())
        assert found.exposure("feed") == sum(i % 3 for i in range(200))
    assert drawn[0] == drawn[1] == drawn[2]


@pytest.mark.parametrize("num_parts", [1, 4])
def test_every_impression_is_one_equal_part_of_the_unit_interval(
    tmp_path: Path, num_parts: int
) -> None:
    table = items(10)
    found = lookup(tmp_path, table, num_parts)
    exposure = found.exposure("feed")
    rows = found.draw("feed", (np.arange(exposure) + 0.5) / exposure)
    order = table.filter(scenario="feed")["item_id"]
    order = order[np.argsort(hash_keys(order.to_arrow()))].to_list()
    expected = list(itertools.chain(*([item] * (item % 3) for item in order)))
    assert found.take(rows, ["item_id"])["item_id"].to_pylist() == expected
    assert found.draw("feed", np.array([0.0, np.nextafter(1, 0)])).tolist() == [rows[0], rows[-1]]


def test_a_day_is_seen_as_of_the_day_before_it_only(tmp_path: Path) -> None:
    for day, num in ((3, 5), (4, 9)):
        write_lookup(lookup_path(tmp_path, day, 0), items(num), SCENARIOS)
    days = ItemDays(tmp_path, [3, 4], SCENARIOS)
    assert [days.before(day).exposure("feed") for day in (4, 5)] == [4, 9]
    for day in (3, 6):
        assert days.before(day).is_empty
        assert days.before(day).exposure("feed") == 0
        assert days.before(day).find(pl.Series(["feed"]), pl.Series([1])).tolist() == [-1]
