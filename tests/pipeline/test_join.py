from __future__ import annotations

import pytest

from pipeline.join import deduplicate, join_outcomes, label
from tests.pipeline.event_log import START, event, frame, specification


def joined_pairs(*events, window_ms=100, orphans="drop"):
    impressions, outcomes, fates = join_outcomes(
        frame(*events), window_ms=window_ms, orphans=orphans
    )
    names = impressions["event_id"].to_list()
    pairs = {row["event_id"]: names[row["impression"]] for row in outcomes.iter_rows(named=True)}
    return pairs, dict(fates["fate"].value_counts().iter_rows())


def test_the_first_delivery_of_an_event_stays() -> None:
    events = frame(event("a", 0, 1, 1), event("b", 0, 1, 1), event("a", 9, 1, 1))
    unique, num_duplicates = deduplicate(events)
    assert unique["timestamp_ms"].to_list() == [START, START]
    assert num_duplicates == 1


def test_one_event_id_of_two_users_is_two_events() -> None:
    # Whether their users share a part must not change the result.
    unique, num_duplicates = deduplicate(frame(event("a", 0, 1, 1), event("a", 0, 2, 1)))
    assert (len(unique), num_duplicates) == (2, 0)


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


def test_a_kept_orphan_is_its_own_impression_and_has_its_key_s_other_outcomes() -> None:
    pairs, fates = joined_pairs(
        event("shown", 0, 1, 1),
        event("click", 1, 1, 1, "click"),
        event("cart", 50, 2, 7, "cart"),
        event("lone click", 40, 2, 7, "click"),
        event("too late", 141, 2, 7, "click"),
        orphans="keep",
    )
    assert pairs == {"click": "shown", "lone click": "lone click", "cart": "lone click"}
    assert fates == {"joined": 1, "orphan_kept": 2, "late": 1}


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
            impressions, outcomes, fates = join_outcomes(events, window_ms=1, orphans=orphans)
            assert (len(impressions), len(outcomes), len(fates)) == (len(events), 0, 0)


def labels(*events):
    impressions, outcomes, _ = join_outcomes(frame(*events), window_ms=1000, orphans="drop")
    positives = label(impressions, outcomes, specification())
    return {
        row["event_id"]: (row["reward"], row["outcome_time_ms"] - START)
        for row in positives.iter_rows(named=True)
    }


def test_a_scenario_without_a_rule_is_labelled_by_its_first_click() -> None:
    found = labels(
        event("a", 0, 1, 1),
        event("cart", 10, 1, 1, "cart"),
        event("second", 30, 1, 1, "click"),
        event("first", 20, 1, 1, "click"),
        event("b", 0, 1, 2),
        event("only a cart", 10, 1, 2, "cart"),
    )
    assert found == {"a": (1.0, 20)}


def play(event_id, time, item, seconds, duration, action="play"):
    return event(
        event_id, time, 1, item, action, scenario="video",
        play_seconds=seconds, duration_seconds=duration,
    )  # fmt: skip


def test_a_play_share_rule_rewards_the_largest_share_and_dates_the_first_that_suffices() -> None:
    found = labels(
        event("a", 0, 1, 1, scenario="video"),
        play("short", 10, 1, 4.0, 10.0),  # .4 < .5
        play("half", 20, 1, 5.0, 10.0),
        play("more", 30, 1, 7.5, 10.0),
        event("b", 0, 1, 2, scenario="video"),
        play("twice over", 10, 2, 20.0, 10.0),  # capped at 1
        event("c", 0, 1, 3, scenario="video"),
        event("a click is no play", 10, 1, 3, "click", scenario="video"),
        event("d", 0, 1, 4, scenario="video"),
        play("unknown duration", 10, 4, 20.0, None),
        event("e", 0, 1, 5, scenario="video"),
        play("no duration", 10, 5, 20.0, 0.0),
    )
    assert found == {"a": (0.75, 20), "b": (1.0, 10)}


def test_a_play_without_duration_takes_its_impression_s() -> None:
    shown = event("a", 0, 1, 1, scenario="video", duration_seconds=8.0)
    assert labels(shown, play("p", 10, 1, 6.0, None)) == {"a": (0.75, 10)}


def test_the_impression_s_scenario_decides_the_rule() -> None:
    shown = event("a", 0, 1, 1, scenario="feed")
    assert labels(shown, event("click", 10, 1, 1, "click", scenario="video")) == {"a": (1.0, 10)}
