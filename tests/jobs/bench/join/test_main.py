"""`headrace bench join` with small numbers, on a real broker and with real joiners."""

from __future__ import annotations

import json

import pytest

from jobs.bench.join.main import main

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

SMALL = "--window-seconds 2 --lateness-seconds 0.5 --rate 500 --seconds 8 --kill-rate 300"


def test_every_part_runs_and_all_samples_are_right(kafka, tmp_path, capsys):
    out = tmp_path / "join.json"
    arguments = f"{SMALL} --events 10000 --kills 2 --history 3 --parts backlog,live,kills,two"
    assert main([*arguments.split(), "--kafka", kafka, "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["synthetic"] is True
    assert "synthetic" in capsys.readouterr().out
    tables = written["tables"]
    for rows in tables.values():
        for row in rows:
            assert row["samples"] > 100
            assert (row["lost"], row["doubled"], row["wrong"]) == (0, 0, 0), row
    assert [row["way"] for row in tables["backlog"]] == [
        "headrace, arrow",
        "headrace, json",
        "headrace, arrow, history of 3",
    ]
    assert {row["events"] for row in tables["backlog"]} == {tables["backlog"][0]["events"]}
    (live,) = tables["live"]
    assert live["events"] == pytest.approx(4000, rel=0.1)
    assert live["stale"] == 0
    assert live["timed"] > 100
    assert 0 < live["p50 s"] <= live["p99 s"] <= live["max s"]
    (kills,) = tables["kills"]
    assert kills["kills"] == 2
    assert kills["under load"] == "to the end"
    assert 0 < kills["stall p50 s"] <= kills["stall max s"]
    (two,) = tables["two joiners"]
    assert two["started"] == 4
    assert two["with code"] == "2"
    assert two["left"] + two["ended by themselves"] == 4
