"""The launcher, with a program that does what each test says in the place of TensorFlow."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.local import LocalCluster, Patience
from streaming.config import ClusterConfig
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent.parent
FAST = Patience(lives=3, deaths=4, first_delay=0.01, longest_delay=0.05, grace=5.0)

# Each start of a role takes the next step of its plan, the last for good. A step is a list of:
#   "exit N" | "await COUNT TEXT" (that many lines of the log begin so) | "signal NAME" (the parent)
#   | "sleep SECONDS" | "checkpoint" | "follow" (the parent) | "die" (of SIGKILL)
#   | "deaf" (to SIGTERM) | "default" (dies of SIGTERM) | "serve" (until SIGTERM).
# On SIGTERM it does the words after "stop:" and tells that it stops.
PROGRAM = """
import json, os, signal, sys, time
from pathlib import Path

sys.path.insert(0, ".")
folder, role, index = Path(sys.argv[1]), sys.argv[3], sys.argv[5]

def tell(text):
    with (folder / "log").open("a") as log:
        log.write(text + "\\n")

def lines():
    return (folder / "log").read_text().splitlines()

def do(word):
    verb, _, rest = word.partition(" ")
    if verb == "exit":
        sys.exit(int(rest))
    elif verb == "await":
        count, _, text = rest.partition(" ")
        while sum(line.startswith(text) for line in lines()) < int(count):
            time.sleep(0.01)
    elif verb == "signal":
        os.kill(os.getppid(), signal.Signals[rest])
    elif verb == "checkpoint":
        there = folder / "run" / "checkpoints"
        there.mkdir(parents=True, exist_ok=True)
        (there / f"checkpoint-{len(list(there.iterdir())) + 1:08d}").mkdir()
    elif verb == "follow":
        from jobs.main import follow_parent
        follow_parent()
        tell(f"follows {role}")
    elif verb == "sleep":
        time.sleep(float(rest))
    elif verb == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif verb == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    elif verb == "default":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    elif verb == "serve":
        time.sleep(60)
        sys.exit(99)

def stop(*_):
    for word in stop_words:
        do(word)
    tell(f"stop {role} {index}")
    os._exit(0)

plan = json.loads((folder / "plan").read_text()).get(role, [["serve"]])
before = sum(line.startswith(f"start {role} {index} ") for line in lines())
words = plan[min(before, len(plan) - 1)]
at = words.index("stop:") if "stop:" in words else len(words)
words, stop_words = words[:at], words[at + 1:]
signal.signal(signal.SIGTERM, stop)
tell(f"start {role} {index} {os.getpid()} threads={os.environ['TF_NUM_INTRAOP_THREADS']}")
for word in words:
    do(word)
"""

Plan = dict[str, list[list[str]]]
ALL_UP = ["await 1 start ps", "await 2 start worker"]


class Fake:
    """A folder with the program, its plan and its log."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.program = folder / "program.py"
        self.program.write_text(PROGRAM)
        self.command = [sys.executable, str(self.program), str(folder)]
        (folder / "log").touch()

    def cluster(self, plan: Plan, **options: object) -> LocalCluster:
        (self.folder / "plan").write_text(json.dumps(plan))
        given = {"directory": self.folder / "run", "patience": FAST} | options
        config = ClusterConfig(parameter_servers=1, workers=2)
        return LocalCluster(self.command, config, **given)  # type: ignore[arg-type]

    def run(self, plan: Plan, **options: object) -> int:
        return self.cluster(plan, **options).run()

    def lines(self, start: str) -> list[str]:
        return [line for line in (self.folder / "log").read_text().splitlines() if start in line]

    def pids(self) -> list[int]:
        return [int(line.split()[3]) for line in self.lines("start ")]


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[Fake]:
    """A fake; what it started is gone at the end, and no signal hits the test run itself."""
    stray: list[int] = []
    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {n: signal.signal(n, lambda number, _: stray.append(number)) for n in numbers}
    made = Fake(tmp_path)
    yield made
    assert stray == []
    for number, handler in previous.items():
        signal.signal(number, handler)
    left = [pid for pid in made.pids() if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == []


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):  # gone, or gone while it was read
        return False


def test_a_run_ends_with_its_coordinator_and_shares_the_cores_out(fake):
    assert fake.run({"coordinator": [[*ALL_UP, "exit 0"]]}) == 0
    assert len(fake.lines("stop worker")) == 2
    assert len(fake.lines("stop ps")) == 1
    share = max(1, (os.cpu_count() or 1) // 2)
    assert [line.rpartition("=")[2] for line in fake.lines("start ")] == [str(share)] * 4


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_stops_the_servers_only_when_the_coordinator_has_saved(fake, name):
    plan = {"coordinator": [[*ALL_UP, f"signal {name}", "serve", "stop:", "sleep 0.5"]]}
    assert fake.run(plan) == 0
    assert fake.lines("stop ")[0] == "stop coordinator 0"
    assert sorted(fake.lines("stop ")[1:]) == ["stop ps 0", "stop worker 0", "stop worker 1"]
    assert len(fake.lines("start ")) == 4


def test_a_coordinator_that_cannot_save_is_killed_by_the_second_ctrl_c(fake):
    step = [*ALL_UP, "deaf", "signal SIGINT", "sleep 0.3", "signal SIGINT", "serve"]
    assert fake.run({"coordinator": [step]}) == 130
    assert fake.lines("stop coordinator") == []


def test_two_sigterms_still_let_it_save(fake):
    step = [*ALL_UP, "signal SIGTERM", "serve", "stop:", "signal SIGTERM", "sleep 0.3"]
    assert fake.run({"coordinator": [step]}) == 0
    assert fake.lines("stop ")[0] == "stop coordinator 0"


def test_a_coordinator_that_is_stopped_before_it_has_begun_has_nothing_to_save(fake):
    assert fake.run({"coordinator": [["default", "signal SIGTERM", "serve"]]}) == 0
    assert len(fake.lines("start coordinator")) == 1


def test_a_signal_between_two_lives_starts_no_other(fake):
    plan = {"ps": [["serve", "stop:", "signal SIGTERM"]], "coordinator": [[*ALL_UP, "exit 75"]]}
    assert fake.run(plan) == 75
    assert len(fake.lines("start coordinator")) == 1


def test_a_signal_while_it_waits_for_the_next_life_ends_the_wait(fake, monkeypatch):
    patience = Patience(first_delay=60.0, longest_delay=60.0)
    cluster = fake.cluster({"coordinator": [["exit 75"]]}, patience=patience)
    pause = cluster._pause

    def signal_and_pause(seconds):
        if seconds:
            signal.raise_signal(signal.SIGTERM)
        pause(seconds)

    monkeypatch.setattr(cluster, "_pause", signal_and_pause)
    assert cluster.run() == 75
    assert len(fake.lines("start coordinator")) == 2


def test_a_signal_while_servers_start_reaches_the_coordinator(fake, monkeypatch):
    cluster = fake.cluster({})
    start = cluster._start

    def start_and_signal(role, index):
        if role == "coordinator":
            signal.raise_signal(signal.SIGTERM)
        return start(role, index)

    monkeypatch.setattr(cluster, "_start", start_and_signal)
    assert cluster.run() == 0


def test_a_dead_worker_is_started_again_under_its_index(fake):
    plan = {
        "worker": [[*ALL_UP, "exit 1"], ["serve"]],
        "coordinator": [["await 2 start worker 0", "await 2 start worker 1", "exit 0"]],
    }
    assert fake.run(plan) == 0
    assert len(fake.lines("start coordinator")) == 1
    assert len(fake.lines("start ps")) == 1


def test_after_75_everything_is_started_again(fake):
    plan = {"coordinator": [[*ALL_UP, "exit 75"], ["await 4 start worker", "exit 0"]]}
    assert fake.run(plan) == 0
    assert len(fake.lines("start ps")) == 2
    assert len(fake.lines("start worker")) == 4
    assert len(fake.lines("stop ps")) == 2


def test_a_killed_coordinator_comes_back_to_its_living_servers(fake):
    plan = {"coordinator": [[*ALL_UP, "checkpoint", "die"], ["exit 0"]]}
    assert fake.run(plan) == 0
    assert len(fake.lines("start coordinator")) == 2
    assert len(fake.lines("start ps")) == 1
    assert len(fake.lines("start worker")) == 2


def test_a_lost_parameter_server_costs_it_and_the_coordinator_only(fake):
    plan = {
        "ps": [[*ALL_UP, "die"], ["serve"]],
        "coordinator": [["await 2 start ps", "exit 75"], ["exit 0"]],
    }
    assert fake.run(plan) == 0
    assert len(fake.lines("start ps")) == 2
    assert len(fake.lines("start worker")) == 2


def test_a_coordinator_that_is_killed_again_without_progress_gets_new_servers(fake):
    plan = {"coordinator": [[*ALL_UP, "die"], ["die"], ["await 2 start ps", "exit 0"]]}
    assert fake.run(plan) == 0
    assert len(fake.lines("start ps")) == 2


def test_a_frozen_server_does_not_hold_up_the_end(fake):
    began = time.monotonic()
    plan = {"worker": [["deaf", "serve"]], "coordinator": [[*ALL_UP, "exit 0"]]}
    patience = Patience(grace=60.0, server_grace=0.1)
    assert fake.run(plan, patience=patience) == 0
    assert time.monotonic() - began < 30


@pytest.mark.parametrize("role", ["coordinator", "ps", "worker"])
def test_bad_input_of_any_process_ends_the_run(fake, role):
    assert fake.run({role: [["exit 2"]]}) == 2
    assert len(fake.lines(f"start {role} 0")) == 1


def test_when_a_server_ends_the_run_the_coordinator_saves_before_the_others_stop(fake):
    plan = {
        "worker": [["await 1 start coordinator", "await 2 start worker", "exit 2"]],
        "coordinator": [["serve", "stop:", "sleep 0.3"]],
    }
    assert fake.run(plan) == 2
    assert fake.lines("stop ")[0] == "stop coordinator 0"
    assert "stop ps 0" in fake.lines("stop ")


def test_a_coordinator_that_waits_for_a_server_that_never_came_is_not_waited_for(fake):
    began = time.monotonic()
    plan = {"worker": [[*ALL_UP, "exit 2"]], "coordinator": [["deaf", "serve"]]}
    assert fake.run(plan, patience=Patience(grace=60.0, server_grace=0.1)) == 2
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("step", "code"), [("exit 75", 75), ("exit 1", 1), ("die", 137)])
def test_lives_without_progress_are_given_up(fake, caplog, step, code):
    assert fake.run({"coordinator": [[*ALL_UP, step]]}) == code
    assert len(fake.lines("start coordinator")) == FAST.lives
    assert "the coordinator failed 3 times without progress" in caplog.text


def test_lives_that_save_go_on(fake):
    saving, failing = ["checkpoint", "exit 75"], ["exit 75"]
    plan = {"coordinator": [failing, saving, failing, saving, failing, saving, ["exit 0"]]}
    assert fake.run(plan) == 0
    assert len(fake.lines("start coordinator")) == 7


@pytest.mark.parametrize("role", ["ps", "worker"])
def test_a_server_that_cannot_start_is_named_and_the_run_given_up(fake, caplog, role):
    assert fake.run({role: [["exit 7"]]}) == 75
    starts = [len(fake.lines(f"start {role} {index} ")) for index in (0, 1)]
    assert max(starts) == FAST.deaths  # of either worker
    assert f"given up: {role} " in caplog.text
    assert "ended with 7, 4 times at its start" in caplog.text


def test_a_worker_that_dies_between_checkpoints_is_started_again_each_time(fake):
    plan = {
        "worker": [["await 1 start coordinator", "checkpoint", "exit 1"]] * 6 + [["serve"]],
        "coordinator": [["await 7 start worker 0", "await 7 start worker 1", "exit 0"]],
    }
    assert fake.run(plan) == 0


def test_a_worker_that_lived_long_did_not_die_at_its_start(fake):
    plan = {
        "worker": [["exit 1"]] * 6 + [["serve"]],
        "coordinator": [["await 7 start worker 0", "await 7 start worker 1", "exit 0"]],
    }
    assert fake.run(plan, patience=Patience(deaths=2, start_seconds=0.0)) == 0


def test_delays_double_up_to_the_longest():
    delays = [Patience().delay(failures) for failures in range(1, 9)]
    assert delays == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


def test_a_server_waits_for_its_delay_while_the_others_are_attended_to(fake):
    plan = {
        "ps": [["exit 1"], ["exit 1"], ["serve"]],
        "worker": [["await 2 start ps", "exit 1"], ["serve"]],
        "coordinator": [["await 4 start worker", "exit 0"]],
    }
    assert fake.run(plan, patience=Patience(first_delay=30.0, longest_delay=30.0)) == 0
    assert len(fake.lines("start ps")) == 2


def test_children_end_when_the_launcher_is_killed(fake):
    follow = [["follow", "serve"]]
    fake.cluster({"ps": follow, "worker": follow, "coordinator": follow})
    code = (
        "import sys; from jobs.local import LocalCluster; from streaming.config import"
        " ClusterConfig; LocalCluster(sys.argv[1:], ClusterConfig(workers=1)).run()"
    )
    launcher = subprocess.Popen([sys.executable, "-c", code, *fake.command], cwd=ROOT)
    try:
        wait_until(lambda: len(fake.lines("follows ")) == 3, seconds=20)
    finally:
        launcher.kill()
        launcher.wait()
    wait_until(lambda: not any(alive(pid) for pid in fake.pids()), seconds=20)
    assert len(fake.pids()) == 3
