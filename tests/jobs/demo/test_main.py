"""The demo's steps, and all of it on a data set of a few hundred ratings."""

from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jobs.demo import steps
from jobs.demo.main import main
from jobs.main import run_job
from tests.jobs.demo.test_movielens import FIRST_SECOND, write_archive


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, capsys) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    code = run_job(main, ["--output", str(tmp_path)])
    assert code == 2
    assert "not the demo's" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_failed_step_ends_with_its_code_and_its_last_words(tmp_path: Path) -> None:
    rows = [(1, item, 5, FIRST_SECOND + item) for item in range(1, 11)]
    archive = write_archive(tmp_path / "archive.whl", rows)
    broken = steps.Demo(
        tmp_path / "out", overrides=["samples.max_reject_share=0"], console=Console(quiet=True)
    )
    with pytest.raises(steps.StepFailedError, match="max_reject_share") as caught:
        broken.run(archive, seeds=[1])
    assert caught.value.code == 2


def test_progress_is_read_up_to_the_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert steps.last_entry(path) is None
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert steps.last_entry(path) == {"step": 2}


@pytest.mark.timeout(420)
def test_the_whole_demo_runs_and_adds_up_and_runs_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    seconds = FIRST_SECOND + np.sort(rng.integers(0, 150 * 24 * 3600, 700))
    pairs = rng.permutation(40 * 30)[:700]
    rows = [
        (int(pair // 30) + 1, int(pair % 30) + 1, int(stars), int(second))
        for pair, stars, second in zip(pairs, rng.integers(3, 6, 700), seconds, strict=True)
    ]
    archive = write_archive(tmp_path / "archive.whl", rows)
    output = tmp_path / "with a space"
    small = [
        "train.source.archive.replays=3",
        "train.batch_size=32",
        "samples.max_reject_share=0.05",
        "train.frequency.buckets=1024",
    ]
    output.mkdir()
    (output / ".headrace-demo").touch()
    (output / "left over").mkdir()  # of a former demo
    console = Console(record=True, width=120, quiet=True)
    report = steps.Demo(output, overrides=small, console=console).run(archive, seeds=[1])

    likes = sum(row[2] >= 4 for row in rows if row[3] * 1000 < _cut_ms(rows))
    for run in report.runs:
        assert run.totals["samples"] == run.expected_samples == 3 * likes
        assert run.adds_up
    assert sum(report.rejects.values()) == report.planted > 0
    assert report.query is not None
    assert len(report.query.answers) == 10
    assert not {title for title, _, _ in report.query.answers} & set(report.query.history)
    assert report.frequencies.true.shape == report.frequencies.estimated.shape
    assert len(set(report.frequencies.estimated.tolist())) > 1
    page = (output / "report.html").read_text(encoding="utf-8")
    assert f"{3 * likes:,}" in page
    assert "not bit-reproducible" in page
    assert report.query.answers[0][0].split(" (")[0].replace('"', "&#34;") in page
    assert not (output / "left over").exists()


def _cut_ms(rows: list[tuple[int, int, int, int]]) -> int:
    return sorted(row[3] for row in rows)[int(0.8 * len(rows))] * 1000
