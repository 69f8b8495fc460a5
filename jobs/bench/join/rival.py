"""Processes of quixstreams, in an environment of their own: nothing of it gets into ours."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

import pyarrow as pa
import pyarrow.json

from jobs.bench.join.events import Stream, sample_schema

VERSION: Final = "3.28.1"
SETTINGS: Final = (
    "exactly-once, commit_interval 1 s, linger 20 ms, batches of 1 MB, lz4, 200,000 records read"
    " ahead, state with a TTL; restarts: static member, transactional id of its own"
)
_INSTALL_SECONDS: Final = 300.0


class RivalMissingError(RuntimeError):
    """quixstreams is not there and cannot be installed here; the message says why."""


def environment() -> Path:
    """Returns the Python that has quixstreams; makes its environment once, with uv.

    Raises:
        RivalMissingError: If that fails, as it does without a network.
    """
    cache = Path(os.environ.get("HEADRACE_CACHE", ".cache"))
    folder = (cache / f"quixstreams-{VERSION}").absolute()
    python = folder / "bin" / "python"
    if (folder / "complete").exists():
        return python
    uv = shutil.which("uv")
    if uv is None:
        raise RivalMissingError("found no uv to install it with")
    shutil.rmtree(folder, ignore_errors=True)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    for command in (
        [uv, "venv", "--quiet", "--python", version, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(python), f"quixstreams=={VERSION}"],
    ):
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, check=False, timeout=_INSTALL_SECONDS
            )
        except subprocess.TimeoutExpired as error:
            raise RivalMissingError(f"not installed in {_INSTALL_SECONDS:g} s") from error
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise RivalMissingError(f"not installed: {said[-1] if said else done.returncode}")
    (folder / "complete").touch()
    return python


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class QuixJoin:
    """A join of one topic of events by quixstreams, whose processes may come and go.

    Attributes:
        python: See `environment`.
        folder: For its settings, log and state.
        address: Of the broker.
        name: Of its group and its output.
        events_topic: What it reads: single JSON events with users as keys.
        stream: What is in there.
        mode: See `quix_program`.
        restarts: `static`, or `default`: what it does if nobody thinks of restarts.
    """

    python: Path
    folder: Path
    address: str
    name: str
    events_topic: str
    stream: Stream
    mode: Literal["outcome", "closing"] = "outcome"
    restarts: Literal["static", "default"] = "static"

    @property
    def samples_topic(self) -> str:
        """The topic that it writes."""
        return f"{self.name}-samples"

    @property
    def log(self) -> str:
        """What its processes have said."""
        path = self.folder / f"{self.name}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> subprocess.Popen[bytes]:
        """Starts a process, which never ends by itself."""
        settings = {
            "address": self.address,
            "group": self.name,
            "events_topic": self.events_topic,
            "samples_topic": self.samples_topic,
            "window_ms": self.stream.window_ms,
            "disorder_ms": self.stream.disorder_ms,
            "state_dir": str(self.folder / f"{self.name}-state"),
            "mode": self.mode,
            "restarts": self.restarts,
        }
        path = self.folder / f"{self.name}.json"
        path.write_text(json.dumps(settings))
        program = Path(__file__).with_name("quix_program.py")
        with (self.folder / f"{self.name}.log").open("ab") as log:
            # Not this process's PYTHONPATH: what it names is of another environment.
            clean = {name: text for name, text in os.environ.items() if name != "PYTHONPATH"}
            return subprocess.Popen(
                [str(self.python), "-P", str(program), str(path)],
                stdout=log,
                stderr=log,
                env=clean,
            )


def samples_of(values: Sequence[bytes]) -> list[pa.Table]:
    """Returns the samples in records of one JSON object each, with `SAMPLE_COLUMNS`."""
    if not values:
        return []
    schema = sample_schema()
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    return [pyarrow.json.read_json(io.BytesIO(b"\n".join(values)), parse_options=options)]
