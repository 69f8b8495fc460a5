"""`headrace train` with the counting model, and with faults at the worst moments.

    python -m tests.streaming.counting.run --config F [--set ...] --role ... (as headrace train)
    python -m tests.streaming.counting.run --config F --local (every process here)

COUNTING_FAULTS names a folder. Whoever reaches a moment looks there for a file of its name, and
meets its fate, once per file:

  before-push  a worker has learned a range and pushed nothing: it dies by SIGKILL
  in-flight    it has pushed a range of its flight, and not yet all of them: it dies by SIGKILL
  after-push   it has pushed all, and the coordinator does not know: it dies by SIGKILL
  hold-push    it has learned a range and waits, before its push, until the file `released` is there
  tear-early   a parameter server has marked a push as begun and applied nothing of it, or
  tear-late    has applied it and not yet marked it so: it writes `held` (its process id and the
               pushing worker's) and waits until that file is gone; where there is a file `cut`
               then, the push fails there, as it would for want of memory

COUNTING_NO_MARKS=1 switches the marks off, which must be seen to break the count. COUNTING_TRACE
names a folder: `commits` there gets a line per range in the ledger (monotonic time, process id,
samples so far), and `worker-PID` the moment of that worker's first range.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from pathlib import Path

import yaml

HOLD_SECONDS = 60.0
RELEASED = "released"
HELD = "held"
CUT = "cut"


def main() -> int:
    """Runs one process of the cluster, or all of them."""
    from jobs.train import argument_parser

    arguments = argument_parser().parse_args()
    if arguments.local:
        return launch(arguments.config, arguments.overrides)
    from jobs.main import import_tensorflow
    from jobs.train import run_role

    import_tensorflow()  # before anything else does, noisily
    from tests.streaming.counting import faults

    faults.install()
    return run_role(arguments, faults.CountingProcess)


def launch(config: Path, overrides: list[str]) -> int:
    """Runs all processes of a counting run here, as `headrace train --local` does."""
    from jobs.local import LocalCluster
    from streaming.config import ClusterConfig

    logging.getLogger("jobs").setLevel("INFO")
    command = [sys.executable, "-m", "tests.streaming.counting.run", "--config", str(config)]
    for override in overrides:
        command += ["--set", override]
    train = yaml.safe_load(Path(config).read_text())["train"]
    cluster = ClusterConfig(**train["cluster"])
    return LocalCluster(command, cluster, directory=train["directory"]).run()


def claim(moment: str) -> bool:
    """Whether a fate waits for whoever comes to this moment; it is theirs then."""
    folder = os.environ.get("COUNTING_FAULTS")
    for file in sorted(Path(folder).glob(f"{moment}*")) if folder else []:
        try:
            file.unlink()
        except FileNotFoundError:  # another process was faster
            continue
        return True
    return False


def die() -> None:
    """Ends this process as the kernel would for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(condition) -> None:
    """Waits for a condition, but not for ever: a drill that is over leaves nothing behind."""
    deadline = time.monotonic() + HOLD_SECONDS
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


if __name__ == "__main__":
    from jobs.main import run_job

    sys.exit(run_job(lambda _: main()))
