"""Whose a checkpoint folder is: one coordinator's life at a time.

Settled twice. A lock keeps a second coordinator away, on one host and where the file system knows
locks. Where it was lost all the same (another host, a lock file that was deleted), each life works
in a folder of its own, and a new life first puts a file in the place of every former one's. Their
renames, with which alone a checkpoint becomes visible or is removed, then have no source any more,
however late they wake up.
"""

from __future__ import annotations

import contextlib
import errno
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from pipeline import durable
from pipeline.schema import InputError

_LIVES = "lives"
_LOCK, _LAUNCHER_LOCK = "coordinator.lock", "launcher.lock"
_PATIENCE_SECONDS = 3.0
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What may pass once somebody makes room."""
_FOLDER = re.compile(r"\.life-(\d{8})$")
_KEPT_TOMBSTONES = 100


class FencedError(InputError):
    """This life may not write any more: another has taken over, or the folder is gone."""


def make(directory: Path) -> None:
    """Makes a checkpoint folder, if it is not there.

    Raises:
        InputError: If it cannot be made, or not be written.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        if error.errno in NO_SPACE and directory.is_dir():  # a save tells it, and it may pass
            return
        raise InputError(
            f"train.directory: cannot make {directory}, or write there ({error.strerror}); expected"
            " a place that this process may write, with its file system mounted"
        ) from error


def check_unused(directory: Path, *, patience_seconds: float = _PATIENCE_SECONDS) -> None:
    """Sees that no coordinator holds a checkpoint folder, which need not be there.

    Args:
        directory: The folder.
        patience_seconds: How long one that is about to end is waited for.

    Raises:
        InputError: If one does.
    """
    if (directory / _LOCK).exists():
        with _locked(directory, _LOCK, patience_seconds=patience_seconds):
            pass


def launching(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Holds a checkpoint folder for a launcher, through all lives of its coordinator.

    Raises:
        InputError: If another launcher holds it.
    """
    return _locked(directory, _LAUNCHER_LOCK, patience_seconds=0.0)


@contextlib.contextmanager
def _locked(directory: Path, name: str, *, patience_seconds: float) -> Iterator[None]:
    """Takes a lock, waiting for who only looks whether it is taken, or is about to end."""
    refusal = (
        f"{directory}: another trainer uses this checkpoint directory; expected none: stop it, or"
        " set another train.directory"
    )
    deadline = time.monotonic() + patience_seconds
    with contextlib.ExitStack() as held:
        while True:
            try:
                held.enter_context(durable.locked(directory / name, refusal=refusal))
                break
            except InputError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.05)
        yield


class Lives:
    """The lives of the coordinators of one run, one after the other.

    Attributes:
        current: Number of this life, from 1; 0 before it has begun.
        workplace: Where this life prepares what it will rename; the folder itself before that.
    """

    def __init__(self, directory: Path) -> None:
        """Knows a folder, which is there."""
        self._directory = directory
        self.current = 0
        self.workplace = directory

    @contextlib.contextmanager
    def begun(self) -> Iterator[int]:
        """Begins a life, which ends all former ones, and yields its number.

        The kernel releases the lock when the process ends, however it ends.

        Raises:
            InputError: If another coordinator holds the folder.
        """
        with _locked(self._directory, _LOCK, patience_seconds=_PATIENCE_SECONDS):
            self.current = self._claim()
            self._fence_off_former()
            yield self.current

    def check(self) -> None:
        """Sees that the folder is still there and still this life's, if this life has begun.

        Raises:
            FencedError: If another coordinator has taken over, or the folder is gone.
        """
        known = (self._directory / _LIVES).exists()
        if not self.current or (known and self.workplace.is_dir()):
            return
        if not known:
            raise FencedError(
                f"train.directory: {self._directory} is gone, with all checkpoints; expected the"
                " folder in which this run began: was it deleted, or its file system unmounted?"
                " Bring it back, and start again; without it, training starts at the first sample"
            )
        raise FencedError(
            f"{self._directory}: found life {self._newest()}, expected {self.current}: another"
            " trainer has taken over this checkpoint directory, and this one, which was away for a"
            " while, stops: nothing of it was saved since"
        )

    def _claim(self) -> int:
        while True:
            life = max([self._newest(), *self._found()]) + 1
            self.workplace = self._directory / f".life-{life:08d}"
            with contextlib.suppress(FileExistsError):  # another was faster
                self.workplace.mkdir()
                durable.write(self._directory / _LIVES, str(life))
                return life

    def _newest(self) -> int:
        path = self._directory / _LIVES
        return int(path.read_text()) if path.exists() else 0

    def _found(self) -> dict[int, Path]:
        """Returns the folder of each life, or the file in its place."""
        matches = [(_FOLDER.match(path.name), path) for path in self._directory.iterdir()]
        return {int(match.group(1)): path for match, path in matches if match}

    def _fence_off_former(self) -> None:
        for life, path in self._found().items():
            # Again, should a server that still writes for it have made the folder anew.
            while life < self.current and path.is_dir():
                path.rename(self._directory / f".over-{uuid.uuid4().hex}")
                with contextlib.suppress(FileExistsError):
                    path.touch(exist_ok=False)
            if life < self.current - _KEPT_TOMBSTONES:
                path.unlink()
        for over in self._directory.glob(".over-*"):
            shutil.rmtree(over, ignore_errors=True)
