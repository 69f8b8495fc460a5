"""Checkpoints: the parameter servers' state and the ledger, in one atomic save.

A checkpoint is a folder `checkpoint-00000012`, written in the folder of the coordinator's life and
renamed when it is whole. In it, each parameter server has written its own shards, and
`manifest.json` holds the ledger, the fingerprints and the size of every file. A damaged checkpoint
is found out, and the one before it used: by the sizes, and by the checksum that TensorFlow keeps of
every tensor and compares when it reads. (A second one of whole files would have training wait while
the state is read back.)

Who may write is settled in `streaming.checkpoints.lives`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import logging
import os
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from pipeline import durable
from pipeline.schema import InputError
from streaming.checkpoints.lives import NO_SPACE, Lives, make
from streaming.checkpoints.newest import MANIFEST, DamagedError, checkpoint_folders, read_newest
from streaming.ledger import Ledger

logger = logging.getLogger(__name__)

_PARAMETERS = ("table", "weight")
_LIVES_BITS = 40
_DAMAGED = "damaged"


class NoSpaceError(RuntimeError):
    """A checkpoint was not written for want of space; those before it are as they were."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Freshness:
    """How new the events in a checkpoint are. Times are milliseconds since 1970.

    Attributes:
        taken_ms: When, by the coordinator's clock, its state was copied.
        watermark_ms: The low watermark: all events before it, of every partition that is not idle,
            are in it; None if no event's time is known.
        newest_event_ms: The time of the newest event in it, or None.
    """

    taken_ms: int = 0
    watermark_ms: int | None = None
    newest_event_ms: int | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class LoadedCheckpoint:
    """A checkpoint's content, off the cluster.

    Attributes:
        parameters: Value of each table ([buckets, dim]) and weight, by name.
        last_seen, gaps: The estimator's arrays, as in `servers.variables`; None without it.
        step: Mini-batches applied.
        ledger: What was applied, as `Ledger.to_json` has it.
        specification_fingerprint: The specification that it was trained with.
        freshness: Which events are in it.
        name: The name of its folder.
    """

    parameters: dict[str, np.ndarray]
    last_seen: np.ndarray | None
    gaps: np.ndarray | None
    step: int
    ledger: dict[str, Any]
    specification_fingerprint: str
    freshness: Freshness = Freshness()
    name: str = ""


class CheckpointStore:
    """The checkpoints of one training run, which one coordinator at a time may write.

    Attributes:
        restored: The freshness of the checkpoint that was restored.
    """

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
        self.restored = Freshness()
        self._lives = Lives(self._directory)
        make(self._directory)

    @contextlib.contextmanager
    def owned(self) -> Iterator[int]:
        """Holds the folder against every other coordinator, and yields this life's floor.

        The floor is above every sequence number of all former lives, so no push of theirs can
        count in this one.

        Raises:
            InputError: If another coordinator holds the folder.
        """
        with self._lives.begun() as life:
            yield life << _LIVES_BITS

    def check_owner(self) -> None:
        """Sees that this coordinator still owns the folder; see `Lives.check`."""
        self._lives.check()

    def save(
        self,
        checkpoint: tf.train.Checkpoint,
        ledger: Ledger,
        *,
        step: int,
        freshness: Freshness = Freshness(),
    ) -> Path:
        """Saves the state of a settled ledger; neither may change until it returns.

        Returns:
            The checkpoint's folder.
        """
        numbers = [number for number, _ in checkpoint_folders(self._directory)]
        name = f"checkpoint-{max(numbers, default=0) + 1:08d}"
        aside = self._lives.workplace / f".{name}"
        shutil.rmtree(aside, ignore_errors=True)
        manifest = {
            "format": 1,
            "step": step,
            "ledger": json.loads(ledger.to_json()),
            "freshness": dataclasses.asdict(freshness),
            "fingerprints": self._fingerprints,
        }
        final = self._directory / name
        with self._failing_cleanly(aside):
            self._check_space()
            aside.mkdir()
            checkpoint.write(str(aside / "state"))
            files = {path.name: path.stat().st_size for path in sorted(aside.iterdir())}
            durable.sync_tree(aside)
            durable.write(aside / MANIFEST, json.dumps(manifest | {"files": files}, indent=1))
            aside.rename(final)
        durable.sync(self._directory)
        self._prune()
        return final

    @contextlib.contextmanager
    def _failing_cleanly(self, aside: Path) -> Iterator[None]:
        """Says why a save failed, and leaves nothing of it."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            shutil.rmtree(aside, ignore_errors=True)
            self.check_owner()
            if not _is_no_space(error):
                raise
            raise self._no_space() from error

    def _check_space(self) -> None:
        """Refuses a save that would fill the disk: a server's failed write ends this life."""
        folders = checkpoint_folders(self._directory)
        newest = [path.stat().st_size for _, folder in folders[-1:] for path in folder.iterdir()]
        if shutil.disk_usage(self._directory).free < sum(newest):
            raise self._no_space(sum(newest))

    def _no_space(self, needed: int = 0) -> NoSpaceError:
        free = shutil.disk_usage(self._directory).free
        size = f", the last was {-(-needed >> 20)} MiB" if needed else ""
        return NoSpaceError(
            f"{self._directory}: no space left for a checkpoint ({free >> 20} MiB free{size});"
            " expected room for one more than train.checkpoint.keep: make room"
        )

    def _prune(self) -> None:
        """Removes all but the newest; none is ever seen half removed."""
        for _, old in checkpoint_folders(self._directory)[: -self._keep]:
            gone = self._lives.workplace / f".{old.name}"
            try:
                old.rename(gone)
            except OSError:
                self.check_owner()
                raise
            shutil.rmtree(gone)

    def _put_aside(self, restored: Path) -> None:
        """Takes what is damaged out of the count of checkpoints that are kept; keeps the newest."""
        damaged = [folder for _, folder in checkpoint_folders(self._directory) if folder > restored]
        if not damaged:
            return
        place = self._directory / _DAMAGED
        shutil.rmtree(place, ignore_errors=True)
        damaged[-1].rename(place)
        for folder in damaged[:-1]:
            folder.rename(gone := self._lives.workplace / f".{folder.name}")
            shutil.rmtree(gone)
        logger.warning("the newest damaged checkpoint is kept as %s", place)

    def restore(self, checkpoint: tf.train.Checkpoint) -> Ledger | None:
        """Restores the newest whole checkpoint; one that is found damaged is warned about.

        Returns:
            Its ledger, or None if there is no checkpoint.

        Raises:
            InputError: If it belongs to another model or specification, or all are damaged.
        """

        def read(folder: Path, manifest: Mapping[str, Any]) -> Ledger:
            self._check_fingerprints(folder, manifest["fingerprints"])
            # What a damaged one has left half read, the one before it writes over.
            with _damage_found():
                checkpoint.read(str(folder / "state")).assert_consumed()
            logger.info("restored %s, step %d", folder.name, manifest["step"])
            self.restored = _freshness(manifest)
            if self._lives.current:
                self._put_aside(folder)
            return Ledger.from_json(json.dumps(manifest["ledger"]))

        return read_newest(self._directory, read)

    def _check_fingerprints(self, folder: Path, found: Mapping[str, str]) -> None:
        for name, expected in self._fingerprints.items():
            if found.get(name) != expected:
                raise InputError(
                    f"{folder / MANIFEST}: {name}: found {found.get(name)},"
                    f" expected {expected}: the configuration changed since; go back to it, or"
                    " train in a new train.directory"
                )


def load_checkpoint(directory: str | Path, *, parameters_only: bool = False) -> LoadedCheckpoint:
    """Loads the newest whole checkpoint of a run, without a cluster.

    Args:
        directory: Where the run's checkpoints are.
        parameters_only: Leaves out the estimator; optimizer slots are left out in any case.

    Raises:
        InputError: If there is none.
    """
    groups = _PARAMETERS if parameters_only else (*_PARAMETERS, "frequency")
    read = functools.partial(_load, groups=groups)
    loaded = read_newest(Path(directory), read)
    if loaded is None:
        raise InputError(f"{directory}: found no checkpoint; expected one: run 'headrace train'")
    return loaded


def _load(
    folder: Path, manifest: Mapping[str, Any], *, groups: Collection[str]
) -> LoadedCheckpoint:
    values: dict[str, dict[str, np.ndarray]] = {}
    with _damage_found():
        reader = tf.train.load_checkpoint(str(folder / "state"))
        for key in reader.get_variable_to_shape_map():
            group, _, name = _saved_name(key).partition("/")
            if group in groups:
                values.setdefault(group, {})[name] = reader.get_tensor(key)
    frequency = values.get("frequency", {})
    return LoadedCheckpoint(
        parameters=values.get("table", {}) | values.get("weight", {}),
        last_seen=frequency.get("last_seen"),
        gaps=frequency.get("gaps"),
        step=manifest["step"],
        ledger=manifest["ledger"],
        specification_fingerprint=manifest["fingerprints"]["specification"],
        freshness=_freshness(manifest),
        name=folder.name,
    )


def _freshness(manifest: Mapping[str, Any]) -> Freshness:
    return Freshness(**manifest.get("freshness", {}))


def _saved_name(key: str) -> str:
    # TensorFlow writes the dictionary key 'table/item' as 'table.Sitem/.ATTRIBUTES/VARIABLE_VALUE'.
    return key.removesuffix("/.ATTRIBUTES/VARIABLE_VALUE").replace(".S", "/")


def _is_no_space(error: OSError | tf.errors.OpError) -> bool:
    if isinstance(error, OSError):
        return error.errno in NO_SPACE
    # A parameter server's own words for it: the code differs with the file system.
    return any(os.strerror(number) in error.message for number in NO_SPACE)


@contextlib.contextmanager
def _damage_found() -> Iterator[None]:
    """Tells files that are damaged from a cluster that is: only the first has an older copy."""
    try:
        yield
    except tf.errors.OpError as error:
        # Checksums that differ are DATA_LOSS when a variable is restored, and a bare OpError when
        # this process reads. A lost parameter server is UNAVAILABLE or ABORTED.
        damaged = isinstance(error, tf.errors.DataLossError | tf.errors.NotFoundError)
        if not damaged and type(error) is not tf.errors.OpError:
            raise
        raise DamagedError(error.message.partition("\n")[0][:200]) from error
