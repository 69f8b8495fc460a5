"""The other stream record: a single `tf.Example`, one sample. Many are decoded at once.

What an Example says about a column of the sample schema:

- A value of another type, or several values in a column of single ones: a schema that changed.
- No such feature: no value, that is a null, or an empty list. An Example carries no schema, so a
  column that was removed or renamed shows only where none of many Examples has it.
- A feature whose list is empty: no value, said on purpose.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tensorflow_metadata.proto.v0 import schema_pb2
from tfx_bsl.coders.example_coder import ExamplesToRecordBatchDecoder, RecordBatchToExamplesEncoder

from pipeline.schema import SchemaMismatchError, type_name
from pipeline.topics.record import (
    EXAMPLE_FORMAT,
    FORMAT_HEADER,
    Headers,
    RecordError,
    harmful_rows,
)

HEADERS: Final[Headers] = [(FORMAT_HEADER, EXAMPLE_FORMAT)]
"""What each record of an Example carries."""

_JUDGED_EXAMPLES: Final = 100
_WRONG_TYPE: Final = re.compile(r'expected (\w+), found (\w+) for feature "(.*)"')
_FEATURE_TYPES: Final = {
    "int64": schema_pb2.INT,
    "float": schema_pb2.FLOAT,
    "string": schema_pb2.BYTES,
}
_WIRE_TYPES: Final = {
    "int64": pa.large_list(pa.int64()),
    "float": pa.large_list(pa.float32()),
    "string": pa.large_list(pa.large_binary()),
}


class _WrongColumnError(Exception):
    """An Example's feature has another type than the column; the message names both."""


class ExampleDecoder:
    """Decodes serialized Examples to samples. Use from one thread at a time."""

    def __init__(self, schema: pa.Schema) -> None:
        """Prepares for the columns of `schema`; an Example's other features are not looked at."""
        self._schema = schema
        wanted = schema_pb2.Schema()
        for field in schema:
            wanted.feature.add(name=field.name, type=_FEATURE_TYPES[_element(field.type)])
        self._wanted = wanted.SerializeToString()
        self._decoder = ExamplesToRecordBatchDecoder(self._wanted)

    def decode(
        self, values: Sequence[bytes | None], *, where: Callable[[int], str]
    ) -> tuple[pa.Table, dict[int, RecordError]]:
        """Returns the samples of all Examples that can be decoded, and why the others cannot.

        Args:
            values: One Example each; None is what Kafka calls a tombstone.
            where: Names the record at a position of `values`, for messages.

        Returns:
            One row for each good value, in their order, and the error at each bad position.

        Raises:
            SchemaMismatchError: If a feature has another type than its column, or a column is in
                none of a hundred or more Examples.
        """
        tables, errors = [self._schema.empty_table()], {}
        absent = dict.fromkeys(self._schema.names, 0)
        for start, part in self._parts(list(values), 0):
            if isinstance(part, RecordError):
                errors[start] = part
            elif isinstance(part, _WrongColumnError):
                raise SchemaMismatchError(f"{where(start)}: {part}") from part
            else:
                table, nulls = part
                tables.append(table)
                for name, count in nulls.items():
                    absent[name] += count
        samples = pa.concat_tables(tables)
        removed = [name for name, count in absent.items() if count == samples.num_rows]
        if removed and samples.num_rows >= _JUDGED_EXAMPLES:
            place = f"{where(0)} to {where(len(values) - 1)}"
            raise SchemaMismatchError("\n".join(_removed(place, self._schema, removed)))
        if harmful := harmful_rows(samples):
            places = [place for place in range(len(values)) if place not in errors]
            errors |= {places[row]: error for row, error in harmful.items()}
            rows = [row for row in range(samples.num_rows) if row not in harmful]
            samples = samples.take(pa.array(rows, pa.int64()))
        return samples, errors

    def _parts(
        self, values: list[bytes | None], start: int
    ) -> Iterator[tuple[int, RecordError | _WrongColumnError | tuple[pa.Table, dict[str, int]]]]:
        """Yields (position of the first, rows or error), halving what holds a bad one."""
        if not values:
            return
        try:
            yield start, self._table(values)
        except (RecordError, _WrongColumnError) as error:
            if len(values) == 1:
                yield start, error
                return
            half = len(values) // 2
            yield from self._parts(values[:half], start)
            yield from self._parts(values[half:], start + half)

    def _table(self, values: list[bytes | None]) -> tuple[pa.Table, dict[str, int]]:
        try:
            batch = self._decoder.DecodeBatch(values)
        except (TypeError, RuntimeError) as error:
            # After a failure a decoder gives rows of that batch again with the next one.
            self._decoder = ExamplesToRecordBatchDecoder(self._wanted)
            raise self._explained(error, values[0]) from error
        columns = [
            _column(found, field) for found, field in zip(batch.columns, self._schema, strict=True)
        ]
        nulls = dict(zip(batch.schema.names, (c.null_count for c in batch.columns), strict=True))
        return pa.table(columns, schema=self._schema), nulls

    def _explained(self, error: Exception, value: bytes | None) -> RecordError | _WrongColumnError:
        """Returns what was wrong with an Example that stood alone, in words of ours."""
        if value is None:
            return RecordError("no-value", "found a record without a value; expected a tf.Example")
        match = _WRONG_TYPE.search(str(error))
        if match is None:
            message = f"found {len(value)} bytes that are no tf.Example ({error})"
            return RecordError("undecodable", message)
        expected, found, name = match.groups()
        return _WrongColumnError(
            f"column {name!r}: found a {found}; expected a {expected}, for"
            f" {type_name(self._schema.field(name).type)}"
        )


def encode_examples(samples: pa.Table) -> list[bytes]:
    """Returns one serialized Example per sample; nulls are left out."""
    columns = {}
    for field in samples.schema:
        found = samples.column(field.name).combine_chunks()
        if not _is_list(field.type):
            valid = found.is_valid()
            lengths = np.concatenate([[0], np.cumsum(valid.to_numpy(zero_copy_only=False))])
            found = pa.LargeListArray.from_arrays(
                pa.array(lengths, pa.int64()), found.drop_null(), mask=pc.invert(valid)
            )
        columns[field.name] = found.cast(_WIRE_TYPES[_element(field.type)])
    batch = pa.RecordBatch.from_pydict(columns)
    return list(RecordBatchToExamplesEncoder().encode(batch))


def _column(found: pa.LargeListArray, field: pa.Field) -> pa.Array:
    """Turns what was decoded into the type of its column."""
    try:
        if _is_list(field.type):
            return found.cast(field.type)
        lengths = pc.fill_null(pc.list_value_length(found), 0).to_numpy()
        flat = found.flatten()
        if not (lengths == 1).all():
            if (several := lengths.max()) > 1:
                raise _WrongColumnError(
                    f"column {field.name!r}: found {several} values;"
                    f" expected one {type_name(field.type)}"
                )
            places = np.cumsum(lengths) - lengths
            flat = flat.take(pa.array(places, mask=lengths == 0))
        return flat.cast(field.type)
    except pa.ArrowInvalid as error:  # bytes that are no UTF-8
        message = f"column {field.name!r}: found bytes that are no {type_name(field.type)}"
        raise RecordError("undecodable", f"{message} ({error})") from error


def _removed(where: str, schema: pa.Schema, names: Sequence[str]) -> Iterator[str]:
    for name in names:
        yield (
            f"{where}: column {name!r}: found in none of the tf.Examples; expected"
            f" {type_name(schema.field(name).type)} (where there is no value, write the feature"
            " with an empty list)"
        )


def _is_list(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType)


def _element(kind: pa.DataType) -> str:
    return type_name(kind.value_type if _is_list(kind) else kind)
