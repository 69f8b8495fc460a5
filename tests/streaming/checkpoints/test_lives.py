from __future__ import annotations

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest

from pipeline import durable
from pipeline.schema import InputError
from streaming.checkpoints.lives import Lives, check_unused, launching, make


def test_whether_a_folder_is_in_use_is_asked_without_beginning_a_life(tmp_path: Path) -> None:
    check_unused(tmp_path / "not there yet")
    check_unused(tmp_path)
    with Lives(tmp_path).begun() as life:
        assert life == 1
        with pytest.raises(InputError, match=r"another trainer uses this .* process \d+ on "):
            check_unused(tmp_path, patience_seconds=0.0)
    check_unused(tmp_path, patience_seconds=0.0)
    with Lives(tmp_path).begun() as life:
        assert life == 2


def test_a_life_waits_for_who_only_looks(tmp_path: Path) -> None:
    # As while another launcher asks whether the folder is in use.
    lock = durable.locked(tmp_path / "coordinator.lock", refusal="")
    lock.__enter__()
    threading.Timer(0.5, lambda: lock.__exit__(None, None, None)).start()
    with Lives(tmp_path).begun() as life:
        assert life == 1


def test_a_second_launcher_is_refused_also_between_two_lives_of_the_first(tmp_path: Path) -> None:
    with (
        launching(tmp_path),
        pytest.raises(InputError, match="another trainer uses this"),
        launching(tmp_path),
    ):
        pass
    with launching(tmp_path):
        pass


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_no_wrong_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", fail)
    make(tmp_path)
    monkeypatch.setattr(Path, "mkdir", fail)
    with pytest.raises(InputError, match=os.strerror(number)):
        make(tmp_path / "new")
