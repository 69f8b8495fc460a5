"""How often an item was shown and taken before an event: the one thing that needs every user.

Users' parts send each item's times, and the times at which they want to know, to the item's part,
and get counts back. Only ids and numbers travel, and only if the specification asks for them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Final

import apache_beam as beam
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from apache_beam.pvalue import PCollection

from pipeline import schema as s
from pipeline.history import count_before
from pipeline.retrieval import UserPart
from pipeline.shuffle import CutByKey, Origin, Piece, join_pieces, pack, unpack

STATISTICS: Final = (s.ITEM_IMPRESSIONS, s.ITEM_POSITIVES)

_SHOWN, _TAKEN, _ASKED = 0, 1, 2
_KIND, _PART, _ROW = "kind", "part", "row"


def list_item_times(part: int, made: UserPart) -> pa.Table:
    """Returns what one part of the users tells and asks the items.

    Returns:
        Columns item_id, timestamp_ms, kind (shown, taken, asked), and the part and row of the
        sample that asks.
    """
    asked = made.samples.select([s.ITEM_ID, s.TIMESTAMP_MS])
    tables = []
    for kind, table in ((_SHOWN, made.impressions), (_TAKEN, made.positives), (_ASKED, asked)):
        num_rows = table.num_rows
        columns = {
            _KIND: pa.array(np.full(num_rows, kind, np.int8)),
            _PART: pa.array(np.full(num_rows, part, np.int32)),
            _ROW: pa.array(np.arange(num_rows, dtype=np.int64)),
        }
        for name, column in columns.items():
            table = table.append_column(name, column)
        tables.append(table)
    return pa.concat_tables(tables)


def count_items(times: pa.Table) -> Iterator[tuple[int, pa.Table]]:
    """Answers what was asked about one part of the items.

    Args:
        times: Rows of `list_item_times`, all of them for the items that it has.

    Yields:
        (part, table of row, item_impressions, item_positives) for each part that asked.
    """
    shown, taken, asked = (
        times.filter(pc.equal(times[_KIND], kind)) for kind in (_SHOWN, _TAKEN, _ASKED)
    )
    queries = (asked[s.ITEM_ID], asked[s.TIMESTAMP_MS].to_numpy())
    answers = asked.select([_PART, _ROW])
    for name, log in ((s.ITEM_IMPRESSIONS, shown), (s.ITEM_POSITIVES, taken)):
        counts = count_before((log[s.ITEM_ID], log[s.TIMESTAMP_MS].to_numpy()), queries)
        answers = answers.append_column(name, pa.array(counts))
    for part in pc.unique(answers[_PART]).to_pylist():
        yield part, answers.filter(pc.equal(answers[_PART], part)).drop_columns([_PART])


def attach_counts(samples: pa.Table, answers: Iterable[pa.Table], schema: pa.Schema) -> pa.Table:
    """Returns the samples of a part with their counts, in the columns and order of `schema`.

    Args:
        samples: [num_samples] rows without statistics.
        answers: Tables of `count_items` that hold each row of `samples` once.
        schema: The sample schema.
    """
    answered = pa.concat_tables(list(answers)).sort_by(_ROW)
    for name in STATISTICS:
        if name in schema.names:
            samples = samples.append_column(name, answered[name])
    return samples.select(schema.names)


@dataclasses.dataclass(kw_only=True)
class AttachItemStatistics(beam.PTransform):
    """(part, UserPart) elements to (part, samples with item statistics)."""

    schema: pa.Schema
    num_parts: int

    def expand(self, parts: PCollection) -> PCollection:
        answers = (
            parts
            | "ListItemTimes" >> beam.MapTuple(_list_with_origin)
            | "ByItem" >> CutByKey(column=s.ITEM_ID, num_parts=self.num_parts)
            | "CountItems" >> beam.FlatMapTuple(_count_pieces)
        )
        samples = parts | "Samples" >> beam.FlatMapTuple(_pack_samples)
        return (
            {"samples": samples, "answers": answers}
            | "ByPart" >> beam.CoGroupByKey()
            | "AttachCounts" >> beam.FlatMapTuple(self._attach)
        )

    def _attach(self, part: int, groups: dict[str, Any]) -> Iterator[tuple[int, pa.Table]]:
        for samples in groups["samples"]:
            answers = [unpack(data) for data in groups["answers"]]
            yield part, attach_counts(unpack(samples), answers, self.schema)


def _list_with_origin(part: int, made: UserPart) -> tuple[Origin, pa.Table]:
    return (part,), list_item_times(part, made)


def _count_pieces(_: int, pieces: Iterable[Piece]) -> Iterator[tuple[int, bytes]]:
    for part, answers in count_items(join_pieces(pieces)):
        yield part, pack(answers)


def _pack_samples(part: int, made: UserPart) -> Iterator[tuple[int, bytes]]:
    if made.samples.num_rows:  # a part without samples has asked nothing
        yield part, pack(made.samples)
