from __future__ import annotations

from pathlib import Path

import pytest

from models.bundle import (
    Manifest,
    current_version,
    directory_name,
    next_version,
    publish,
    read_manifest,
    resolve_version,
    verify_bundle,
    versions,
    writing,
)
from pipeline.schema import InputError


def manifest(model: Path) -> Manifest:
    return Manifest(
        model="toy",
        version=next_version(model),
        parent_version=current_version(model),
        step=1,
        ledger={},
        watermark_ms=None,
        metrics={},
        specification={},
        specification_fingerprint="",
        schema_fingerprint="",
        config={},
        scenarios={"home": 1},
    )


def write_version(model: Path, content: str = "content") -> Path:
    with writing(model) as aside:
        (aside / "query").mkdir()
        (aside / "query" / "weights").write_text(content)
        return publish(aside, manifest(model))


def test_versions_grow_and_current_names_the_last(tmp_path: Path) -> None:
    first, second = write_version(tmp_path), write_version(tmp_path)
    assert [version.name for version in versions(tmp_path)] == ["00000001", "00000002"]
    assert current_version(tmp_path) == "00000002"
    assert read_manifest(first).parent_version is None
    assert read_manifest(second).parent_version == "00000001"
    assert resolve_version(tmp_path) == second
    assert resolve_version(first) == first


def test_number_of_a_deleted_version_is_not_given_again(tmp_path: Path) -> None:
    latest = write_version(tmp_path)
    latest.rename(tmp_path / "elsewhere")
    assert next_version(tmp_path) == "00000002"


def test_failure_leaves_current_and_no_traces(tmp_path: Path) -> None:
    write_version(tmp_path)
    with pytest.raises(RuntimeError), writing(tmp_path) as aside:
        (aside / "half").write_text("x")
        raise RuntimeError
    assert current_version(tmp_path) == "00000001"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["00000001"]


def test_leftovers_of_a_dead_writer_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".writing-00000001"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")
    version = write_version(tmp_path)
    assert not leftover.exists()
    assert not (version / "half").exists()


def test_a_version_without_manifest_is_not_seen(tmp_path: Path) -> None:
    (tmp_path / "00000007").mkdir()
    assert versions(tmp_path) == []
    assert write_version(tmp_path).name == "00000008"


def test_second_writer_is_refused(tmp_path: Path) -> None:
    with writing(tmp_path) as aside:
        with pytest.raises(InputError, match="another export"), writing(tmp_path):
            pass
        assert aside.is_dir()  # and did not take the first one's folder away


def test_altered_missing_and_added_files_are_named(tmp_path: Path) -> None:
    version = write_version(tmp_path, "abc")
    verify_bundle(version)
    (version / "query" / "weights").write_text("abd")
    (version / "extra").write_text("")
    with pytest.raises(InputError) as caught:
        verify_bundle(version)
    lines = str(caught.value).splitlines()
    assert f"{version}/extra: found a file that the manifest does not list" in lines
    # sha256 of abd and of abc
    found, expected = "a52d159f262b2c6ddb724a61840befc3", "ba7816bf8f01cfea414140de5dae2223"
    altered = next(line for line in lines if "query/weights" in line)
    assert found in altered.partition("expected")[0]
    assert expected in altered.partition("expected")[2]
    assert "export a new one" in lines[-1]

    (version / "query" / "weights").unlink()
    with pytest.raises(InputError, match="query/weights: found no file"):
        verify_bundle(version)


def test_damaged_manifest_is_an_input_error(tmp_path: Path) -> None:
    version = write_version(tmp_path)
    (version / "manifest.json").write_text('{"format": "other"}')
    with pytest.raises(InputError, match="found no valid manifest"):
        verify_bundle(version)


@pytest.mark.parametrize("current", [None, "00000009"])
def test_folder_without_a_version_is_an_input_error(tmp_path: Path, current: str | None) -> None:
    if current is not None:
        (tmp_path / "CURRENT").write_text(current)
    with pytest.raises(InputError, match="expected"):
        resolve_version(tmp_path)


@pytest.mark.parametrize("name", ["", "..", "a/b"])
def test_scenario_that_is_no_folder_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="scenario"):
        directory_name(name)
    assert directory_name("home page") == "home page"
