"""A log of which two rows in a hundred are malformed, in eight ways; then repaired."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.events.rejects import read_rejects
from pipeline.events.repair import count_repaired, repair, repaired_files
from pipeline.manifest import read_manifest, sample_files
from pipeline.samples import DayRange, make_samples, repair_samples
from tests.pipeline.event_log import START, event, specification
from tests.pipeline.test_samples import LOCAL, config_of

HOUR, DAY = 3_600_000, 86_400_000
DAYS = DayRange("2026-01-01", "2026-01-03")
# Each way, what it does to a line, and the reason that it must be counted under.
WAYS = {
    "not_json": lambda line, _: line[: len(line) // 2],
    "wrong_type": lambda _, row: json.dumps(row | {"item_id": "seven"}),
    "missing_column_value": lambda _, row: json.dumps(row | {"user_id": None}),
    "unknown_action": lambda _, row: json.dumps(row | {"action": "clik"}),
    "unknown_scenario": lambda _, row: json.dumps(row | {"scenario": "fed"}),
    "negative_timestamp": lambda _, row: json.dumps(row | {"timestamp_ms": -5}),
    "implausible_timestamp": lambda _, row: json.dumps(
        row | {"timestamp_ms": row["timestamp_ms"] // 1000}
    ),
    "negative_number": lambda _, row: json.dumps(row | {"play_seconds": -1.0}),
}


def clean_rows() -> list[dict[str, Any]]:
    rng = random.Random(5)
    rows = []
    for number in range(2_000):
        time, user = rng.randrange(4 * DAY), rng.randrange(50)
        item, scenario = rng.randrange(40), rng.choice(["feed", "video"])
        played = {"play_seconds": 9.0, "duration_seconds": 10.0, "scenario": scenario}
        rows.append(event(f"i{number}", time, user, item) | played)
        rows[-1]["request_id"] = str(number)
        if rng.random() < 0.5:
            action = "play" if scenario == "video" else "click"
            taken = event(f"o{number}", time + rng.randrange(HOUR), user, item, action) | played
            rows.append(taken | {"request_id": str(number)})
    return rows


def write_logs(folder: Path, rows: list[dict[str, Any]], bad: dict[int, str]) -> dict[str, str]:
    """Writes JSON lines; returns the good line of each bad one, by the bad one."""
    repaired, lines = {}, []
    for number, row in enumerate(rows):
        good = json.dumps(row)
        line = WAYS[bad[number]](good, row) if number in bad else good
        if number in bad:
            repaired[line] = good
        lines.append(line)
    folder.mkdir()
    half = len(lines) // 2
    for name, part in (("a", lines[:half]), ("b", lines[half:])):
        (folder / f"{name}.jsonl").write_text("\n".join(part) + "\n")
    return repaired


def samples_of(output: Path) -> dict[str, dict[str, Any]]:
    tables = [pq.read_table(file.path, partitioning=None) for file in sample_files(output)]
    return {row["event_id"]: row for table in tables for row in table.to_pylist()}


def test_malformed_rows_are_counted_kept_and_repaired(tmp_path: Path) -> None:
    rows = clean_rows()
    rng = random.Random(6)
    chosen = rng.sample(range(len(rows)), len(rows) * 2 // 100)
    bad = {number: list(WAYS)[place % 8] for place, number in enumerate(chosen)}
    repaired = write_logs(tmp_path / "logs", rows, bad)
    write_logs(tmp_path / "clean", rows, {})
    # What is left when the bad rows had never been written.
    write_logs(tmp_path / "less", [r for n, r in enumerate(rows) if n not in bad], {})
    video = {"candidate": [{"name": "item_id", "kind": "id", "table": "t"}]}
    spec = specification(features=specification().features.model_dump() | video)

    def build(name: str) -> dict[str, dict[str, Any]]:
        config = config_of(tmp_path / name, tmp_path / f"{name} out", max_reject_share=0.03)
        make_samples(config, spec, LOCAL, days=DAYS)
        return samples_of(tmp_path / f"{name} out")

    found, less, clean = build("logs"), build("less"), build("clean")
    assert found == less  # the rest is unharmed
    assert len(clean) - len(less) > 10
    manifest = read_manifest(tmp_path / "logs out")
    (build_of_all,) = {tuple(sorted(build.rejects.items())) for build in manifest.builds}
    expected = {way: sum(kind == way for kind in bad.values()) for way in WAYS}
    assert dict(build_of_all) == expected
    assert len(expected) == 8
    # None is lost: each is in the rejects, with its file, its row, and every byte.
    kept = {}
    for path, reject in read_rejects(tmp_path / "logs out" / "rejected"):
        log = Path(reject["file"]).read_bytes().split(b"\n")
        assert log[reject["row"] - 1] == reject["raw"]
        kept[reject["raw"].decode()] = path
    assert kept.keys() == repaired.keys()
    # Repaired by hand, and sent through again.
    (tmp_path / "mended").mkdir()
    for path in set(kept.values()):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        mended = [json.dumps(line | {"raw": repaired[line["raw"]]}) for line in lines]
        (tmp_path / "mended" / path.name).write_text("\n".join(mended) + "\n")
    config = config_of(tmp_path / "logs", tmp_path / "logs out", max_reject_share=0.0)
    done, manifest = repair_samples(config, spec, LOCAL, rejects=tmp_path / "mended")
    assert (done.accepted, done.rejects) == (len(bad), {})
    # All days are built again, in order: histories of the later ones know the repaired rows too.
    assert [(day.day, day.build) for day in manifest.days] == [
        ("2026-01-01", 4),
        ("2026-01-02", 5),
        ("2026-01-03", 6),
    ]
    assert samples_of(tmp_path / "logs out") == clean


def rejected(folder: Path, **rows: dict[str, Any]) -> Path:
    """Writes rejected rows of one log, each named after its row, as somebody has repaired them."""
    folder.mkdir(exist_ok=True)
    lines = [
        json.dumps({"file": "log", "row": int(name[1:]), "raw": json.dumps(row, indent=1)})
        for name, row in rows.items()
    ]
    (folder / "log.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def repaired_rows(output: Path) -> list[dict[str, Any]]:
    lines = [line for path in repaired_files(output) for line in path.read_text().splitlines()]
    return [json.loads(line) for line in lines]


def test_a_row_that_is_repaired_once_more_replaces_itself(tmp_path: Path) -> None:
    output, mended = tmp_path / "out", tmp_path / "mended"
    first = {"r1": event("a", 0, 1, 2), "r2": event("b", 0, 1, 2)}

    def again(**rows: dict[str, Any]):
        folder, options = rejected(mended, **rows), {"outcomes_need_features": False}
        return repair(folder, output, specification(), window_ms=HOUR, **options)

    found = again(**first)
    assert (found.accepted, found.known) == (2, 0)
    found = again(**first)
    assert (found.accepted, found.known) == (0, 2)
    # Another user, on another day: the day on which it no longer is changes as well.
    found = again(r1=event("a", 3 * DAY + HOUR, 9, 2), r2=first["r2"])
    assert (found.accepted, found.known) == (1, 1)
    first_day = START // DAY
    assert found.days == [first_day - 1, first_day, first_day + 3]
    assert sorted((row["event_id"], row["user_id"]) for row in repaired_rows(output)) == [
        ("a", 9),
        ("b", 1),
    ]
    assert count_repaired(repaired_files(output), ["log"]) == 2
    # As if the last command had been killed before it took the former row out.
    first_file = repaired_files(output)[0]
    left = first_file.read_text()
    stale = {"headrace_rejected_file": "log", "headrace_rejected_row": 1} | first["r1"]
    first_file.write_text(left + json.dumps(stale) + "\n")
    found = again(r1=event("a", 3 * DAY + HOUR, 9, 2), r2=first["r2"])
    assert (found.accepted, found.known, found.days[0]) == (0, 2, first_day - 1)
    assert first_file.read_text() == left
    assert count_repaired(repaired_files(output), ["another"]) == 0


def test_repaired_rows_are_read_by_a_specification_that_wants_more_of_them(tmp_path: Path) -> None:
    log, output = tmp_path / "log.jsonl", tmp_path / "out"
    rows = [event("a", 0, 1, 1), event("a!", 1, 1, 1, "click")]
    log.write_text("".join(json.dumps(row | {"brand": "x"}) + "\n" for row in rows))
    whole = event("b", 2, 2, 1), event("b!", 3, 2, 1, "click")
    raws = [whole[0] | {"brand": "y"}, whole[1], event("c", 4, 3, 1)]
    folder = rejected(tmp_path / "mended", **{f"r{n}": row for n, row in enumerate(raws)})
    config = config_of(log, output, max_reject_share=0.5)
    repair_samples(config, specification(), LOCAL, rejects=folder)
    assert samples_of(output).keys() == {"a", "b"}
    candidate = {"name": "brand", "kind": "id", "table": "t"}
    features = specification().features.model_dump()
    features["candidate"].append(candidate)
    more = specification(features=features, columns={"brand": "string"})
    manifest = make_samples(config, more, LOCAL)
    assert {name: row["brand"] for name, row in samples_of(output).items()} == {"a": "x", "b": "y"}
    assert manifest.builds[-1].rejects == {"missing_column_value": 1}  # of c, which has no brand
