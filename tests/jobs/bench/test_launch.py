"""How a benchmark starts a cluster, and what is left when that fails."""

from __future__ import annotations

import json

import pytest

from jobs.bench.launch import training
from jobs.bench.stream import main
from jobs.bench.stream.cluster import run_settings
from jobs.bench.stream.synthetic import write_samples


def test_a_run_that_fails_is_an_error_with_the_end_of_its_log(tmp_path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"run-1: exit 1\n(.*\n)*KeyError: 'train'"),
        training(tmp_path / "run-1", {"model": {}}) as process,
    ):
        process.wait()


def test_an_error_beside_a_run_ends_it(tmp_path) -> None:
    with (
        pytest.raises(KeyError),
        training(tmp_path / "run", {"model": {}}) as process,
    ):
        raise KeyError
    assert process.returncode < 0


def test_a_variant_with_too_few_flights_to_be_timed_is_left_out_and_said(
    tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(main, "run_cluster", lambda *_, **__: main.Speed(1000.0, 10.0))
    out = tmp_path / "out.json"
    arguments = ["--samples", "600000", "--variants", "memory,memory-32", "--rounds", "1"]
    monkeypatch.setattr(main, "write_samples", lambda *_: None)
    assert main.main([*arguments, "--batch-sizes", "1024,4096", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    # 600,000 samples: memory-32 wants 4 x 4 x 32 mini-batches, 524,288 samples or 2,097,152.
    assert [(row["batch"], row["variant"]) for row in rows] == [
        (1024, "memory"),
        (1024, "memory-32"),
        (4096, "memory"),
    ]
    assert "batch 4096, memory-32: left out; it needs --samples 2097152" in caplog.text


@pytest.mark.cluster
def test_a_cluster_whose_processes_are_a_benchmark_s_own_trains(tmp_path) -> None:
    write_samples(tmp_path / "samples", 4000)
    run = tmp_path / "run"
    settings = run_settings(
        run,
        source={"archive": {"directory": str(tmp_path / "samples")}},
        train={"batch_size": 500, "cluster": {"parameter_servers": 1, "workers": 1}},
        optimizer="rowwise-adagrad",
    )
    environment = {"BENCH_SOURCE": "memory"}
    with training(
        run, settings, module="jobs.bench.stream.process", environment=environment
    ) as process:
        process.wait()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[-1])["stream/samples"] == 4000
