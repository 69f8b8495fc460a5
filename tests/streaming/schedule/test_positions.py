"""Where runs begin."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from pipeline.schema import InputError
from streaming.config import EndConfig, StartConfig, TrainConfig
from streaming.schedule.positions import first_ledger, read_offsets
from streaming.source import Partition, Place

A, B = Partition("clicks", 0), Partition("clicks", 1)
STARTS, ENDS = {A: 3, B: 0}, {A: 100, B: 50}


class Source:
    def offsets_at(self, time_ms):
        assert time_ms == 1_767_225_600_500
        return {A: Place(42, time_ms + 7)}


def at(start):
    return first_ledger(start, Source(), starts=STARTS, ends=ENDS).offsets


def test_earliest_and_latest():
    assert at("earliest") == STARTS
    assert at("latest") == ENDS


def test_a_timestamp_is_looked_up_and_a_partition_without_such_a_record_begins_at_its_end():
    time = datetime(2026, 1, 1, 0, 0, 0, 500_000, tzinfo=UTC)
    assert at(StartConfig(timestamp=time)) == {A: 42, B: 50}


def test_offsets_come_from_a_file_with_the_identity_they_were_noted_with(tmp_path):
    path = tmp_path / "offsets.json"
    offsets = [
        {"topic": "clicks", "partition": 0, "offset": 7},
        {"topic": "clicks", "partition": 1, "offset": 9},
    ]
    path.write_text(json.dumps({"offsets": offsets, "identity": {"clicks": "id-1"}}))
    ledger = first_ledger(StartConfig(offsets=str(path)), Source(), starts=STARTS, ends=ENDS)
    assert ledger.offsets == {A: 7, B: 9}
    assert ledger.totals.samples == 0
    ledger.check_identity({"clicks": "id-1"})
    with pytest.raises(InputError, match="found identity id-2, expected id-1"):
        ledger.check_identity({"clicks": "id-2"})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no readable file"),
        ("no json", "no JSON"),
        ('{"offsets": [{"topic": "clicks"}]}', "other JSON"),
        ("[]", "other JSON"),
        ('{"offsets": [{"topic": "clicks", "partition": 0, "offset": "x"}]}', "other JSON"),
    ],
)
def test_a_file_that_is_no_file_of_offsets_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "offsets.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(
        InputError, match=rf"^train\.stream\.start\.offsets: found {said}"
    ) as refused:
        read_offsets(path)
    assert str(path) in str(refused.value)
    assert "Error" not in str(refused.value)
    assert '`headrace offsets export` writes it: {"offsets": [{' in str(refused.value)


def test_a_run_without_a_checkpoint_is_no_place_to_begin(tmp_path):
    with pytest.raises(InputError, match=r"^train\.stream\.start\.checkpoint_of: found no checkp"):
        at(StartConfig(checkpoint_of=str(tmp_path)))


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (("views", 0), r"found offsets of \['views'\]; expected .*\['clicks'\]"),
        (("clicks", 9), "found an offset of partition 9 of topic clicks"),
    ],
)
def test_offsets_of_other_topics_or_partitions_are_refused(tmp_path, entry, said):
    path = tmp_path / "offsets.json"
    offsets = [{"topic": entry[0], "partition": entry[1], "offset": 1}]
    path.write_text(json.dumps({"offsets": offsets}))
    with pytest.raises(InputError, match=said):
        at(StartConfig(offsets=str(path)))


def test_a_partition_that_the_offsets_do_not_name_was_added_since():
    """`Ledger.adopt`, which follows, gives it its first offset."""
    ledger = first_ledger("earliest", Source(), starts={A: 3}, ends={A: 100})
    ledger.adopt(STARTS, ENDS)
    assert ledger.offsets == STARTS


def test_positions_are_one_thing_each():
    with pytest.raises(ValidationError, match="exactly one of 'timestamp', 'offsets'"):
        StartConfig()
    with pytest.raises(ValidationError, match="exactly one of 'timestamp' and 'samples'"):
        EndConfig(timestamp="2026-01-01T00:00:00Z", samples=5)


def test_a_time_without_a_zone_is_refused():
    with pytest.raises(ValidationError, match="timezone"):
        StartConfig(timestamp="2026-01-01T00:00:00")


def test_the_skew_of_replays_is_refused():
    archive = {"archive": {"directory": "d", "replays": 2}}
    with pytest.raises(ValidationError, match="max_skew_seconds: found a bound with 2 replays"):
        TrainConfig(directory="d", source=archive, stream={"max_skew_seconds": 60})


def test_a_read_must_be_given_up_before_the_run_is_taken_for_stuck():
    kafka = {"bootstrap_servers": ["b:1"], "topics": ["clicks"], "stall_timeout_seconds": 30.0}
    with pytest.raises(ValidationError, match="stall_timeout_seconds: found 30; expected less"):
        TrainConfig(directory="d", source={"kafka": kafka}, watch={"stall_seconds": 30})
    TrainConfig(directory="d", source={"kafka": kafka}, watch={"stall_seconds": 31})
