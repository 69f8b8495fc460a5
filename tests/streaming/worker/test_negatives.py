"""The bank of a worker, step by step: what it holds, when it is used, and how vectors drift."""

from __future__ import annotations

import streaming  # noqa: F401 - before TensorFlow: picks Keras 2

import numpy as np  # isort: skip
import pytest
import tensorflow as tf

from models.contract import CorpusSample
from streaming.servers.bank import Bank
from streaming.worker.mini_batches import Handles, MiniBatches
from streaming.worker.negatives import LocalBank, RangeNegatives, newest
from tests.streaming.remembering import Remembering


def learn(model: Remembering, batches: list[list[int]], *, bank: Bank, step: int, **extra):
    """Learns batches of 2 on zeros; returns (learned, the table)."""
    table = tf.Variable(tf.zeros([50, 2]))
    ids = tf.constant(np.concatenate(batches), tf.int64)
    num = tf.size(ids, out_type=tf.int64)
    local = LocalBank(
        *[rows.handle for rows in bank.rows],
        bank.cursor.read_value(),
        tf.constant(step, tf.int64),
    )
    mini_batches = MiniBatches(model, batch_size=2)

    @tf.function(autograph=False)
    def run():
        learned = mini_batches.learn(
            model.encode({"item_id": ids}),
            {"rows": Handles(table.handle, None)},
            probability=tf.cast(ids, tf.float32) / 100.0,
            num_samples=num,
            extra=RangeNegatives(bank=local, **extra),
        )
        with tf.control_dependencies([learned.loss_sum]):
            return learned, newest(local, size=model.bank.size, num_samples=num)

    learned, pushed = run()
    bank.cursor.assign_add(num)
    return learned, pushed, table.numpy()


def test_rows_are_enqueued_after_the_step_first_in_first_out() -> None:
    model = Remembering(3)
    bank = Bank(model.bank, "/device:CPU:0")
    learned, pushed, table = learn(model, [[1, 2], [1, 3], [4, 1]], bank=bank, step=0)
    # The bank had 0, 2, then 3 rows when it was used; item 1 had grown to 0, 1, 2.
    assert float(learned.loss_sum) == 1000 * (0 + 2 + 3) - (0 + 0) - (1 + 0) - (0 + 2)
    # Of six candidates the last three stay: 3 (fourth), 4, 1; the k-th lies in row k mod 3.
    assert bank.rows.identity.numpy().tolist() == [3, 4, 1]
    # With the vectors from before the step that they were in, and the probability of then.
    assert bank.rows.vectors.numpy()[:, 0].tolist() == [0, 0, 2]
    np.testing.assert_allclose(bank.rows.probability, [0.03, 0.04, 0.01])
    assert pushed.identity.numpy().tolist() == [3, 4, 1]
    assert table[1, 0] == 3


def test_a_bank_is_filled_during_warm_up_and_used_after_it() -> None:
    model = Remembering(10, warm_up=7)
    bank = Bank(model.bank, "/device:CPU:0")
    learned, _, _ = learn(model, [[1, 2], [3, 4], [5, 6]], bank=bank, step=5)
    # Steps 5, 6: nothing. Step 7: the four rows of steps 5 and 6.
    assert float(learned.loss_sum) == 4000
    assert int(bank.cursor) == 6


def test_a_short_last_batch_leaves_no_hole() -> None:
    model = Remembering(4)
    bank = Bank(model.bank, "/device:CPU:0")
    learn(model, [[1, 2], [3]], bank=bank, step=0)
    learn(model, [[4, 5]], bank=bank, step=2)
    assert bank.rows.identity.numpy().tolist() == [5, 2, 3, 4]


def test_drift_is_how_far_the_items_of_both_mini_batches_moved() -> None:
    model = Remembering(20)
    bank = Bank(model.bank, "/device:CPU:0")
    batches = [[1, n] for n in range(2, 9)]
    learned, _, _ = learn(model, batches, bank=bank, step=0)
    # Item 1 is in all seven and moves by 1 a step: six pairs a step apart, two five apart.
    assert learned.drift.pairs.numpy().tolist() == [6, 2, 0]
    assert learned.drift.distance.numpy().tolist() == [6 * 1, 2 * 5, 0]


def test_each_mini_batch_has_its_own_draws_and_learns_from_their_rows() -> None:
    model = Remembering(4, draws=3)
    bank = Bank(model.bank, "/device:CPU:0")
    ids = tf.constant([7, 8, 9, 40, 41, 41], tf.int64)
    drawn = CorpusSample(model.encode({"item_id": ids}), None, tf.zeros(6))
    learned, _, table = learn(
        model, [[1, 7], [1, 3]], bank=bank, step=0, corpus=drawn, corpus_probability=tf.zeros(4)
    )
    # 7+8+9 and 40+41+41 drawn; the bank has 2 rows at the second step; item 1 is at 1 by then.
    assert float(learned.loss_sum) == pytest.approx(1e6 * (24 + 122) + 2000 - 1)
    assert np.flatnonzero(table[:, 0]).tolist() == [1, 3, 7]  # in mini-batches
    assert table[[7, 8, 9, 40, 41], 1].tolist() == [1, 1, 1, 1, 2]  # by draws


def test_more_samples_than_rows_keep_the_latest() -> None:
    model = Remembering(1)
    bank = Bank(model.bank, "/device:CPU:0")
    _, pushed, _ = learn(model, [[1, 2], [3, 4]], bank=bank, step=0)
    assert bank.rows.identity.numpy().tolist() == [4]
    assert pushed.identity.numpy().tolist() == [4]
