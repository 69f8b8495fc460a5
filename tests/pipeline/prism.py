"""Beam's Prism runner, built once with Go into the project's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

_PROJECT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("HEADRACE_CACHE") or _PROJECT / ".cache") / "prism"


class PrismMissingError(Exception):
    """Why there is none."""


def find_prism() -> Path:
    """Returns the binary of the same version as Beam: `HEADRACE_PRISM`, or one built here.

    Raises:
        PrismMissingError: If there is none, and none can be built.
    """
    if given := os.environ.get("HEADRACE_PRISM"):
        return Path(given)
    beam = version("apache-beam")
    binary = CACHE / f"v{beam}" / "prism"
    if binary.is_file():
        return binary
    if shutil.which("go") is None:
        raise PrismMissingError("found no Go to build Prism with; expected `go` on PATH")
    source = f"github.com/apache/beam/sdks/v2/go/cmd/prism@v{beam}"
    done = subprocess.run(
        ["go", "install", source],
        env=os.environ | {"GOBIN": str(binary.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if done.returncode:
        raise PrismMissingError(f"go install {source}: {done.stderr.strip()[-500:]}")
    return binary
