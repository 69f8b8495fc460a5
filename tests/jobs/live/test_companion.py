from __future__ import annotations

import sys
import time
from pathlib import Path

from jobs.live.companion import Companion
from tests.waiting import wait_until

PROGRAM = """
import signal, sys, time
from pathlib import Path
log, code = Path(sys.argv[1]), int(sys.argv[2])

def tell(text):
    with log.open("a") as file:
        file.write(text + chr(10))

def finish(*_):
    tell("last work")
    sys.exit(0)

signal.signal(signal.SIGTERM, finish)
tell("start")
if code and log.read_text().count("start") < 3:
    sys.exit(code)
time.sleep(60)
"""


def run(log: Path, code: int, *, until: str, count: int) -> list[str]:
    command = [sys.executable, "-c", PROGRAM, str(log), str(code)]
    with Companion("clerk", command, delay=0.01):
        wait_until(lambda: log.exists() and log.read_text().count(until) >= count)
        time.sleep(0.1 if code == 2 else 0)
    return log.read_text().splitlines()


def test_it_may_finish_what_it_is_at(tmp_path: Path) -> None:
    assert run(tmp_path / "log", 0, until="start", count=1) == ["start", "last work"]


def test_one_that_dies_is_started_again(tmp_path: Path) -> None:
    lines = run(tmp_path / "log", 1, until="start", count=3)
    assert lines == ["start", "start", "start", "last work"]


def test_one_that_found_its_configuration_wrong_stays_away(tmp_path: Path) -> None:
    assert run(tmp_path / "log", 2, until="start", count=1) == ["start"]
