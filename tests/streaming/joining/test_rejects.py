"""What is no event: counted, kept with its place, and no reason to stop."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
import pytest

from pipeline.schema import InputError
from pipeline.topics.record import encode
from tests.pipeline.event_log import START, event
from tests.streaming.joining.naive import random_log
from tests.streaming.joining.world import JSON_HEADERS, as_table, totals

pytestmark = pytest.mark.kafka

ARROW = [("headrace-format", b"arrow-ipc/1")]


def poison():
    """Returns (value, headers, reason) of records that hold a bad event, or none at all."""
    good = json.dumps(event("in a bad record", 0, 0, 1)).encode()
    whole = encode(as_table([event("x", 0, 0, 1)]))[0]
    rows = [event("good row", 0, 0, 1), event("bad row", 0, 0, 1, "stared"), event("2", 1, 0, 1)]
    return [
        (None, JSON_HEADERS, "no-value"),
        (b"", [], "not_json"),
        (b" \n ", JSON_HEADERS, "not_json"),
        (b"[1, 2]", JSON_HEADERS, "not_json"),
        (good + good, JSON_HEADERS, "not_json"),
        (b'{"a": {"x": 1}', JSON_HEADERS, "not_json"),
        (b', "b": 1}', JSON_HEADERS, "not_json"),
        (good.replace(b"bad record", b"bad\nrecord"), JSON_HEADERS, "not_json"),
        (b"\xff" + good, JSON_HEADERS, "not_json"),
        (b"[" * 100_000, JSON_HEADERS, "not_json"),
        (b'{"event_id": 7}', JSON_HEADERS, "wrong_type"),
        (b"{}", [], "missing_column_value"),
        (good.replace(b"impression", b"stared at"), JSON_HEADERS, "unknown_action"),
        (good, [("headrace-format", b"xml/1")], "unknown-format"),
        (good, ARROW, "undecodable"),
        (whole[: len(whole) // 2], ARROW, "undecodable"),
        (None, ARROW, "no-value"),
        (encode(pa.table({"event_id": ["x"]}))[0], ARROW, "wrong-columns"),
        (encode(as_table(rows))[0], ARROW, "unknown_action"),
        (good + b" " * 600_000 + b"x", JSON_HEADERS, "not_json"),
    ]


def test_poison_of_every_kind_is_kept_with_its_place_and_everything_else_is_joined(
    make_world,
) -> None:
    world = make_world(partitions=1)
    bad = poison()
    pretty = json.dumps(event("pretty", 5, 0, 9), indent=2).encode()
    world.send([event("shown", 0, 0, 5)])
    world.send_records([(0, value, headers) for value, headers, _ in bad])
    world.send_records([(0, pretty, JSON_HEADERS), (0, b" " + pretty + b"\r\n", [])])
    world.send([event("click", 1, 0, 5, "click"), event("other", 6, 0, 9, "click")])
    (progress,) = world.join(end="closed", max_reject_share=0.9)

    assert progress.reasons == Counter(reason for *_, reason in bad)
    assert progress.totals["rejects"] == len(bad)
    assert progress.totals["records"] == len(bad) + 5
    # Two good rows stand beside the bad one of an Arrow record.
    assert progress.totals["events"] == 5 + 2
    assert {name for name, *_ in world.samples()} == {"shown", "pretty"}
    letters = world.records(world.rejects)
    found = {}
    for letter in letters:
        headers = {name.removeprefix("headrace-"): text.decode() for name, text in letter.headers}
        assert (headers["topic"], headers["partition"]) == (world.inputs[0], "0")
        assert headers["detail"]
        found[int(headers["offset"])] = (headers["reason"], letter.value, headers)
    assert [found[1 + n][0] for n in range(len(bad))] == [reason for *_, reason in bad]
    for number, (value, _, reason) in enumerate(bad):
        if reason != "unknown_action" and len(value or b"") < 500_000:
            assert found[1 + number][1] == (value or b"")
    row = json.loads(found[1 + [r for *_, r in bad].index("wrong-columns") + 1][1])
    assert row["event_id"] == "bad row"
    cut = found[len(bad)]
    assert len(cut[1]) == 500_000
    assert cut[2]["cut-from-bytes"] == str(len(bad[-1][0]))


def test_an_event_from_the_future_is_rejected_and_makes_no_other_stale(make_world) -> None:
    world = make_world(partitions=1)
    ahead = event("2099", 2_300_000_000_000, 0, 1)
    world.send([event("a", 0, 0, 1), ahead, event("b", 1, 0, 1)], timestamp_ms=START)
    world.send([ahead], rows=1, timestamp_ms=START)
    changes = {"input": {"max_ahead_seconds": 60}, "max_reject_share": 0.9}
    (progress,) = world.join(end="closed", **changes)
    assert progress.reasons == {"ahead_of_its_record": 2}
    assert (progress.totals["events"], progress.totals.get("stale", 0)) == (2, 0)
    letters = [json.loads(letter.value)["event_id"] for letter in world.records(world.rejects)]
    assert letters == ["2099", "2099"]


def test_a_clock_that_is_fast_by_less_is_joined_and_makes_no_other_stale(make_world) -> None:
    world = make_world(partitions=1)
    for second, (name, at) in enumerate([("a", 0), ("fast", 3000), ("b", 2), ("c", 3), ("d", 4)]):
        sent = [event(name, 1000 * at, 0, second)]
        world.send(sent, timestamp_ms=START + 1000 * second)
    changes = {"input": {"max_ahead_seconds": 3600}, "lateness_seconds": 2}
    (progress,) = world.join(end="closed", **changes)
    assert (progress.totals["events"], progress.totals.get("stale", 0)) == (5, 0)
    # Without the limit by the records' own times, the clock of one decides for all.
    changes |= {"input": {"max_ahead_seconds": None}, "output": {"topic": f"{world.name}-other"}}
    (progress,) = world.join(end="closed", group=f"{world.name}-other", **changes)
    assert (progress.totals["events"], progress.totals["stale"]) == (2, 3)


def test_too_many_rejects_stop_the_join_after_they_were_kept(make_world) -> None:
    world, log = make_world(partitions=1), random_log(200, seed=8)
    world.send(log)
    world.send_records([(0, b"no event", JSON_HEADERS)] * 20)
    with pytest.raises(
        InputError, match=r"join.max_reject_share: 20 of all .* in topic .*-rejects"
    ):
        world.join()
    assert len(world.records(world.rejects)) == 20
    assert totals(world.progress().values())["events"] == len(log)
    world.join(end="closed", max_reject_share=0.5)
    assert totals(world.progress().values())["rejects"] == 20


def test_without_a_topic_for_them_rejects_are_counted_and_the_first_are_logged(
    make_world, caplog
) -> None:
    world = make_world(partitions=1)
    world.send_records([(0, b"no event", JSON_HEADERS)] * 20)
    with caplog.at_level("WARNING", logger="streaming.joining"):
        (progress,) = world.join(rejects_topic=None, max_reject_share=1)
    assert progress.totals["rejects"] == 20
    told = [line for line in caplog.messages if line.startswith("rejected: ")]
    assert len(told) == 10
    assert f"topic {world.inputs[0]} partition 0 offset 3: not_json" in told[3]
