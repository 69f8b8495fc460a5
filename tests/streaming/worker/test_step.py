"""The range transaction, on one process's devices standing in for servers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from streaming.config import FrequencyConfig
from streaming.source import Reject, SchemaMismatchError, SourceUnavailableError
from streaming.worker.dead_letters import DeadLetterFiles
from streaming.worker.reader import RangeReader, Status

import tensorflow as tf  # isort: skip

from models.contract import Input, Optimizer, Outcome, Table, Weight
from streaming.servers.state import ServerState
from streaming.worker.step import COUNTS, SUMS, RangeFunction, Report
from tests.streaming.counting.model import CountingModel
from tests.streaming.worker.ranges import NumberSource, run

FREQUENCY = FrequencyConfig(hashes=2, buckets=64, alpha=0.1)
FLOOR = 1000


def read_now(reader: RangeReader, start: int, end: int) -> list[np.ndarray]:
    topics = np.array([b"numbers", b"numbers"], object)
    return reader._read_for_graph(topics, np.array([0, start, end, 0, 0, 0]))


def fly(function, ranges):
    """Runs a flight of ranges, each in a slot of its own."""
    function(
        tf.constant([[slot, FLOOR + 1] for slot in range(len(ranges))], tf.int64),
        tf.constant([["numbers", "numbers"]] * len(ranges)),
        tf.constant([[0, start, end, 0, start, end] for start, end in ranges], tf.int64),
    )


def make(model, source, tmp_path: Path, *, servers: int, batch_size: int = 8, **flight: int):
    RangeReader(source, model.inputs, dead_letters=DeadLetterFiles(tmp_path / "dead")).register(
        "run"
    )
    state = ServerState(
        model,
        ["/device:CPU:0"] * servers,
        frequency=FREQUENCY,
        seed=1,
        num_slots=2,
        floor=FLOOR,
    )
    return state, RangeFunction(state, batch_size=batch_size, **flight).build()


def table_of(state: ServerState, name: str) -> np.ndarray:
    return np.concatenate([shard.numpy() for shard in state.tables[name].variables])


def named(report: Report, *names: str) -> list[int]:
    return [int(report.counts[COUNTS.index(name)]) for name in names]


@pytest.mark.parametrize("servers", [1, 3])
def test_a_range_that_is_pushed_twice_counts_once(tmp_path, servers):
    state, function = make(CountingModel(50), NumberSource(), tmp_path, servers=servers)
    for _ in range(3):
        report = run(function, slot=0, sequence=FLOOR + 1, start=10, end=40)
    counts = dict(zip(COUNTS, report.counts.numpy().tolist(), strict=True))
    assert counts["status"] == Status.OK
    assert [counts[name] for name in ("samples", "rejects", "lost", "torn")] == [30, 0, 0, 0]
    assert counts["batches"] == 4  # of up to 8
    assert counts["applied"] == 0  # by no server, the last time
    expected = np.zeros(50)
    expected[10:40] = 1
    np.testing.assert_array_equal(table_of(state, "counter")[:, 0], expected)
    assert state.weights["batches"].numpy().tolist() == [4.0]
    assert [int(clock) for clock in state.clocks] == [4] * servers


def test_a_push_of_a_former_life_or_a_former_range_does_not_count(tmp_path):
    state, function = make(CountingModel(50), NumberSource(), tmp_path, servers=2)
    run(function, slot=0, sequence=FLOOR, start=0, end=50)  # as old as the floor
    assert not table_of(state, "counter").any()
    run(function, slot=0, sequence=FLOOR + 5, start=0, end=10)
    run(function, slot=0, sequence=FLOOR + 4, start=10, end=20)  # woke up too late
    run(function, slot=1, sequence=FLOOR + 4, start=20, end=30)  # another slot: in time
    assert np.flatnonzero(table_of(state, "counter")).tolist() == [*range(10), *range(20, 30)]


def test_a_push_that_reached_one_server_is_finished_on_the_others_only(tmp_path):
    state, function = make(CountingModel(50), NumberSource(), tmp_path, servers=2)
    for marks in (state.begun[0], state.applied[0]):  # server 0 has had this range
        marks[0].assign(FLOOR + 1)
    report = run(function, slot=0, sequence=FLOOR + 1, start=0, end=50)
    assert named(report, "applied") == [1]
    assert np.flatnonzero(table_of(state, "counter")).tolist() == list(range(25, 50))


class Overflowing(CountingModel):
    """Its loss is 0, and the gradient of that infinite."""

    def loss(self, features, *, tables, **_) -> Outcome:
        return Outcome(tf.sqrt(tf.reduce_sum(tf.gather(tables["counter"], features["item_id"]))))


def test_what_is_not_finite_is_never_pushed(tmp_path):
    state, function = make(Overflowing(50), NumberSource(), tmp_path, servers=2)
    report = run(function, slot=0, sequence=FLOOR + 1, start=0, end=8)  # one mini-batch
    assert np.isnan(report.sums.numpy()[0])
    assert report.counts.numpy()[-2:].tolist() == [0, 0]
    assert not table_of(state, "counter").any()
    assert [int(clock) for clock in state.clocks] == [0, 0]


def test_a_range_reports_samples_of_items_never_seen_before(tmp_path):
    _, function = make(CountingModel(50), NumberSource(), tmp_path, servers=2)
    # The second time ten are new, one of them in two buckets that others have used.
    for sequence, start, unseen in ((1, 0, 20), (2, 10, 9)):
        report = run(function, slot=0, sequence=FLOOR + sequence, start=start, end=start + 20)
        sums = dict(zip(SUMS, report.sums.numpy().tolist(), strict=True))
        assert (sums["unseen_share_sum"], sums["unseen_share_count"]) == (unseen, 20)


def test_a_torn_push_is_seen_and_not_repeated(tmp_path):
    state, function = make(CountingModel(50), NumberSource(), tmp_path, servers=2)
    state.begun[1][0].assign(FLOOR + 1)  # began on server 1 and was cut there
    report = run(function, slot=0, sequence=FLOOR + 1, start=0, end=50)
    assert named(report, "applied", "torn") == [1, 1]
    assert np.flatnonzero(table_of(state, "counter")).tolist() == list(range(25))


def test_an_empty_range_leaves_everything_as_it_was(tmp_path):
    state, function = make(CountingModel(50), NumberSource(), tmp_path, servers=1)
    report = run(function, slot=0, sequence=FLOOR + 1, start=7, end=7)
    assert named(report, "status", "samples", "lost", "batches") == [Status.OK, 0, 0, 0]
    assert named(report, "first_ms", "last_ms") == [-1, -1]
    assert not table_of(state, "counter").any()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SourceUnavailableError("no broker"), Status.UNAVAILABLE),
        (SchemaMismatchError("no column"), Status.BAD_INPUT),
        (OSError("stale handle"), Status.UNAVAILABLE),
        (RuntimeError("a bug"), Status.FAILED),
    ],
)
def test_a_range_that_cannot_be_read_is_not_marked_and_counts_when_it_can(tmp_path, error, status):
    source = NumberSource()
    state, function = make(CountingModel(50), source, tmp_path, servers=1)
    source.error = error
    report = run(function, slot=0, sequence=FLOOR + 1, start=0, end=50)
    assert named(report, "status") == [status]
    assert str(error) in report.detail.numpy().decode()
    source.error = None
    report = run(function, slot=0, sequence=FLOOR + 1, start=0, end=50)
    assert named(report, "status", "applied") == [Status.OK, 1]
    assert table_of(state, "counter").sum() == 50


def test_rejects_are_counted_and_written_once_however_often_they_are_read(tmp_path):
    source = NumberSource()
    source.rejects = [Reject(3, "undecodable", "found noise", b"\x00\x01")]
    _, function = make(CountingModel(50), source, tmp_path, servers=1)
    for _ in range(2):
        report = run(function, slot=0, sequence=FLOOR + 1, start=0, end=10)
    assert named(report, "rejects") == [1]
    (file,) = (tmp_path / "dead").iterdir()
    (row,) = pq.read_table(file).to_pylist()
    assert row["offset"] == 3
    assert row["reason"] == "undecodable"
    assert row["payload"] == b"\x00\x01"


def test_a_read_ahead_is_used(tmp_path):
    source = NumberSource()
    state, function = make(CountingModel(50), source, tmp_path, servers=1)
    topics = tf.constant([["numbers", "numbers"]])
    function([[0, FLOOR + 1]], topics, tf.constant([[0, 0, 10, 0, 10, 20]], tf.int64))
    function([[0, FLOOR + 2]], topics, tf.constant([[0, 10, 20, 0, 0, 0]], tf.int64))
    assert len(source.reads) == 2
    assert table_of(state, "counter").sum() == 20


def test_a_flight_is_a_transaction_per_range_and_may_have_empty_places(tmp_path):
    state, function = make(CountingModel(50), NumberSource(), tmp_path, servers=2, flight=3)
    marks = [[0, FLOOR + 1], [1, FLOOR], [1, 0]]  # in time, too late, a place without a range
    numbers = [[0, 0, 10, 0, 10, 20], [0, 10, 20, 0, 0, 0], [0, 0, 0, 0, 0, 0]]
    topics = [["numbers", "numbers"], ["numbers", ""], ["", ""]]
    report = function(
        tf.constant(marks, tf.int64), tf.constant(topics), tf.constant(numbers, tf.int64)
    )
    assert report.counts.numpy()[:, 1].tolist() == [10, 10, 0]  # samples read
    assert report.counts.numpy()[:, COUNTS.index("applied")].tolist() == [
        2,
        0,
        0,
    ]  # servers that applied them
    assert np.flatnonzero(table_of(state, "counter")).tolist() == list(range(10))


class Regression:
    """Loss = mean over the batch of (row . weight - 1)^2 / 2, rows of a [6, 2] table."""

    def __init__(self, kind: str) -> None:
        optimizer = Optimizer(kind=kind, learning_rate=0.1, initial_accumulator=0.1)
        self.tables = [Table(name="rows", buckets=6, dim=2, initial_bound=0.5, optimizer=optimizer)]
        self.weights = [Weight(name="w", shape=(2,), initial_bound=0.5, optimizer=optimizer)]
        self.inputs = [
            Input(name="item_id", dtype=tf.int64, table="rows"),
        ]
        self.candidate_input = None
        self.corpus, self.bank = None, None

    def encode(self, features):
        return {"item_id": features["item_id"] % 6}

    def loss(self, features, *, tables, weights, sampling) -> Outcome:
        assert sampling.sampling_probability is None
        rows = tf.gather(tables["rows"], features["item_id"])
        error = tf.linalg.matvec(rows, weights["w"]) - 1.0
        return Outcome(tf.reduce_mean(error**2) / 2)


@pytest.mark.parametrize("kind", ["sgd", "adagrad", "rowwise-adagrad"])
@pytest.mark.parametrize("servers", [1, 2])
@pytest.mark.parametrize("flight", [1, 2])
def test_a_range_equals_its_mini_batches_taken_one_by_one_in_numpy(tmp_path, kind, servers, flight):
    model = Regression(kind)
    source = NumberSource()
    state, function = make(model, source, tmp_path, servers=servers, batch_size=4, flight=flight)
    rows, weight = table_of(state, "rows").astype(float), state.weights["w"].numpy().astype(float)
    rowwise = kind == "rowwise-adagrad"
    sums = {"rows": np.full((6, 1 if rowwise else 2), 0.1), "w": np.full(2, 0.1)}

    def update(value, total, gradient):
        if kind == "sgd":
            return value - 0.1 * gradient, total
        squares = gradient**2
        if gradient.ndim == 2 and rowwise:
            squares = squares.mean(axis=1, keepdims=True)
        total = total + squares
        return value - 0.1 * gradient / (np.sqrt(total) + 1e-7), total

    reader = RangeReader(source, model.inputs, dead_letters=DeadLetterFiles(tmp_path))
    ranges = [(0, 10), (10, 21)]
    if flight == 2:
        fly(function, ranges)
    for number, (start, end) in enumerate(ranges):
        if flight == 1:
            run(function, slot=0, sequence=FLOOR + 1 + number, start=start, end=end)
        ids = read_now(reader, start, end)[2] % 6
        for begin in range(0, len(ids), 4):
            batch = ids[begin : begin + 4]
            error = rows[batch] @ weight - 1
            row_gradient = np.zeros_like(rows)
            np.add.at(row_gradient, batch, error[:, None] * weight / len(batch))
            weight_gradient = rows[batch].T @ error / len(batch)
            rows, sums["rows"] = update(rows, sums["rows"], row_gradient)
            weight, sums["w"] = update(weight, sums["w"], weight_gradient)
    np.testing.assert_allclose(table_of(state, "rows"), rows, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(state.weights["w"].numpy(), weight, rtol=1e-4, atol=1e-6)


def test_with_overlap_a_range_is_learned_without_the_one_right_before(tmp_path):
    ranges = [(0, 12), (12, 20)]

    def learned(*ranges: tuple[int, int], **flight: int) -> np.ndarray:
        state, function = make(
            Regression("sgd"), NumberSource(), tmp_path, servers=1, batch_size=4, **flight
        )
        initial = np.append(table_of(state, "rows"), state.weights["w"].numpy())
        fly(function, ranges)
        return np.append(table_of(state, "rows"), state.weights["w"].numpy()) - initial

    alone = [learned(each, flight=1) for each in ranges]
    both = learned(*ranges, flight=2, overlap=True)
    np.testing.assert_allclose(both, alone[0] + alone[1], rtol=1e-4, atol=1e-6)
    assert np.abs(learned(*ranges, flight=2) - both).max() > 1e-3
