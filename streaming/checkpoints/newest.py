"""Which checkpoints a run has, and what the newest whole one says: all that needs no TensorFlow."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pipeline.schema import InputError
from streaming.ledger import Ledger

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"checkpoint-(\d{8})$")

_T = TypeVar("_T")


class DamagedError(Exception):
    """A checkpoint is not as it was written; the message says how."""


def checkpoint_folders(directory: Path) -> list[tuple[int, Path]]:
    """Returns number and folder of each checkpoint, whole or not, the oldest first."""
    if not directory.is_dir():
        return []
    matches = [(_FOLDER.match(path.name), path) for path in directory.iterdir()]
    return sorted((int(match.group(1)), path) for match, path in matches if match)


def newest_checkpoint(directory: Path) -> str | None:
    """Returns the name of the newest checkpoint, whole or not; None if there is none."""
    folders = checkpoint_folders(directory)
    return folders[-1][1].name if folders else None


def read_newest(directory: Path, read: Callable[[Path, Mapping[str, Any]], _T]) -> _T | None:
    """Reads the newest checkpoint that is whole; None if there are none at all.

    Args:
        directory: Where the run's checkpoints are.
        read: Gets a checkpoint's folder and manifest. Where it raises DamagedError, the one before
            is read.

    Raises:
        InputError: If all are damaged.
    """
    folders = checkpoint_folders(directory)
    for _, folder in reversed(folders):
        try:
            return read(folder, _whole_manifest(folder))
        except DamagedError as error:
            logger.warning("%s is damaged (%s); trying the one before it", folder, error)
    if folders:
        raise InputError(
            f"{directory}: found {len(folders)} checkpoints, all damaged; expected a whole one:"
            " restore the folder from a backup, or delete it to start from the first sample"
        )
    return None


def load_ledger(directory: str | Path) -> Ledger:
    """Loads the ledger of the newest whole checkpoint of a run, without its parameters.

    Raises:
        InputError: If there is none.
    """

    def read(_: Path, manifest: Mapping[str, Any]) -> Ledger:
        return Ledger.from_json(json.dumps(manifest["ledger"]))

    ledger = read_newest(Path(directory), read)
    if ledger is None:
        raise InputError(f"{directory}: found no checkpoint; expected one: run 'headrace train'")
    return ledger


def _whole_manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text())
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (OSError, ValueError, KeyError) as error:
        raise DamagedError(str(error)) from error
    wrong = [name for name, size in manifest["files"].items() if sizes[name] != size]
    if wrong:
        raise DamagedError(f"{wrong} have not the size in the manifest")
    return manifest
