from __future__ import annotations

import json
import math

import pyarrow as pa
import pytest

from pipeline.events.read import RawBlock, conform
from pipeline.events.validate import (
    EARLIEST_MS,
    LATEST_MS,
    checks,
    count_reasons,
    needed_types,
    required_columns,
    validate,
)
from tests.pipeline.event_log import START, event, specification


def check_rows(*rows, spec=None, keep=False, lines=None):
    spec = spec or specification()
    names = dict.fromkeys(name for row in rows for name in row)
    table = pa.Table.from_pylist([dict.fromkeys(names) | row for row in rows])
    block = RawBlock(conform(table, needed_types(spec)), range(len(rows)), len(rows), lines=lines)
    return validate(block, checks(spec, outcomes_need_features=keep))


GOOD = event("good", 0, 1, 1)


@pytest.mark.parametrize(
    ("change", "reason", "detail"),
    [
        ({"event_id": None}, "missing_column_value", "event_id: found None"),
        ({"user_id": None}, "missing_column_value", "user_id: found None"),
        ({"timestamp_ms": None}, "missing_column_value", "timestamp_ms: found None"),
        ({"action": "tap"}, "unknown_action", "found 'tap'; expected one of impression, click"),
        ({"scenario": "home"}, "unknown_scenario", "found 'home'; expected one of feed, video"),
        ({"timestamp_ms": -1}, "negative_timestamp", "found -1"),
        ({"timestamp_ms": START // 1000}, "implausible_timestamp", "milliseconds since 1970"),
        ({"timestamp_ms": START * 1000}, "implausible_timestamp", "milliseconds since 1970"),
        ({"user_id": -1}, "reserved_id", "user_id: found -1"),
        ({"item_id": -1}, "reserved_id", "item_id: found -1"),
        ({"play_seconds": math.nan}, "non_finite_number", "play_seconds: found nan"),
        ({"duration_seconds": math.inf}, "non_finite_number", "duration_seconds: found inf"),
        ({"play_seconds": -2.0}, "negative_number", "play_seconds: found -2.0"),
    ],
)
def test_a_bad_row_is_rejected_with_reason_and_detail(change, reason, detail) -> None:
    accepted, rejects = check_rows(GOOD, GOOD | change, GOOD | {"event_id": "last"})
    assert accepted["event_id"].to_pylist() == ["good", "last"]
    assert [(reject.row, reject.reason) for reject in rejects] == [(1, reason)]
    assert detail in rejects[0].detail
    assert json.loads(rejects[0].raw + b"}" * (not rejects[0].raw.endswith(b"}")))


@pytest.mark.parametrize("time", [EARLIEST_MS, LATEST_MS - 1])
def test_the_first_and_the_last_plausible_time_are_accepted(time) -> None:
    accepted, rejects = check_rows(GOOD | {"timestamp_ms": time})
    assert (accepted.num_rows, rejects) == (1, [])


def test_an_empty_string_is_a_reserved_id_of_string_users() -> None:
    spec = specification(user_id="string")
    _, rejects = check_rows(event("a", 0, "", 1), event("b", 0, "-1", 1), spec=spec)
    assert [(r.row, r.reason) for r in rejects] == [(0, "reserved_id")]


def test_the_raw_bytes_of_json_lines_are_the_line_itself() -> None:
    bad = GOOD | {"action": "tap"}
    lines = b"first\nsecond {as it was}\n"
    _, rejects = check_rows(GOOD, bad, lines=lines)
    assert rejects[0].raw == b"second {as it was}"


def declared():
    features = specification().features.model_dump()
    features["candidate"] += [
        {"name": "embedding", "kind": "vector", "size": 2},
        {"name": "tags", "kind": "ids", "table": "t"},
    ]
    columns = {"embedding": "list<float32>", "tags": "list<string>", "unused": "string"}
    return specification(features=features, columns=columns)


def test_only_columns_that_samples_need_are_read() -> None:
    assert "unused" not in needed_types(declared())
    assert required_columns(declared())[-2:] == ["embedding", "tags"]
    assert "play_seconds" not in needed_types(specification(labels={}))


FEATURES = {"embedding": [0.0, 1.0], "tags": ["x"]}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"tags": None}, "missing_column_value"),
        ({"tags": ["x", None]}, "missing_column_value"),
        ({"tags": ["x", ""]}, "reserved_id"),
        ({"embedding": [0.0, math.nan]}, "non_finite_number"),
        ({"embedding": [0.0]}, "wrong_size"),
        ({"embedding": [0.0, None]}, "missing_column_value"),
    ],
)
def test_a_feature_of_an_impression_must_be_there_and_fit(change, reason) -> None:
    rows = (GOOD | FEATURES, GOOD | FEATURES | change)
    accepted, rejects = check_rows(*rows, spec=declared())
    assert accepted.num_rows == 1
    assert [r.reason for r in rejects] == [reason]


def test_an_outcome_needs_features_only_if_it_may_become_an_impression() -> None:
    click = event("c", 1, 1, 1, "click")
    assert check_rows(GOOD | FEATURES, click, spec=declared())[0].num_rows == 2
    _, rejects = check_rows(GOOD | FEATURES, click, spec=declared(), keep=True)
    assert [r.reason for r in rejects] == ["missing_column_value"]


def test_reasons_are_counted() -> None:
    bad = [GOOD | {"action": "x"}, GOOD | {"action": "y"}, GOOD | {"user_id": -1}]
    assert count_reasons(check_rows(*bad)[1]) == {"unknown_action": 2, "reserved_id": 1}
