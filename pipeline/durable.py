"""Files that survive a power cut whole or not at all, and folders with one writer at a time.

A rename alone is atomic for readers, not for the disk: after a power cut, the new name may stand
over a file whose content was never written. So content first, then the name, then the folder.
This module knows neither Beam nor TensorFlow: whoever writes files imports it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from pipeline.schema import InputError


@contextlib.contextmanager
def locked(path: Path, *, refusal: str) -> Iterator[None]:
    """Holds a lock file against every other process; the file says who holds it.

    The kernel releases the lock with the process, however that ends, so it is never left behind.

    Args:
        path: The lock file; it is created and stays.
        refusal: What was found and what was expected, for who comes second.

    Raises:
        InputError: If another process, or another `locked` of this one, holds the lock.
    """
    with path.open("a+", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            holder = lock.read().strip() or "a process that has not said its name yet"
            raise InputError(f"{refusal} ({path} is held by {holder})") from error
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        lock.flush()
        yield


def write(path: Path, data: bytes | memoryview | str, *, sync_folder: bool = True) -> None:
    """Writes or replaces a file: it has the old content or the new one, whatever happens.

    Args:
        path: Where to; its folder is there.
        data: The content; text becomes UTF-8.
        sync_folder: Whether the name is durable on return, too. Of many files, sync their folder
            once instead (`sync`), before anything says that they are there.
    """
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)
    if sync_folder:
        sync(path.parent)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Gives a file to write to, which replaces `path` at the end; its name is not synced.

    Args:
        path: Where to; its folder is there. Untouched if what is inside fails.
    """
    # Two writers of the same file, on two machines perhaps, do not meet.
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Makes a file's content, or a folder's names, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Makes a folder and all that is in it durable; its own name is its parent's to keep."""
    for path in [*folder.rglob("*"), folder]:
        sync(path)
