from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from jobs.bench import main as bench
from jobs.bench.report import write_report
from jobs.main import COMMANDS, main, run_job
from jobs.settings import SettingsError
from pipeline.schema import InputError
from streaming.source import SourceUnavailableError


def test_the_overview_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    shown = capsys.readouterr().out
    for group in COMMANDS.values():
        for command in group:
            assert f"\n  {command} " in shown


def test_help_imports_neither_tensorflow_nor_arrow_nor_beam() -> None:
    program = (
        "import sys, jobs.main; jobs.main.main(['--help']);"
        "print([m for m in ('tensorflow', 'pyarrow', 'apache_beam', 'kafka') if m in sys.modules])"
    )
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    ).stdout
    assert shown.splitlines()[-1] == "[]"


def test_help_of_a_command_does_not_wait_for_tensorflow_and_writes_nothing_else() -> None:
    program = """
import contextlib, sys, jobs.checks, jobs.local, jobs.main
names = [name for group in jobs.main.COMMANDS.values() for name in group if name != "bench"]
parts = [["offsets", part] for part in ("show", "export", "reset", "forget")]
for words in [[name] for name in names] + parts:
    with contextlib.suppress(SystemExit):
        jobs.main.main([*words, "--help"])
        print("unheard of:", words)
print([m for m in ("tensorflow", "tf_keras") if m in sys.modules])
"""
    shown = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert shown.stdout.splitlines()[-1] == "[]"
    assert shown.stdout.count("usage: headrace ") == 13
    assert "unheard of" not in shown.stdout
    assert shown.stderr == ""


def test_the_keys_of_a_command_are_listed_without_a_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help-config"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert "# train: see streaming/config.py" in lines
    assert "train.batch_size: 1024" in lines
    assert "model.dim: 32" in lines


def test_an_unknown_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["trian"]) == 2
    error = capsys.readouterr().err
    assert "found command 'trian'" in error
    assert error.endswith("did you mean 'train'?\n")


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError(["a.yaml: train.x: found 1; expected 2", "second"]), 2),
        (InputError("part.parquet: found no footer; expected Parquet"), 2),
        (SourceUnavailableError("no broker at 127.0.0.1:1"), 75),
        (KeyboardInterrupt(), 130),
    ],
)
def test_errors_that_a_person_can_mend_become_text_and_an_exit_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def job(argv: Sequence[str] | None) -> int:
        raise error

    assert run_job(job, []) == code
    shown = capsys.readouterr().err
    assert "Traceback" not in shown
    for line in str(error).splitlines():
        assert f"  {line}\n" in shown


def test_a_bug_keeps_its_traceback_and_a_job_its_arguments_and_code() -> None:
    def buggy(argv: Sequence[str] | None) -> int:
        raise KeyError("x")

    with pytest.raises(KeyError):
        run_job(buggy, [])
    assert run_job(lambda argv: len(argv or ()), ["a", "b", "c"]) == 3


def test_bench_lists_its_benchmarks_and_refuses_others(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench"]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n  {name} " in shown for name in bench.BENCHMARKS)
    assert bench.main(["nothing"]) == 2
    assert "found 'nothing'" in capsys.readouterr().err


def test_a_benchmark_leaves_json_with_its_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "b.json"
    rows = [{"case": "ours", "rows/s": 1200.0}, {"case": "theirs", "rows/s": 600.0}]
    write_report("b", rows, ratios={"ours_vs_theirs": 2.0}, costs={"stall, s": 0.25}, out=out)
    written = json.loads(out.read_text())
    assert written["machine"].pop("cores") >= 1
    assert set(written.pop("machine")) == {"processor", "system", "python"}
    assert written == {
        "name": "b",
        "rows": rows,
        "ratios": {"ours_vs_theirs": 2.0},
        "costs": {"stall, s": 0.25},
    }
    shown = capsys.readouterr().out
    assert "1,200.0" in shown
    _, ratios, costs = re.split(r"ratios \(higher|costs \(lower", shown)
    assert re.search(r"ours_vs_theirs .* 2\.000 ", ratios)
    assert re.search(r"stall, s .* 0\.250 ", costs)


def test_a_benchmark_without_ratios_or_costs_shows_no_table_of_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_report("b", [{"case": "ours"}], costs={"stall, s": 0.25}, out=tmp_path / "b.json")
    shown = capsys.readouterr().out
    assert ("costs (" in shown, "ratios" in shown) == (True, False)
    assert json.loads((tmp_path / "b.json").read_text())["ratios"] == {}
    write_report("b", [{"case": "ours"}], ratios={}, out=None)
    shown = capsys.readouterr().out
    assert ("ours" in shown, "costs" in shown, "ratios" in shown) == (True, False, False)


def test_every_benchmark_says_what_it_is_and_takes_out(capsys: pytest.CaptureFixture[str]) -> None:
    for name in bench.BENCHMARKS:
        with pytest.raises(SystemExit):
            bench.main([name, "--help"])
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: headrace bench {name} ")
        assert f"\n`headrace bench {name}`: " in shown
        assert "--out OUT" in shown
