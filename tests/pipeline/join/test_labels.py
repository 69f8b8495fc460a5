from __future__ import annotations

from pipeline.join.labels import find_positives, with_labels
from pipeline.join.step import FOREVER_MS, JoinRule, JoinState, step
from tests.pipeline.event_log import START, event, frame, specification


def labels(*events):
    closed, _ = step(JoinState(JoinRule(window_ms=1000)), frame(*events), FOREVER_MS)
    found = find_positives(closed.impressions, closed.outcomes, specification())
    positives = with_labels(closed.impressions, found)
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
