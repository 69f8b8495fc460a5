from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from jobs.live.dashboard import shown, table

ROOT = Path(__file__).resolve().parents[3]
FIGURES = {
    "stream/samples": 12_345,
    "stream/samples_per_second": 678.4,
    "train/loss": 0.12345,
    "stream/lag_records": 9,
    "stream/records_remaining": 8,
    "stream/watermark_ms": 1_500_000_000_000,
    "stream/skew_seconds": 2.5,
    "stream/staleness_p50_seconds": 1.25,
    "stream/staleness_p99_seconds": 3.5,
    "cluster/workers_heard": 1,
    "cluster/workers": 2,
    "cluster/ranges_in_flight": 3,
    "stream/rejects": 4,
    "stream/lost": 5,
    "stream/torn": 6,
    "checkpoint/age_seconds": 17,
    "checkpoint/stall_seconds": 0.256,
}


def rendered(figures: dict[str, float], *, age_seconds: float = 0) -> list[list[str]]:
    console = Console(record=True, width=120, file=io.StringIO())
    console.print(table(figures, age_seconds=age_seconds))
    lines = console.export_text().splitlines()
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in lines]


def test_the_table_shows_every_figure_in_its_unit() -> None:
    cells = [cell for line in rendered(FIGURES) for cell in line]
    shown_values = dict(zip(cells[1::2], cells[2::2], strict=False))
    assert shown_values == {
        "samples": "12,345",
        "samples/s": "678",
        "loss": "0.1235",
        "lag, records": "9",
        "records to go": "8",
        "event-time watermark": "2017-07-14 02:40:00 UTC",
        "skew, s": "2.5",
        "staleness p50 / p99, s": "1.2 / 3.5",
        "workers heard, of all": "1 of 2",
        "ranges in flight": "3",
        "rejected / lost / torn": "4 / 5 / 6",
        "checkpoint age, s": "17",
        "its stall, s": "0.26",
    }


def test_topics_have_lines_of_their_own_if_there_are_several() -> None:
    figures = FIGURES | {"stream/topic_lag_records/clicks": 4, "stream/topic_lag_records/buys": 5}
    figures["stream/topic_watermark_ms/buys"] = 1_500_000_000_000
    lines = rendered(figures)
    assert ["clicks", "4"] in lines
    assert ["buys", "5", "2017-07-14 02:40:00 UTC"] in lines


def test_what_is_not_known_yet_is_left_out_and_old_figures_say_so() -> None:
    lines = rendered({"stream/samples": 1}, age_seconds=7.2)
    assert ["samples", "1"] in lines
    assert ["7 s ago"] in lines


def test_without_a_terminal_nothing_changes(tmp_path: Path) -> None:
    with shown(tmp_path / "metrics.jsonl"):
        assert "HEADRACE_TABLE" not in os.environ


PROGRAM = """
import json, subprocess, sys, time
from pathlib import Path
from jobs.live.dashboard import shown

metrics = Path(sys.argv[1])
with shown(metrics):
    metrics.write_text(json.dumps({"time": time.time(), "stream/samples": 4711}) + chr(10))
    time.sleep(2)
    subprocess.run([sys.executable, "-c", "print('a child says this')"])
print("afterwards")
"""


def test_on_a_terminal_the_table_follows_the_run_and_children_print_above_it(
    tmp_path: Path,
) -> None:
    master, slave = pty.openpty()
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "metrics.jsonl")]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=os.environ | {"TERM": "xterm"},
    ) as process:
        os.close(slave)
        text = ""
        try:
            while piece := os.read(master, 4096):
                text += piece.decode(errors="replace")
        except OSError:  # the other end is closed
            pass
        assert process.wait(60) == 0
    os.close(master)
    assert "4,711" in text
    assert "a child says this" in text
    assert text.rindex("afterwards") > text.rindex("4,711")
