from __future__ import annotations

import json

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.events.records import EventDecoder
from pipeline.topics.record import ARROW_FORMAT, JSON_FORMAT, encode
from tests.pipeline.event_log import event, specification

DECODER = EventDecoder(specification(), outcomes_need_features=False)


def as_json(name: str, **options) -> bytes:
    return json.dumps(event(name, 0, 1, 1), **options).encode()


def as_arrow(*rows) -> bytes:
    return encode(pa.Table.from_pylist([*rows], DECODER.schema))[0]


def test_records_of_both_forms_give_events_in_their_order() -> None:
    rows = [event(name, 0, 1, 1) for name in "bcd"]
    values = [as_json("a"), as_arrow(rows[0], rows[1]), as_arrow(), as_arrow(rows[2]), as_json("e")]
    forms = [JSON_FORMAT, ARROW_FORMAT, ARROW_FORMAT, ARROW_FORMAT, JSON_FORMAT]
    found = DECODER.decode(values, forms)
    assert found.events["event_id"].to_pylist() == [*"abcde"]
    assert found.record_of.tolist() == [0, 1, 1, 3, 4]
    assert found.events.schema.equals(DECODER.schema)
    assert found.rejects == []


def test_no_records_are_no_events() -> None:
    found = DECODER.decode([], [])
    assert (found.events.num_rows, found.record_of.tolist(), found.rejects) == (0, [], [])


GOOD = [
    lambda name: as_json(name),
    lambda name: as_json(name, indent=2),
    lambda name: b" \r\n" + as_json(name) + b"\n",
    lambda name: as_json(name).replace(b'", "', b'",\n"'),
]
BAD = [
    None,
    b"",
    b"\n",
    b"null",
    b"{}",
    b'{"event_id": "x\ny"}',
    b'{"a": {"x": 1}',
    b', "b": 1}',
    b'{"a": 1}{"b": 2}',
    b'{"a": 1}\n{"b": 2}',
    b"}{",
    b"{" + b"}" * 3,
    b"\xff{}",
    b'{"timestamp_ms": 99999999999999999999999}',
    as_json("x").replace(b"impression", b"nothing"),
    as_json("x") + as_json("y"),
]


@given(st.lists(st.one_of(st.sampled_from(GOOD), st.sampled_from(BAD)), max_size=100))
def test_every_record_is_one_event_or_one_reject(kinds) -> None:
    values = [kind(str(n)) if callable(kind) else kind for n, kind in enumerate(kinds)]
    found = DECODER.decode(values, [JSON_FORMAT] * len(values))
    good = [number for number, kind in enumerate(kinds) if callable(kind)]
    assert found.record_of.tolist() == good
    assert found.events["event_id"].to_pylist() == [str(number) for number in good]
    bad = [number for number, kind in enumerate(kinds) if not callable(kind)]
    assert sorted(reject.record for reject in found.rejects) == bad


def test_a_bad_row_of_a_batch_is_a_reject_of_its_own() -> None:
    rows = [event("a", 0, 1, 1), event("b", 0, 1, 1, "stared"), event("c", 0, 1, 1)]
    found = DECODER.decode([as_arrow(rows[0]), as_arrow(*rows)], [ARROW_FORMAT] * 2)
    assert found.events["event_id"].to_pylist() == ["a", "a", "c"]
    assert found.record_of.tolist() == [0, 1, 1]
    (reject,) = found.rejects
    assert (reject.record, reject.reason) == (1, "unknown_action")
    assert "found 'stared'; expected one of impression" in reject.detail
    assert json.loads(reject.payload)["event_id"] == "b"


WHOLE = as_arrow(event("a", 0, 1, 1))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no-value"),
        (b"", "undecodable"),
        (WHOLE[:-40], "undecodable"),
        (as_json("a"), "undecodable"),
        (encode(pa.table({"event_id": ["a"]}))[0], "wrong-columns"),
    ],
)
def test_a_batch_that_is_none_is_a_reject_as_a_whole(value, reason) -> None:
    found = DECODER.decode([value, WHOLE], [ARROW_FORMAT] * 2)
    assert [(each.record, each.reason, each.payload) for each in found.rejects] == [
        (0, reason, None)
    ]
    assert found.record_of.tolist() == [1]


def test_a_batch_with_a_column_of_another_type_is_refused_and_one_that_means_the_same_is_not() -> (
    None
):
    table = pa.Table.from_pylist([event("a", 0, 1, 1)], DECODER.schema)
    place = table.column_names.index("user_id")
    as_text = table.set_column(place, "user_id", pa.array(["1"]))
    narrow = table.set_column(place, "user_id", pa.array([1], pa.int16()))
    found = DECODER.decode([encode(as_text)[0], encode(narrow)[0]], [ARROW_FORMAT] * 2)
    assert [(each.record, each.reason) for each in found.rejects] == [(0, "wrong-columns")]
    assert found.record_of.tolist() == [1]


def test_a_form_that_is_not_known_is_a_reject() -> None:
    found = DECODER.decode([b"{}"], [b"avro/1"])
    assert [(each.reason, "json/1" in each.detail) for each in found.rejects] == [
        ("unknown-format", True)
    ]
