from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.schema import InputError
from streaming.joining.config import InputConfig, JoinConfig

SECTION = {
    "bootstrap_servers": ["127.0.0.1:9092"],
    "input": {"topics": ["events"]},
    "output": {"topic": "samples"},
}


def test_the_defaults_are_enough() -> None:
    config = JoinConfig.model_validate(SECTION)
    assert config.progress_topic == "headrace-join-progress"
    assert config.input.numbers(3) == [0, 1, 2]


@pytest.mark.parametrize(
    ("units", "expected"),
    [("all", [0, 1, 2, 3, 4]), ("0/2", [0, 2, 4]), ("1/2", [1, 3]), ([4, 1, 4], [1, 4])],
)
def test_a_process_has_its_share_of_the_partitions(units, expected) -> None:
    assert InputConfig(topics=["a"], units=units).numbers(5) == expected


def test_every_partition_is_in_one_share() -> None:
    shares = [InputConfig(topics=["a"], units=f"{n}/3").numbers(8) for n in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(8))


@pytest.mark.parametrize("units", ["2/2", "first", "1/0", [], [-1]])
def test_what_is_no_share_is_refused(units) -> None:
    with pytest.raises(ValidationError):
        InputConfig(topics=["a"], units=units)


@pytest.mark.parametrize("units", ["3/4", [3]])
def test_a_share_without_partitions_is_an_error(units) -> None:
    with pytest.raises(InputError, match=r"join.input.units: .* partitions 0 to 2 of topic a"):
        InputConfig(topics=["a"], units=units).numbers(3)


@pytest.mark.parametrize(
    "change",
    [
        {"output": {"topic": "events"}},
        {"rejects_topic": "samples"},
        {"commit": {"topic": "events"}},
        {"input": {"topics": ["events", "events"]}},
    ],
)
def test_no_topic_is_two_things(change) -> None:
    with pytest.raises(ValidationError, match="expected"):
        JoinConfig.model_validate(SECTION | change)
