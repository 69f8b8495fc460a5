from __future__ import annotations

import contextlib

import pyarrow as pa
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st

from pipeline.schema import SchemaMismatchError
from pipeline.topics.example import ExampleDecoder, encode_examples

SCHEMA = pa.schema(
    [
        ("item_id", pa.int64()),
        ("title", pa.string()),
        ("reward", pa.float32()),
        ("history_item_id", pa.list_(pa.int64())),
        ("category", pa.list_(pa.string())),
    ]
)
ROWS = [
    {
        "item_id": 1,
        "title": "a",
        "reward": 0.5,
        "history_item_id": [],
        "category": ["x", "y"],
    },
    {"item_id": -2, "title": "ü", "reward": 1.0, "history_item_id": [7, 8], "category": ["z"]},
]
SAMPLES = pa.Table.from_pylist(ROWS, SCHEMA)


def where(position: int) -> str:
    return f"topic t partition 0 offset {position}"


def decode(*values: bytes | None, schema: pa.Schema = SCHEMA):
    return ExampleDecoder(schema).decode(values, where=where)


def example(**features: list) -> bytes:
    """Returns what TensorFlow itself writes for an Example."""
    made = {}
    for name, values in features.items():
        if values == [] and name in ("title", "category"):
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList())
        elif all(isinstance(value, int) for value in values):
            made[name] = tf.train.Feature(int64_list=tf.train.Int64List(value=values))
        elif all(isinstance(value, float) for value in values):
            made[name] = tf.train.Feature(float_list=tf.train.FloatList(value=values))
        else:
            texts = [v if isinstance(v, bytes) else v.encode() for v in values]
            made[name] = tf.train.Feature(bytes_list=tf.train.BytesList(value=texts))
    return tf.train.Example(features=tf.train.Features(feature=made)).SerializeToString()


FULL = {"item_id": [3], "title": ["t"], "reward": [1.0], "history_item_id": [], "category": ["c"]}


def test_examples_that_tensorflow_wrote_are_samples_of_the_schema() -> None:
    first = example(**FULL)
    second = example(**(FULL | {"item_id": [4], "history_item_id": [3, 1], "other": [1.0]}))
    table, errors = decode(first, second)
    assert errors == {}
    assert table.schema == SCHEMA
    assert table.to_pylist() == [
        {"item_id": 3, "title": "t", "reward": 1.0, "history_item_id": [], "category": ["c"]},
        {"item_id": 4, "title": "t", "reward": 1.0, "history_item_id": [3, 1], "category": ["c"]},
    ]


def test_what_we_write_tensorflow_reads_and_we_read_again() -> None:
    values = encode_examples(SAMPLES)
    table, errors = decode(*values)
    assert (table, errors) == (SAMPLES, {})
    parsed = tf.train.Example.FromString(values[1]).features.feature
    assert list(parsed["history_item_id"].int64_list.value) == [7, 8]
    assert list(parsed["title"].bytes_list.value) == ["ü".encode()]


def test_a_feature_that_is_not_there_or_empty_is_no_value() -> None:
    table, errors = decode(example(item_id=[1]), example(**(FULL | {"title": []})), example(**FULL))
    assert errors == {}
    assert table["title"].to_pylist() == [None, None, "t"]
    assert table["reward"].to_pylist() == [None, 1.0, 1.0]
    assert table["history_item_id"].to_pylist()[1:] == [[], []]


def test_one_poisoned_record_among_a_thousand_is_found_and_the_others_survive() -> None:
    values: list[bytes | None] = [example(**(FULL | {"item_id": [i]})) for i in range(1000)]
    values[3], values[617], values[618] = (
        None,
        b"\xffnoise",
        example(**(FULL | {"title": [b"\xff"]})),
    )

    table, errors = decode(*values)

    assert table["item_id"].to_pylist() == [i for i in range(1000) if i not in (3, 617, 618)]
    assert {position: error.reason for position, error in errors.items()} == {
        3: "no-value",
        617: "undecodable",
        618: "undecodable",
    }
    assert "found 6 bytes that are no tf.Example" in errors[617].detail
    assert "column 'title': found bytes that are no string" in errors[618].detail


@pytest.mark.parametrize(
    ("feature", "found"),
    [
        ({"item_id": ["1"]}, "column 'item_id': found a bytes_list; expected a int64_list"),
        ({"history_item_id": [1.5]}, "'history_item_id': found a float_list; expected a int64"),
        ({"item_id": [1, 2]}, "column 'item_id': found 2 values; expected one int64"),
    ],
)
def test_a_retyped_feature_stops_with_its_column_and_offset(feature: dict, found: str) -> None:
    values = [example(**FULL)] * 5 + [example(**(FULL | feature))] + [example(**FULL)] * 5
    with pytest.raises(SchemaMismatchError, match=rf"topic t partition 0 offset 5: .*{found}"):
        decode(*values)


def test_a_column_that_many_examples_lack_was_removed_and_stops_with_its_name() -> None:
    renamed = {name: value for name, value in FULL.items() if name != "title"} | {"headline": ["t"]}
    table, errors = decode(*[example(**renamed)] * 99)
    assert (table["title"].null_count, errors) == (99, {})

    with pytest.raises(SchemaMismatchError) as caught:
        decode(*[example(**renamed)] * 100)
    assert str(caught.value) == (
        "topic t partition 0 offset 0 to topic t partition 0 offset 99: column 'title': found in"
        " none of the tf.Examples; expected string (where there is no value, write the feature"
        " with an empty list)"
    )

    one_has_it = [*[example(**renamed)] * 100, example(**(renamed | {"title": []}))]
    assert decode(*one_has_it)[0]["title"].null_count == 101


def test_no_examples_are_no_samples() -> None:
    assert decode() == (SCHEMA.empty_table(), {})


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_random_bytes_are_samples_or_errors_of_ours_one_each(noise: list[bytes]) -> None:
    with contextlib.suppress(SchemaMismatchError):
        table, errors = decode(*noise)
        assert table.num_rows + len(errors) == len(noise)


def test_an_example_with_a_number_that_is_not_finite_is_rejected_alone() -> None:
    bad = example(**FULL | {"reward": [float("nan")]})
    table, errors = decode(example(**FULL), bad, example(**FULL))
    assert table.column("reward").to_pylist() == [1.0, 1.0]
    assert [(place, error.reason) for place, error in errors.items()] == [(1, "not-finite")]
