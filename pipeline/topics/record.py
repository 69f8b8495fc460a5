"""The stream record: one Arrow IPC batch of many samples. Who writes and who reads share it.

A header says that it is one, or that it is a single `tf.Example` (`pipeline.topics.example`).
Events are written in the same way, or each as a JSON object of its own.

The batch itself is not compressed: Kafka compresses whole sets of records, which reads several
times faster than compression inside Arrow's stream.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.schema import REWARD, conform, schema_fingerprint

FORMAT_HEADER: Final = "headrace-format"
SCHEMA_HEADER: Final = "headrace-schema"
ARROW_FORMAT: Final = b"arrow-ipc/1"
EXAMPLE_FORMAT: Final = b"tf-example/1"
JSON_FORMAT: Final = b"json/1"
FORMATS: Final = {"arrow": ARROW_FORMAT, "example": EXAMPLE_FORMAT}
"""Of samples, by the names that a configuration has for them."""
EVENT_FORMATS: Final = {"json": JSON_FORMAT, "arrow": ARROW_FORMAT}
"""Of events, likewise: one JSON object, or an Arrow batch of many."""

Headers = Sequence[tuple[str, bytes]]


class RecordError(ValueError):
    """A record is not one that this version can read.

    Attributes:
        reason: A short identifier, to count by: `no-value`, `unknown-format`, `undecodable`,
            `not-finite`.
        detail: What was found and what was expected, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def encode(samples: pa.Table) -> tuple[bytes, Headers]:
    """Returns the value and the headers of a record that holds all the samples.

    Args:
        samples: One row per sample, of any columns.
    """
    batch = samples.combine_chunks().to_batches()
    rows = batch[0] if batch else pa.RecordBatch.from_pylist([], schema=samples.schema)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, samples.schema) as writer:
        writer.write_batch(rows)
    fingerprint = schema_fingerprint(samples.schema).encode()
    return sink.getvalue().to_pybytes(), [
        (FORMAT_HEADER, ARROW_FORMAT),
        (SCHEMA_HEADER, fingerprint),
    ]


def format_of(headers: Headers, *, default: bytes) -> bytes:
    """Returns a record's format: what its header says, or the default if it has none."""
    for name, value in headers:
        if name == FORMAT_HEADER:
            return value
    return default


def unknown_format(
    found: bytes, *, known_formats: Collection[bytes] = tuple(FORMATS.values())
) -> RecordError:
    """Returns the error for a format that is none of ours."""
    known = " or ".join(str(name) for name in known_formats)
    return RecordError(
        "unknown-format", f"header {FORMAT_HEADER}: found {found[:50]!r}; expected {known}"
    )


def decode(value: bytes | None, *, schema: pa.Schema, where: str) -> pa.Table:
    """Returns the samples of an Arrow record, with the columns of `schema`; others are dropped.

    The schema header is for those who route or inspect records without opening them; here the
    payload's own schema decides. The result shares the memory of `value`.

    Args:
        value: The record's value; None is what Kafka calls a tombstone.
        schema: The columns that are wanted, in the order they are wanted.
        where: Names the record in messages: topic, partition and offset.

    Raises:
        RecordError: If the bytes are not one whole Arrow batch, or a row is harmful.
        SchemaMismatchError: If a column is missing or has another type.
    """
    if value is None:
        raise RecordError("no-value", "found a record without a value; expected an Arrow batch")
    samples = conform(pa.Table.from_batches([only_batch(value)]), schema, where=where)
    for error in harmful_rows(samples).values():
        raise error
    return samples


def harmful_rows(samples: pa.Table) -> dict[int, RecordError]:
    """Returns the rows that would make the loss of their whole mini-batch NaN, and why.

    An infinite number does, and a reward that is none. NaN in another column is a missing value.
    """
    found: dict[int, RecordError] = {}
    schema = samples.schema
    for place, (name, kind) in enumerate(zip(schema.names, schema.types, strict=True)):
        listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
        if not pa.types.is_floating(kind.value_type if listed else kind):
            continue
        column = samples.column(place)
        values = pc.list_flatten(column) if listed else column
        # The sum of what is finite is finite: a double holds that of any number of float32.
        if math.isfinite(pc.sum(values).as_py() or 0.0):
            continue
        wrong = pc.invert(pc.is_finite(values)) if name == REWARD else pc.is_inf(values)
        places = pc.indices_nonzero(pc.fill_null(wrong, fill_value=False))
        rows = pc.list_parent_indices(column.combine_chunks()).take(places) if listed else places
        for row, value in zip(rows.to_pylist(), values.take(places).to_pylist(), strict=True):
            message = f"column {name!r}: found {value}; expected finite numbers"
            found.setdefault(row, RecordError("not-finite", message))
    return found


def only_batch(value: bytes) -> pa.RecordBatch:
    """Returns the one batch of an Arrow record, which shares the memory of `value`.

    Raises:
        RecordError: If the bytes are not one whole Arrow batch.
    """
    try:
        with pa.ipc.open_stream(pa.py_buffer(value)) as stream:
            # Damage in a name shows only when it is asked for.
            _ = [(field.name, str(field.type)) for field in stream.schema]
            batches = list(stream)
        for batch in batches:
            # Lengths and offsets that lie would crash the process later, far from here.
            batch.validate(full=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        cause = " ".join(str(error).split())
        raise RecordError(
            "undecodable", f"found {len(value)} bytes that are no Arrow IPC stream ({cause[:200]})"
        ) from error
    if len(batches) != 1:
        # A stream that is cut between two messages looks whole, only shorter.
        raise RecordError(
            "undecodable", f"found {len(batches)} batches in {len(value)} bytes; expected one"
        )
    return batches[0]
