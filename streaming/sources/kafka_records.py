"""Kafka's records to samples: Arrow batches and single `tf.Example`s, in any mixture."""

from __future__ import annotations

import itertools
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


class RecordDecoder:
    """Decodes what a partition gave. Neighbouring Examples are decoded in one call."""

    def __init__(self, schema: pa.Schema, *, default: bytes) -> None:
        """Prepares for the columns of `schema`; records without a header are `default`."""
        self._schema = schema
        self._default = default
        self._examples = ExampleDecoder(schema)

    def decode(self, partition: Partition, records: Sequence[Any]) -> tuple[pa.Table, list[Reject]]:
        """Returns the samples of all records in their order, and those that hold none.

        Raises:
            SchemaMismatchError: If a record carries other columns than those of the schema.
        """
        tables: list[pa.Table] = [self._schema.empty_table()]
        rejects: list[Reject] = []
        for form, run in itertools.groupby(records, key=self._format):
            if form == EXAMPLE_FORMAT:
                self._decode_examples(partition, list(run), tables, rejects)
                continue
            for record in run:
                try:
                    tables.append(self._decode_one(partition, record, form))
                except RecordError as error:
                    rejects.append(_reject(record, error))
        return pa.concat_tables(tables), rejects

    def _decode_examples(
        self,
        partition: Partition,
        records: Sequence[Any],
        tables: list[pa.Table],
        rejects: list[Reject],
    ) -> None:
        samples, errors = self._examples.decode(
            [record.value for record in records],
            where=lambda position: _name(partition, records[position]),
        )
        tables.append(samples)
        rejects += [_reject(records[position], error) for position, error in errors.items()]

    def _decode_one(self, partition: Partition, record: Any, form: bytes) -> pa.Table:
        if form != ARROW_FORMAT:
            raise unknown_format(form)
        return decode(record.value, schema=self._schema, where=_name(partition, record))

    def _format(self, record: Any) -> bytes:
        headers = record.headers
        return format_of(headers, default=self._default) if headers else self._default


def name_of(partition: Partition) -> str:
    """Returns how messages name a partition."""
    return f"topic {partition.topic} partition {partition.number}"


def _name(partition: Partition, record: Any) -> str:
    return f"{name_of(partition)} offset {record.offset}"


def _reject(record: Any, error: RecordError) -> Reject:
    return Reject(record.offset, error.reason, error.detail, record.value or b"")
