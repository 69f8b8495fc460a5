from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from jobs.main import run_job
from jobs.publish import Lines, main
from pipeline.publish import Progress
from pipeline.specification import Specification
from tests.pipeline.event_log import event
from tests.sample_folder import write_samples

SPECIFICATION = {
    "name": "shop",
    "scenarios": ["home"],
    "tables": {"item": {"buckets": 16}},
    "features": {
        "query": [{"name": "history_item_id", "kind": "ids", "table": "item"}],
        "candidate": [{"name": "item_id", "kind": "id", "table": "item"}],
    },
}


@pytest.fixture
def config(tmp_path: Path, topic: str) -> Path:
    """Three samples in two parts, to be published to a broker that is not there."""
    row = {
        "event_id": "e",
        "timestamp_ms": 1,
        "user_id": 1,
        "item_id": 2,
        "scenario": "home",
        "reward": 1.0,
        "history_item_id": [3],
    }
    schema = Specification.model_validate(SPECIFICATION).sample_schema
    tables = {
        ("2026-01-01", 0): pa.Table.from_pylist([row, row], schema),
        ("2026-01-01", 1): pa.Table.from_pylist([row], schema),
    }
    write_samples(tmp_path / "samples", tables)
    section = {
        "bootstrap_servers": ["127.0.0.1:1"],
        "connect_timeout_seconds": 0.5,
        "directory": str(tmp_path / "samples"),
        "topic": topic,
        "create_partitions": 2,
    }
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump({"specification": SPECIFICATION, "publish": section}))
    return path


def rows_of(printed: str) -> list[list[str]]:
    return [line.replace("│", " ").split() for line in printed.splitlines()]


@pytest.mark.kafka
def test_publishes_once_and_prints_what_went_where(
    config: Path, kafka: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--config", str(config), "--set", f"publish.bootstrap_servers=['{kafka}']"]

    assert run_job(main, arguments) == 0
    printed = capsys.readouterr().out
    assert ["0", "1", "2", "0.0"] in rows_of(printed)
    assert ["1", "1", "1", "0.0"] in rows_of(printed)
    assert ["all", "2", "3", "0.0"] in rows_of(printed)
    assert "samples/s" in printed

    assert run_job(main, arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.startswith("all is there: job 'publish' has sent all rows to topic")
    assert "samples/s" not in printed

    assert run_job(main, [*arguments, "--set", "publish.job=again"]) == 2
    assert "expected an empty one" in capsys.readouterr().err


@pytest.mark.kafka
def test_speed_is_a_flag_and_events_say_what_was_left_out(
    config: Path, kafka: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(f"{json.dumps(event('e', 0, 1, 2))}\nno event\n")
    overrides = [f"bootstrap_servers=['{kafka}']", "directory=null", f"events=['{log}']"]
    sets = [word for text in overrides for word in ("--set", f"publish.{text}")]
    assert run_job(main, ["--config", str(config), *sets, "--speed", "60"]) == 0
    printed = capsys.readouterr().out
    assert "1 rows that are no events: not_json; left out" in printed
    assert "events/s" in printed
    assert ["all", "1", "1", "0.0"] in rows_of(printed)

    assert run_job(main, ["--config", str(config), "--speed", "0"]) == 2
    assert "publish.speed=0.0: publish.speed: found 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ("events=[data]", "publish: expected exactly one of 'directory' and 'events'"),
        ("directory=null", "publish: expected exactly one of 'directory' and 'events'"),
        ("actions=[click]", "publish.actions: found with 'directory'; expected with 'events'"),
        ("shift=now", "publish.shift: found with 'directory'; expected with 'events' only"),
        (
            "value_format=json",
            "publish.value_format: found 'json' with 'directory'; expected a",
        ),
        (
            "malformed=send",
            "publish.malformed: found with 'directory'; expected with 'events'",
        ),
    ],
)
def test_options_that_do_not_go_together_are_named(
    config: Path, change: str, problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job(main, ["--config", str(config), "--set", f"publish.{change}"]) == 2
    assert problem in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (["value_format=example"], "publish.value_format: found 'example' with 'events'; expected"),
        (["malformed=send"], "publish.malformed: found 'send'; expected it with 'value_format: js"),
        (["shift=now", "speed=60"], "publish.shift: found speed 60.0; expected 1: an hour of"),
        (["actions=[smile]"], "publish.actions.0: found 'smile'; expected"),
    ],
)
def test_options_that_do_not_go_with_events_are_named(
    config: Path, changes: list[str], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ["directory=null", "events=[data]", *changes]
    arguments = [word for text in sets for word in ("--set", f"publish.{text}")]
    assert run_job(main, ["--config", str(config), *arguments]) == 2
    assert problem in capsys.readouterr().err


def test_progress_is_a_line_every_ten_seconds(caplog: pytest.LogCaptureFixture) -> None:
    times = iter([0.0, 4.0, 12.0, 12.0, 15.0, 32.0, 32.0])
    caplog.set_level("INFO")
    lines = Lines("clicks", now=lambda: next(times))
    lines(Progress("reading", 500))
    lines(Progress("reading", 1200))
    lines(Progress("sending", 1500, total=4000, event_ms=1_767_225_600_000))
    lines(Progress("sending", 3200, total=4000, event_ms=1_767_225_661_000))
    assert [record.getMessage() for record in caplog.records] == [
        "clicks: 1,200 rows read, to be sorted by time, 100/s",
        "clicks: 3,200 rows of 4,000 sent, event time 2026-01-01 00:01:01, 100/s",
    ]


def test_help_teaches_by_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    for text in ("--speed 60", "publish.events=", "publish.shift=now", "read_committed"):
        assert text in shown


def test_a_broker_that_is_away_exits_75_with_the_cause(
    config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_job(main, ["--config", str(config)]) == 75
    printed, found = capsys.readouterr()
    assert printed == ""
    assert "127.0.0.1:1: asking for the topic: " in found
    assert "ECONNREFUSED" in found
    assert "Traceback" not in found
