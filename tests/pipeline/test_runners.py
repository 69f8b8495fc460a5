"""One small world with all kinds of samples on each runner: the same files, byte for byte."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import distributed
import pytest
import yaml

from tests.pipeline.hosts import CannotMakeHostsError, hosts, on
from tests.pipeline.prism import PrismMissingError, find_prism
from tests.pipeline.small_world import WINDOW_SECONDS, everything, write_world

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DASK = "--runner=apache_beam.runners.dask.dask_runner.DaskRunner"
PARTS = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_world(folder, seed=7)
    config = {
        "specification": everything().model_dump(mode="json", exclude_defaults=True),
        "samples": {
            "inputs": [f"{folder}/logs"],
            "users": [f"{folder}/users.parquet"],
            "items": [f"{folder}/items.parquet"],
            "output": f"{folder}/out",
            "join_window_seconds": WINDOW_SECONDS,
            "num_parts": PARTS,
        },
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def command(world: Path, output: Path, *options: str) -> list[str]:
    config = ["--config", f"{world}/config.yaml", "--set", f"samples.output={output}"]
    return [sys.executable, "-m", "jobs.main", "samples", *config, *options]


@contextlib.contextmanager
def started(arguments: list[str]) -> Iterator[subprocess.Popen]:
    """Runs a command with all that it starts in a process group, of which nothing is left."""
    process = subprocess.Popen(
        arguments,
        env=os.environ | {"PYTHONPATH": str(Path.cwd())},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-3000:]


def run(world: Path, output: Path, *options: str) -> dict[str, bytes]:
    with started(command(world, output, *options)) as process:
        finish(process)
    return contents(output)


def contents(output: Path) -> dict[str, bytes]:
    root = output.resolve()
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def expected(world, tmp_path_factory) -> dict[str, bytes]:
    """The files of the runner that is there by default."""
    files = run(world, tmp_path_factory.mktemp("local") / "out")
    kinds = {path.split("/dt=")[0] for path in files}
    declared = {n for n in ("retrieval", "behaviour", "corpus") if getattr(everything().kinds, n)}
    assert kinds > {*declared, "facts/positives", "facts/behaviours", "facts/items"}
    assert any(path.startswith("rejected/") for path in files)
    return files


def test_a_second_run_gives_the_same_files(world, expected, tmp_path) -> None:
    assert run(world, tmp_path / "out", "--runner=FnApiRunner") == expected


@pytest.mark.dask
def test_dask_gives_the_same_files(world, expected, tmp_path) -> None:
    with cluster(2) as (address, _):
        assert run(world, tmp_path / "out", *to(address)) == expected


@contextlib.contextmanager
def cluster(workers: int) -> Iterator[tuple[str, distributed.LocalCluster]]:
    with distributed.LocalCluster(
        n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=None
    ) as made:
        yield made.scheduler_address, made


def to(address: str) -> list[str]:
    return [DASK, f"--dask_client_address={address}", "--dask_npartitions=4"]


@pytest.mark.dask
@pytest.mark.parametrize("moment", ["blocks/*.arrow", "items/*/part-*.arrow"])
def test_a_killed_dask_worker_changes_nothing(world, expected, tmp_path, moment) -> None:
    """kill -9, as soon as there is a first file of some step."""
    with (
        cluster(3) as (address, made),
        started(command(world, tmp_path / "out", *to(address))) as process,
    ):
        while process.poll() is None and not list(tmp_path.glob(f"out.runs/*.scratch/{moment}")):
            time.sleep(0.001)
        assert process.poll() is None
        killed = next(iter(made.workers.values())).pid
        os.kill(killed, signal.SIGKILL)
        finish(process)
        assert contents(tmp_path / "out") == expected


@pytest.mark.dask
def test_dask_on_several_hosts_gives_the_same_files(world, expected, tmp_path) -> None:
    """Scheduler, workers and the command on four hosts that share nothing but a file system."""
    python = [sys.executable, "-m"]
    try:
        made = contextlib.ExitStack()
        four = made.enter_context(hosts(4))
    except CannotMakeHostsError as error:
        pytest.skip(f"no hosts: {error}")
    with made:
        (scheduler, address), *workers, (client, _) = four
        tcp = f"tcp://{address}:8786"
        listen = ["--host", address, "--port", "8786", "--no-dashboard"]
        running = [[*python, "distributed.cli.dask_scheduler", *listen]]
        hosted = [on(scheduler, running[0])]
        for host, own in workers:
            options = ["--host", own, "--nthreads", "1", "--no-dashboard"]
            options += ["--local-directory", f"{tmp_path}/{host}"]
            hosted.append(on(host, [*python, "distributed.cli.dask_worker", tcp, *options]))
        for arguments in hosted:
            made.enter_context(started(arguments))
        job = on(client, command(world, tmp_path / "out", *to(tcp)))
        with started(job) as process:
            finish(process)
        assert contents(tmp_path / "out") == expected


@pytest.fixture(scope="module")
def prism() -> Path:
    try:
        return find_prism()
    except PrismMissingError as error:
        pytest.skip(str(error))


def on_prism(prism: Path) -> list[str]:
    # With LOOPBACK, Prism's workers are threads of the command.
    place = f"--prism_location={prism}"
    return ["--runner=PrismRunner", place, "--environment_type=LOOPBACK"]


def test_prism_gives_the_same_files(world, expected, tmp_path, prism) -> None:
    assert run(world, tmp_path / "out", *on_prism(prism)) == expected


def test_a_killed_command_leaves_no_prism_behind_here(world, tmp_path, prism) -> None:
    """Prism outlives its parent, so the tests end the process group of each command."""
    with started(command(world, tmp_path / "out", *on_prism(prism))) as process:
        while process.poll() is None and not members(process.pid, prism):
            time.sleep(0.01)
        process.kill()
        process.wait()
        assert members(process.pid, prism)
    deadline = time.monotonic() + 10
    while members(process.pid, prism) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not members(process.pid, prism)


def members(group: int, program: Path) -> list[int]:
    """Returns the processes of a group that run a program."""
    found = []
    for path in Path("/proc").glob("[0-9]*/exe"):
        with contextlib.suppress(OSError):
            pid = int(path.parent.name)
            if os.getpgid(pid) == group and path.resolve().samefile(program):
                found.append(pid)
    return found
