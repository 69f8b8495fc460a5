"""Behaviour samples: one for each impression, with the user's behaviours before it (DUPN).

    event_id, timestamp_ms, user_id, item_id, scenario    the impression
    feature columns            those of `specification.features`, and what `properties` say of the
                               shown item, as of the impression
    behaviour_item_id, behaviour_action, behaviour_scenario, behaviour_time_bucket
                               the last `length` outcomes of the user, of any kind, joined or not,
                               strictly before the impression; oldest first, by (time, event_id)
    behaviour_PROPERTY         what that item was then; where nobody knows, -1, "" or NaN
    behaviour_PROPERTY_count   only of a property that is a list itself: its values stand behind
                               each other in behaviour_PROPERTY, so many for each behaviour
    label_TASK                 of an action 0 or 1 (int64); the largest grade (float32); or the item
                               column's value as of the impression, null without that outcome
    weight                     1; of a kept impression without any joined outcome 1 / `idle_share`

All lists of a sample but those with a count beside them have one length. Which impressions without
outcome are kept is decided by a hash of their event_id alone: the same in every run.

A hundred behaviours are some kilobytes, so samples are made, and written, in slices: a worker's
memory holds the part's events and one slice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema as s
from pipeline.days import MS_PER_DAY
from pipeline.declarations import BehaviourKind, Task
from pipeline.join.labels import IMPRESSION_ROW
from pipeline.kinds.part import UserPart
from pipeline.kinds.retrieval import STATISTICS, add_statistics, histories
from pipeline.known.history import Recent, find_recent
from pipeline.known.items import ItemDays
from pipeline.positions import IntArray
from pipeline.shuffle import hash_keys
from pipeline.specification import Specification

ACTION: Final = f"{s.BEHAVIOUR}action"
ITEM: Final = f"{s.BEHAVIOUR}item_id"
SCENARIO: Final = f"{s.BEHAVIOUR}scenario"
TIME_BUCKET: Final = f"{s.BEHAVIOUR}time_bucket"
_COUNT: Final = "_count"

SLICE_VALUES: Final = 1 << 20
"""Behaviours of a slice, at most: with five lists, some 50 MB of memory."""
MAX_SLICE_ROWS: Final = 65_536

_HAS: Final = "_has_outcome"


def schema(specification: Specification) -> pa.Schema:
    """Identity, features and properties of what is shown, behaviours, labels, weight."""
    types, kind = specification.column_types, _kind(specification)
    columns = {name: types[name] for name in _shown(specification)}
    columns |= {
        ITEM: f"list<{types[s.ITEM_ID]}>",
        ACTION: "list<string>",
        SCENARIO: "list<string>",
        TIME_BUCKET: "list<int64>",
    }
    for name in kind.properties:
        is_list = types[name].startswith("list<")
        columns[f"{s.BEHAVIOUR}{name}"] = types[name] if is_list else f"list<{types[name]}>"
        if is_list:
            columns[f"{s.BEHAVIOUR}{name}{_COUNT}"] = "list<int64>"
    for name, task in kind.tasks.items():
        columns[f"{s.LABEL_OF}{name}"] = _label_type(task, types)
    return s.arrow_schema(columns | {s.WEIGHT: "float32"})


def _kind(specification: Specification) -> BehaviourKind:
    kind = specification.kinds.behaviour
    if kind is None:
        raise ValueError("the specification declares no behaviour samples")
    return kind


def _shown(specification: Specification) -> list[str]:
    """Returns columns of what is shown: identity, features, properties."""
    features = [*specification.query_features, *specification.candidate_features]
    names = [s.EVENT_ID, s.TIMESTAMP_MS, s.USER_ID, s.ITEM_ID, s.SCENARIO]
    names += [f.name for f in features if f.name != s.EXPOSED_ITEM_ID]
    return list(dict.fromkeys([*names, *_kind(specification).properties]))


def _label_type(task: Task, types: dict[str, str]) -> str:
    if task.column is not None:
        return types[task.column]
    return "int64" if task.action is not None else "float32"


def needs_items(specification: Specification) -> bool:
    """Says whether a sample has statistics of its item."""
    return bool(set(STATISTICS) & set(_shown(specification)))


def make(part: UserPart) -> Iterator[pa.Table]:
    """Yields the samples of the span's days, by (timestamp_ms, event_id), without statistics.

    A slice is of one day, and where it begins depends on that day's samples alone.
    """
    shown, wanted = _chosen(part), schema(part.specification)
    log = _Log(part, shown)
    plain = pa.schema([field for field in wanted if field.name in shown.columns])
    rows = min(MAX_SLICE_ROWS, max(1, SLICE_VALUES // _kind(part.specification).length))
    for first, last in _cut(shown[s.TIMESTAMP_MS].to_numpy() // MS_PER_DAY, rows):
        table = shown[first:last].select(plain.names).to_arrow().cast(plain)
        for name, column in log.lists(first, last).items():
            table = table.append_column(name, column)
        yield table.select([name for name in wanted.names if name in table.column_names])


def _chosen(part: UserPart) -> pl.DataFrame:
    """Returns the impressions to make samples of, with their labels and weights."""
    kind = _kind(part.specification)
    rows = part.in_span(part.impressions.with_row_index(IMPRESSION_ROW))
    rows = rows.join(_taken(part, kind), on=IMPRESSION_ROW, how="left")
    has = pl.col(_HAS).fill_null(False)  # noqa: FBT003 - polars takes it by position only
    if kind.idle_share < 1:
        # Not the hash of the id itself: where users are named as events are, it cuts the parts.
        ids = rows.select(pl.format("idle:{}", s.EVENT_ID)).to_series()
        is_kept = hash_keys(ids.to_arrow()) < np.uint64(kind.idle_share * 2.0**64)
        rows = rows.filter(has | pl.Series(is_kept))
    weight = pl.when(has).then(1.0).otherwise(1.0 / kind.idle_share).cast(pl.Float32)
    labels = [_label(name, task) for name, task in kind.tasks.items()]
    # An event_id is unique with its user only.
    return rows.with_columns(*labels, weight.alias(s.WEIGHT)).sort(
        s.TIMESTAMP_MS, s.EVENT_ID, s.USER_ID
    )


def _taken(part: UserPart, kind: BehaviourKind) -> pl.DataFrame:
    """Returns what came of each impression that has an outcome."""
    action, tasks = pl.col(s.ACTION), []
    for name, task in kind.tasks.items():
        if task.grades is not None:
            grade = action.replace_strict(task.grades, default=0.0, return_dtype=pl.Float32)
            tasks.append(grade.max().alias(f"{s.LABEL_OF}{name}"))
        else:
            came = (action == (task.action or task.of)).any()
            tasks.append(came.alias(f"{s.LABEL_OF}{name}"))
    return part.outcomes.group_by(IMPRESSION_ROW).agg(*tasks, pl.lit(value=True).alias(_HAS))


def _label(name: str, task: Task) -> pl.Expr:
    found = pl.col(f"{s.LABEL_OF}{name}")
    if task.column is not None:
        return pl.when(found).then(pl.col(task.column)).alias(f"{s.LABEL_OF}{name}")
    return found.cast(pl.Int64 if task.action else pl.Float32).fill_null(0)


def _cut(days: IntArray, rows: int) -> Iterator[tuple[int, int]]:
    """Yields (first, last) of at most so many rows of one day each."""
    starts = np.flatnonzero(np.diff(days, prepend=-1))
    ends = np.append(starts, len(days))[1:]
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        for first in range(start, end, rows):
            yield first, min(first + rows, end)


class _Log:
    """The users' behaviours, in the order of time, and which of them each sample sees."""

    def __init__(self, part: UserPart, shown: pl.DataFrame) -> None:
        kind, known = _kind(part.specification), part.known_behaviours
        self._borders = np.array([round(b * 1000) for b in kind.time_buckets_seconds], np.int64)
        self._shown_ms = shown[s.TIMESTAMP_MS].to_numpy()
        self._times = known[s.TIMESTAMP_MS].to_numpy()
        self._recent = find_recent(
            (known[s.USER_ID].to_arrow(), self._times),
            (shown[s.USER_ID].to_arrow(), self._shown_ms),
            length=kind.length,
            since=part.facts.since(self._shown_ms),
        )
        types = part.specification.column_types
        self._columns = {name: _column(known[name], types[name]) for name in kind.properties}
        for name in (s.ITEM_ID, s.ACTION, s.SCENARIO):
            self._columns[name] = _column(known[name], types[name])
        self._positives = None
        if s.HISTORY_ITEM_ID in _shown(part.specification):
            self._positives = histories(
                shown,
                part.known_positives,
                part.specification,
                since=part.facts.since(self._shown_ms),
            )

    def lists(self, first: int, last: int) -> dict[str, pa.Array]:
        """Returns the lists of the samples from `first` to `last`, exclusive."""
        recent = self._recent.slice(first, last)
        rows = recent.rows
        age = np.repeat(self._shown_ms[first:last], recent.ends - recent.starts)
        buckets = np.searchsorted(self._borders, age - self._times[rows], side="right")
        lists = {TIME_BUCKET: _listed(recent.offsets, pa.array(buckets, pa.int64()))}
        for name, column in self._columns.items():
            lists |= _gathered(f"{s.BEHAVIOUR}{name}", column.take(pa.array(rows)), recent)
        if self._positives is not None:
            lists[s.HISTORY_ITEM_ID] = self._positives.slice(first, last - first)
        return lists


def _column(values: pl.Series, kind: str) -> pa.Array:
    """Returns a column as Arrow has it, strings by number; without nulls, if it has no lists."""
    column = values.to_arrow().cast(s.ARROW_TYPES[kind])
    if kind.startswith("list<"):
        return column
    column = pc.fill_null(column, s.PADDING.get(kind, float("nan")))
    return column.dictionary_encode() if kind == "string" else column


def _gathered(name: str, values: pa.Array, recent: Recent) -> dict[str, pa.Array]:
    """Returns the list column, or the two, of one property of behaviours."""
    offsets = recent.offsets
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if not pa.types.is_list(values.type):
        return {name: _listed(offsets, values)}
    counts = pc.fill_null(pc.list_value_length(values), 0).cast(pa.int64())
    ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(counts.to_numpy())])
    return {
        name: _listed(ends[offsets], values.flatten()),
        f"{name}{_COUNT}": _listed(offsets, counts),
    }


def _listed(offsets: IntArray, values: pa.Array) -> pa.ListArray:
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def with_items(samples: pa.Table, specification: Specification, items: ItemDays) -> pa.Table:
    """Adds the counts of each sample's item in the days before; 0 for an item not seen yet."""
    return add_statistics(samples, items).select(schema(specification).names)
