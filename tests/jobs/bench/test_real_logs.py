from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from jobs.bench.real_logs.__main__ import main
from jobs.bench.real_logs.convert import item_table, to_events, user_table
from jobs.main import run_job

DAY = 86_400_000
HOUR = 3600
LOG = [
    (7, 3, "buy", 2 * 24 * HOUR + 18 * HOUR),
    (7, 3, "pv", 6 * HOUR - 1),
    (7, 3, "fav", 6 * HOUR),
    (8, 4, "cart", 12 * HOUR),
]


def log() -> pl.DataFrame:
    names = ["user_id", "item_id", "behaviour", "timestamp_seconds"]
    return pl.DataFrame(LOG, schema=names, orient="row")


def test_behaviours_become_impressions_and_outcomes_of_six_hours_of_the_day() -> None:
    events = to_events(log())
    names = ("event_id", "request_id", "timestamp_ms", "scenario", "action")
    assert events.select(names).rows() == [
        ("e0000000", "7-3", 21_599_000, "night", "impression"),
        ("e0000001", "7-3", 21_600_000, "morning", "favourite"),
        ("e0000002", "8-4", 43_200_000, "afternoon", "cart"),
        ("e0000003", "7-3", 2 * DAY + 64_800_000, "evening", "purchase"),
    ]
    # What is made up is the item's alone.
    assert events.filter(item_id=3).select("category", "tags").n_unique() == 1
    assert to_events(log()[::-1]).equals(events)


def test_a_part_of_the_profiles_change_in_the_middle() -> None:
    ids = pl.Series(range(30_000))
    items, users = item_table(ids, 10, 15), user_table(ids, 10, 15)
    assert set(items["valid_from_ms"]) == set(users["valid_from_ms"]) == {10 * DAY, 15 * DAY}
    share = items.filter(valid_from_ms=15 * DAY)["item_id"].n_unique() / 30_000
    assert share == pytest.approx(1 / 3 * 49 / 50, abs=0.02)
    assert set(items["valid_to_ms"]) == {None, 15 * DAY}
    assert set(items["price_level"]) == {1, 2, 3, 4, 5} and set(users["level"]) == {0, 1, 2, 3, 4}
    both = items.group_by("item_id").agg("price_level", pl.len().alias("n")).filter(pl.col("n") > 1)
    assert both["price_level"].list.n_unique().unique().to_list() == [2]
    late = 30_000 - users.filter(valid_from_ms=10 * DAY)["user_id"].n_unique()
    assert late / 30_000 == pytest.approx(1 / 20, abs=0.01)


def test_the_command_writes_a_file_for_each_day(tmp_path: Path, capsys) -> None:
    log().write_parquet(tmp_path / "taobao.parquet")
    out = tmp_path / "out"
    assert main(["taobao", "--data", str(tmp_path), "--out", str(out)]) == 0
    assert "4 events, 2 days" in " ".join(capsys.readouterr().out.split())
    assert [str(path.relative_to(out)) for path in sorted(out.rglob("*.parquet"))] == [
        "items.parquet",
        "logs/dt=1970-01-01/events.parquet",
        "logs/dt=1970-01-03/events.parquet",
        "users.parquet",
    ]


def test_a_missing_log_is_an_error_with_its_path(tmp_path: Path, capsys, monkeypatch) -> None:
    arguments = ["x", "retailrocket", "--data", str(tmp_path), "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", arguments)
    assert run_job(main) == 2
    assert "retailrocket.parquet: found no such file" in capsys.readouterr().err.replace("\n", "")
