"""Measures by hand; planted faults are found, and equal days are not."""

import math

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from pipeline import schema as s
from pipeline.checks.drift import Finding, Measure, check, group_counts, measures, psi, psi_noise
from pipeline.checks.limits import Checks
from pipeline.checks.profile import Profile, profile
from tests.pipeline.checks.days import MS_PER_DAY, Population, profile_day, replace
from tests.pipeline.checks.real_log import taobao

EVERYTHING = Checks()


def _check(day: Profile, reference: list[Profile], checks: Checks = EVERYTHING) -> list[Finding]:
    return check(day, reference, checks, kind="retrieval", date="2026-01-08")


def _found(day: Profile, reference: list[Profile]) -> set[tuple[str, str]]:
    return {(finding.column, finding.measure) for finding in _check(day, reference)}


def _of(day: Profile, reference: list[Profile], name: str, column: str) -> Measure:
    (found,) = [m for m in measures(day, reference) if (m.name, m.column) == (name, column)]
    return found


def _day(**columns: pa.Array) -> Profile:
    return profile(pa.table(columns), numbers={"number"})


# ---- by hand


def test_psi_by_hand() -> None:
    # Shares 0.2 and 0.8 against 0.5 and 0.5, with half a row added to each of 1,000,000:
    # -0.3 ln 0.4 + 0.3 ln 1.6 = 0.3 ln 4 = 0.415888
    found = psi(np.array([200_000, 800_000]), np.array([500_000, 500_000]))
    assert found == pytest.approx(0.415888, abs=1e-5)


def test_psi_of_a_group_that_one_side_lacks_is_finite_by_half_a_row() -> None:
    # Shares (10.5, 0.5) / 11 and (5.5, 5.5) / 11: (5 / 11) ln(10.5 / 5.5) + (5 / 11) ln 11
    expected = 5 / 11 * (math.log(10.5 / 5.5) + math.log(11))
    assert psi(np.array([10, 0]), np.array([5, 5])) == pytest.approx(expected)
    assert psi(np.array([5, 5]), np.array([10, 0])) == pytest.approx(expected)


def test_equal_shares_have_no_index() -> None:
    assert psi(np.array([10, 30]), np.array([10, 30])) == 0


def test_neighbours_are_grouped_until_they_hold_a_twentieth() -> None:
    usual = np.array([3, 3, 0, 60, 1, 1, 1, 1, 26, 4])  # of 100
    found = np.array([1, 2, 3, 4, 5, 6, 7, 8, 9, 10])
    # 3+3 | 60 | 1+1+1+1+26 | 4 is too few and joins the group before; what was never there is
    # a group of its own, beside the four values that were there once.
    day, reference = group_counts(found, usual, ordered=True)
    assert reference.tolist() == [6, 60, 34, 4]
    assert day.tolist() == [3, 4, 45, 3]


def test_frequent_ids_stand_alone_and_the_others_are_grouped() -> None:
    usual = np.array([3, 40, 2, 50, 4, 1])  # of 100
    found = np.array([1, 2, 3, 4, 5, 6])
    # 40 | 50 | 3+2 | 4+1
    day, reference = group_counts(found, usual, ordered=False)
    assert reference.tolist() == [40, 50, 5, 5]
    assert day.tolist() == [2, 4, 4, 11]


def test_what_fills_one_group_is_no_drift() -> None:
    day, reference = group_counts(np.array([7, 0]), np.array([9, 0]), ordered=True)
    assert (day.tolist(), reference.tolist()) == ([7], [9])
    assert psi(day, reference) == 0


@pytest.mark.parametrize(("rows", "groups"), [(200, 20), (2000, 5), (100, 2)])
def test_noise_is_what_equal_samples_rarely_exceed(rows: int, groups: int) -> None:
    rng = np.random.default_rng(7)
    draws = rng.multinomial(rows, [1 / groups] * groups, size=(3000, 2))
    noise = psi_noise(groups, rows, rows)
    indexes = np.array([psi(found, usual) for found, usual in draws])
    # One in 30,000 by chance: of 3,000, not two. And it is no idle bound.
    assert np.count_nonzero(indexes > noise) <= 1
    assert indexes.max() > noise / 3


def test_rows_are_a_ratio_to_the_median_either_way() -> None:
    reference = [Profile(rows=rows) for rows in (1000, 3000, 900)]
    fewer = _of(Profile(rows=250), reference, "rows", "")
    more = _of(Profile(rows=4000), reference, "rows", "")
    assert (fewer.value, fewer.found, fewer.usual) == (4, 250, 1000)
    assert (more.value, more.found, more.usual) == (4, 4000, 1000)


def test_shares_of_rows_without_a_value_by_hand() -> None:
    day = _day(age=pa.array([1.0, None, float("nan"), 2.0]))
    reference = [_day(age=pa.array([1.0] * 7 + [None])), _day(age=pa.array([1.0] * 8))]
    found = _of(day, reference, "nulls", "age")
    assert (found.found, found.usual, found.value) == (0.5, 1 / 16, 0.5 - 1 / 16)
    # p = 3 of 20 rows; 4 sqrt(p (1 - p) (1 / 4 + 1 / 16))
    assert found.noise == pytest.approx(4 * math.sqrt(0.15 * 0.85 * (1 / 4 + 1 / 16)))


def test_new_ids_are_a_rise_over_those_of_the_newest_good_day() -> None:
    days = [_day(item=pa.array(items)) for items in ([1, 2, 3, 4], [3, 4, 5], [5, 6, 7, 8, 9])]
    # 4 of 5 are new; of the newest good day, 1 of 3. (Of the oldest, 2 of 4 are not in the newest.)
    found = _of(days[2], days[:2], "vocabulary", "item")
    assert (found.found, found.usual) == (0.8, pytest.approx(1 / 3))
    assert found.value == pytest.approx(0.8 - 1 / 3)
    assert not [m for m in measures(days[2], days[1:2]) if m.name == "vocabulary"]


def test_rows_of_one_user_are_one_witness() -> None:
    # Ages of 1,000 rows, but of ten users: what two equal days differ in is which ten came.
    few = [_day(user_id=pa.array(np.arange(1000) % 10), age=pa.array([1.0] * 1000))]
    many = [_day(user_id=pa.array(np.arange(1000)), age=pa.array([1.0] * 1000))]
    assert _of(few[0], few, "rows", "").noise > _of(many[0], many, "rows", "").noise ** 5


# ---- what is planted is found, and nothing else


@pytest.fixture(scope="module")
def good_days() -> list[Profile]:
    return Population(11).profiles(7, 5000)


@pytest.fixture
def day(good_days: list[Profile]) -> pa.Table:
    return Population(11).day(5000, 8)


def test_a_day_like_the_others_has_no_finding(good_days: list[Profile], day: pa.Table) -> None:
    assert _check(profile_day(day), good_days) == []


def test_half_of_the_rows(good_days: list[Profile], day: pa.Table) -> None:
    (finding,) = _check(profile_day(day.slice(0, 2500)), good_days)
    assert (finding.column, finding.measure, finding.value) == ("", "rows", 2)
    assert str(finding) == (
        "warn: retrieval of 2026-01-08: found 2,500 rows, usual are 5,000: 2.00 times fewer;"
        " expected at most 1.50 times (compared with 7 good days)"
    )


def test_no_rows_at_all(good_days: list[Profile], day: pa.Table) -> None:
    for empty in (Profile(), profile_day(day.slice(0, 0))):
        (finding,) = _check(empty, good_days)
        assert (finding.measure, finding.found) == ("rows", 0)


@pytest.mark.parametrize("name", ["age", "city", s.ITEM_ID, s.HISTORY_ITEM_ID])
def test_nulls_in_a_twentieth_of_the_rows(
    good_days: list[Profile], day: pa.Table, name: str
) -> None:
    values = day[name].to_pylist()
    values[::20] = [None] * len(values[::20])
    planted = replace(day, name, pa.array(values, day[name].type))
    assert (name, "nulls") in _found(profile_day(planted), good_days)
    assert {column for column, _ in _found(profile_day(planted), good_days)} == {name}


def test_a_number_in_another_unit(good_days: list[Profile], day: pa.Table) -> None:
    months = pa.array(day["age"].to_numpy(zero_copy_only=False) * 12, from_pandas=True)
    planted = replace(day, "age", months.cast(pa.float32()))
    (finding,) = _check(profile_day(planted), good_days)
    assert (finding.column, finding.measure) == ("age", "psi")
    assert finding.value > 1


def test_a_number_that_moves_by_half_its_deviation(good_days: list[Profile], day: pa.Table) -> None:
    ages = day["age"].to_numpy(zero_copy_only=False) + np.float32(6)
    planted = replace(day, "age", pa.array(ages, pa.float32(), from_pandas=True))
    assert _found(profile_day(planted), good_days) == {("age", "psi")}


def test_a_value_that_was_never_there(good_days: list[Profile], day: pa.Table) -> None:
    scenarios = day[s.SCENARIO].to_pylist()
    scenarios[::10] = ["shelf"] * len(scenarios[::10])
    planted = replace(day, s.SCENARIO, pa.array(scenarios))
    assert (s.SCENARIO, "psi") in _found(profile_day(planted), good_days)


@pytest.mark.parametrize("share", [0.4, 1.0])
def test_ids_that_were_renumbered(good_days: list[Profile], day: pa.Table, share: float) -> None:
    items = day[s.ITEM_ID].to_numpy().copy()
    items[: int(share * len(items))] += 1_000_000
    found = _found(profile_day(replace(day, s.ITEM_ID, pa.array(items))), good_days)
    assert (s.ITEM_ID, "vocabulary") in found
    assert {column for column, _ in found} == {s.ITEM_ID}


def test_histories_that_are_empty(good_days: list[Profile], day: pa.Table) -> None:
    histories = [[] if row % 3 else each for row, each in enumerate(day["history_item_id"])]
    histories = [each if isinstance(each, list) else each.as_py() for each in histories]
    planted = replace(day, "history_item_id", pa.array(histories, pa.list_(pa.int64())))
    assert {("history_item_id", "nulls"), ("history_item_id", "length_psi")} == _found(
        profile_day(planted), good_days
    )


def test_hours_that_are_missing(good_days: list[Profile], day: pa.Table) -> None:
    hours = pa.array(day[s.TIMESTAMP_MS].to_numpy() % MS_PER_DAY // 3_600_000)
    planted = day.filter(pa.compute.less(hours, 17))
    (finding,) = _check(profile_day(planted), good_days[:1])
    assert (finding.column, finding.measure) == (s.TIMESTAMP_MS, "psi")
    assert "of its hours of the day" in str(finding)
    assert str(finding).endswith("(compared with 1 good day)")


# ---- limits


def test_limits_decide_how_bad_it_is(good_days: list[Profile], day: pa.Table) -> None:
    half = profile_day(day.slice(0, 2500))
    for text, expected in (
        ({"rows": {"fail": 1.9}}, [("fail", 1.9)]),
        ({"rows": {"fail": 2.5}}, [("warn", 1.5)]),
        ({"rows": {"warn": None, "fail": 1.9}}, [("fail", 1.9)]),
        ({"rows": {"warn": 2.0}}, []),
        ({"rows": False}, []),
    ):
        found = _check(half, good_days, Checks.model_validate(text))
        assert [(finding.severity, finding.limit) for finding in found] == expected


def test_only_the_last_good_days_count() -> None:
    reference = [Profile(rows=100_000), *[Profile(rows=1000)] * 3]
    assert _check(Profile(rows=1000), reference, Checks(days=1)) == []
    (finding,) = _check(Profile(rows=9000), reference, Checks(days=2))
    assert (finding.usual, finding.days) == (1000, 2)


def test_without_a_good_day_nothing_is_known(day: pa.Table) -> None:
    assert _check(profile_day(day), []) == []
    assert _check(profile_day(day), [Profile()]) == []


def test_a_column_is_compared_with_the_days_that_have_it() -> None:
    ones = pa.array([1.0] * 1000)
    old, new = _day(age=ones), _day(age=ones, number=pa.array([5] * 1000))
    other = _day(age=ones, number=pa.array(["5"] * 1000))
    assert _found(new, [old, old]) == set()
    assert _of(new, [old, new, other], "psi", "number").value == 0
    assert _found(old, [new]) == set()


def test_a_finding_survives_json(good_days: list[Profile], day: pa.Table) -> None:
    (finding,) = _check(profile_day(day.slice(0, 2500)), good_days)
    assert Finding.model_validate_json(finding.model_dump_json()) == finding


# ---- equal days


@pytest.mark.parametrize(("rows", "days"), [(100, 40), (1000, 30), (10_000, 12)])
def test_equal_days_are_not_flagged(rows: int, days: int) -> None:
    profiles = Population(rows).profiles(days, rows)
    flagged = [
        str(finding)
        for number in range(7, days)
        for finding in _check(profiles[number], profiles[:number])
    ]
    assert flagged == []


def test_equal_days_of_real_users_are_not_flagged() -> None:
    rng = np.random.default_rng(2)
    log = taobao()
    day = log.filter(pl.col("day") == "2017-11-29")
    users = day["user_id"].unique().sort()
    profiles = []
    for _ in range(20):
        drawn = pl.DataFrame({"user_id": users.sample(1000, seed=int(rng.integers(1 << 30)))})
        profiles.append(profile_day(day.join(drawn, on="user_id").drop("day").to_arrow()))
    flagged = [
        str(finding)
        for number in range(7, 20)
        for finding in _check(profiles[number], profiles[:number])
    ]
    assert flagged == []


def test_days_of_a_real_log() -> None:
    """The log begins in the last hours of one day and ends in the middle of another."""
    profiles: dict[str, Profile] = {}
    flagged: dict[str, set[tuple[str, str]]] = {}
    for (name,), rows in sorted(taobao().partition_by("day", as_dict=True).items()):
        found = profile_day(rows.drop("day").to_arrow())
        flagged[name] = _found(found, list(profiles.values()))
        profiles[name] = found
    begin, end = {("", "rows"), ("timestamp_ms", "psi")}, {("timestamp_ms", "psi")}
    assert flagged == {
        "2017-11-24": set(),
        "2017-11-25": begin,
        "2017-11-26": {("", "rows")},
        **{f"2017-11-{number}": set() for number in range(27, 31)},
        "2017-12-01": set(),
        "2017-12-02": set(),
        "2017-12-03": end,
    }
