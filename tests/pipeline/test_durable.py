from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import durable
from pipeline.schema import InputError

HOLD = """
import sys
from pathlib import Path
from pipeline import durable

with durable.locked(Path(sys.argv[1]), refusal=""):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def synced(monkeypatch) -> list[Path]:
    """What was synced, in order, by the name that it had then."""
    paths = []
    original = os.fsync

    def fsync(descriptor: int) -> None:
        paths.append(Path(f"/proc/self/fd/{descriptor}").readlink())
        original(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    return paths


def test_a_file_is_replaced_when_its_content_is_on_the_disk(tmp_path, synced) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    durable.write(path, "é")
    assert path.read_bytes() == b"\xc3\xa9"
    content, folder = synced
    # Under another name: the old file stands until the new one is safe.
    assert (content.parent, content.name.startswith(".file.")) == (tmp_path, True)
    assert folder == tmp_path
    assert list(tmp_path.iterdir()) == [path]


def test_of_many_files_the_folder_may_be_synced_later(tmp_path, synced) -> None:
    durable.write(tmp_path / "file", memoryview(b"data"), sync_folder=False)
    assert (tmp_path / "file").read_bytes() == b"data"
    assert [path == tmp_path for path in synced] == [False]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        durable.write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_tree_is_synced_whole(tmp_path, synced) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").touch()
    durable.sync_tree(tmp_path / "a")
    assert sorted(synced) == [tmp_path / "a" / rest for rest in ("", "b", "b/file")]


def test_a_lock_says_who_holds_it_and_goes_with_the_process(tmp_path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(lock)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(durable.__file__).parent.parent,
    )
    try:
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(InputError, match=rf"found two \(.*lock is held by process {holder.pid}"),
            durable.locked(lock, refusal="found two"),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdin.close()
        holder.stdout.close()
    with durable.locked(lock, refusal=""):
        assert lock.read_text().startswith(f"process {os.getpid()} on ")
