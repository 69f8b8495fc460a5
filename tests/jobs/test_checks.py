"""What `headrace train --local` finds wrong before it starts a process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

import jobs.local
from jobs.main import main
from pipeline.specification import Specification
from tests.jobs.training import SPECIFICATION, neighbours
from tests.sample_folder import write_samples


class Cluster:
    """Stands in for the processes."""

    started = 0

    def __init__(self, *_: object, **__: object) -> None:
        pass

    def run(self) -> int:
        Cluster.started += 1
        return 0


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration with samples, which is good; the cluster is not started."""
    schema = Specification(**SPECIFICATION).sample_schema
    samples = pa.table(neighbours(np.arange(9)), schema=schema)
    write_samples(tmp_path / "samples", {("2026-01-01", 0): samples})
    write_samples(tmp_path / "none", {("2026-01-01", 0): samples.slice(0, 0)})
    write_samples(tmp_path / "poor", {("2026-01-01", 0): samples.drop_columns(["item_id"])})
    content = {
        "specification": SPECIFICATION,
        "train": {
            "directory": str(tmp_path / "run"),
            "source": {"archive": {"directory": str(tmp_path / "samples")}},
        },
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(jobs.local, "LocalCluster", Cluster)
    monkeypatch.setattr(Cluster, "started", 0)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "config.yaml"


def test_a_good_configuration_is_started(config: Path) -> None:
    corpus = ["--set", "model.negatives.corpus={count: 16}"]
    assert main(["train", "--config", str(config), "--local", *corpus]) == 0
    assert Cluster.started == 1


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("model.negatives.hard=true", "model.negatives.hard: found no column of hard negatives"),
        (
            "model.negatives.corpus={count: 16, directory: nowhere}",
            "model.negatives.corpus.directory: nowhere: found no such folder",
        ),
        (
            "model.negatives.corpus={count: 16, directory: poor}",
            "lacks ['item_id']; expected the candidate's columns",
        ),
        (
            "model.negatives.corpus={count: 16, directory: none}",
            "model.negatives.corpus.directory: none: found no samples",
        ),
        (
            "train.stream.start={offsets: nowhere.json}",
            "train.stream.start.offsets: found no readable file nowhere.json (No such file",
        ),
        (
            "train.stream.start={offsets: others.json}",
            "others.json: found offsets of ['clicks']; expected those of all topics",
        ),
        (
            "train.stream.start={checkpoint_of: nowhere}",
            "train.stream.start.checkpoint_of: found no checkpoint in nowhere/checkpoints",
        ),
        ("train.source.archive.directory=nowhere", "nowhere: found no such folder"),
        ("train.directory=config.yaml", "train.directory: cannot make config.yaml/checkpoints"),
    ],
)
def test_what_is_wrong_is_said_once_before_anything_is_started(
    config: Path, capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    entry = {"topic": "clicks", "partition": 0, "offset": 1}
    Path("others.json").write_text(json.dumps({"offsets": [entry]}))
    assert main(["train", "--config", str(config), "--local", "--set", override]) == 2
    shown = capsys.readouterr().err
    assert said in shown
    assert len(shown.splitlines()) == 2
    assert Cluster.started == 0


def test_where_a_run_begins_is_not_looked_at_once_it_has_a_checkpoint(config: Path) -> None:
    (config.parent / "run" / "checkpoints" / "checkpoint-00000001").mkdir(parents=True)
    start = ["--set", "train.stream.start={checkpoint_of: nowhere}"]
    assert main(["train", "--config", str(config), "--local", *start]) == 0


@pytest.mark.parametrize("more", [["--role", "ps"], ["--index", "0"], ["--ps", "a:1"]])
def test_local_has_all_roles(
    config: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    assert main(["train", "--config", str(config), "--local", *more]) == 2
    assert f"found {more[0]} too; expected one of --local and --role" in capsys.readouterr().err
    assert Cluster.started == 0


def test_without_a_place_local_is_offered_first(
    config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert main(["train", "--config", str(config)]) == 2
    assert "expected --local, which runs all processes" in capsys.readouterr().err
