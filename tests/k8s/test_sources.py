"""What manifests and image are made of: their files, and the commands and settings of `jobs`."""

from __future__ import annotations

import re
import subprocess
import sys

import yaml

from jobs.main import COMMANDS
from jobs.settings import UniqueKeyLoader
from tests.k8s.rendering import BIN, ROOT, Objects, arguments, container, of_kind


def test_every_source_file_has_each_key_once() -> None:
    for path in [*(ROOT / "k8s").rglob("*.yaml"), *(ROOT / "jobs" / "configs").glob("*.yaml")]:
        assert list(yaml.load_all(path.read_text(), UniqueKeyLoader)), path


def test_the_config_map_holds_all_files_of_jobs_configs_as_they_are(base: Objects) -> None:
    (found,) = [o for o in of_kind(base, "ConfigMap") if "configs" in o["metadata"]["name"]]
    files = set((ROOT / "jobs" / "configs").glob("*.yaml"))
    files -= {ROOT / "jobs" / "configs" / "kustomization.yaml"}
    assert found["data"] == {path.name: path.read_text() for path in files}


def test_pods_run_commands_that_exist_with_flags_that_they_have(base: Objects) -> None:
    workloads = of_kind(base, "StatefulSet", "Job", "Deployment")
    commands = {container(workload)["args"][0] for workload in workloads}
    assert commands <= {name for group in COMMANDS.values() for name in group}
    shown = {command: _help(command) for command in commands}
    roles = re.search(r"--role \{([\w,]+)\}", shown["train"])
    assert roles is not None
    for workload in workloads:
        command, flags = container(workload)["args"][0], arguments(workload, base)
        assert set(flags) <= set(re.findall(r"--\w+", shown[command]))
        assert flags.get("--role", "worker") in roles[1].split(",")


def _help(command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "jobs.main", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_the_image_is_built_as_its_linter_wants_it() -> None:
    done = subprocess.run(
        [BIN / "hadolint", ROOT / "k8s" / "Dockerfile"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
