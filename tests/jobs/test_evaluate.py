from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.evaluate import main
from models.evaluate import evaluate_popularity, questions
from models.index import latest_items
from tests.jobs.toy_run import write_folder, write_run
from tests.models import toy


def test_prints_and_writes_both_ways_to_score(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_run(tmp_path)
    future = toy.samples(num=90).slice(60)
    write_folder(tmp_path / "future", future)
    out = tmp_path / "quality.json"
    arguments = ["--config", str(config), "--samples", str(tmp_path / "future"), "--out", str(out)]
    assert main(arguments) == 0
    written = json.loads(out.read_text())
    asked = questions(
        future,
        candidates=latest_items(toy.samples(), toy.specification()),
        training=toy.samples(),
        exclude_seen=False,
    )
    expected = evaluate_popularity(asked).overall.ndcg[10]
    assert written["popularity"]["overall"]["ndcg"]["10"] == pytest.approx(expected)
    assert written["two_tower"]["overall"]["num_samples"] == 30
    printed = capsys.readouterr().out
    assert f"{expected:.4f}" in printed
    assert "HitRate@100" in printed
