from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tensorflow as tf

import jobs.export
from jobs.export import Exporter, follow, freshness_rows, load_trained, main, sections
from jobs.main import run_job
from jobs.settings import load_settings
from models.bundle import prune, read_manifest, resolve_version, verify_bundle, versions
from models.config import TwoTowerConfig
from pipeline.schema import InputError
from streaming.checkpoints.store import CheckpointStore, Freshness
from streaming.ledger import Ledger
from tests.jobs.toy_run import write_run
from tests.models import toy
from tests.waiting import wait_until


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


def save_another(root: Path, *, step: int, keep: int = 1) -> None:
    """Saves the toy's parameters once more, at another step."""
    model = toy.model()
    store = CheckpointStore(
        root / "run" / "checkpoints",
        keep=keep,
        fingerprints={"specification": model.specification.fingerprint},
    )
    tables = {table.name for table in model.tables}
    variables = {
        f"{'table' if name in tables else 'weight'}/{name}": tf.Variable(value)
        for name, value in toy.parameters(model).items()
    }
    fresh = Freshness(taken_ms=1000 * step, watermark_ms=10 * step, newest_event_ms=20 * step)
    store.save(tf.train.Checkpoint(**variables), Ledger({}, {}), step=step, freshness=fresh)


def make_exporter(root: Path, *overrides: str) -> Exporter:
    return Exporter(load_settings(write_run(root), overrides, sections()))


def exported_steps(root: Path) -> list[int]:
    return [read_manifest(version).step for version in versions(root / "bundles" / "toy")]


def test_following_exports_what_is_new_and_the_last_before_it_ends(tmp_path: Path) -> None:
    exporter, stop = make_exporter(tmp_path), threading.Event()
    thread = threading.Thread(target=follow, args=[exporter, stop])
    thread.start()
    wait_until(lambda: exported_steps(tmp_path) == [42])
    save_another(tmp_path, step=43)
    wait_until(lambda: exported_steps(tmp_path) == [42, 43])
    save_another(tmp_path, step=44)
    stop.set()
    thread.join(60)
    assert exported_steps(tmp_path) == [42, 43, 44]


def test_a_number_that_was_a_damaged_checkpoints_is_exported_when_it_comes_again(
    tmp_path: Path,
) -> None:
    exporter, stop = make_exporter(tmp_path), threading.Event()
    save_another(tmp_path, step=0)  # before the first range: nothing was learned
    thread = threading.Thread(target=follow, args=[exporter, stop])
    thread.start()
    save_another(tmp_path, step=43)
    wait_until(lambda: exported_steps(tmp_path) == [43])
    shutil.rmtree(tmp_path / "run" / "checkpoints" / exporter.newest[0])
    save_another(tmp_path, step=44)
    wait_until(lambda: exported_steps(tmp_path) == [43, 44])
    stop.set()
    thread.join(60)


def test_a_version_says_how_fresh_it_is(tmp_path: Path) -> None:
    exporter = make_exporter(tmp_path)
    save_another(tmp_path, step=43)
    manifest = read_manifest(exporter.export(exporter.load()))
    assert manifest.freshness.checkpoint == "checkpoint-00000002"
    assert manifest.freshness.taken_ms == 43_000
    assert manifest.freshness.watermark_ms == 430
    assert manifest.freshness.newest_event_ms == 860
    assert manifest.freshness.published_ms > 1_700_000_000_000
    rows = dict(freshness_rows(manifest))
    assert rows["newest event"].startswith("1970-01-01 00:00:00 UTC (")
    assert rows["newest event"].endswith(" days before)")
    assert rows["state copied"].endswith(" days before")
    assert set(rows) == {"state copied", "newest event", "all events before"}


def test_a_checkpoint_that_was_exported_is_not_exported_again_after_a_restart(
    tmp_path: Path,
) -> None:
    exporter, stop = make_exporter(tmp_path), threading.Event()
    exporter.export(exporter.load())
    stop.set()
    follow(make_exporter(tmp_path / "same"), stop)  # of another run: it is exported
    follow(exporter, stop)
    assert exported_steps(tmp_path / "same") == [42]
    assert exported_steps(tmp_path) == [42]


def test_a_checkpoint_deleted_while_it_is_read_gives_way_to_the_newer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = make_exporter(tmp_path)
    load, tries = jobs.export.load_trained, []

    def delete_first(*arguments):
        tries.append(exporter.newest)
        if len(tries) == 1:
            shutil.rmtree(tmp_path / "run" / "checkpoints" / exporter.newest[0])
            save_another(tmp_path, step=44)  # takes the number that is free again
            save_another(tmp_path, step=45)
            raise InputError("found 1 checkpoints, all damaged")
        return load(*arguments)

    monkeypatch.setattr(jobs.export, "load_trained", delete_first)
    assert exporter.load().step == 45
    assert len(tries) == 2


def test_old_versions_are_removed_and_never_the_current(tmp_path: Path) -> None:
    exporter = make_exporter(tmp_path, "export.keep=2")
    for step in (43, 44, 45):
        save_another(tmp_path, step=step)
        exporter.export(exporter.load())
    assert exported_steps(tmp_path) == [44, 45]
    model = tmp_path / "bundles" / "toy"
    (model / "CURRENT").write_text("00000002\n")  # rolled back by hand
    assert prune(model, keep=1) == []
    assert [version.name for version in versions(model)] == ["00000002", "00000003"]
