"""Training clusters of a benchmark's own, whose processes may be other than `headrace train`.

Run as `python -m jobs.bench.launch MODULE CONFIG`: starts every process of a cluster, each of which
runs MODULE, and ends as the coordinator did.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from jobs.local import LocalCluster
from jobs.main import run_job
from streaming.config import ClusterConfig


@contextlib.contextmanager
def training(
    run: Path,
    settings: Mapping[str, Any],
    *,
    module: str = "jobs.train",
    environment: Mapping[str, str] | None = None,
) -> Iterator[subprocess.Popen[bytes]]:
    """Trains on a cluster on this machine; the end of the `with` waits for its end.

    Args:
        run: A folder to make, for the configuration and the log.
        settings: The configuration.
        module: What every process runs, with the flags of `headrace train`.
        environment: What it has beside this process's own.

    Raises:
        RuntimeError: If training failed, with the end of its log.
    """
    run.mkdir(parents=True)
    config, log = run / "config.yaml", run / "log"
    config.write_text(yaml.safe_dump(dict(settings)))
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "jobs.bench.launch", module, str(config)],
            env=os.environ | dict(environment or {}),
            stdout=output,
            stderr=output,
        ) as process,
    ):
        try:
            yield process
        except BaseException:
            process.kill()  # its cluster ends with it
            raise
    if process.returncode:
        said = log.read_text(errors="replace")
        raise RuntimeError(f"{run.name}: exit {process.returncode}\n{said[-4000:]}")


def main(argv: Sequence[str]) -> int:
    """Runs a cluster to its coordinator's end."""
    module, config = argv
    train = yaml.safe_load(Path(config).read_text())["train"]
    command = [sys.executable, "-m", module, "--config", config]
    cluster = ClusterConfig(**train["cluster"])
    return LocalCluster(command, cluster, directory=train["directory"]).run()


if __name__ == "__main__":
    sys.exit(run_job(lambda _: main(sys.argv[1:])))
