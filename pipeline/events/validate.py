"""Rows to events: a row that breaks the event schema's rules becomes a reject with a reason."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Final

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from pipeline import schema as s
from pipeline.events.json_lines import Reject
from pipeline.events.read import RawBlock
from pipeline.specification import Specification

# Event times outside mean another unit (seconds, microseconds) or a clock that was never set.
EARLIEST_MS: Final = 631_152_000_000
"""1990-01-01T00:00:00Z"""
LATEST_MS: Final = 4_102_444_800_000
"""2100-01-01T00:00:00Z"""


@dataclasses.dataclass(frozen=True, slots=True)
class Check:
    """One rule. Rules apply in order; a row is rejected by the first that it breaks.

    Attributes:
        reason: Short identifier to count by.
        column: The column that the detail shows.
        expected: What the rule expects, for a person.
        broken: True where a row breaks the rule.
    """

    reason: str
    column: str
    expected: str
    broken: pl.Expr


def needed_types(specification: Specification) -> dict[str, str]:
    """Returns the event columns that samples are made of; the others are not read at all."""
    types = specification.event_types
    wanted = {*s.REQUIRED_EVENT_COLUMNS, *feature_columns(specification)}
    if (behaviour := specification.kinds.behaviour) is not None:
        wanted |= {*behaviour.properties}
        wanted |= {task.column for task in behaviour.tasks.values() if task.column is not None}
    if any(rule.play_share is not None for rule in specification.labels.values()):
        wanted |= {s.PLAY_SECONDS, s.DURATION_SECONDS}
    if specification.hard_negatives is not None:
        wanted.add(specification.hard_negatives)
    return {name: kind for name, kind in types.items() if name in wanted}


def feature_columns(specification: Specification) -> list[str]:
    """Returns the event columns that samples carry beside the required ones."""
    names = [f.name for f in (*specification.query_features, *specification.candidate_features)]
    names += specification.item_columns
    known = set(specification.event_types) - set(s.REQUIRED_EVENT_COLUMNS)
    return [name for name in dict.fromkeys(names) if name in known]


def required_columns(specification: Specification) -> list[str]:
    """Returns the columns that every log file must have: the fixed ones and those of features."""
    return [*s.REQUIRED_EVENT_COLUMNS, *feature_columns(specification)]


def checks(specification: Specification, *, outcomes_need_features: bool) -> list[Check]:
    """Returns the rules that a specification's events must keep.

    Args:
        specification: Says what scenarios, ids and features there are.
        outcomes_need_features: Whether an outcome must carry feature columns too, as it must when
            it may become its own impression.
    """
    found = [_not_null(name) for name in s.REQUIRED_EVENT_COLUMNS]
    found += [
        _one_of("unknown_action", s.ACTION, s.ACTIONS),
        _one_of("unknown_scenario", s.SCENARIO, specification.scenarios),
        *_time_checks(),
    ]
    types = needed_types(specification)
    for name in (s.USER_ID, s.ITEM_ID):
        padding = s.PADDING[types[name]]
        found.append(
            Check("reserved_id", name, "an id other than the padding", pl.col(name) == padding)
        )
    found += [
        Check("negative_number", name, "0 or more", pl.col(name) < 0)
        for name in (s.PLAY_SECONDS, s.DURATION_SECONDS)
        if name in types
    ]
    for name, kind in types.items():
        found += _value_checks(name, kind)
    shown = pl.lit(outcomes_need_features) | (pl.col(s.ACTION) == s.IMPRESSION)
    for name in feature_columns(specification):
        check = _not_null(name)
        found.append(dataclasses.replace(check, broken=shown & check.broken))
    sizes = {
        f.name: f.size for f in specification.query_features + specification.candidate_features
    }
    found += [
        Check("wrong_size", name, f"{size} numbers", pl.col(name).list.len() != size)
        for name, size in sizes.items()
        if size is not None
    ]
    return found


def _not_null(name: str) -> Check:
    return Check("missing_column_value", name, "a value", pl.col(name).is_null())


def _one_of(reason: str, name: str, known: Sequence[str]) -> Check:
    return Check(reason, name, f"one of {', '.join(known)}", ~pl.col(name).is_in(list(known)))


def _time_checks() -> list[Check]:
    time = pl.col(s.TIMESTAMP_MS)
    wrong_unit = "milliseconds since 1970, of a time from 1990 to 2099"
    return [
        Check("negative_timestamp", s.TIMESTAMP_MS, wrong_unit, time < 0),
        Check(
            "implausible_timestamp",
            s.TIMESTAMP_MS,
            wrong_unit,
            ~time.is_between(EARLIEST_MS, LATEST_MS, closed="left"),
        ),
    ]


def _value_checks(name: str, kind: str) -> list[Check]:
    column = pl.col(name)
    if kind == "float32":
        return [Check("non_finite_number", name, "a finite number", ~column.is_finite())]
    if not kind.startswith("list<"):
        return []
    item = pl.element()
    no_nulls = Check(
        "missing_column_value",
        name,
        "no null in the list",
        column.list.eval(item.is_null()).list.any(),
    )
    if kind == "list<float32>":
        broken = column.list.eval(~item.is_finite()).list.any()
        return [no_nulls, Check("non_finite_number", name, "finite numbers", broken)]
    broken = column.list.contains(s.PADDING[kind[5:-1]])
    return [no_nulls, Check("reserved_id", name, "ids other than the padding", broken)]


def validate(block: RawBlock, rules: Sequence[Check]) -> tuple[pa.Table, list[Reject]]:
    """Splits a block into events and rejects.

    Args:
        block: Rows in the types of the event schema.
        rules: What every row must keep, in order.

    Returns:
        The accepted rows, in order, and the rejects of this block, those that could not even be
        parsed included, by row.
    """
    frame = pl.DataFrame(pl.from_arrow(block.table))
    first_broken = pl.coalesce(
        [pl.when(rule.broken).then(pl.lit(i, pl.Int16)) for i, rule in enumerate(rules)]
    )
    verdicts = frame.select(first_broken.alias("broken"))["broken"]
    if verdicts.null_count() == len(verdicts):
        return block.table, sorted(block.malformed, key=lambda reject: reject.row)
    accepted = block.table.filter(verdicts.is_null().to_arrow())
    bad = verdicts.is_not_null().arg_true().to_list()
    rows = frame[bad].to_dicts()
    lines = None if block.lines is None else block.lines.split(b"\n")
    rejects = list(block.malformed)
    for position, row in zip(bad, rows, strict=True):
        rule, number = rules[verdicts[position]], block.rows[position]
        raw = lines[number] if lines else json.dumps(row, ensure_ascii=False).encode()
        found = repr(row[rule.column])[:80]
        detail = f"{rule.column}: found {found}; expected {rule.expected}"
        rejects.append(Reject(number, rule.reason, detail, raw))
    return accepted, sorted(rejects, key=lambda reject: reject.row)


def count_reasons(rejects: Iterable[Reject]) -> dict[str, int]:
    """Returns the number of rejects per reason."""
    reasons = pa.array([reject.reason for reject in rejects], pa.string())
    return {
        str(pair["values"]): int(pair["counts"]) for pair in pc.value_counts(reasons).to_pylist()
    }
