from __future__ import annotations

import json

import pytest

from pipeline.manifest import (
    InputFile,
    OutputFile,
    Report,
    merge_reports,
    read_manifest,
    require_good_input,
    sample_files,
)
from pipeline.schema import InputError
from tests.pipeline.test_write import manifest, write_run


def test_files_are_listed_by_part_then_day(tmp_path) -> None:
    names = [("2026-01-02", 0), ("2026-01-01", 1), ("2026-01-01", 0)]
    files = [
        OutputFile(path=f"{day}-{part}", day=day, part=part, rows=1, sha256="")
        for day, part in names
    ]
    for file in files:
        (tmp_path / file.path).touch()
    (tmp_path / "manifest.json").write_text(manifest(files).model_dump_json())
    listed = [(file.part, file.day) for file in sample_files(tmp_path)]
    assert listed == [(0, "2026-01-01"), (0, "2026-01-02"), (1, "2026-01-01")]


def test_a_folder_without_a_whole_run_is_refused_with_the_repair(tmp_path) -> None:
    with pytest.raises(InputError, match=r"found no manifest\.json.*run `headrace samples` first"):
        read_manifest(tmp_path)
    write_run(tmp_path / "samples", 0)
    (file,) = sample_files(tmp_path / "samples")
    file.path.unlink()
    with pytest.raises(InputError, match=r"found no file .*part-00003\.parquet \(1 of 1"):
        sample_files(tmp_path / "samples")


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "Invalid JSON"), ("{}", "kinds: Field required"), (None, "format_version")],
)
def test_a_manifest_that_is_not_ours_is_refused(tmp_path, content, message) -> None:
    later = json.dumps(json.loads(manifest().model_dump_json()) | {"format_version": 3})
    (tmp_path / "manifest.json").write_text(later if content is None else content)
    with pytest.raises(InputError, match=message):
        read_manifest(tmp_path)


def test_reports_add_up_in_any_order() -> None:
    first = Report(counts={"a": 1}, rejects={"x": 2}, newest_ms=(5,), problems=("p",))
    log = InputFile(path="log", size_bytes=1, sha256="")
    second = Report(counts={"a": 2, "b": 1}, outcomes={"late": 1}, inputs=(log,), problems=("p",))
    expected = Report(
        counts={"a": 3, "b": 1},
        rejects={"x": 2},
        outcomes={"late": 1},
        newest_ms=(5,),
        inputs=(log,),
        problems=("p",),
    )
    assert merge_reports([first, second]) == merge_reports([second, first]) == expected


def test_rejects_up_to_the_share_pass_and_one_more_fails(tmp_path) -> None:
    passing = Report(counts={"events_read": 100}, rejects={"not_json": 1})
    require_good_input(passing, max_reject_share=0.01, rejected=tmp_path)
    failing = Report(counts={"events_read": 100}, rejects={"not_json": 1, "reserved_id": 2})
    with pytest.raises(InputError) as caught:
        require_good_input(failing, max_reject_share=0.01, rejected=tmp_path)
    lines = str(caught.value).splitlines()
    assert "found 3 of 100 rows rejected (3.00%); expected at most 1.00%" in lines[0]
    assert [line.split() for line in lines[1:3]] == [["2", "reserved_id"], ["1", "not_json"]]


def test_a_file_that_could_not_be_read_on_fails_the_run(tmp_path) -> None:
    report = Report(counts={"events_read": 100}, problems=("a.gz: cut off",))
    with pytest.raises(InputError, match="cut off"):
        require_good_input(report, max_reject_share=1, rejected=tmp_path)
