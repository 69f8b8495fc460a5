from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest

from pipeline.schema import InputError
from streaming.checkpoints.lives import FencedError
from streaming.checkpoints.store import CheckpointStore, NoSpaceError, load_checkpoint
from streaming.ledger import Ledger, Totals
from streaming.source import Partition, Range

import tensorflow as tf  # isort: skip

from tests.streaming.checkpoints.states import fill, make_state, values

FINGERPRINTS = {"specification": "s1", "model": "m1"}


def ledger_at(offset: int) -> Ledger:
    partition = Partition("clicks", 0)
    ledger = Ledger({partition: 0}, {"clicks": "id-1"})
    ledger.commit(Range(partition, 0, offset), Totals(records=offset, samples=offset))
    return ledger


def open_store(folder: Path, *, keep: int = 3) -> CheckpointStore:
    return CheckpointStore(folder, keep=keep, fingerprints=FINGERPRINTS)


def save(folder: Path, number: int, *, servers: int = 2, keep: int = 3) -> Path:
    state, checkpoint = make_state(servers)
    fill(state, number)
    return open_store(folder, keep=keep).save(checkpoint, ledger_at(number), step=number)


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_everything_comes_back_on_any_number_of_servers(tmp_path, servers):
    save(tmp_path, 7, servers=2)
    state, checkpoint = make_state(servers)
    ledger = open_store(tmp_path).restore(checkpoint)
    state.align_clocks()
    assert ledger.offsets == {Partition("clicks", 0): 7}
    assert ledger.totals.samples == 7
    for array in (state.tables["counter"], state.last_seen):
        assert values(array).ravel().tolist() == list(range(7, 17))
    assert state.weights["batches"].numpy().tolist() == [7.0]
    # Row 9 was seen in mini-batch 16, so all clocks stand behind that, whatever the step says.
    assert [int(clock) for clock in state.clocks] == [17] * servers


def test_a_checkpoint_is_read_without_a_cluster(tmp_path):
    save(tmp_path, 7, servers=3)
    loaded = load_checkpoint(tmp_path)
    assert loaded.parameters["counter"].ravel().tolist() == list(range(7, 17))
    assert loaded.parameters["batches"].tolist() == [7.0]
    assert loaded.last_seen.tolist() == list(range(7, 17))
    assert loaded.gaps.tolist() == [[7 + row, 107 + row] for row in range(10)]
    assert loaded.step == 7
    assert loaded.ledger["totals"]["samples"] == 7
    assert loaded.specification_fingerprint == "s1"


def test_no_checkpoint_is_a_start_for_a_trainer_and_an_error_for_a_reader(tmp_path):
    assert open_store(tmp_path).restore(make_state(1)[1]) is None
    with pytest.raises(InputError, match="found no checkpoint"):
        load_checkpoint(tmp_path)


def test_the_newest_are_kept(tmp_path):
    for number in (1, 2, 3, 4):
        save(tmp_path, number, keep=2)
    kept = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert kept == ["checkpoint-00000003", "checkpoint-00000004"]
    assert load_checkpoint(tmp_path).step == 4


def test_a_truncated_newest_checkpoint_is_passed_over(tmp_path, caplog):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    data = next(newest.glob("state.data*"))
    data.write_bytes(data.read_bytes()[:-1])
    assert open_store(tmp_path).restore(make_state(2)[1]).totals.samples == 1
    assert f"{data.name}" in caplog.text
    # With no other left, starting from nothing would lose all in silence.
    (tmp_path / "checkpoint-00000001" / "manifest.json").unlink()
    with pytest.raises(InputError, match="found 2 checkpoints, all damaged"):
        open_store(tmp_path).restore(make_state(2)[1])


def flip_a_byte(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 0x41
    file.write_bytes(data)


@pytest.mark.parametrize("pattern", ["state.data*", "state.index"])
@pytest.mark.parametrize(("place", "servers"), [(0, 2), (150, 3)])
def test_a_checkpoint_with_an_altered_byte_is_passed_over(
    tmp_path, caplog, pattern, place, servers
):
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    flip_a_byte(next(newest.glob(pattern)), place)
    state, checkpoint = make_state(servers)

    assert open_store(tmp_path).restore(checkpoint).totals.samples == 1
    # INFO lines come too where another test has run a command, which sets up logging.
    warnings = [record for record in caplog.records if record.levelname == "WARNING"]
    assert len(warnings) == 1
    assert f"{newest} is damaged" in caplog.text
    # Nothing is left of what was read before the damage was met.
    for array in (state.tables["counter"], state.last_seen):
        assert values(array).ravel().tolist() == list(range(1, 11))
    assert load_checkpoint(tmp_path).step == 1


def test_checkpoints_that_all_have_altered_bytes_are_no_start_from_nothing(tmp_path):
    for number in (1, 2):
        flip_a_byte(next(save(tmp_path, number).glob("state.data*")), 20)
    with pytest.raises(InputError, match="found 2 checkpoints, all damaged"):
        open_store(tmp_path).restore(make_state(2)[1])
    with pytest.raises(InputError, match="found 2 checkpoints, all damaged"):
        load_checkpoint(tmp_path)


def test_a_lost_parameter_server_is_no_damage(tmp_path):
    save(tmp_path, 1)

    class Lost:
        def read(self, path):
            raise tf.errors.UnavailableError(None, None, "the server is gone")

    with pytest.raises(tf.errors.UnavailableError):
        open_store(tmp_path).restore(Lost())


def test_a_half_written_checkpoint_is_never_seen_and_swept_away(tmp_path):
    save(tmp_path, 1)
    half = tmp_path / ".checkpoint-00000002"
    half.mkdir()
    (half / "state.data").write_bytes(b"half")
    assert load_checkpoint(tmp_path).step == 1
    save(tmp_path, 2)
    assert load_checkpoint(tmp_path).step == 2
    assert not half.exists()


def test_another_configuration_is_refused_by_name(tmp_path):
    save(tmp_path, 1)
    changed = CheckpointStore(tmp_path, keep=3, fingerprints=FINGERPRINTS | {"model": "m2"})
    with pytest.raises(InputError, match="model: found m1, expected m2"):
        changed.restore(make_state(1)[1])


def test_one_owner_at_a_time_and_every_life_is_above_the_last(tmp_path):
    other = open_store(tmp_path).owned()
    with (
        open_store(tmp_path).owned() as first,
        pytest.raises(InputError, match="another trainer uses this"),
    ):
        other.__enter__()
    with open_store(tmp_path).owned() as second:
        assert second > first + 1_000_000_000  # more ranges than a life can have


def take_over(folder: Path):
    """Owns the folder though another does, as where a file system has lost the lock."""
    (folder / "coordinator.lock").unlink()
    return open_store(folder).owned()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def test_a_life_that_was_taken_over_publishes_and_removes_nothing_more(tmp_path):
    _, checkpoint = make_state(2)
    first = open_store(tmp_path, keep=1)
    with first.owned():
        first.save(checkpoint, ledger_at(1), step=1)
        first.check_owner()
        with take_over(tmp_path):
            with pytest.raises(FencedError, match="found life 2, expected 1: another trainer has"):
                first.check_owner()
            with pytest.raises(FencedError, match="taken over"):
                first.save(checkpoint, ledger_at(2), step=2)
            (tmp_path / "checkpoint-00000002").mkdir()  # the other's
            with pytest.raises(FencedError, match="taken over"):
                first._prune()
        assert visible(tmp_path) == ["checkpoint-00000001", "checkpoint-00000002"]


def test_nor_does_one_that_is_taken_over_while_its_servers_write(tmp_path):
    _, checkpoint = make_state(2)
    first = open_store(tmp_path)

    class Paused:
        def write(self, path: str) -> None:
            other = take_over(tmp_path)
            other.__enter__()
            self.others = other
            checkpoint.write(path)  # makes the folders that it needs, if it can

    paused = Paused()
    with first.owned(), pytest.raises(FencedError, match="another trainer has taken over"):
        first.save(paused, ledger_at(1), step=1)
    assert visible(tmp_path) == []


def test_two_that_begin_at_once_are_two_lives(tmp_path):
    with open_store(tmp_path).owned() as first, take_over(tmp_path) as second:
        (tmp_path / "lives").write_text("1")  # as one that has read it before the other wrote
        with take_over(tmp_path) as third:
            assert first < second < third


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        tf.errors.ResourceExhaustedError(None, None, "/there/state: No space left on device"),
        tf.errors.UnknownError(None, None, "/there/state; File too large"),
    ],
)
def test_a_full_disk_costs_the_save_and_leaves_nothing_of_it(tmp_path, error):
    save(tmp_path, 1)

    class Full:
        def write(self, path: str) -> None:
            Path(path).with_name("state.data").write_bytes(b"half")
            raise error

    store = open_store(tmp_path)
    with store.owned(), pytest.raises(NoSpaceError, match="no space left for a checkpoint"):
        store.save(Full(), ledger_at(2), step=2)
    assert visible(tmp_path) == ["checkpoint-00000001"]
    assert not list(tmp_path.rglob("state.data"))


def test_a_save_that_would_not_fit_is_not_begun(tmp_path, monkeypatch):
    size = sum(path.stat().st_size for path in save(tmp_path, 1).iterdir())
    free = shutil.disk_usage(tmp_path)._replace(free=size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free)
    with pytest.raises(NoSpaceError):
        open_store(tmp_path).save(None, ledger_at(2), step=2)  # None cannot be written
    monkeypatch.setattr(shutil, "disk_usage", lambda _: free._replace(free=size))
    save(tmp_path, 2)
    assert visible(tmp_path) == ["checkpoint-00000001", "checkpoint-00000002"]


def test_damaged_checkpoints_do_not_count_among_those_that_are_kept(tmp_path):
    for number in (1, 2):
        save(tmp_path, number, keep=2)
    for again in (2, 3, 4):  # each time the newest is damaged, and another saved after it
        newest = max(tmp_path.glob("checkpoint-*"))
        (newest / "manifest.json").write_text("{")
        store, (_, checkpoint) = open_store(tmp_path, keep=2), make_state(2)
        with store.owned():
            assert store.restore(checkpoint).totals.samples == 1, again
            store.save(checkpoint, ledger_at(9), step=9)
    assert (tmp_path / "damaged" / "manifest.json").read_text() == "{"


def test_a_folder_that_is_gone_is_told_from_one_that_was_taken_over(tmp_path):
    store = open_store(tmp_path / "run")
    with store.owned():
        shutil.rmtree(tmp_path / "run")
        with pytest.raises(FencedError, match="is gone, with all checkpoints"):
            store.check_owner()
        with pytest.raises(FencedError, match="deleted, or its file system unmounted"):
            store.save(make_state(2)[1], ledger_at(1), step=1)


def test_a_place_where_no_folder_can_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"train.directory: cannot make .*file/run"):
        open_store(tmp_path / "file" / "run")


def test_the_manifest_says_what_is_in_it_in_plain_words(tmp_path):
    manifest = json.loads((save(tmp_path, 3) / "manifest.json").read_text())
    assert manifest["ledger"]["offsets"] == [{"topic": "clicks", "partition": 0, "offset": 3}]
    assert manifest["step"] == 3
