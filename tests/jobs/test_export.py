from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.export import load_trained, main
from jobs.main import run_job
from models.bundle import resolve_version, verify_bundle
from models.config import TwoTowerConfig
from pipeline.schema import InputError
from tests.jobs.toy_run import write_run
from tests.models import toy


def test_checkpoint_and_samples_become_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path)
    assert main(["--config", str(config)]) == 0
    manifest = verify_bundle(resolve_version(tmp_path / "bundles" / "toy"))
    assert manifest.step == 42
    assert manifest.watermark_ms == 59
    assert "offsets" in manifest.ledger
    version = tmp_path / "bundles" / "toy" / "00000001"
    assert pq.read_table(version / "queries.parquet").num_rows == toy.NUM_USERS
    assert "toy 00000001" in capsys.readouterr().out


def test_overrides_reach_the_export(tmp_path: Path) -> None:
    config = write_run(tmp_path)
    other = tmp_path / "other"
    assert main(["--config", str(config), "--set", f"export.output={other}"]) == 0
    assert resolve_version(other / "toy").name == "00000001"


def test_no_checkpoint_is_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_run(tmp_path)
    shutil.rmtree(tmp_path / "run")
    assert run_job(main, ["--config", str(config)]) == 2
    error = capsys.readouterr().err
    assert "found no checkpoint" in error
    assert "Traceback" not in error


def test_checkpoint_of_another_specification_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(InputError, match="found a checkpoint of specification"):
        load_trained(tmp_path / "run", toy.specification(ids="string"), TwoTowerConfig())


def test_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path)
    with pytest.raises(InputError, match=r"'query/0/kernel': found shape \(9, 6\); expected"):
        load_trained(tmp_path / "run", toy.specification(), TwoTowerConfig(hidden=(7,), dim=4))


def test_samples_of_another_specification_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path)
    manifest = tmp_path / "samples" / "manifest.json"
    fingerprint = toy.specification().fingerprint
    manifest.write_text(manifest.read_text().replace(fingerprint, "0123456789abcdef"))
    assert run_job(main, ["--config", str(config)]) == 2
    assert "found samples of specification 0123456789abcdef" in capsys.readouterr().err
