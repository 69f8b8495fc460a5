"""`headrace join` as a command: its configuration, its end, its table and its exit codes."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from jobs.join import main as job
from jobs.main import run_job
from pipeline.events.validate import needed_types
from streaming.joining.progress import summed
from streaming.joining.step import FOREVER
from tests.streaming.joining.naive import NaiveJoiner, join_whole, random_log
from tests.streaming.joining.world import SPECIFICATION, Running, World, as_table
from tests.waiting import wait_until

CONTENT = {
    "specification": SPECIFICATION.model_dump(mode="json"),
    "samples": {"inputs": ["unused"], "output": "unused", "join_window_seconds": 10},
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration of a broker that is not there."""
    monkeypatch.setattr(job, "joiners", lambda *_: lambda: NaiveJoiner(remembers=True))
    section = {
        "bootstrap_servers": ["127.0.0.1:1"],
        "connect_timeout_seconds": 0.5,
        "input": {"topics": ["in"]},
        "output": {"topic": "out"},
    }
    path = tmp_path / "shop.yaml"
    path.write_text(yaml.safe_dump(CONTENT | {"join": section}))
    return path


@pytest.fixture
def world(kafka: str, topic: str, tmp_path: Path) -> Iterator[World]:
    made = World(kafka, topic, tmp_path)
    yield made
    made.close()


@pytest.mark.kafka
def test_joins_what_is_there_and_prints_what_became_of_it(config, world, capsys) -> None:
    log = random_log(300, seed=1)
    world.send(log)
    config.write_text(yaml.safe_dump(CONTENT | {"join": world.section(end="closed")}))
    assert run_job(job.main, ["--config", str(config)]) == 0
    assert sorted(world.samples()) == sorted(join_whole(log))
    printed = capsys.readouterr().out
    cells = [line.replace("│", " ").split() for line in printed.splitlines()]
    (total,) = [line for line in cells if line[:1] == ["all"]]
    assert f"{len(log):,}" in total
    assert f"{len(join_whole(log)):,}" in total
    assert [line[:2] for line in cells if line[:1] in (["0"], ["1"])] == [
        ["0", "closed"],
        ["1", "closed"],
    ]

    assert run_job(job.main, ["--config", str(config)]) == 0
    assert f"{len(join_whole(log)):,}" in capsys.readouterr().out
    assert len(world.samples()) == len(join_whole(log))
    assert run_job(job.main, ["--config", str(config), "--set", "join.end=caught-up"]) == 2
    assert "closed for good" in capsys.readouterr().err


@pytest.mark.kafka
def test_figures_are_served_while_it_runs(config, world) -> None:
    log = random_log(100, seed=2)
    world.send(log)
    running = Running(world.loop(end="never", watch={"port": 0}))
    wait_until(lambda: running.count() == len(log))

    def get(path: str) -> str:
        with urllib.request.urlopen(f"http://{running.loop.figures.address}{path}") as answer:
            return str(answer.read().decode())

    wait_until(lambda: f"headrace_join_events_total {len(log)}.0" in get("/metrics"))
    found = get("/metrics")
    for name in ("samples_total", "rejects_total", "stale_total", "lag_records"):
        assert f"\nheadrace_join_{name} " in found
    assert "\nheadrace_join_watermark_timestamp_seconds 1.7672" in found
    assert "\nheadrace_join_watermark_delay_seconds " in found
    assert get("/healthz") == get("/readyz") == "ok\n"
    running.stop()


@pytest.mark.kafka
@pytest.mark.parametrize("orphans", ["drop", "keep"])
def test_the_samples_of_many_lives_are_those_of_one_call(tmp_path, world, orphans) -> None:
    stream = pytest.importorskip("pipeline.join.stream")
    log = random_log(600, seed=3)
    content = CONTENT | {"samples": CONTENT["samples"] | {"orphans": orphans}}
    path = tmp_path / "shop.yaml"
    for part in range(4):
        world.send(log[part * len(log) // 4 : (part + 1) * len(log) // 4], rows=(None, 9)[part % 2])
        section = world.section(end="closed" if part == 3 else "caught-up")
        path.write_text(yaml.safe_dump(content | {"join": section}))
        assert run_job(job.main, ["--config", str(path)]) == 0
    found = pa.concat_tables(
        pa.ipc.open_stream(record.value).read_all() for record in world.records(world.output)
    )
    assert found.schema.equals(SPECIFICATION.sample_schema)
    expected, counts = [], {}
    for unit in (0, 1):
        joiner = stream.SampleJoiner(SPECIFICATION, 10_000, orphans)
        own = as_table([row for row in log if row["user_id"] % 2 == unit])
        names = needed_types(SPECIFICATION)
        joined = joiner.process(own.select(list(names)), FOREVER)
        expected += joined.samples.to_pylist()
        counts = {name: counts.get(name, 0) + n for name, n in joined.counts.items()}
    assert len(expected) > 100

    def by_id(rows):
        return sorted(rows, key=lambda row: row["event_id"])

    assert by_id(found.to_pylist()) == by_id(expected)
    fates = summed(list(world.progress().values()), "fates")
    assert fates == {name: count for name, count in counts.items() if count}


def test_a_broker_that_is_away_exits_75_with_the_cause(config, capsys) -> None:
    assert run_job(job.main, ["--config", str(config)]) == 75
    printed, found = capsys.readouterr()
    assert printed == ""
    assert "127.0.0.1:1: asking for topics: " in found
    assert "ECONNREFUSED" in found
    assert "Traceback" not in found


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("join.input.unit=all", "join.input.unit: found an unknown key; expected one of topics"),
        ("join.input.units=3/3", "join.input.units: found '3/3'; expected"),
        ("join.lateness_seconds=-1", "join.lateness_seconds: found -1; expected"),
        ("join.end=closing", "join.end: found 'closing'; expected"),
        ("join.output.topic=in", "join.output.topic: found topic in, which is input.topics too"),
    ],
)
def test_what_is_wrong_is_named_by_its_path(config, capsys, override, expected) -> None:
    assert run_job(job.main, ["--config", str(config), "--set", override]) == 2
    assert expected in capsys.readouterr().err


def test_help_lists_every_key(capsys) -> None:
    with pytest.raises(SystemExit):
        job.main(["--help-config"])
    printed = capsys.readouterr().out
    assert "join.input.topics: (required)" in printed
    assert 'join.end: "never"' in printed
