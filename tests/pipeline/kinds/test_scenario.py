from __future__ import annotations

import collections
from pathlib import Path
from typing import Any

import pytest

from pipeline.days import name_of
from pipeline.manifest import Report
from pipeline.samples import DayRange
from pipeline.specification import Specification
from tests.pipeline.event_log import START, event, specification
from tests.pipeline.kinds.building import build, rows_of, with_columns
from tests.pipeline.kinds.made_up_logs import DAY
from tests.pipeline.test_samples import run, write_log

WINDOW_MS = 1_000
TODAY = name_of(START // DAY + 1)


def spec_of(**changes: Any) -> Specification:
    content = {"labels": {}, "kinds": {"scenario": {"negatives": 20}}}
    return specification(**(content | changes))


def make(
    folder: Path, rows: list[dict[str, Any]], spec: Specification, **more: Any
) -> tuple[list[dict[str, Any]], Report]:
    report = build(folder, with_columns(rows, spec), spec, window_ms=WINDOW_MS, **more)
    return rows_of(folder, report, "scenario"), report


def shown(items: dict[Any, int], *, scenario: str = "feed") -> list[dict[str, Any]]:
    """So many impressions of each item on the first day, to nobody in particular."""
    return [
        event(f"{scenario} {item} {n}", n, 1_000_000 + n, item, scenario=scenario)
        for item, times in items.items()
        for n in range(times)
    ]


def taken(name: str, time: int, user: int, item: int, *, after: int = 1, **more: Any) -> list[dict]:
    """Shown at a time of the second day, and clicked `after` milliseconds."""
    return [
        event(name, DAY + time, user, item, **more),
        event(f"{name}!", DAY + time + after, user, item, "click", **more),
    ]


def test_a_group_by_hand(tmp_path: Path) -> None:
    views = {"history": 2, "preferences": {"colour": 1}}
    spec = spec_of(
        columns={"colour": "string", "size": "float32", "device": "string", "hour": "int64"},
        scenario_views=views,
        kinds={"scenario": {"negatives": 1}},
        features={
            "query": [{"name": "user_id", "kind": "id", "table": "t"},
                      {"name": "device", "kind": "id", "table": "t"}],
            "candidate": [{"name": "item_id", "kind": "id", "table": "t"},
                          {"name": "size", "kind": "number"}],
            "context": [{"name": "hour", "kind": "number"}],
        },
    )  # fmt: skip

    def row(name: str, time: int, user: int, item: int, action="impression", **more: Any) -> dict:
        extra = {"colour": "red", "size": 1.0, "device": "phone", "hour": 3}
        return event(name, time, user, item, action, **(extra | more))

    log = [
        row("old", 0, 9, 2, size=5.0),
        row("new", 5, 9, 2, size=6.0, colour="blue"),
        row("new!", 6, 9, 2, "click"),
        row("elsewhere", 7, 9, 2, scenario="video"),
        row("a", 10, 1, 7, scenario="video"),
        row("b", DAY, 1, 5, colour="green"),
        row("b!", DAY + 9, 1, 5, "click"),
        row("c", DAY + 1, 1, 6, colour="green"),
        row("c!", DAY + 8, 1, 6, "click"),
        row("d", DAY + 2, 1, 8, colour="white"),
        row("d!", DAY + 7, 1, 8, "click"),
        row("e", DAY + 10, 1, 3, size=9.0, device="desk", hour=4),
        row("e!", DAY + 11, 1, 3, "click"),
        row("later", DAY + 10, 1, 2, size=8.0),
    ]
    found, _ = make(tmp_path, log, spec)
    shared = {
        "event_id": "e",
        "timestamp_ms": START + DAY + 10,
        "user_id": 1,
        "scenario": "feed",
        "device": "desk",
        "hour": 4,
        "scenario_history_item_id": [6, 5],  # 8 was known at 7, 6 at 8, 5 at 9
        "scenario_impressions": 3,
        "scenario_positives": 3,
        "scenario_preferred_colour": ["green"],
    }
    assert found[-2:] == [
        shared
        | {"item_id": 3, "label": 1, "candidate_number": 0, "size": 9.0, "colour": "red"}
        | {"item_scenario_impressions": 0, "item_scenario_positives": 0},
        shared
        | {"item_id": 2, "label": 0, "candidate_number": 1, "size": 6.0, "colour": "blue"}
        | {"item_scenario_impressions": 2, "item_scenario_positives": 1},
    ]


def test_a_positive_that_is_known_is_seen_as_of_the_day_before_as_its_negatives_are(
    tmp_path: Path,
) -> None:
    candidate = [
        {"name": "item_id", "kind": "id", "table": "t"},
        {"name": "size", "kind": "number"},
    ]
    spec = spec_of(
        columns={"size": "float32"},
        features={"query": [], "candidate": candidate, "context": []},
    )
    log = [row | {"size": 1.0} for row in shown({1: 3, 2: 1})]
    log += [row | {"size": 2.0} for row in taken("a", 5, 1, 1)]
    found, _ = make(tmp_path, log, spec)
    assert found[0]["item_id"] == 1
    assert (found[0]["size"], found[0]["item_scenario_impressions"]) == (1.0, 3)


def test_nothing_that_the_user_took_within_a_window_is_a_negative(tmp_path: Path) -> None:
    at = 10 * WINDOW_MS
    log = shown(dict.fromkeys(range(1, 7), 1))
    log += taken("sample", at, 1, 1)
    # Known at -w, -w - 1, +w, +w + 1 after the impression, in another scenario.
    for item, known in ((2, -WINDOW_MS), (3, -WINDOW_MS - 1), (4, WINDOW_MS), (5, WINDOW_MS + 1)):
        log += taken(f"other {item}", at + known - 1, 1, item, scenario="video")
    log += taken("another user", at, 2, 6)
    found, report = make(tmp_path, log, spec_of())
    mine = [row for row in found if row["event_id"] == "sample"]
    assert [row["candidate_number"] for row in mine] == list(range(21))
    assert {row["item_id"] for row in mine[1:]} == {3, 5, 6}
    assert "scenario no_eligible_negative" not in report.counts


def test_a_positive_of_the_span_before_excludes_too(tmp_path: Path) -> None:
    log = shown(dict.fromkeys([1, 2, 3, 4], 1))
    log += [event("y", DAY - 2, 1, 2), event("y!", DAY - 1, 1, 2, "click")]
    log += taken("sample", WINDOW_MS - 1, 1, 1) + taken("later", WINDOW_MS, 1, 3)
    day = START // DAY
    former = make(tmp_path / "1", log, spec_of(), days=(day, day))[1]
    facts = {
        0: tuple(
            (file.kind, str(tmp_path / "1" / "run" / file.path))
            for file in former.files
            if file.kind.startswith("facts/")
        )
    }
    found, _ = make(tmp_path / "2", log, spec_of(), days=(day + 1, day + 1), facts=facts)
    drawn = collections.defaultdict(set)
    for row in found:
        drawn[row["event_id"]].add(row["item_id"])
    assert drawn == {"sample": {1, 4}, "later": {3, 2, 4}}


def test_groups_without_negatives_are_dropped_and_counted(tmp_path: Path) -> None:
    log = [
        *shown({1: 2, 2: 1}),
        *taken("takes all", 5, 1, 1),
        *taken("takes the other", 6, 1, 2),
        *taken("fine", 5, 2, 1),
        *taken("nothing shown there", 5, 3, 1, scenario="video"),
    ]
    found, report = make(tmp_path, log, spec_of())
    assert {row["event_id"] for row in found} == {"fine"}
    lost = {"scenario no_eligible_negative": 2, "scenario no_exposure_before": 1}
    assert {name: n for name, n in report.counts.items() if name.startswith("scenario")} == lost
    assert {n: c for n, c in report.days[TODAY].items() if n.startswith("scenario")} == lost


def test_a_day_on_which_nothing_happened_is_looked_back_to_as_any_other(tmp_path: Path) -> None:
    log = shown({1: 1, 2: 1}) + taken("on the third day", DAY, 1, 1)
    found, _ = make(tmp_path / "2", log, spec_of(), lookback_days=2)
    assert {row["item_id"] for row in found} == {1, 2}
    found, report = make(tmp_path / "1", log, spec_of(), lookback_days=1)
    assert (found, report.counts["scenario no_exposure_before"]) == ([], 1)


def test_the_manifest_says_what_was_dropped_and_a_first_day_may_have_nothing(
    tmp_path: Path,
) -> None:
    log = [event("a", 0, 1, 1), event("a!", 9, 1, 1, "click"), *shown({2: 1}), *taken("b", 5, 1, 1)]
    write_log(tmp_path / "log.jsonl", log)
    spec = spec_of(kinds={"retrieval": None, "scenario": {"negatives": 2}})
    first = name_of(START // DAY)
    days = DayRange(first, TODAY)
    manifest = run(tmp_path / "log.jsonl", tmp_path / "out", spec=spec, days=days)
    assert [day.counts.get("scenario no_exposure_before", 0) for day in manifest.days] == [1, 0]
    assert [day.counts.get("scenario samples", 0) for day in manifest.days] == [0, 3]
    assert manifest.builds[0].counts["scenario no_exposure_before"] == 1


def chi_squared(found: collections.Counter, expected: dict[Any, float]) -> float:
    assert set(found) <= set(expected)
    total, weight = sum(found.values()), sum(expected.values())
    return sum(
        (found[key] - share * total / weight) ** 2 / (share * total / weight)
        for key, share in expected.items()
    )


EXPOSURE = {"feed": [1, 2, 3, 5, 8, 13, 21, 34], "video": [40, 20, 10, 10, 5, 5, 5, 5]}


def test_negatives_are_drawn_in_proportion_to_exposure_in_their_scenario(tmp_path: Path) -> None:
    log, exposure = [], {}
    for name, counts in EXPOSURE.items():
        exposure[name] = dict(enumerate(counts, start=1))
        log += shown(exposure[name], scenario=name)
        for user in range(500):
            log += taken(f"{name} of {user}", 10 * user, user, 99, scenario=name)
        for user in range(500, 800):  # who took item 8 just before
            log += taken(f"8 {name} {user}", 10 * user, user, 8, scenario=name)
            log += taken(f"{name} of {user}", 10 * user + 5, user, 99, scenario=name)
    found, _ = make(tmp_path, log, spec_of(kinds={"scenario": {"negatives": 8}}), num_parts=3)
    drawn: dict[Any, collections.Counter] = collections.defaultdict(collections.Counter)
    slots: dict[Any, collections.Counter] = collections.defaultdict(collections.Counter)
    for row in found:
        if row["label"] == 0 and " of " in row["event_id"]:
            has_8 = row["user_id"] < 500
            drawn[row["scenario"], has_8][row["item_id"]] += 1
            slots[row["scenario"], row["candidate_number"]][row["item_id"]] += has_8
    for (name, has_8), counts in drawn.items():
        expected = {item: n for item, n in exposure[name].items() if item != 8 or has_8}
        # Of 7 (6) degrees of freedom; more has a probability of a thousandth.
        assert sum(counts.values()) == (4_000 if has_8 else 2_400)
        assert chi_squared(counts, expected) < (24.3 if has_8 else 22.5), (name, has_8)
    for (name, slot), counts in slots.items():
        assert chi_squared(counts, exposure[name]) < 26, (name, slot)  # 16 of them


def test_draws_of_events_places_and_seeds_are_independent(tmp_path: Path) -> None:
    log = shown(dict.fromkeys(range(1, 11), 1))
    for user in range(1_000):
        log += taken("the same name" if user < 2 else f"{user}", 10, user, 99)
    groups = []
    for seed in (0, 1, -1):
        kinds = {"scenario": {"negatives": 2, "seed": seed}}
        found, _ = make(tmp_path / str(seed), log, spec_of(kinds=kinds))
        items = [
            row["item_id"] for row in sorted(found, key=lambda r: r["user_id"]) if not row["label"]
        ]
        groups.append(items)
    assert len(groups[0]) == 2_000
    for pairs in (
        zip(groups[0][::2], groups[0][1::2], strict=True),  # places of a group
        zip(groups[0][:-2:2], groups[0][2::2], strict=True),  # neighbouring users
        zip(groups[0][::2], groups[1][::2], strict=True),  # seeds
        zip(groups[0][1::2], groups[2][::2], strict=True),
    ):
        # Of 99 degrees of freedom; more has a probability of a thousandth.
        cells = {(a, b): 1.0 for a in range(1, 11) for b in range(1, 11)}
        assert chi_squared(collections.Counter(pairs), cells) < 149


def test_two_users_with_one_name_of_an_event_have_their_own_draws(tmp_path: Path) -> None:
    log = shown(dict.fromkeys(range(1, 101), 1)) + taken("a", 5, 1, 99) + taken("a", 5, 2, 99)
    found, _ = make(tmp_path, log, spec_of())
    items = [[row["item_id"] for row in found if row["user_id"] == user] for user in (1, 2)]
    assert len(items[0]) == len(items[1]) == 21
    assert items[0] != items[1]


def test_a_column_says_who_asks_or_what_an_item_is_not_both() -> None:
    views = {"preferences": {"colour": 1}}
    features = specification().features.model_dump()
    features["context"] = [{"name": "colour", "kind": "id", "table": "t"}]
    changes = {"columns": {"colour": "string"}, "scenario_views": views, "features": features}
    with pytest.raises(ValueError, match=r"colour: found a column of the query or the context"):
        spec_of(**changes)
    assert spec_of(**changes, kinds={}).scenario_views.preferences == {"colour": 1}
