"""Kafka records to events: single JSON objects and Arrow batches of many, in any mixture.

What is wrong with a record, or with a row of one, is a reject; nothing raises, nothing is lost.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipeline import schema as s
from pipeline.events.json_lines import parse_json_lines
from pipeline.events.read import RawBlock, conform, is_accepted
from pipeline.events.validate import checks, needed_types, required_columns, validate
from pipeline.specification import Specification
from pipeline.topics.record import (
    ARROW_FORMAT,
    EVENT_FORMATS,
    JSON_FORMAT,
    RecordError,
    only_batch,
    unknown_format,
)

IntArray = npt.NDArray[np.int64]

_NOTHING: Final = b"{}"  # stands for a record that was refused already, so that rows are records


@dataclasses.dataclass(frozen=True, slots=True)
class BadEvent:
    """A record, or a row of one, that is no event.

    Attributes:
        record: Position of its record among those that were decoded.
        reason: Short identifier to count by.
        detail: What was found and what was expected, for a person.
        payload: The row as JSON; None if it is the whole record.
    """

    record: int
    reason: str
    detail: str
    payload: bytes | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class DecodedEvents:
    """What some records hold.

    Attributes:
        events: [num_events] events that keep every rule, in the order of the records.
        record_of: [num_events] position of each event's record; never falls.
        rejects: All else, in no order.
    """

    events: pa.Table
    record_of: IntArray
    rejects: list[BadEvent]


class EventDecoder:
    """Decodes and validates records, many at a time.

    Attributes:
        schema: The columns of its events.
    """

    def __init__(self, specification: Specification, *, outcomes_need_features: bool) -> None:
        """Prepares the rules.

        Args:
            specification: What events are.
            outcomes_need_features: See `pipeline.events.validate.checks`.
        """
        self._types = needed_types(specification)
        self._required = required_columns(specification)
        self._rules = checks(specification, outcomes_need_features=outcomes_need_features)
        self.schema = s.arrow_schema(self._types)

    def decode(self, values: Sequence[bytes | None], forms: Sequence[bytes]) -> DecodedEvents:
        """Returns the events of records, and what is none.

        Args:
            values: Value of each record; None is what Kafka calls a tombstone.
            forms: Format of each, as `pipeline.topics.record` has them.
        """
        tables, records = [self.schema.empty_table()], [np.empty(0, np.int64)]
        rejects: list[BadEvent] = []
        start = 0
        for form, run in itertools.groupby(forms):
            end = start + sum(1 for _ in run)
            if form == JSON_FORMAT:
                table, rows, bad = self._json(values[start:end])
            elif form == ARROW_FORMAT:
                table, rows, bad = self._arrow(values[start:end])
            else:
                error = unknown_format(form, known_formats=tuple(EVENT_FORMATS.values()))
                bad = [BadEvent(i, error.reason, error.detail) for i in range(end - start)]
                table, rows = tables[0], records[0]
            tables.append(table)
            records.append(rows + start)
            rejects += [dataclasses.replace(each, record=each.record + start) for each in bad]
            start = end
        return DecodedEvents(pa.concat_tables(tables), np.concatenate(records), rejects)

    def _json(self, values: Sequence[bytes | None]) -> tuple[pa.Table, IntArray, list[BadEvent]]:
        """Parses records of one object each, together; row i is record i."""
        lines: list[bytes] = []
        bad: list[BadEvent] = []
        for record, value in enumerate(values):
            # One whole object without a line break, whatever stands beside it, stays one row.
            if value and value[0] == _OPEN and value[-1] == _CLOSE and b"\n" not in value:
                lines.append(value)
                continue
            try:
                lines.append(_one_line(value))
            except RecordError as error:
                bad.append(BadEvent(record, error.reason, error.detail))
                lines.append(_NOTHING)
        table, rows, malformed, num_lines = parse_json_lines(b"\n".join(lines), self._types)
        refused = {each.record for each in bad}
        accepted, rejects = validate(RawBlock(table, rows, num_lines, malformed), self._rules)
        bad += [
            BadEvent(each.row, each.reason, each.detail)
            for each in rejects
            if each.row not in refused
        ]
        return accepted, _without(rows, [each.row for each in rejects]), bad

    def _arrow(self, values: Sequence[bytes | None]) -> tuple[pa.Table, IntArray, list[BadEvent]]:
        """Opens records of many events each, and validates their rows together."""
        tables: list[pa.Table] = [self.schema.empty_table()]
        counts = np.zeros(len(values), np.int64)
        bad: list[BadEvent] = []
        for record, value in enumerate(values):
            try:
                table = self._open(value)
            except RecordError as error:
                bad.append(BadEvent(record, error.reason, error.detail))
                continue
            tables.append(table)
            counts[record] = table.num_rows
        table = pa.concat_tables(tables)
        record_of = np.repeat(np.arange(len(values)), counts)
        block = RawBlock(table, range(table.num_rows), table.num_rows)
        accepted, rejects = validate(block, self._rules)
        for each in rejects:
            payload = as_json(table.slice(each.row, 1))
            bad.append(BadEvent(int(record_of[each.row]), each.reason, each.detail, payload))
        kept = _without(block.rows, [each.row for each in rejects])
        return accepted, record_of[kept], bad

    def _open(self, value: bytes | None) -> pa.Table:
        if value is None:
            raise RecordError("no-value", "found a record without a value; expected an Arrow batch")
        table = pa.Table.from_batches([only_batch(value)])
        names = table.column_names
        missing = [name for name in self._required if names.count(name) != 1]
        if missing:
            raise RecordError(
                "wrong-columns",
                f"{', '.join(missing)}: found columns {', '.join(names)[:200]}; expected each of"
                f" {', '.join(self._required)} once",
            )
        for name, kind in self._types.items():
            if name in names and not is_accepted(table.schema.field(name).type, kind, column=name):
                raise RecordError(
                    "wrong-columns",
                    f"{name}: found type {table.schema.field(name).type}; expected {kind}",
                )
        try:
            return conform(table, self._types)
        except (pa.ArrowException, KeyError, ValueError) as error:
            cause = " ".join(str(error).split())[:200]
            raise RecordError("wrong-columns", f"found values that do not fit: {cause}") from error


_OPEN, _CLOSE = b"{"[0], b"}"[0]


def as_json(row: pa.Table) -> bytes:
    """Returns a table's one row as a JSON object."""
    return json.dumps(row.to_pylist()[0], ensure_ascii=False, default=str).encode()


def _one_line(value: bytes | None) -> bytes:
    """Returns an object that is written over several lines, or between blanks, on one line."""
    if value is None:
        raise RecordError("no-value", "found a record without a value; expected a JSON object")
    try:
        content: Any = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise RecordError("not_json", f"found {error}; expected one JSON object") from error
    if not isinstance(content, dict):
        raise RecordError("not_json", f"found a {type(content).__name__}; expected one JSON object")
    return json.dumps(content).encode()


def _without(rows: Sequence[int], rejected: Sequence[int]) -> IntArray:
    """Returns the rows that were not rejected."""
    kept = np.asarray(rows, np.int64)
    return kept[~np.isin(kept, rejected)] if rejected else kept
