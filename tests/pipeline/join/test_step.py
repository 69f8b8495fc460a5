from __future__ import annotations

import pytest

from pipeline.join.step import FOREVER_MS, JoinRule, JoinState, step
from tests.pipeline.event_log import START, event, frame

NO_FATES = {"joined": 0, "late": 0, "early": 0, "orphan_dropped": 0, "orphan_kept": 0}


def join(events, *, window_ms=100, orphans="drop"):
    """The whole log in one call."""
    return step(JoinState(JoinRule(window_ms=window_ms, orphans=orphans)), events, FOREVER_MS)[0]


def joined_pairs(*events, orphans="drop"):
    closed = join(frame(*events), orphans=orphans)
    names = closed.impressions["event_id"].to_list()
    pairs = {
        row["event_id"]: names[row["impression"]] for row in closed.outcomes.iter_rows(named=True)
    }
    return pairs, {fate: count for fate, count in closed.fates.items() if count}


def test_the_first_delivery_of_an_event_stays() -> None:
    events = frame(event("a", 0, 1, 1), event("b", 0, 1, 1), event("a", 9, 1, 1))
    closed = join(events)
    assert closed.impressions["timestamp_ms"].to_list() == [START, START]
    assert (closed.num_accepted, closed.num_duplicates) == (2, 1)


def test_one_event_id_of_two_users_is_two_events() -> None:
    # Whether their users share a part must not change the result.
    closed = join(frame(event("a", 0, 1, 1), event("a", 0, 2, 1)))
    assert (closed.num_accepted, closed.num_duplicates) == (2, 0)


def test_window_is_inclusive_on_both_ends() -> None:
    pairs, fates = joined_pairs(
        event("shown", 0, 1, 1),
        event("at once", 0, 1, 1, "click"),
        event("last moment", 100, 1, 1, "click"),
        event("too late", 101, 1, 1, "click"),
        event("too early", -1, 1, 1, "click"),
    )
    assert pairs == {"at once": "shown", "last moment": "shown"}
    assert fates == {"joined": 2, "late": 1, "early": 1}


@pytest.mark.parametrize("other", [{"request_id": "x"}, {"user_id": 2}, {"item_id": 2}])
def test_an_outcome_of_another_key_is_an_orphan(other) -> None:
    shown, click = event("shown", 0, 1, 1), event("click", 1, 1, 1, "click", **other)
    assert joined_pairs(shown, click) == ({}, {"orphan_dropped": 1})


def test_an_outcome_belongs_to_the_last_impression_before_it() -> None:
    pairs, _ = joined_pairs(
        event("first", 0, 1, 1),
        event("second", 10, 1, 1),
        event("third", 20, 1, 1),
        event("click", 15, 1, 1, "click"),
    )
    assert pairs == {"click": "second"}


def test_impressions_of_one_time_are_told_apart_by_event_id() -> None:
    shown = [event("b", 0, 1, 1), event("a", 0, 1, 1), event("c", 0, 1, 1)]
    pairs, _ = joined_pairs(*shown, event("click", 5, 1, 1, "click"))
    assert pairs == {"click": "c"}


def test_an_impression_is_remembered_for_twice_the_window() -> None:
    for orphans, lost in (("drop", "orphan_dropped"), ("keep", "orphan_kept")):
        _, fates = joined_pairs(
            event("shown", 0, 1, 1),
            event("still known", 200, 1, 1, "click"),
            event("forgotten", 201, 1, 1, "click"),
            orphans=orphans,
        )
        assert fates == {"late": 1, lost: 1}


def test_an_outcome_is_early_up_to_a_window_before_its_impression() -> None:
    pairs, fates = joined_pairs(
        event("early", 300, 1, 1, "click"),
        event("much too early", 299, 1, 1, "click"),
        event("shown", 400, 1, 1),
    )
    assert pairs == {}
    assert fates == {"early": 1, "orphan_dropped": 1}


def test_kept_orphans_are_impressions_of_their_own_with_no_other_outcome() -> None:
    pairs, fates = joined_pairs(
        event("shown", 0, 1, 1),
        event("click", 1, 1, 1, "click"),
        event("cart", 50, 2, 7, "cart"),
        event("lone click", 40, 2, 7, "click"),
        event("another", 141, 2, 7, "click"),
        orphans="keep",
    )
    lone = {name: name for name in ("lone click", "cart", "another")}
    assert pairs == {"click": "shown"} | lone
    assert fates == {"joined": 1, "orphan_kept": 3}


def test_a_kept_orphan_stays_one_whatever_is_shown_later() -> None:
    pairs, fates = joined_pairs(
        event("click", 0, 1, 1, "click"),
        event("shown", 10, 1, 1),
        event("cart", 20, 1, 1, "cart"),
        orphans="keep",
    )
    assert pairs == {"click": "click", "cart": "shown"}
    assert fates == {"joined": 1, "orphan_kept": 1}


def test_a_log_of_impressions_only_and_an_empty_log_join_nothing() -> None:
    for events in (frame(event("a", 0, 1, 1)), frame(event("a", 0, 1, 1)).clear()):
        for orphans in ("drop", "keep"):
            closed = join(events, orphans=orphans)
            found = (len(closed.impressions), len(closed.outcomes), closed.fates)
            assert found == (len(events), 0, NO_FATES)
