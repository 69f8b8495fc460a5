"""A log of which two rows in a hundred are malformed, in eight ways; then repaired."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline.events.rejects import read_rejects
from pipeline.manifest import read_manifest, sample_files
from pipeline.samples import DayRange, make_samples, repair_samples
from tests.pipeline.event_log import event, specification
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
    repair, manifest = repair_samples(config, spec, LOCAL, rejects=tmp_path / "mended")
    assert (repair.accepted, repair.rejects) == (len(bad), {})
    # All days are built again, in order: histories of the later ones know the repaired rows too.
    assert [(day.day, day.build) for day in manifest.days] == [
        ("2026-01-01", 4),
        ("2026-01-02", 5),
        ("2026-01-03", 6),
    ]
    assert samples_of(tmp_path / "logs out") == clean
