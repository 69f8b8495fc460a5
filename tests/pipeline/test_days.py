"""Days built one after another, again, and late: through the whole job."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.days import Span, files_for, runs_of
from pipeline.manifest import read_manifest, sample_files
from pipeline.samples import DayRange, repair_samples
from pipeline.schema import InputError
from tests.pipeline.event_log import START, event, specification, with_statistics
from tests.pipeline.test_samples import LOCAL, config_of, rows_of, run

HOUR, DAY = 3_600_000, 86_400_000
DAYS = ["2026-01-01", "2026-01-02", "2026-01-03"]


def day_events(day: int, *, user: int = 1) -> list[dict]:
    """Shown at noon and taken; shown five minutes before midnight and taken after it."""
    noon, night = day * DAY + 12 * HOUR, (day + 1) * DAY - HOUR // 12
    item = 10 * (day + 1)
    return [
        event(f"{user} noon {day}", noon, user, item),
        event(f"{user} noon {day}!", noon + 9, user, item, "click"),
        event(f"{user} night {day}", night, user, item + 1),
        event(f"{user} night {day}!", night + HOUR // 6, user, item + 1, "click"),
    ]


def write_days(folder: Path, days: range = range(4), more: dict[int, list[str]] | None = None):
    """Each event in the folder of its own day."""
    rows: dict[str, list[str]] = {}
    for day in days:
        for row in [*day_events(day), *day_events(day, user=2)]:
            name = f"2026-01-{row['timestamp_ms'] // DAY - START // DAY + 1:02}"
            rows.setdefault(name, []).append(json.dumps(row))
        rows.setdefault(f"2026-01-{day + 1:02}", []).extend((more or {}).get(day, []))
    for name, lines in rows.items():
        path = folder / f"dt={name}" / "events.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(lines) + "\n")


def build(folder: Path, first: str, last: str, *, output="out", rebuild=False, **settings):
    days = DayRange(first, last, rebuild=rebuild)
    spec = settings.pop("spec", with_statistics())
    return run(folder / "logs", folder / output, spec=spec, days=days, **settings)


def rows_by_day(output: Path) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for file in sample_files(output):
        found.setdefault(file.day, []).extend(pq.read_table(file.path).to_pylist())
    ordered = {day: sorted(rows, key=lambda row: row["event_id"]) for day, rows in found.items()}
    return dict(sorted(ordered.items()))


def inodes(output: Path, day: str) -> dict[str, int]:
    """The files of a day: equal numbers are the same file, not one with the same content."""
    files = [file.path for file in read_manifest(output).files if file.day == day]
    return {path: (output / path).stat().st_ino for path in files}


def test_days_one_by_one_are_the_days_at_once_byte_for_byte(tmp_path: Path) -> None:
    write_days(tmp_path / "logs")
    for day in DAYS:
        build(tmp_path, day, day, output="each")
    build(tmp_path, DAYS[0], DAYS[-1], output="range", days_at_once=3)
    each, together = tmp_path / "each", tmp_path / "range"
    files = {f.path: f.sha256 for f in read_manifest(each).files}
    assert files == {f.path: f.sha256 for f in read_manifest(together).files}
    assert {path.split("/")[0] for path in files} == {"retrieval", "facts"}
    for path, digest in files.items():
        assert (each / path).read_bytes() == (together / path).read_bytes(), digest
    # By hand: the click of 00:05 is a label of the day before, and history from then on only.
    noon, night = rows_by_day(each)["2026-01-02"][:2]
    assert (noon["event_id"], noon["history_item_id"]) == ("1 night 1", [11, 20])
    assert (night["event_id"], night["history_item_id"]) == ("1 noon 1", [10, 11])
    assert [row["item_impressions"] for row in rows_by_day(each)["2026-01-02"]] == [0, 0, 0, 0]


def test_one_clock_that_is_fast_does_not_make_a_day_complete(tmp_path: Path) -> None:
    def log(name: str, *rows: dict) -> None:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))

    def built() -> tuple[bool, list[str]]:
        days = DayRange(DAYS[0], DAYS[0])
        (day,) = run(f"{tmp_path}/*.jsonl", tmp_path / "out", days=days).days
        return day.complete, [row["event_id"] for row in rows_of(tmp_path / "out")]

    minute = HOUR // 60
    shown = [event(f"{n}", n * minute, n, 1) for n in range(1_000)]
    taken = [event(f"{n}!", n * minute + 5, n, 1, "click") for n in (7, 999)]
    log("today.jsonl", *shown, taken[0], event("fast", DAY + 2 * HOUR, 7, 1))
    assert built() == (False, ["7"])
    log("rest.jsonl", taken[1], *(event(f"b{n}", DAY + HOUR + n, n, 1) for n in range(10)))
    assert built() == (True, ["7", "999"])


def test_only_missing_days_are_built_and_the_others_are_shared(tmp_path: Path) -> None:
    write_days(tmp_path / "logs")
    build(tmp_path, DAYS[1], DAYS[1])
    before = inodes(tmp_path / "out", DAYS[1])
    for day in ("2026-01-04", "2026-01-05"):
        shutil.rmtree(tmp_path / "logs" / f"dt={day}")
    manifest = build(tmp_path, DAYS[0], DAYS[2])
    assert [(day.day, day.build, day.complete) for day in manifest.days] == [
        ("2026-01-01", 2, True),
        ("2026-01-02", 1, True),
        ("2026-01-03", 3, False),  # its last hour has no events behind it yet
    ]
    assert inodes(tmp_path / "out", DAYS[1]) == before
    assert [build.days for build in manifest.builds] == ["2026-01-02", "2026-01-01", "2026-01-03"]
    again = build(tmp_path, DAYS[0], DAYS[1])
    assert again == manifest
    write_days(tmp_path / "logs")
    later = build(tmp_path, DAYS[0], DAYS[2])
    assert [(day.build, day.complete) for day in later.days] == [(2, True), (1, True), (4, True)]


def test_a_rebuilt_day_replaces_the_old_one_and_names_the_days_that_look_back_to_it(
    tmp_path: Path, caplog
) -> None:
    write_days(tmp_path / "logs")
    build(tmp_path, DAYS[0], DAYS[2])
    former = rows_by_day(tmp_path / "out")
    late = [event("late", 13 * HOUR, 1, 99), event("late!", 13 * HOUR + 1, 1, 99, "click")]
    write_days(tmp_path / "logs", more={0: list(map(json.dumps, late))})
    assert build(tmp_path, DAYS[0], DAYS[2]) == read_manifest(tmp_path / "out")
    assert rows_by_day(tmp_path / "out") == former
    build(tmp_path, DAYS[0], DAYS[0], rebuild=True)
    found = rows_by_day(tmp_path / "out")
    assert [row["event_id"] for row in found[DAYS[0]]] == sorted(
        [*(row["event_id"] for row in former[DAYS[0]]), "late"]
    )
    assert {day: found[day] for day in DAYS[1:]} == {day: former[day] for day in DAYS[1:]}
    (warning,) = [r.getMessage() for r in caplog.records if "look back" in r.getMessage()]
    assert warning.startswith("2 days, 2026-01-02 to 2026-01-03, look back to a day")
    build(tmp_path, DAYS[1], DAYS[2], rebuild=True)
    assert 99 in rows_by_day(tmp_path / "out")[DAYS[1]][1]["history_item_id"]


def test_facts_count_as_far_as_the_lookback(tmp_path: Path) -> None:
    spec = with_statistics(history={"length": 9})
    more = {2: [json.dumps(row) for row in (event("x", 2 * DAY + HOUR, 3, 11),
                event("x!", 2 * DAY + HOUR + 1, 3, 11, "click"))]}  # fmt: skip
    write_days(tmp_path / "logs", more=more)
    for days, shown, history in (
        (None, 2, [10, 11, 20, 21]),
        (1, 0, [20, 21]),
        (2, 2, [10, 11, 20, 21]),
    ):
        output = f"out{days}"
        for day in DAYS:
            build(tmp_path, day, day, output=output, lookback_days=days, spec=spec)
        rows = {row["event_id"]: row for row in rows_by_day(tmp_path / output)[DAYS[2]]}
        assert rows["x"]["item_impressions"] == shown
        assert rows["1 noon 2"]["history_item_id"][-len(history) :] == history
        assert len(rows["1 noon 2"]["history_item_id"]) >= len(history)


def test_days_of_another_configuration_are_not_mixed(tmp_path: Path) -> None:
    write_days(tmp_path / "logs")
    build(tmp_path, DAYS[0], DAYS[0])
    with pytest.raises(InputError, match=r"found days of configuration \w+; expected .* anew"):
        build(tmp_path, DAYS[1], DAYS[1], join_window_seconds=60)
    with pytest.raises(InputError, match=r"--from: found '2026-13-01'; expected a day"):
        build(tmp_path, "2026-13-01", DAYS[1])
    with pytest.raises(
        InputError, match=r"--to: found 2026-01-01, before --from; expected 2026-01-02"
    ):
        build(tmp_path, DAYS[1], DAYS[0])


def test_logs_of_other_days_are_not_read(tmp_path: Path) -> None:
    span = Span(20_454, 20_454, HOUR)  # 2026-01-01
    names = [
        f"dt={day}/x.jsonl" for day in ("2025-12-30", "2025-12-31", "2026-01-03", "2026-01-04")
    ]
    assert files_for([*names, "undated.jsonl"], span) == [*names[1:3], "undated.jsonl"]
    table = {
        name: [START + time]
        for name, time in (("early", -4 * HOUR), ("in", DAY), ("late", 2 * DAY))
    }
    for name, times in table.items():
        pq.write_table(pa.table({"timestamp_ms": times}), tmp_path / f"{name}.parquet")
    paths = [str(tmp_path / f"{name}.parquet") for name in table]
    assert files_for(paths, span) == paths[1:2]
    assert files_for(paths, Span(None, None, HOUR)) == paths


def test_days_are_built_some_at_once() -> None:
    assert runs_of([3, 1, 2, 7, 8], at_once=2) == [(1, 2), (3, 3), (7, 8)]
    assert runs_of([], at_once=2) == []


@pytest.mark.slow
def test_a_build_killed_between_days_goes_on_with_the_missing_ones(tmp_path: Path) -> None:
    write_days(tmp_path / "logs")
    build(tmp_path, DAYS[0], DAYS[2], output="whole")
    program = (
        "import sys; from tests.pipeline.test_days import *;"
        f"build(Path(sys.argv[1]), {DAYS[0]!r}, {DAYS[2]!r})"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
    while process.poll() is None and not (tmp_path / "out.runs" / "run-00002").exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [day.day for day in read_manifest(tmp_path / "out").days] == DAYS[:1]
    manifest = build(tmp_path, DAYS[0], DAYS[2])
    assert [day.build for day in manifest.days] == [1, 2, 3]
    whole = {f.path: f.sha256 for f in read_manifest(tmp_path / "whole").files}
    assert {f.path: f.sha256 for f in manifest.files} == whole


BAD = [
    "not json",
    json.dumps(event("b", DAY + 13 * HOUR, 1, 50) | {"user_id": None}),
    json.dumps(event("b!", DAY + 13 * HOUR + 5, 1, 50, "clik")),
]


def test_repaired_rejects_join_the_days_that_they_belong_to(tmp_path: Path) -> None:
    write_days(tmp_path / "logs", range(6), more={1: BAD})
    build(tmp_path, DAYS[0], "2026-01-05", max_reject_share=0.5)
    former = rows_by_day(tmp_path / "out")
    mended = tmp_path / "mended"
    mended.mkdir()
    for path in (tmp_path / "out" / "rejected").iterdir():
        text = path.read_text().replace("clik", "click")
        (mended / path.name).write_text(text.replace('user_id\\": null', 'user_id\\": 1'))
    # Two of three are events now; the third is still a reject, of more than 40 rows.
    config = config_of(tmp_path / "logs", tmp_path / "out", max_reject_share=0.0)
    with pytest.raises(InputError, match=r"found 1 of \d+ rows rejected"):
        repair_samples(config, with_statistics(), LOCAL, rejects=mended)
    assert rows_by_day(tmp_path / "out") == former
    config = config_of(tmp_path / "logs", tmp_path / "out", max_reject_share=0.05)
    repaired, manifest = repair_samples(config, with_statistics(), LOCAL, rejects=mended)
    assert (repaired.accepted, repaired.known, repaired.rejects) == (0, 2, {"not_json": 1})
    assert manifest == read_manifest(tmp_path / "out")
    assert [day.build for day in manifest.days] == [1, 6, 3, 4, 5]
    found = rows_by_day(tmp_path / "out")
    assert [row["event_id"] for row in found[DAYS[1]]][-1] == "b"
    assert len(found[DAYS[1]]) == len(former[DAYS[1]]) + 1
    assert {**found, DAYS[1]: []} == {**former, DAYS[1]: []}
    # A later build of that day has them still.
    build(tmp_path, DAYS[1], DAYS[1], rebuild=True, max_reject_share=0.05)
    assert rows_by_day(tmp_path / "out") == found


def test_a_specification_says_which_kinds(tmp_path: Path) -> None:
    write_days(tmp_path / "logs", range(1))
    spec = specification(kinds={"corpus": {}})
    manifest = run(tmp_path / "logs", tmp_path / "out", spec=spec)
    assert sorted(manifest.kinds) == ["corpus", "retrieval"]
    with pytest.raises(InputError, match="found samples of retrieval, corpus; expected pair"):
        sample_files(tmp_path / "out", "pair")
