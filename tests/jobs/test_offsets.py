from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import tensorflow as tf
import yaml
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition

from jobs.main import run_job
from jobs.offsets import main
from pipeline.topics.record import encode
from streaming.checkpoints.newest import load_ledger
from streaming.checkpoints.store import CheckpointStore
from streaming.ledger import Ledger, Totals
from streaming.source import Partition
from tests.jobs.toy_run import write_run
from tests.kafka.topics import create
from tests.models import toy

SPECIFICATION = toy.specification()


def save(run: Path, offsets: dict[Partition, int], identity: dict[str, str]) -> Path:
    """Adds a checkpoint with one weight, 7.5, to a run."""
    store = CheckpointStore(run / "checkpoints", keep=9, fingerprints={"specification": "s"})
    ledger = Ledger(offsets, identity)
    ledger.totals = Totals(records=5, samples=50, lost=1, rejects=2)
    return store.save(tf.train.Checkpoint(**{"weight/w": tf.Variable(7.5)}), ledger, step=3)


def weight(folder: Path) -> float:
    return tf.train.load_checkpoint(str(folder / "state")).get_tensor(
        "weight.Sw/.ATTRIBUTES/VARIABLE_VALUE"
    )


class Run:
    """A run whose newest checkpoint stands at record 5 of the 8 of an archive's only partition."""

    def __init__(self, root: Path) -> None:
        self.config = write_run(root)
        self.directory = root / "run"
        self.checkpoints = self.directory / "checkpoints"
        shutil.rmtree(self.checkpoints)
        settings = yaml.safe_load(self.config.read_text())
        self.source = settings["train"]["source"]

    def __call__(self, *arguments: str) -> int:
        command, *rest = arguments
        return run_job(main, [command, "--config", str(self.config), *rest])


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    made = Run(tmp_path)
    assert made("show", "--json") == 0
    (entry,) = json.loads(capsys.readouterr().out)["partitions"]
    assert (entry["offset"], entry["start"], entry["lag"]) == (0, 0, entry["end"])
    made.partition = Partition(entry["topic"], entry["partition"])
    made.end = entry["end"]
    save(made.directory, {made.partition: 5}, identity(made, 5))
    return made


def identity(run: Run, offset: int) -> dict[str, str]:
    from streaming.sources.archive import ArchiveSource

    directory = run.source["archive"]["directory"]
    source = ArchiveSource(directory, SPECIFICATION.sample_schema)
    return source.identity({run.partition: offset})


def test_the_position_is_shown_with_lag_and_totals(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("show", "--times", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    (entry,) = shown["partitions"]
    assert (entry["offset"], entry["lag"], entry["lost"]) == (5, run.end - 5, 0)
    times = sorted(row["timestamp_ms"] for row in toy.samples().to_pylist())
    assert entry["time_ms"] in times
    assert shown["totals"]["lost"] == 1

    assert run("show") == 0
    printed = capsys.readouterr().out
    assert "checkpoint-00000001 of" in printed
    assert "1 were lost and 2 rejected before" in " ".join(printed.split())


def test_exported_positions_can_be_gone_back_to(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "offsets.json"
    assert run("export", "--out", str(out)) == 0
    stored = json.loads(out.read_text())
    expected = {"topic": run.partition.topic, "partition": run.partition.number, "offset": 5}
    assert stored == {"offsets": [expected], "identity": identity(run, 5)}

    assert run("reset", "--to", "latest") == 0
    assert load_ledger(run.checkpoints).offsets == {run.partition: run.end}
    assert run("reset", "--to-file", str(out)) == 0
    assert load_ledger(run.checkpoints).offsets == {run.partition: 5}


def test_a_reset_writes_a_new_checkpoint_and_leaves_the_old_as_it_was(run: Run) -> None:
    old = run.checkpoints / "checkpoint-00000001"
    before = {path.name: path.read_bytes() for path in old.iterdir()}

    assert run("reset", "--to", "earliest") == 0

    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    new = run.checkpoints / "checkpoint-00000002"
    assert weight(new) == 7.5
    ledger = load_ledger(run.checkpoints)
    assert ledger.offsets == {run.partition: 0}
    assert ledger.totals == Totals(records=5, samples=50, lost=1, rejects=2)
    assert ledger.identity == identity(run, 0)
    assert json.loads((new / "manifest.json").read_text())["step"] == 3


def test_a_run_goes_to_an_event_time(run: Run) -> None:
    assert run("reset", "--to-time", "1970-01-01T00:00:00Z") == 0
    assert load_ledger(run.checkpoints).offsets == {run.partition: 0}
    assert run("reset", "--to-time", "2999-01-01T00:00:00+02:00") == 0
    assert load_ledger(run.checkpoints).offsets == {run.partition: run.end}


def test_a_running_trainer_keeps_its_position(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    store = CheckpointStore(run.checkpoints, keep=9, fingerprints={})
    with store.owned():
        assert run("reset", "--to", "earliest") == 2
    assert "another trainer uses this checkpoint directory" in capsys.readouterr().err
    assert load_ledger(run.checkpoints).offsets == {run.partition: 5}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to-time", "yesterday"], "--to-time: found 'yesterday'; expected a time with its zone"),
        (["--to-time", "2026-01-01T00:00:00"], "expected a time with its zone"),
        (["--to-file", "no-such-file"], "--to-file: found no readable file no-such-file (No such"),
        (["--to", "latest", "--topic", "clicks"], "--topic: found clicks; expected some of ["),
    ],
)
def test_what_cannot_be_reached_is_named_and_changes_nothing(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert run("reset", *arguments) == 2
    assert message in capsys.readouterr().err
    assert load_ledger(run.checkpoints).offsets == {run.partition: 5}


def test_offsets_beyond_the_end_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"topic": run.partition.topic, "partition": run.partition.number, "offset": 10**6}
    (tmp_path / "far.json").write_text(json.dumps({"offsets": [entry]}))
    assert run("reset", "--to-file", str(tmp_path / "far.json")) == 2
    assert f"found offset 1000000; expected at most its end, {run.end}" in capsys.readouterr().err


def test_a_run_without_checkpoint_has_no_position_to_export_or_move(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run.checkpoints)
    assert run("export", "--out", str(tmp_path / "o")) == 2
    assert run("reset", "--to", "latest") == 2
    assert capsys.readouterr().err.count("found no checkpoint; expected one") == 2


def test_a_retired_topic_is_named_forgotten_and_not_before_it_is_retired(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    gone, known = Partition("gone", 0), identity(run, 5)
    save(run.directory, {run.partition: 5, gone: 7}, known | {"gone": "id-1"})
    for command in (["show"], ["reset", "--to", "latest"]):
        assert run(*command) == 2
        assert "`headrace offsets forget --topic gone`" in capsys.readouterr().err
    assert load_ledger(run.checkpoints).offsets == {run.partition: 5, gone: 7}

    assert run("forget", "--topic", run.partition.topic) == 2
    assert f"found {run.partition.topic}, which is read" in capsys.readouterr().err
    assert run("forget", "--topic", "never") == 2
    assert "--topic: found never; expected some of ['archive', 'gone']" in capsys.readouterr().err
    assert run("forget", "--topic", "gone") == 0

    ledger = load_ledger(run.checkpoints)
    assert ledger.offsets == {run.partition: 5}
    assert ledger.identity == known
    assert ledger.totals == Totals(records=5, samples=50, lost=1, rejects=2)
    assert run("show") == 0


@pytest.mark.kafka
def test_what_a_broker_deleted_and_a_topic_made_anew_are_shown_and_left_behind(
    tmp_path: Path, kafka: str, topic: str, capsys: pytest.CaptureFixture[str]
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    run = Run(tmp_path)
    settings: dict[str, Any] = yaml.safe_load(run.config.read_text())
    reading = {"bootstrap_servers": [kafka], "topics": [topic, f"{topic}-2"]}
    settings["train"]["source"] = {"kafka": reading}
    run.config.write_text(yaml.safe_dump(settings))
    ids = {}
    for name in reading["topics"]:
        create(admin, name, retention_ms="-1")
        fill(kafka, name)
        (described,) = admin.describe_topics([name])
        ids[name] = str(described["topic_id"])
    save(run.directory, {Partition(name, 0): 1 for name in ids}, ids)
    admin.delete_records({TopicPartition(topic, 0): 3})

    assert run("show", "--json", "--times") == 0
    first, second = json.loads(capsys.readouterr().out)["partitions"]
    assert (first["offset"], first["start"], first["end"]) == (1, 3, 4)
    assert (first["lost"], first["lag"]) == (2, 1)
    assert (second["lost"], second["lag"]) == (0, 3)
    assert first["time_ms"] == toy.samples()["timestamp_ms"][0].as_py()

    admin.delete_topics([topic])
    create(admin, topic)
    assert run("show") == 2
    assert "created again" in capsys.readouterr().err
    assert run("reset", "--to", "earliest", "--topic", topic) == 0
    assert load_ledger(run.checkpoints).offsets == {
        Partition(topic, 0): 0,
        Partition(f"{topic}-2", 0): 1,
    }
    assert run("show") == 0
    admin.close()


def fill(kafka: str, topic: str) -> None:
    producer = KafkaProducer(bootstrap_servers=kafka)
    value, headers = encode(toy.samples())
    for _ in range(4):
        producer.send(topic, value, headers=list(headers), partition=0).get(30)
    producer.close()
