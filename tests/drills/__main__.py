"""`python -m tests.drills`: faults by a seeded schedule against a real cluster and a real broker.

    python -m tests.drills --faults 20 --seed 1 --on-torn-push restore --out F

A counting model is trained from a topic that is produced while the faults fall. At the end the
counters in its last checkpoint are compared with the topic. Exit code 0 if nothing is lost and
nothing duplicated; 1 otherwise, with the run's folder kept.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.main import import_tensorflow
from pipeline.specification import Specification
from tests.drills import report
from tests.drills.faults import Injector, Outcome
from tests.drills.schedule import KINDS, make_schedule
from tests.drills.stream import SAMPLES_PER_RECORD, Producer, read_truth
from tests.drills.training import BATCH_SIZE, BATCHES_PER_RANGE, DrillError, Training
from tests.kafka.broker import Broker
from tests.streaming.counting.samples import specification

if TYPE_CHECKING:
    from tests.drills.verdict import Verdict

_RATE = 1000.0  # samples a second
_SECONDS_A_FAULT = 60
_OWN_MOUNTS = "HEADRACE_DRILL_OWN_MOUNTS"
_TORN_LINE = "a push was torn"


def main() -> int:
    """Runs the drill; returns 0 if it passed."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills", description=__doc__)
    parser.add_argument("--faults", type=int, default=20, help="how many")
    parser.add_argument("--seed", type=int, default=1, help="the same seed, the same schedule")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), metavar="KIND")
    parser.add_argument("--on-torn-push", choices=["restore", "count"], default="restore")
    parser.add_argument("--overlap", action="store_true", help="with train.cluster.overlap")
    parser.add_argument("--out", type=Path, help="a JSON file for the result")
    parser.add_argument("--folder", type=Path, help="where to work; else a temporary folder")
    arguments = parser.parse_args()
    if os.environ.get(_OWN_MOUNTS) is None:
        return _with_own_mounts()
    # The client says a hundred times a second that a broker which we killed is away.
    logging.getLogger("kafka").setLevel(logging.CRITICAL)
    folder = Path(arguments.folder or tempfile.mkdtemp(prefix="headrace-drill-")).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        passed = _drill(arguments, folder)
    except DrillError as error:
        sys.stderr.write(f"drill: {error}\nFAILED; see {folder}/log\n")
        return 1
    if passed and arguments.folder is None:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if passed else 1


def _with_own_mounts() -> int:
    """Runs this command in a mount namespace: its small disk vanishes with it."""
    command = [sys.executable, "-m", "tests.drills", *sys.argv[1:]]
    inside = ["unshare", "--map-root-user", "--mount"]
    probe = subprocess.run([*inside, "true"], capture_output=True, check=False)
    can = probe.returncode == 0
    environment = os.environ | {_OWN_MOUNTS: "1" if can else "0"}
    return subprocess.run(
        [*inside, *command] if can else command, env=environment, check=False
    ).returncode


def _drill(arguments: argparse.Namespace, folder: Path) -> bool:
    rows = int(_RATE * _SECONDS_A_FAULT * max(arguments.faults, 5))
    schema = Specification(**specification(rows)).sample_schema
    with Broker(folder / "kafka") as broker:
        training = Training(
            folder,
            bootstrap=broker.bootstrap,
            rows=rows,
            on_torn_push=arguments.on_torn_push,
            overlap=arguments.overlap,
        )
        disk = _mount(training.directory, rows)
        producer = Producer(
            broker,
            schema,
            rate=_RATE,
            limit=rows,
            seen=lambda: training.last_commit()[2],
        )
        producer.start()
        restores = arguments.on_torn_push == "restore"
        began = time.monotonic()
        try:
            outcomes = _strike(
                arguments, training, Injector(training, broker, disk=disk, restores=restores)
            )
            if producer.sent + SAMPLES_PER_RECORD > rows:
                raise DrillError(f"production ended at {rows:,} samples, before the faults did")
            producer.stop()
            _finish(training)
            truth, ends = read_truth(broker, rows=rows)
            import_tensorflow()
            from tests.drills.verdict import judge

            verdict = judge(
                training.checkpoints,
                truth=truth,
                ends=ends,
                range_samples=max(BATCH_SIZE * BATCHES_PER_RANGE, SAMPLES_PER_RECORD),
            )
        finally:
            training.end()
        if verdict.samples != producer.sent or truth.max() > 1:
            verdict.problems.append(f"the topic has {verdict.samples} of {producer.sent} samples")
        _tell(arguments, outcomes, verdict, training, disk=disk, seconds=time.monotonic() - began)
    return not verdict.problems


def _mount(directory: Path, rows: int) -> bool:
    """Puts the run's directory on a small disk of its own, if that is permitted here."""
    if os.environ[_OWN_MOUNTS] != "1":
        return False
    size = 64 + 8 * rows * 4 // 1_000_000  # MB: eight checkpoints
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(directory)]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _strike(arguments: argparse.Namespace, training: Training, injector: Injector) -> list[Outcome]:
    training.start()
    training.wait_for(lambda: training.last_commit()[2] and training.newest(), "a checkpoint")
    outcomes = []
    for fault in make_schedule(arguments.faults, seed=arguments.seed, kinds=arguments.kinds):
        outcome = injector.inject(fault)
        outcomes.append(outcome)
        sys.stdout.write(report.fault_row(outcome) + "\n")
        sys.stdout.flush()
    return outcomes


def _finish(training: Training) -> None:
    """Ends the run as its operator would, and then has it train what is left, to its own end."""
    training.wait_for(training.whole, "all workers")
    assert training.launcher is not None
    training.launcher.terminate()
    code = training.finish()
    if code != 0:
        raise DrillError(f"SIGTERM: ended with {code}; expected 0")
    training.start("train.stream.end=now")
    code = training.finish()
    if code != 0:
        raise DrillError(f"the last run, to the end of the topic, ended with {code}; expected 0")


def _tell(
    arguments: argparse.Namespace,
    outcomes: list[Outcome],
    verdict: Verdict,
    training: Training,
    *,
    disk: bool,
    seconds: float,
) -> None:
    torn = training.log().count(_TORN_LINE)
    title = (
        f"{arguments.faults} faults, seed {arguments.seed},"
        f" on_torn_push={arguments.on_torn_push}, {seconds:.0f} s"
    )
    how = "a tmpfs, filled" if disk else "RLIMIT_FSIZE of the parameter servers"
    report.show(outcomes, verdict, title=title, torn_found=torn, disk=how)
    if arguments.out is not None:
        report.write(
            arguments.out,
            outcomes,
            verdict,
            seed=arguments.seed,
            on_torn_push=arguments.on_torn_push,
            seconds=seconds,
            torn_found=torn,
            full_disk=how,
        )


if __name__ == "__main__":
    sys.exit(main())
