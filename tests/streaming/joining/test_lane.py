"""A lane's watermark against a loop over its records, and replays against what they repeat."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streaming.joining import lane as module
from streaming.joining.lane import Lane, Mark
from streaming.joining.progress import lane_progress, restored_lane
from streaming.joining.step import NEVER
from streaming.source import Partition

PLACE = Partition("events", 0)
LATENESS = 10


def make(mark: Mark | None = None) -> Lane:
    return Lane(PLACE, mark or Mark(0), lateness_ms=LATENESS, default_form=b"json/1")


def judge(lane: Lane, records: list[list[int]], offsets: list[int]) -> list[bool]:
    times = np.array([time for record in records for time in record], np.int64)
    record_of = np.repeat(np.arange(len(records)), [len(record) for record in records])
    stale = lane.judge(times, record_of, offsets)
    lane.position = offsets[-1] + 1
    return stale.tolist()


def test_an_event_is_stale_by_the_watermark_before_its_record() -> None:
    lane = make()
    assert lane.watermark_ms == NEVER
    # The 100 beside it does not make the 1 stale, but the 89 after it.
    assert judge(lane, [[1, 100], [89, 90], [], [91]], [3, 4, 7, 8]) == [
        False,
        False,
        True,
        False,
        False,
    ]
    assert (lane.newest_ms, lane.watermark_ms) == (100, 90)
    assert judge(lane, [[]], [9]) == []
    assert judge(lane, [[89], [90]], [10, 11]) == [True, False]


def test_a_lane_that_is_raised_judges_what_follows_by_it() -> None:
    lane = make()
    judge(lane, [[100]], [0])
    lane.raise_to(80)
    assert lane.watermark_ms == 90, "raises go forward"
    lane.raise_to(120)
    lane.raise_to(150)
    assert lane.watermark_ms == 150
    assert judge(lane, [[149], [150]], [1, 2]) == [True, False]
    assert [(each.offset, each.to_ms) for each in lane.raises] == [(1, 150)]


def test_a_raise_that_decided_nothing_is_forgotten() -> None:
    lane = make()
    for number in range(100):
        judge(lane, [[1000 * number]], [number])
        lane.raise_to(1000 * number + 500)
    assert len(lane.raises) == 1


def test_a_replay_begins_before_the_first_event_that_is_young_enough(monkeypatch) -> None:
    monkeypatch.setattr(module, "_SEGMENT_RECORDS", 2)
    lane = make()
    judge(lane, [[10], [30], [20], [25], [40], [50]], [0, 1, 5, 6, 7, 9])
    assert lane.replay_from(26) == Mark(0)  # the 30 stands before the 25
    # The first of its segment is not young enough, its second is.
    assert lane.replay_from(41) == Mark(7, newest_ms=30)
    assert lane.replay_from(51) == Mark(10, newest_ms=50)


times = st.lists(st.lists(st.integers(0, 200), max_size=3), min_size=1, max_size=5)
moves = st.lists(st.one_of(times, st.integers(0, 250)), min_size=1, max_size=12)


@given(moves, st.integers(0, 250), st.integers(0, 12))
def test_whatever_is_replayed_is_judged_as_before(steps, bound, cut) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_SEGMENT_RECORDS", 2)
        lane = make()
        verdicts: dict[int, list[bool]] = {}
        log: list[list[int]] = []
        mark = lane.mark
        for number, step in enumerate(steps):
            if isinstance(step, int):
                lane.raise_to(step)
            else:
                offsets = [*range(len(log), len(log) + len(step))]
                found = iter(judge(lane, step, offsets))
                verdicts |= {
                    o: [next(found) for _ in r] for o, r in zip(offsets, step, strict=True)
                }
                log += step
            if number == cut:
                mark = lane.replay_from(bound)
        young = [
            offset
            for offset, stale in verdicts.items()
            for time, out in zip(log[offset], stale, strict=True)
            if time >= bound and not out
        ]
        assert all(offset >= mark.offset for offset in young)

        saved = lane_progress(lane, "id", mark)
        again = restored_lane(saved, 0, lateness_ms=LATENESS, default_form=b"json/1")
        for offset in range(mark.offset, len(log)):
            assert judge(again, [log[offset]], [offset]) == verdicts[offset]
        assert again.newest_ms == lane.newest_ms
