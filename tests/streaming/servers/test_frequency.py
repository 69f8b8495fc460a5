from __future__ import annotations

import numpy as np
import pytest

import streaming  # noqa: F401 - before TensorFlow: picks Keras 2

import tensorflow as tf  # isort: skip

from streaming.config import FrequencyConfig
from streaming.servers import frequency as freq


class Sequential:
    """Yi et al., Algorithm 3, batch by batch, with our decisions, on one array of buckets."""

    def __init__(self, num_buckets: int, *, alpha: float, initial_gap: float) -> None:
        self.alpha = alpha
        self.last_seen = np.full(num_buckets, -1, np.int64)
        self.initial_gap = initial_gap
        self.gaps: list[list[int]] = [[] for _ in range(num_buckets)]
        self.step = 0

    def see(self, batch: np.ndarray) -> None:
        buckets = np.unique(batch)
        again = buckets[self.last_seen[buckets] >= 0]
        gap = self.step - self.last_seen[again]
        for bucket, length in zip(again, gap, strict=True):
            self.gaps[bucket].append(length)
        self.last_seen[buckets] = self.step
        self.step += 1

    def mean_gap(self) -> np.ndarray:
        """The weighted mean of each bucket's gaps: 1 for the newest, (1-alpha) the one before..."""
        weights = [(1 - self.alpha) ** np.arange(len(each))[::-1] for each in self.gaps]
        return np.array(
            [
                np.average(each, weights=weight) if each else self.initial_gap
                for each, weight in zip(self.gaps, weights, strict=True)
            ]
        )


class Server:
    """What a parameter server holds, changed by summaries alone."""

    def __init__(self, num_buckets: int, *, alpha: float, initial_gap: float) -> None:
        self.config = FrequencyConfig(buckets=num_buckets, alpha=alpha, initial_gap=initial_gap)
        self.last_seen = tf.Variable(tf.fill([num_buckets], tf.constant(-1, tf.int64)))
        self.gaps = tf.Variable(tf.zeros([num_buckets, 2]))
        self.step = 0

    def summarise(self, sightings: np.ndarray, batch_size: int) -> freq.Summary:
        num_batches = -(-sightings.shape[1] // batch_size)
        distinct, which = np.unique(sightings[0], return_inverse=True)
        summary, _ = freq.summarise(
            tf.constant(distinct[np.newaxis], tf.int64),
            tf.constant(which, tf.int32),
            batch_size=batch_size,
            num_batches=tf.constant(num_batches, tf.int64),
            alpha=self.config.alpha,
        )
        return summary

    def push(self, summary: freq.Summary, num_batches: int) -> None:
        last_seen, gaps = freq.compose(
            summary,
            last_seen=tf.gather(self.last_seen, summary.buckets),
            gaps=tf.gather(self.gaps, summary.buckets),
            clock=tf.constant(self.step, tf.int64),
            alpha=self.config.alpha,
        )
        self.last_seen.scatter_update(tf.IndexedSlices(last_seen, summary.buckets))
        self.gaps.scatter_update(tf.IndexedSlices(gaps, summary.buckets))
        self.step += num_batches

    def mean_gap(self) -> np.ndarray:
        clock = tf.constant(self.step)
        found = freq.probability(self.gaps.numpy()[np.newaxis], self.config, clock=clock)
        return 1 / found.numpy()


def test_gaps_by_hand():
    # Bucket 7 is seen in batches 0, 1 and 3 of a range (twice in batch 0: once counts): gaps 1, 2.
    # With alpha .5 they weigh 1/3 and 2/3: 5/3.
    server = Server(8, alpha=0.5, initial_gap=10.0)
    sightings = np.array([[7, 7, 7, 1, 1, 2, 7, 3]])
    server.push(server.summarise(sightings, 2), 4)
    assert server.mean_gap()[7] == pytest.approx(5 / 3)
    assert server.last_seen.numpy()[[7, 1, 2, 3, 0]].tolist() == [3, 2, 2, 3, -1]
    assert server.mean_gap()[3] == pytest.approx(10.0)  # its first sighting tells no gap
    # The next range starts at step 4; bucket 7 in its second batch: a gap of 2, weights 1/7, 2/7,
    # 4/7.
    server.push(server.summarise(np.array([[0, 0, 7, 7]]), 2), 2)
    assert server.mean_gap()[7] == pytest.approx((1 + 2 * 2 + 4 * 2) / 7)


def test_a_rare_item_is_known_from_its_second_sighting_on():
    # Seen every 10,000 batches: by a start at 100, ten sightings would say 959.
    server = Server(2, alpha=0.01, initial_gap=100.0)
    for sighting in range(1, 11):
        server.push(server.summarise(np.array([[1]]), 1), 10_000)
        expected = 1000.0 if sighting == 1 else 10_000.0  # ten times as long as at first
        assert server.mean_gap()[1] == pytest.approx(expected, rel=1e-4)


def test_an_item_without_a_gap_has_that_of_the_stream_so_far_within_limits():
    gaps = tf.constant([[[0.0, 0.0], [0.0, 1.0]]])
    config = FrequencyConfig(initial_gap=50.0)
    for clock, expected in ((0, 50.0), (49, 50.0), (200, 200.0), (500, 500.0), (9999, 500.0)):
        found = freq.probability(gaps, config, clock=tf.constant(clock, tf.int64))
        np.testing.assert_allclose(found, [1 / expected] * 2)


def test_an_item_that_was_never_seen_has_no_probability_as_a_draw_from_elsewhere():
    # Item 0 was never seen, though one of its buckets was; 1 once; 2 twice, 4 batches apart.
    gaps = np.array([[[0, 0], [0, 1], [0.04, 2]], [[0.5, 9], [0, 1], [0.04, 2]]], np.float32)
    config = FrequencyConfig(alpha=0.01, initial_gap=50.0)
    clock = tf.constant(9)
    drawn = freq.probability(tf.constant(gaps), config, clock=clock, unseen=0.0)
    np.testing.assert_allclose(drawn, [0, 1 / 50, 1 / 4], rtol=1e-5)
    own = freq.probability(tf.constant(gaps), config, clock=clock)
    np.testing.assert_allclose(own, [1 / 50, 1 / 50, 1 / 4], rtol=1e-5)
    assert freq.never_seen(tf.constant(gaps)).numpy().tolist() == [True, False, False]


def test_a_clock_that_fell_behind_counts_no_gap_below_one():
    # A push that was cut in the middle: A says 7, the clock 5.
    summary = freq.Summary(
        *[tf.constant([each], tf.int64) for each in (0, 0, 0)],
        tf.constant([1.0]),
        tf.constant([0.0]),
    )
    last_seen, gaps = freq.compose(
        summary,
        last_seen=tf.constant([7], tf.int64),
        gaps=tf.constant([[2.0, 3.0]]),
        clock=tf.constant(5, tf.int64),
        alpha=0.5,
    )
    assert last_seen.numpy().tolist() == [5]
    assert gaps.numpy().tolist() == [[1.5, 4.0]]  # .5 x 2 + .5 x 1


def test_a_bucket_in_every_batch_has_probability_one():
    server = Server(2, alpha=0.1, initial_gap=1.0)
    for _ in range(5):
        server.push(server.summarise(np.zeros((1, 16), np.int64), 4), 4)
    assert server.mean_gap()[0] == pytest.approx(1.0)


def test_many_workers_give_the_sequential_result_in_the_order_of_their_pushes():
    random = np.random.default_rng(0)
    alpha, batch_size, batches, num_buckets = 0.05, 32, 8, 200
    oracle = Sequential(num_buckets, alpha=alpha, initial_gap=100.0)
    server = Server(num_buckets, alpha=alpha, initial_gap=100.0)
    waiting = []
    for number in range(40):
        size = batch_size * batches - (5 if number % 7 == 0 else 0)  # a short last batch
        ids = (random.zipf(1.3, size) % num_buckets)[np.newaxis]
        waiting.append((ids, server.summarise(ids, batch_size)))  # made while others are pushed
        if len(waiting) < 4:
            continue
        ids, summary = waiting.pop(random.integers(4))
        server.push(summary, batches)
        for begin in range(0, ids.shape[1], batch_size):
            oracle.see(ids[0, begin : begin + batch_size])
    np.testing.assert_allclose(server.mean_gap(), oracle.mean_gap(), rtol=1e-5)
    np.testing.assert_array_equal(server.last_seen.numpy(), oracle.last_seen)


def test_the_largest_gap_of_the_hashes_counts_and_probabilities_stay_below_one():
    # After very many sightings the weights sum to 1.
    gaps = tf.constant([[[10.0, 1e6], [0.2, 1e6]], [[40.0, 1e6], [0.5, 1e6]]])
    found = freq.probability(gaps, FrequencyConfig(), clock=tf.constant(0))
    np.testing.assert_allclose(found, [1 / 40, 1.0])


def test_two_hashes_keep_apart_and_positions_point_back():
    # Ids 0, 1, 0, 2; the second hash has 0 and 1 in one bucket.
    sightings = tf.constant([[0, 1, 2], [5, 5, 6]], tf.int64)
    summary, positions = freq.summarise(
        sightings,
        tf.constant([0, 1, 0, 2]),
        batch_size=2,
        num_batches=tf.constant(2, tf.int64),
        alpha=0.1,
    )
    np.testing.assert_array_equal(tf.gather(summary.buckets, positions), sightings)
    count = dict(zip(summary.buckets.numpy(), summary.count.numpy(), strict=True))
    assert count == {0: 2, 1: 1, 2: 1, 5: 2, 6: 1}


def test_each_id_is_hashed_once_to_the_buckets_it_has_alone():
    config = FrequencyConfig(hashes=3, buckets=1000)
    ids = tf.constant([7, 9, 7, 7, -1], tf.int64)
    buckets, which = freq.distinct_buckets(ids, config)
    assert buckets.shape == (3, 3)
    np.testing.assert_array_equal(
        tf.gather(buckets, which, axis=1), freq.bucket_numbers(ids, config)
    )
    # The same item in two scenarios is two.
    scenario = tf.constant(["a", "a", "b", "a", "a"])
    _, which = freq.distinct_buckets(ids, config, scenario=scenario)
    assert which.numpy().tolist() == [0, 1, 2, 0, 3]


def test_an_empty_range_says_nothing():
    summary, positions = freq.summarise(
        tf.zeros([2, 0], tf.int64),
        tf.zeros([0], tf.int32),
        batch_size=4,
        num_batches=tf.constant(0, tf.int64),
        alpha=0.1,
    )
    assert summary.buckets.shape == (0,)
    assert positions.shape == (2, 0)
