from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf

from models.contract import Input
from models.features import (
    arrow_features,
    encode_ids,
    feature_input,
    feature_vectors,
    hash_ids,
    mean_embedding,
    number,
    ragged_from_padded,
    signature_inputs,
)
from pipeline.specification import FeatureSpec


def buckets(ids: list[int] | list[str], *, seed: int = 0, num: int = 1_000_003) -> list[int]:
    dtype = tf.string if isinstance(ids[0], str) else tf.int64
    return hash_ids(tf.constant(ids, dtype), seed=seed, buckets=num).numpy().tolist()


def test_buckets_are_those_of_every_process_and_version_before() -> None:
    # Frozen: another value here would scramble every model that was trained so far.
    assert buckets([0, 1, 7, -1, 2**63 - 1]) == [21461, 319325, 209591, 934990, 574275]
    assert buckets(["", "7", "item-42", "é"]) == [700177, 349794, 496832, 281966]
    assert buckets([0, 1, 7, -1, 2**63 - 1], seed=1) == [124732, 470777, 455264, 524864, 463928]


def test_hashing_in_a_graph_equals_hashing_eagerly() -> None:
    ids = tf.constant([5, -5, 2**40], tf.int64)
    graph = tf.function(lambda x: hash_ids(x, seed=3, buckets=1000))
    assert graph(ids).numpy().tolist() == hash_ids(ids, seed=3, buckets=1000).numpy().tolist()


@pytest.mark.parametrize("kind", ["int64", "string"])
def test_consecutive_ids_spread_evenly(kind: str) -> None:
    numbers = np.arange(100_000)
    ids = tf.constant(numbers if kind == "int64" else numbers.astype(str).astype(object))
    counts = np.bincount(hash_ids(ids, seed=0, buckets=100).numpy(), minlength=100)
    # 1,000 expected in each; the statistic has mean 99 and standard deviation 14.
    chi_squared = ((counts - 1000) ** 2 / 1000).sum()
    assert len(counts) == 100
    assert 99 - 5 * 14 < chi_squared < 99 + 5 * 14


def test_seeds_are_independent_hash_functions() -> None:
    ids = tf.range(100_000, dtype=tf.int64)
    first = hash_ids(ids, seed=1, buckets=100).numpy()
    second = hash_ids(ids, seed=2, buckets=100).numpy()
    # Two independent hashes agree on one id in a hundred: 1,000 expected, deviation 31.
    assert abs((first == second).sum() - 1000) < 5 * 31


def test_all_buckets_of_negative_and_huge_ids_are_rows() -> None:
    found = buckets([-(2**63), 2**63 - 1, -1, 0], num=7)
    assert all(0 <= bucket < 7 for bucket in found)


def test_empty_batches_hash_to_nothing() -> None:
    assert hash_ids(tf.constant([], tf.string), seed=0, buckets=7).shape == [0]
    assert hash_ids(tf.constant([], tf.int64), seed=0, buckets=7).shape == [0]


def test_one_id_has_one_bucket_as_single_value_and_inside_a_list() -> None:
    single = encode_ids(tf.constant(["a", "b"]), buckets=1000)
    ragged = encode_ids(tf.ragged.constant([["b", "a"], [], ["a"]]), buckets=1000)
    a, b = single.numpy().tolist()
    assert ragged.to_list() == [[b, a], [], [a]]


def test_history_is_the_mean_and_nothing_is_zero() -> None:
    table = tf.constant([[1.0, 2.0], [3.0, 4.0], [10.0, 0.0]])
    rows = tf.ragged.constant([[0, 1], [], [2], [1, 1, 2], []], dtype=tf.int64)
    found = mean_embedding(table, rows).numpy()
    expected = [[2, 3], [0, 0], [10, 0], [16 / 3, 8 / 3], [0, 0]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("num_rows", [1, 6, 500])
def test_samples_without_any_value_leave_a_table_as_it_is(num_rows: int) -> None:
    rows = tf.RaggedTensor.from_row_lengths(tf.constant([], tf.int64), [0, 0])
    table = tf.ones([num_rows, 8])
    for _ in range(200):
        # The memory that is given back here is where results are put next.
        freed = [tf.fill([num_rows, 8], 1e30) * 1.5 for _ in range(20)]
        del freed
        with tf.GradientTape() as tape:
            tape.watch(table)
            embedded = mean_embedding(table, rows)
        gradient = tf.convert_to_tensor(tape.gradient(embedded, table))
        assert embedded.numpy().tolist() == [[0.0] * 8] * 2
        assert not gradient.numpy().any()


def test_numbers_are_scaled_and_what_is_missing_is_zero() -> None:
    raw = tf.constant([0.0, 3.0, -2.0, float("nan")])
    assert number(raw, log1p=False, scale=0.5).numpy().tolist() == [0.0, 1.5, -1.0, 0.0]
    # log(1 + 3) = 1.3863; below 0 counts as 0.
    np.testing.assert_allclose(number(raw, log1p=True, scale=2.0), [0, 2.7726, 0, 0], atol=1e-4)
    integers = tf.constant([4, -1], tf.int64)
    assert number(integers, log1p=False, scale=1.0).numpy().tolist() == [4.0, 0.0]


def test_features_stand_side_by_side_in_the_order_of_the_specification() -> None:
    specs = [
        FeatureSpec(name="size", kind="number"),
        FeatureSpec(name="item", kind="id", table="t"),
        FeatureSpec(name="image", kind="vector", size=2),
    ]
    features = {
        "item": tf.constant([1, 0], tf.int64),
        "image": tf.constant([[7.0, float("nan")], [8.0, 9.0]]),
        "size": tf.constant([3, 4], tf.int64),
    }
    found = feature_vectors(specs, features, tables={"t": tf.constant([[0.5], [0.25]])})
    assert found.numpy().tolist() == [[3, 0.25, 7, 0], [4, 0.5, 8, 9]]


def test_input_follows_the_column_type() -> None:
    spec = FeatureSpec(name="tags", kind="ids", table="t")
    found = feature_input(spec, column_type="list<string>")
    assert found == Input(name="tags", dtype=tf.string, ragged=True, table="t")


def test_padding_is_removed_wherever_it_stands() -> None:
    integers = ragged_from_padded(tf.constant([[5, -1], [-1, 6], [-1, -1]], tf.int64))
    strings = ragged_from_padded(tf.constant([["", "x"], ["y", "z"]]))
    assert integers.to_list() == [[5], [6], []]
    assert strings.to_list() == [[b"x"], [b"y", b"z"]]


def test_nulls_become_padding_nan_and_empty_lists() -> None:
    rows = pa.table(
        {
            "id": pa.array([1, None], pa.int64()),
            "name": pa.array([None, "a"]),
            "age": pa.array([None, 2.0], pa.float32()),
            "tags": pa.array([None, ["x", None, "y"]], pa.list_(pa.string())),
        }
    )
    inputs = [
        Input(name="id", dtype=tf.int64),
        Input(name="name", dtype=tf.string),
        Input(name="age", dtype=tf.float32),
        Input(name="tags", dtype=tf.string, ragged=True),
    ]
    found = arrow_features(rows, inputs)
    assert found["id"].numpy().tolist() == [1, -1]
    assert found["name"].numpy().tolist() == [b"", b"a"]
    assert np.isnan(found["age"].numpy()[0])
    assert found["tags"].to_list() == [[], [b"x", b"y"]]


def test_slices_of_arrow_columns_keep_their_rows() -> None:
    lists = pa.array([[1], [2, 3], [4], []], pa.list_(pa.int64()))
    rows = pa.table({"history": lists}).slice(1, 2)
    history = Input(name="history", dtype=tf.int64, ragged=True)
    assert arrow_features(rows, [history])["history"].to_list() == [[2, 3], [4]]
    padded = signature_inputs(rows, [history])["history"]
    assert padded.numpy().tolist() == [[2, 3], [4, -1]]
