"""`headrace bench join` with small numbers, on a real broker and with real joiners."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from jobs.bench.join.main import main

pytestmark = [pytest.mark.kafka, pytest.mark.slow]

SMALL = "--window-seconds 2 --lateness-seconds 0.5 --rate 500 --seconds 8 --kill-rate 300"


def run(kafka: str, tmp_path: Path, arguments: str) -> dict[str, list[dict[str, Any]]]:
    """Runs parts of the benchmark; returns their tables, in which every sample is right."""
    out = tmp_path / "join.json"
    assert main([*f"{SMALL} {arguments}".split(), "--kafka", kafka, "--out", str(out)]) == 0
    written = json.loads(out.read_text())
    assert written["synthetic"] is True
    for rows in written["tables"].values():
        for row in rows:
            assert row["samples"] > 100
            assert (row["lost"], row["doubled"], row["wrong"]) == (0, 0, 0), row
    return written["tables"]


def test_backlogs_of_both_forms_are_joined_to_the_same_samples(kafka, tmp_path, capsys):
    tables = run(kafka, tmp_path, "--events 10000 --history 3 --parts backlog")
    assert "synthetic" in capsys.readouterr().out
    assert [row["way"] for row in tables["backlog"]] == [
        "headrace, arrow",
        "headrace, json",
        "headrace, arrow, history of 3",
    ]
    (events,) = {row["events"] for row in tables["backlog"]}
    assert events == pytest.approx(10_000, rel=0.05)


def test_delays_of_a_live_stream_are_counted_from_the_closing_of_windows(kafka, tmp_path):
    (live,) = run(kafka, tmp_path, "--parts live")["live"]
    assert live["events"] == pytest.approx(4000, rel=0.1)
    assert live["stale"] == 0
    assert live["timed"] > 100
    assert 0 < live["p50 s"] <= live["p99 s"] <= live["max s"]


def test_kills_are_made_under_load(kafka, tmp_path):
    (kills,) = run(kafka, tmp_path, "--kills 2 --parts kills")["kills"]
    assert kills["kills"] == 2
    assert kills["under load"] == "to the end"
    assert 0 < kills["stall p50 s"] <= kills["stall max s"]


def test_of_joiners_for_the_same_partitions_those_that_were_taken_over_end(kafka, tmp_path):
    (two,) = run(kafka, tmp_path, "--parts two")["two joiners"]
    assert two["started"] == 4
    assert two["with code"] == "2"
    assert two["left"] + two["ended by themselves"] == 4
