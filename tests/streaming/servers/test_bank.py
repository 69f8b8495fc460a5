"""The bank on the servers: many ranges, in any order, on any number of servers, count once each."""

from __future__ import annotations

from pathlib import Path

import streaming  # noqa: F401 - before TensorFlow: picks Keras 2

import numpy as np  # isort: skip
import tensorflow as tf

from models.contract import Candidates
from streaming.config import FrequencyConfig
from streaming.servers.bank import Bank
from streaming.servers.state import ServerState
from streaming.worker.step import SUMS, RangeFunction, Report
from tests.streaming.remembering import Remembering
from tests.streaming.worker import ranges

FLOOR = 1000
SIZE, BATCH = 12, 4


class Numbers:
    """A source whose sample n has item n % 20, in the graph's own place of the reader."""

    def __init__(self, monkeypatch) -> None:
        from streaming.worker import reader

        def read_range(topics, numbers, inputs):
            ids = tf.range(numbers[1], numbers[2]) % 20
            counts = tf.stack([0, tf.size(ids, tf.int64), 0, 0, -1, -1, 0])
            return tf.cast(counts, tf.int64), tf.constant("worker"), {"item_id": ids}

        monkeypatch.setattr(reader, "read_range", read_range)


def make(servers: int, *, warm_up: int = 0, size: int = SIZE) -> tuple[ServerState, object]:
    state = ServerState(
        Remembering(size, warm_up=warm_up),
        ["/device:CPU:0"] * servers,
        frequency=FrequencyConfig(hashes=2, buckets=64, alpha=0.1),
        seed=1,
        num_slots=2,
        floor=FLOOR,
    )
    return state, RangeFunction(state, batch_size=BATCH).build()


def run(function, sequence: int, start: int, end: int) -> Report:
    return ranges.run(function, slot=0, sequence=FLOOR + sequence, start=start, end=end)


def held(state: ServerState) -> dict[str, list]:
    return {name: rows.numpy().tolist() for name, rows in state.bank.rows._asdict().items()}


RANGES = [(0, 10), (10, 12), (12, 29), (29, 37)]


class Sequential:
    """The counters of 20 items and the queue, mini-batch by mini-batch."""

    def __init__(self) -> None:
        self.counts = np.zeros(20)
        self.queue: list[tuple[int, float]] = []

    def learn(self, start: int, end: int) -> None:
        for begin in range(start, end, BATCH):
            items = np.arange(begin, min(begin + BATCH, end)) % 20
            self.queue += [(int(item), float(self.counts[item])) for item in items]
            self.counts[items] += 1


def test_ranges_on_two_servers_leave_the_bank_that_one_by_one_would(monkeypatch) -> None:
    Numbers(monkeypatch)
    state, function = make(2)
    oracle = Sequential()
    for number, (start, end) in enumerate(RANGES):
        for _ in range(2):  # each push arrives twice
            run(function, number + 1, start, end)
        oracle.learn(start, end)
    assert int(state.bank.cursor) == 37
    places = [number % SIZE for number in range(37 - SIZE, 37)]
    expected = dict(zip(places, oracle.queue[-SIZE:], strict=True))
    assert state.bank.rows.identity.numpy().tolist() == [expected[n][0] for n in range(SIZE)]
    vectors = state.bank.rows.vectors.numpy()[:, 0].tolist()
    assert vectors == [expected[n][1] for n in range(SIZE)]
    one, function = make(1)
    for number, (start, end) in enumerate(RANGES):
        run(function, number + 1, start, end)
    assert held(one) == held(state)


def test_a_push_of_a_former_life_enqueues_nothing(monkeypatch) -> None:
    Numbers(monkeypatch)
    state, function = make(2)
    run(function, 1, 0, 5)
    before = held(state)
    run(function, 0, 5, 10)
    assert held(state) == before
    assert int(state.bank.cursor) == 5


def test_a_bank_is_saved_and_restored_on_another_number_of_servers(
    monkeypatch, tmp_path: Path
) -> None:
    Numbers(monkeypatch)
    state, function = make(2)
    run(function, 1, 0, 17)
    path = tf.train.Checkpoint(**state.trackables()).write(str(tmp_path / "saved"))
    restored, function = make(3)
    tf.train.Checkpoint(**restored.trackables()).read(path).assert_consumed()
    restored.align_clocks()
    assert held(restored) == held(state)
    run(function, 1, 17, 20)
    assert int(restored.bank.cursor) == 20
    assert restored.bank.rows.identity.numpy()[17 % SIZE : 20 % SIZE].tolist() == [17, 18, 19]


def test_warm_up_counts_the_mini_batches_of_all_ranges(monkeypatch) -> None:
    Numbers(monkeypatch)
    _, function = make(1, warm_up=3)
    # 2 + 1 mini-batches without the bank; then one with it, full: each row counts 1000.
    assert abs(run(function, 1, 0, 8).sums.numpy()[0]) < 1000
    assert abs(run(function, 2, 8, 12).sums.numpy()[0]) < 1000
    assert 11_000 < run(function, 3, 12, 16).sums.numpy()[0] < 12_001


def test_a_range_reports_the_rows_that_it_used(monkeypatch) -> None:
    Numbers(monkeypatch)
    _, function = make(1, size=40, warm_up=2)
    # Mini-batches of 4: none, none, then 8 and 12 rows.
    sums = dict(zip(SUMS, run(function, 1, 0, 16).sums.numpy().tolist(), strict=True))
    assert sums["bank_rows_sum"] == 20


def test_a_range_reports_drift(monkeypatch) -> None:
    Numbers(monkeypatch)
    _, function = make(1, size=40)
    # The sixth mini-batch has the items of the first, which have moved by 1 since.
    sums = dict(zip(SUMS, run(function, 1, 0, 24).sums.numpy().tolist(), strict=True))
    assert (sums["drift_5_count"], sums["drift_5_sum"]) == (4, 4)
    assert (sums["drift_1_count"], sums["drift_10_count"]) == (0, 0)


def test_concurrent_ranges_go_behind_each_other() -> None:
    bank = Bank(Remembering(5).bank, "/device:CPU:0")

    def rows(items: list[int]) -> Candidates:
        zeros = tf.zeros([len(items)])
        return Candidates(tf.zeros([len(items), 2]), tf.constant(items, tf.int64), zeros, zeros)

    # Both were pulled at cursor 0; the second comes later, and behind.
    for items in ([1, 2, 3], [4, 5, 6]):
        bank.append(rows(items), num_samples=tf.constant(3, tf.int64), fresh=tf.constant(True))
    assert bank.rows.identity.numpy().tolist() == [6, 2, 3, 4, 5]
    bank.append(rows([9]), num_samples=tf.constant(1, tf.int64), fresh=tf.constant(False))
    assert bank.rows.identity.numpy().tolist() == [6, 2, 3, 4, 5]
    assert int(bank.cursor) == 6
