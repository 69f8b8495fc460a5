"""The rendered manifests, and how to find one's way in them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from jobs.settings import UniqueKeyLoader

ROOT = Path(__file__).resolve().parents[2]
LAYERS = ("base", "overlays/small", "overlays/production")
BIN = Path(sys.executable).parent

_INDEX = "metadata.labels['apps.kubernetes.io/pod-index']"

Objects = list[dict[str, Any]]


def render(layer: str) -> Objects:
    done = subprocess.run(
        [BIN / "kubectl", "kustomize", ROOT / "k8s" / layer], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(yaml.load_all(done.stdout, UniqueKeyLoader))


def of_kind(objects: Objects, *kinds: str) -> Objects:
    return [each for each in objects if each["kind"] in kinds]


def named(objects: Objects, kind: str, name: str) -> dict[str, Any]:
    return next(o for o in of_kind(objects, kind) if o["metadata"]["name"] == name)


def pod(workload: dict[str, Any]) -> dict[str, Any]:
    return workload["spec"]["template"]["spec"]


def container(workload: dict[str, Any]) -> dict[str, Any]:
    (only,) = pod(workload)["containers"]
    return only


def arguments(workload: dict[str, Any], objects: Objects) -> dict[str, str]:
    """Returns the container's flags, with variables filled in as the kubelet does."""
    found = container(workload)
    names = [source["configMapRef"]["name"] for source in found.get("envFrom", [])]
    values = {k: v for name in names for k, v in named(objects, "ConfigMap", name)["data"].items()}
    # Of pod 0.
    values |= {e["name"]: "0" for e in found.get("env", []) if _INDEX in str(e["valueFrom"])}
    flags = [re.sub(r"\$\((\w+)\)", lambda m: values[m[1]], text) for text in found["args"][1:]]
    return {name: value for name, _, value in (flag.partition("=") for flag in flags)}


def selects(wanted: dict[str, str], workload: dict[str, Any]) -> bool:
    return wanted.items() <= workload["spec"]["template"]["metadata"]["labels"].items()


def selected_by(selector: dict[str, Any], workload: dict[str, Any]) -> bool:
    """Returns whether a selector, with the operator In at most, selects a workload's pods."""
    labels = workload["spec"]["template"]["metadata"]["labels"]
    return selects(selector.get("matchLabels", {}), workload) and all(
        each["operator"] == "In" and labels.get(each["key"]) in each["values"]
        for each in selector.get("matchExpressions", [])
    )
