from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from jobs.main import main
from pipeline.manifest import read_manifest
from tests.pipeline.event_log import event, specification

LOG = [event("a", 0, 1, 10), event("a!", 1_000, 1, 10, "click"), event("b", 0, 2, 10)]


@pytest.fixture
def config(tmp_path):
    content = {
        "specification": specification().model_dump(exclude_defaults=True),
        "samples": {"inputs": [str(tmp_path / "logs")], "output": str(tmp_path / "out")},
    }
    (tmp_path / "logs").mkdir()
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def write_lines(config, *lines: str) -> None:
    (config.parent / "logs" / "log.jsonl").write_text("\n".join(lines) + "\n")


def write_parquet(config, table: pa.Table) -> None:
    pq.write_table(table, config.parent / "logs" / "log.parquet")


def samples(config, *more: str) -> int:
    return main(["samples", "--config", str(config), *more])


def test_the_command_writes_samples_and_prints_where_every_event_went(config, capsys) -> None:
    write_lines(config, *map(json.dumps, LOG))
    assert samples(config) == 0
    counts = [
        [cell.strip() for cell in line.split("│")[1:3]]
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("│")
    ]
    assert ["events read", "3"] in counts
    assert ["impressions", "2"] in counts
    assert ["outcomes: joined", "1"] in counts
    assert ["retrieval samples", "1"] in counts
    assert read_manifest(config.parent / "out").counts["retrieval samples"] == 1


def test_set_overrides_and_other_options_go_to_beam(config) -> None:
    write_lines(config, *map(json.dumps, LOG))
    assert samples(config, "--set", "samples.num_parts=2", "--job_name=mine") == 0
    assert read_manifest(config.parent / "out").num_parts == 2


def without_user(config) -> None:
    rows = [{k: v for k, v in row.items() if k != "user_id"} for row in LOG]
    write_parquet(config, pa.Table.from_pylist(rows))


def with_string_user(config) -> None:
    write_parquet(config, pa.Table.from_pylist([row | {"user_id": "u1"} for row in LOG]))


def truncated(config) -> None:
    write_parquet(config, pa.Table.from_pylist(LOG))
    path = config.parent / "logs" / "log.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def not_json(config) -> None:
    write_lines(config, *map(json.dumps, LOG), "{not json")


def three_percent(config) -> None:
    good = [json.dumps(event(f"e{i}", i, i, 1)) for i in range(97)]
    write_lines(
        config,
        *good,
        "x",
        json.dumps(event("f", 0, -1, 1)),
        json.dumps(LOG[0] | {"action": "look"}),
    )


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (
            without_user,
            ["log.parquet", "user_id: found no such column", "found event_id, request_"],
        ),
        (with_string_user, ["log.parquet: user_id: found a column of type string; expected int64"]),
        (truncated, ["log.parquet: found no whole Parquet file"]),
        (not_json, ["found 1 of 4 rows rejected (25.00%)", "not_json", "rejected"]),
        (
            three_percent,
            [
                "found 3 of 100 rows rejected (3.00%); expected at most 1.00%",
                *("1  not_json", "1  reserved_id", "1  unknown_action"),
            ],
        ),
        (lambda _: None, ["found no file; expected a file, a folder or a glob"]),
    ],
)
def test_bad_input_exits_2_and_says_what_and_where(config, capsys, spoil, expected) -> None:
    spoil(config)
    assert samples(config) == 2
    message = capsys.readouterr().err
    for text in expected:
        assert text in message
    assert "Traceback" not in message
    assert not (config.parent / "out").exists()


def test_an_unknown_key_exits_2_with_its_path(config, capsys) -> None:
    assert samples(config, "--set", "samples.num_partz=3") == 2
    assert (
        "samples.num_partz: found an unknown key; expected one of inputs" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--num_parts=2", "found --num_parts=2; expected options of headrace or of Beam"),
        ("--runner=Nonesuch", "--runner: found 'Nonesuch', which Beam cannot load"),
    ],
)
def test_options_that_nobody_knows_are_refused(config, capsys, option, message) -> None:
    write_lines(config, *map(json.dumps, LOG))
    assert samples(config, option) == 2
    assert message in capsys.readouterr().err


def test_a_log_without_positives_does_not_replace_what_there_is(config, capsys) -> None:
    write_lines(config, *map(json.dumps, LOG))
    assert samples(config) == 0
    before = read_manifest(config.parent / "out")
    write_lines(config, *(json.dumps(row) for row in LOG if row["action"] == "impression"))
    assert samples(config) == 2
    assert "expected at least one positive" in capsys.readouterr().err
    assert read_manifest(config.parent / "out") == before
