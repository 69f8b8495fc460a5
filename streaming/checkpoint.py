"""Checkpoints: the parameter servers' state and the ledger, in one atomic save.

A checkpoint is a folder `checkpoint-00000012`, written under a temporary name and renamed when it
is whole. In it, each parameter server has written its own shards, and `manifest.json` holds the
ledger, the fingerprints and the size of every file, by which a damaged checkpoint is found out and
the one before it used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline.schema import InputError
from streaming.ledger import Ledger

logger = logging.getLogger(__name__)

_FOLDER = re.compile(r"checkpoint-(\d{8})$")
_MANIFEST = "manifest.json"
_LIVES_BITS = 40


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint's content, off the cluster.

    Attributes:
        parameters: Value of each table ([buckets, dim]) and weight, by name.
        last_seen, mean_gap: The estimator's A and B, flat; None without an estimator.
        step: Mini-batches applied.
        ledger: What was applied, as `Ledger.to_json` has it.
        specification_fingerprint: The specification that it was trained with.
    """

    parameters: dict[str, np.ndarray]
    last_seen: np.ndarray | None
    mean_gap: np.ndarray | None
    step: int
    ledger: dict[str, Any]
    specification_fingerprint: str


class CheckpointStore:
    """The checkpoints of one training run, which one coordinator at a time may write."""

    def __init__(self, directory: Path, *, keep: int, fingerprints: Mapping[str, str]) -> None:
        """Opens the folder, creating it.

        Args:
            directory: Where checkpoints are; every parameter server sees it under this path.
            keep: How many checkpoints are kept.
            fingerprints: What a restored checkpoint must agree with, by name.
        """
        # Parameter servers write into it from processes with other working directories.
        self._directory = directory.absolute()
        self._keep = keep
        self._fingerprints = dict(fingerprints)
        self._directory.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def owned(self) -> Iterator[int]:
        """Holds the folder against every other coordinator, and yields this life's floor.

        The floor is above every sequence number of all former lives, so no push of theirs can
        count in this one. The kernel releases the lock when the process ends, however it ends.

        Raises:
            InputError: If another coordinator holds the folder.
        """
        with (self._directory / "coordinator.lock").open("a+") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                lock.seek(0)
                raise InputError(
                    f"{self._directory}: another trainer uses this checkpoint directory (process"
                    f" {lock.read().strip() or 'unknown'}); expected none: stop it, or set another"
                    " train.directory"
                ) from error
            lock.truncate(0)
            lock.write(f"{os.getpid()}\n")
            lock.flush()
            yield self._next_life() << _LIVES_BITS

    def _next_life(self) -> int:
        path = self._directory / "lives"
        life = int(path.read_text()) + 1 if path.exists() else 1
        _write_durably(path, str(life))
        return life

    def save(self, checkpoint: tf.train.Checkpoint, ledger: Ledger, *, step: int) -> Path:
        """Saves the state of a settled ledger; nothing may be in flight.

        Returns:
            The checkpoint's folder.
        """
        numbers = [number for number, _ in _folders(self._directory)]
        name = f"checkpoint-{max(numbers, default=0) + 1:08d}"
        aside = self._directory / f".{name}"
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        text = ledger.to_json()
        checkpoint.write(str(aside / "state"))
        files = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
        for path in aside.iterdir():
            _sync(path)
        manifest = {
            "format": 1,
            "step": step,
            "ledger": json.loads(text),
            "fingerprints": self._fingerprints,
            "files": files,
        }
        _write_durably(aside / _MANIFEST, json.dumps(manifest, indent=1))
        final = self._directory / name
        aside.rename(final)
        _sync(self._directory)
        for _, old in _folders(self._directory)[: -self._keep]:
            shutil.rmtree(old)
        return final

    def restore(self, checkpoint: tf.train.Checkpoint) -> Ledger | None:
        """Restores the newest whole checkpoint.

        Returns:
            Its ledger, or None if there is no checkpoint.

        Raises:
            InputError: If it belongs to another model or specification.
        """
        found = _newest_whole(self._directory)
        if found is None:
            return None
        folder, manifest = found
        for name, expected in self._fingerprints.items():
            if manifest["fingerprints"].get(name) != expected:
                raise InputError(
                    f"{folder / _MANIFEST}: {name}: found {manifest['fingerprints'].get(name)},"
                    f" expected {expected}: the configuration changed since; go back to it, or"
                    " train in a new train.directory"
                )
        checkpoint.read(str(folder / "state")).assert_consumed()
        logger.info("restored %s, step %d", folder.name, manifest["step"])
        return Ledger.from_json(json.dumps(manifest["ledger"]))


def load_checkpoint(directory: str | Path) -> LoadedCheckpoint:
    """Loads the newest whole checkpoint of a run, without a cluster.

    Raises:
        InputError: If there is none.
    """
    found = _newest_whole(Path(directory))
    if found is None:
        raise InputError(f"{directory}: found no checkpoint; expected one: run 'headrace train'")
    folder, manifest = found
    reader = tf.train.load_checkpoint(str(folder / "state"))
    values: dict[str, dict[str, np.ndarray]] = {}
    for key in reader.get_variable_to_shape_map():
        group, _, name = _saved_name(key).partition("/")
        values.setdefault(group, {})[name] = reader.get_tensor(key)
    frequency = values.get("frequency", {})
    return LoadedCheckpoint(
        parameters=values.get("table", {}) | values.get("weight", {}),
        last_seen=frequency.get("last_seen"),
        mean_gap=frequency.get("mean_gap"),
        step=manifest["step"],
        ledger=manifest["ledger"],
        specification_fingerprint=manifest["fingerprints"]["specification"],
    )


def _saved_name(key: str) -> str:
    # TensorFlow writes the dictionary key 'table/item' as 'table.Sitem/.ATTRIBUTES/VARIABLE_VALUE'.
    return key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").replace(".S", "/")


def _folders(directory: Path) -> list[tuple[int, Path]]:
    if not directory.is_dir():
        return []
    matches = [(_FOLDER.match(path.name), path) for path in directory.iterdir()]
    return sorted((int(match.group(1)), path) for match, path in matches if match)


def _newest_whole(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    folders = _folders(directory)
    for _, folder in reversed(folders):
        problem = None
        try:
            manifest: dict[str, Any] = json.loads((folder / _MANIFEST).read_text())
            sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
            wrong = [name for name, size in manifest["files"].items() if sizes[name] != size]
            problem = f"{wrong} have not the size in the manifest" if wrong else None
        except (OSError, ValueError, KeyError) as error:
            problem = str(error)
        if problem is None:
            return folder, manifest
        logger.warning("%s is damaged (%s); trying the one before it", folder, problem)
    if folders:
        raise InputError(
            f"{directory}: found {len(folders)} checkpoints, all damaged; expected a whole one:"
            " restore the folder from a backup, or delete it to start from the first sample"
        )
    return None


def _write_durably(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
