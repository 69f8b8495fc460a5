"""Kafka's records to samples: Arrow batches and single `tf.Example`s, in any mixture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pipeline.topics.example import ExampleDecoder
from pipeline.topics.record import (
    ARROW_FORMAT,
    EXAMPLE_FORMAT,
    RecordError,
    decode,
    format_of,
    unknown_format,
)
from streaming.source import Partition, Reject


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """Neighbouring records of one format.

    Attributes:
        form: Their format, as `pipeline.topics.record` has it.
        offsets: Offset of each.
        values: Value of each; None if it has none.
    """

    form: bytes
    offsets: list[int]
    values: list[bytes | None]


class Runs:
    """The records of a range, of which only offsets, values and the newest time are kept.

    The client's own records are objects that the garbage collector looks through again and again:
    to keep those of a range until its end made reading single Examples a third slower.

    Attributes:
        time_ms: The newest of the records' timestamps, None without records.
    """

    def __init__(self, *, default: bytes) -> None:
        """Begins with none; records without a header are of format `default`."""
        self._default = default
        self._runs: list[Run] = []
        self.time_ms: int | None = None

    def add(self, records: Sequence[Any]) -> None:
        """Adds records, as the client gives them."""
        if records:
            newest = max([record.timestamp for record in records])
            self.time_ms = newest if self.time_ms is None else max(self.time_ms, newest)
        run = self._runs[-1] if self._runs else Run(b"", [], [])
        for record in records:
            headers = record.headers
            form = format_of(headers, default=self._default) if headers else self._default
            if form != run.form:
                run = Run(form, [], [])
                self._runs.append(run)
            run.offsets.append(record.offset)
            run.values.append(record.value)

    def decode(self, decoder: RecordDecoder, partition: Partition) -> tuple[pa.Table, list[Reject]]:
        """Returns the samples of all records in their order, and those that hold none.

        Raises:
            SchemaMismatchError: If a record carries other columns than those of the schema.
        """
        tables: list[pa.Table] = [decoder.schema.empty_table()]
        rejects: list[Reject] = []
        for run in self._runs:
            samples, refused = decoder.decode(partition, run)
            tables += samples
            rejects += refused
        return pa.concat_tables(tables), rejects


class RecordDecoder:
    """Decodes runs of records. Use from one thread at a time.

    Attributes:
        schema: The columns of its samples.
    """

    def __init__(self, schema: pa.Schema) -> None:
        self.schema = schema
        self._examples = ExampleDecoder(schema)

    def decode(self, partition: Partition, run: Run) -> tuple[list[pa.Table], list[Reject]]:
        """Returns the samples of a run, and what holds none; Examples are decoded in one call."""

        def where(position: int) -> str:
            return f"{name_of(partition)} offset {run.offsets[position]}"

        if run.form == EXAMPLE_FORMAT:
            samples, errors = self._examples.decode(run.values, where=where)
            tables = [samples]
        else:
            tables, errors = [], {}
            for position, value in enumerate(run.values):
                try:
                    tables.append(self._one(value, run.form, where=where(position)))
                except RecordError as error:
                    errors[position] = error
        return tables, [
            Reject(run.offsets[position], error.reason, error.detail, run.values[position] or b"")
            for position, error in errors.items()
        ]

    def _one(self, value: bytes | None, form: bytes, *, where: str) -> pa.Table:
        if form != ARROW_FORMAT:
            raise unknown_format(form)
        return decode(value, schema=self.schema, where=where)


def name_of(partition: Partition) -> str:
    """Returns how messages name a partition."""
    return f"topic {partition.topic} partition {partition.number}"


def inside(records: Sequence[Any], start: int, end: int) -> Sequence[Any]:
    """Returns the records with `start <= offset < end`, of some in the order of their offsets."""
    if not records or (records[0].offset >= start and records[-1].offset < end):
        return records
    return [record for record in records if start <= record.offset < end]
