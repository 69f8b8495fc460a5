from __future__ import annotations

import contextlib

import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.schema import SchemaMismatchError, schema_fingerprint
from pipeline.topics.record import (
    RecordError,
    decode,
    encode,
    format_of,
    harmful_rows,
    unknown_format,
)

SCHEMA = pa.schema(
    [
        ("item_id", pa.int64()),
        ("title", pa.string()),
        ("history_item_id", pa.list_(pa.int64())),
    ]
)
SAMPLES = pa.table(
    {"item_id": [1, 2, 3], "title": ["a", None, "ü"], "history_item_id": [[], [1], [2, 1]]},
    SCHEMA,
)
VALUE, HEADERS = encode(SAMPLES)


def test_samples_survive_with_headers_that_name_format_and_schema() -> None:
    assert decode(VALUE, schema=SCHEMA, where="r").equals(SAMPLES)
    assert [
        ("headrace-format", b"arrow-ipc/1"),
        ("headrace-schema", schema_fingerprint(SCHEMA).encode()),
    ] == HEADERS


def test_a_slice_takes_only_its_own_bytes() -> None:
    many = pa.concat_tables([SAMPLES] * 1000)
    assert len(encode(many.slice(1500, 3))[0]) < 2 * len(VALUE)
    assert decode(encode(many.slice(1500, 3))[0], schema=SCHEMA, where="r").equals(SAMPLES)


def test_no_samples_are_a_record_too() -> None:
    value, _ = encode(SCHEMA.empty_table())
    assert decode(value, schema=SCHEMA, where="r").equals(SCHEMA.empty_table())


def test_extra_and_reordered_columns_pass() -> None:
    other = SAMPLES.append_column("extra", pa.array([0.5] * 3))
    value, _ = encode(other.select(["history_item_id", "extra", "title", "item_id"]))
    assert decode(value, schema=SCHEMA, where="r").equals(SAMPLES)


def test_other_encodings_of_a_type_pass() -> None:
    title = SAMPLES["title"].cast(pa.dictionary(pa.int32(), pa.string()))
    history = SAMPLES["history_item_id"].cast(pa.large_list(pa.int64()))
    value, _ = encode(pa.table([SAMPLES["item_id"], title, history], SCHEMA.names))
    assert decode(value, schema=SCHEMA, where="r").equals(SAMPLES)


def test_missing_and_retyped_columns_are_all_named() -> None:
    wrong = SAMPLES.drop_columns(["title"]).set_column(0, "item_id", pa.array(["1", "2", "3"]))
    value, _ = encode(wrong)

    with pytest.raises(SchemaMismatchError) as caught:
        decode(value, schema=SCHEMA, where="topic t partition 0 offset 7")

    assert str(caught.value).splitlines() == [
        "topic t partition 0 offset 7: column 'item_id': found string; expected int64",
        "topic t partition 0 offset 7: column 'title': found none; expected string"
        " (columns found: item_id, history_item_id)",
    ]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no-value"),
        (b"", "undecodable"),
        (b"{}", "undecodable"),
        (VALUE[: len(VALUE) // 2], "undecodable"),
    ],
)
def test_what_is_no_record_is_rejected_with_a_reason(value, reason) -> None:
    with pytest.raises(RecordError) as caught:
        decode(value, schema=SCHEMA, where="r")
    assert caught.value.reason == reason
    assert "expected" in caught.value.detail or "no Arrow" in caught.value.detail


def test_the_header_names_the_format_and_the_default_holds_without_one() -> None:
    assert format_of(HEADERS, default=b"tf-example/1") == b"arrow-ipc/1"
    assert format_of([("trace", b"1")], default=b"tf-example/1") == b"tf-example/1"
    assert str(unknown_format(b"avro")) == (
        "unknown-format: header headrace-format: found b'avro';"
        " expected b'arrow-ipc/1' or b'tf-example/1'"
    )


def test_no_prefix_is_taken_for_fewer_samples() -> None:
    for length in range(len(VALUE)):
        try:
            assert decode(VALUE[:length], schema=SCHEMA, where="r").num_rows == 3
        except RecordError:
            continue


def test_two_batches_in_one_value_are_rejected() -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as writer:
        writer.write_table(SAMPLES, max_chunksize=2)
    with pytest.raises(RecordError, match="found 2 batches"):
        decode(sink.getvalue().to_pybytes(), schema=SCHEMA, where="r")


@given(st.binary(max_size=400))
def test_random_bytes_are_rejected(noise: bytes) -> None:
    with pytest.raises(RecordError):
        decode(noise, schema=SCHEMA, where="r")


@given(st.integers(0, len(VALUE) - 1), st.integers(1, 255))
@example(position=100, change=128)  # a column name that is no UTF-8
def test_a_damaged_byte_gives_samples_or_an_error_of_ours(position: int, change: int) -> None:
    damaged = bytearray(VALUE)
    damaged[position] ^= change
    with contextlib.suppress(RecordError, SchemaMismatchError):
        assert decode(bytes(damaged), schema=SCHEMA, where="r").schema == SCHEMA


NAN, INF = float("nan"), float("inf")
NUMBERS = pa.schema(
    [("reward", pa.float32()), ("age", pa.float32()), ("image", pa.list_(pa.float32()))]
)


def numbers(*rows: tuple[float | None, float | None, list[float] | None]) -> pa.Table:
    return pa.Table.from_pylist(
        [dict(zip(NUMBERS.names, row, strict=True)) for row in rows], NUMBERS
    )


def test_large_numbers_missing_ones_and_nan_in_a_feature_pass() -> None:
    good = numbers((3e38, NAN, [3e38, NAN]), (3e38, None, []), (None, 1.0, None))
    assert decode(encode(good)[0], schema=NUMBERS, where="here").num_rows == 3


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ((NAN, 1.0, [1.0]), "column 'reward': found nan"),
        ((-INF, 1.0, [1.0]), "column 'reward': found -inf"),
        ((1.0, INF, [1.0]), "column 'age': found inf"),
        ((1.0, NAN, [0.0, -INF]), "column 'image': found -inf"),
    ],
)
def test_a_row_that_would_spoil_its_mini_batch_is_rejected(row: tuple, message: str) -> None:
    bad = numbers((1.0, 1.0, [1.0, 2.0]), (1.0, NAN, []), row)
    assert {n: error.detail for n, error in harmful_rows(bad).items()} == {
        2: f"{message}; expected finite numbers"
    }
    with pytest.raises(RecordError, match=f"not-finite: {message}"):
        decode(encode(bad)[0], schema=NUMBERS, where="here")
