from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from jobs.bench.sample_baselines import checksum, connect_with_samples, write_logs
from jobs.bench.synthetic import World, make_events, synthetic_specification
from pipeline.manifest import read_manifest, sample_files
from pipeline.samples import SamplesConfig, make_samples
from pipeline.schema import InputError
from tests.pipeline.event_log import START, event, specification, with_statistics

LOCAL = PipelineOptions(["--runner=FnApiRunner"])
SMALL = World(num_users=300, num_items=100)


def config_of(inputs, output, **settings):
    return SamplesConfig(inputs=[str(inputs)], output=output, **settings)


def run(inputs, output, *, spec=None, options=LOCAL, days=None, **settings):
    config = config_of(inputs, output, **settings)
    return make_samples(config, spec or specification(), options, days=days)


def rows_of(output) -> list[dict]:
    tables = [pq.read_table(file.path, partitioning=None) for file in sample_files(output)]
    return sorted(
        (row for table in tables for row in table.to_pylist()), key=lambda row: row["event_id"]
    )


def contents(output) -> dict[str, bytes]:
    root = Path(output).resolve()
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


LOG = [
    event("a", 0, 1, 10),
    event("a!", 1_000, 1, 10, "click"),
    event("a!", 1_000, 1, 10, "click"),  # delivered twice
    event("b", 2_000, 1, 11),
    event("b!", 3_700_000, 1, 11, "click"),  # after the window of an hour
    event("c", 86_400_000, 1, 12),  # the next day
    event("c!", 86_400_500, 1, 12, "click"),
    event("d", 500, 2, 10, scenario="video"),
    event("d!", 900, 2, 10, "play", scenario="video", play_seconds=6, duration_seconds=8),
    event("e!", 900, 2, 13, "click"),  # never shown
]
BAD = ["not json", json.dumps(event("f", 0, 1, 1, "look"))]


def write_log(path: Path, rows: list[dict], more: list[str] = ()) -> Path:
    text = "\n".join([*map(json.dumps, rows), *more]) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def test_a_log_by_hand_gives_the_samples_by_hand(tmp_path) -> None:
    write_log(tmp_path / "logs" / "1.jsonl", LOG[:4], [*BAD[:1], ""])
    write_log(tmp_path / "logs" / "2.jsonl.gz", LOG[4:7], ["", *BAD[1:]])
    table = pa.Table.from_pylist([dict.fromkeys(LOG[8]) | row for row in LOG[7:]])
    pq.write_table(table, tmp_path / "logs" / "3.parquet")
    manifest = run(tmp_path / "logs", tmp_path / "out", max_reject_share=0.2, num_parts=3)
    shared = {"user_id": 1, "scenario": "feed", "reward": 1.0}
    assert rows_of(tmp_path / "out") == [
        {"event_id": "a", "timestamp_ms": START, "item_id": 10, "history_item_id": []} | shared,
        {
            "event_id": "c",
            "timestamp_ms": START + 86_400_000,
            "item_id": 12,
            "history_item_id": [10],
        }
        | shared,
        {"event_id": "d", "timestamp_ms": START + 500, "user_id": 2, "item_id": 10}
        | {"scenario": "video", "reward": 0.75, "history_item_id": []},
    ]
    assert manifest == read_manifest(tmp_path / "out")
    assert manifest.counts == {
        "events_read": 12,
        "events_accepted": 9,
        "duplicates": 1,
        "impressions": 4,
        "outside": 0,
        "retrieval samples": 3,
    }
    assert manifest.rejects == {"not_json": 1, "unknown_action": 1}
    assert {f: n for f, n in manifest.outcomes.items() if n} == {
        "joined": 3,
        "late": 1,
        "orphan_dropped": 1,
    }
    assert manifest.watermark_ms == START + 86_400_500
    assert [Path(file.path).name for file in manifest.inputs] == [
        "1.jsonl",
        "2.jsonl.gz",
        "3.parquet",
    ]
    files = sorted((tmp_path / "out" / "rejected").iterdir())
    rejected = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    found = [(Path(row["file"]).name, row["row"], row["reason"], row["raw"]) for row in rejected]
    assert found == [
        ("1.jsonl", 5, "not_json", "not json"),
        ("2.jsonl.gz", 5, "unknown_action", BAD[1]),
    ]


@pytest.mark.parametrize("num_parts", [1, 5])
def test_synthetic_samples_equal_those_of_sql(tmp_path, num_parts) -> None:
    logs = write_logs(make_events(30_000, seed=3, world=SMALL), tmp_path / "logs", num_files=3)
    spec = synthetic_specification(statistics=True)
    manifest = run(logs, tmp_path / "out", spec=spec, num_parts=num_parts)
    assert min(manifest.outcomes[fate] for fate in ("joined", "late", "early")) > 10
    with connect_with_samples(logs, window_ms=SMALL.window_ms, length=20, threads=2) as duck:
        duck.execute(f"copy sample to '{tmp_path}/sql.parquet'")
        # Of whole days before the sample's.
        before = (
            "select count(*) from {0} l where l.item_id = s.item_id"
            " and l.{1} // 86400000 < s.timestamp_ms // 86400000"
        )
        counts = duck.execute(
            f"select event_id, ({before.format('impression', 'timestamp_ms')}),"
            f" ({before.format('positive', 'outcome_ms')}) from sample s order by event_id"
        ).fetchall()
    assert checksum(str(tmp_path / "out" / "retrieval" / "dt=*" / "*")) == checksum(
        f"{tmp_path}/sql.parquet"
    )
    found = [
        (r["event_id"], r["item_impressions"], r["item_positives"])
        for r in rows_of(tmp_path / "out")
    ]
    assert found == counts
    assert len(found) > 3_000


def test_files_are_sorted_and_a_user_is_in_one_part(tmp_path) -> None:
    logs = write_logs(make_events(20_000, seed=4, world=SMALL), tmp_path / "logs", num_files=2)
    run(logs, tmp_path / "out", spec=synthetic_specification(), num_parts=4)
    parts: dict[int, int] = {}
    for file in sample_files(tmp_path / "out"):
        rows = pq.read_table(file.path, partitioning=None).to_pylist()
        keys = [(row["timestamp_ms"], row["event_id"]) for row in rows]
        assert keys == sorted(keys)
        assert all(parts.setdefault(row["user_id"], file.part) == file.part for row in rows)
    assert set(parts.values()) == {0, 1, 2, 3}


def test_string_ids_and_kept_orphans(tmp_path) -> None:
    rows = [
        event("a", 0, "u", "x"),
        event("a!", 5, "u", "x", "click"),
        event("b!", 9, "u", "y", "click"),
    ]
    write_log(tmp_path / "log.jsonl", rows)
    spec = specification(user_id="string", item_id="string")
    manifest = run(tmp_path / "log.jsonl", tmp_path / "out", spec=spec, orphans="keep")
    assert [(r["event_id"], r["history_item_id"]) for r in rows_of(tmp_path / "out")] == [
        ("a", []),
        ("b!", ["x"]),
    ]
    assert manifest.outcomes["orphan_kept"] == 1


def test_a_repeated_run_gives_the_same_bytes(tmp_path) -> None:
    logs = write_logs(make_events(5_000, seed=5, world=SMALL), tmp_path / "logs", num_files=2)
    spec = synthetic_specification(statistics=True)
    run(logs, tmp_path / "out", spec=spec)
    first = contents(tmp_path / "out")
    run(logs, tmp_path / "out", spec=spec)
    assert contents(tmp_path / "out") == first


def test_too_many_rejects_fail_the_run_and_leave_the_former_output(tmp_path) -> None:
    write_log(tmp_path / "log.jsonl", LOG)
    run(tmp_path / "log.jsonl", tmp_path / "out")
    before = contents(tmp_path / "out")
    write_log(tmp_path / "log.jsonl", LOG * 10, ["x", "y", "z"])  # 3 of 103
    with pytest.raises(InputError, match=r"found 3 of 103 rows rejected \(2\.91%\)") as caught:
        run(tmp_path / "log.jsonl", tmp_path / "out")
    assert contents(tmp_path / "out") == before
    (where,) = [line for line in str(caught.value).splitlines() if line.startswith("the rows are")]
    (rejected,) = Path(where.split()[4].rstrip(";")).iterdir()
    assert len(rejected.read_text().splitlines()) == 3


def test_a_gzip_file_that_ends_early_fails_the_run(tmp_path) -> None:
    path = write_log(tmp_path / "log.jsonl.gz", LOG * 2_000)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"log\.jsonl\.gz: found bytes that cannot be decoded"):
        run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_run_killed_at_any_moment_leaves_the_former_output_whole(tmp_path) -> None:
    logs = write_logs(make_events(60_000, seed=6, world=SMALL), tmp_path / "logs", num_files=2)
    spec = synthetic_specification()
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    run(write_log(tmp_path / "old.jsonl", LOG), tmp_path / "out")
    before = contents(tmp_path / "out")
    program = (
        "import sys; from tests.pipeline.test_samples import *;"
        "run(sys.argv[1], Path(sys.argv[2]), spec=synthetic_specification(), num_parts=16)"
    )
    command = [sys.executable, "-c", program, logs, str(tmp_path / "out")]
    runs = tmp_path / "out.runs"
    for files in ("dt=*", "dt=*/part-00004*", "dt=*/part-0001*"):
        wanted = f"run-*/retrieval/{files}"
        known = set(runs.glob(wanted))
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(Path.cwd())})
        while process.poll() is None and not set(runs.glob(wanted)) - known:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert contents(tmp_path / "out") == before
    run(logs, tmp_path / "out", spec=spec, num_parts=16)
    run(logs, tmp_path / "other", spec=spec, num_parts=16)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")
    assert len(list(runs.glob("run-*"))) == 2  # the current one and the one before it


def test_counters_of_a_log_are_the_same_for_any_number_of_parts(tmp_path) -> None:
    logs = write_logs(make_events(5_000, seed=8, world=SMALL), tmp_path / "logs", num_files=1)
    counts = [
        run(logs, tmp_path / f"out{n}", spec=synthetic_specification(), num_parts=n).counts
        for n in (1, 7)
    ]
    assert counts[0] == counts[1]
    distinct = duckdb.sql(f"select count(distinct event_id) from '{logs}'").fetchall()
    assert counts[0]["events_accepted"] == distinct[0][0]


def write_rows(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_limit_of_a_column_that_no_sample_has_is_refused(tmp_path) -> None:
    spec = specification(checks={"features": {"itm_id": {"psi": {"fail": 0.5}}}})
    path = write_rows(tmp_path / "log.jsonl", event("a", 0, 1, 1))
    expected = r"specification.checks.features.itm_id: no such column .*did you mean 'item_id'"
    with pytest.raises(InputError, match=expected):
        run(path, tmp_path / "out", spec=spec)


def test_hard_negatives_of_the_events_come_with_the_samples(tmp_path) -> None:
    spec = specification(columns={"beside": "list<int64>"}, hard_negatives="beside")
    rows = [
        event("a", 0, 1, 1, beside=[4, 5]),
        event("a!", 1, 1, 1, "click"),
        event("b", 2, 1, 2),
        event("b!", 3, 1, 2, "click"),
    ]
    run(write_rows(tmp_path / "log.jsonl", *rows), tmp_path / "out", spec=spec)
    assert [row["beside"] for row in rows_of(tmp_path / "out")] == [[4, 5], None]


def test_there_may_be_hundreds_of_scenarios(tmp_path) -> None:
    names = [f"s{number}" for number in range(300)]
    spec = with_statistics(scenarios=names, labels={})
    rows = [event("first", 0, 1, 1, scenario="s299", request_id="0")]
    rows += [
        event("shown", 86_400_000, 1, 1, scenario="s7", request_id="1"),
        event("taken", 86_400_001, 1, 1, "click", scenario="s7", request_id="1"),
    ]
    run(write_rows(tmp_path / "log.jsonl", *rows), tmp_path / "out", spec=spec)
    (row,) = rows_of(tmp_path / "out")
    assert (row["item_impressions"], row["item_positives"]) == (1, 0)
