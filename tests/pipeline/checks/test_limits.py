"""The section `checks`: defaults, what is stated over them, and what is refused."""

from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from pipeline.checks.limits import Checks


def _checks(text: str) -> Checks:
    return Checks.model_validate(yaml.safe_load(text))


def _limit(checks: Checks, measure: str, column: str = "age") -> tuple[Any, Any]:
    limit = checks.limit(measure, column)
    return limit.warn, limit.fail


def test_nothing_fails_by_default() -> None:
    found = {name: _limit(Checks(), name) for name in ("rows", "nulls", "vocabulary", "psi")}
    assert found == {
        "rows": (1.5, None),
        "nulls": (0.02, None),
        "vocabulary": (0.1, None),
        "psi": (0.1, None),
    }


def test_one_step_is_stated_and_the_other_stays() -> None:
    assert _limit(_checks("psi: {fail: 0.25}"), "psi") == (0.1, 0.25)
    assert _limit(_checks("psi: {warn: null, fail: 0.25}"), "psi") == (None, 0.25)


def test_a_feature_has_limits_of_its_own_over_those_of_all() -> None:
    checks = _checks("{psi: {warn: 0.2, fail: 0.5}, features: {age: {psi: {warn: 0.3}}}}")
    assert _limit(checks, "psi") == (0.3, 0.5)
    assert _limit(checks, "psi", "city") == (0.2, 0.5)
    assert _limit(checks, "nulls") == (0.02, None)


@pytest.mark.parametrize("text", ["psi: off", "features: {age: {psi: off}}"])
def test_a_check_is_switched_off(text: str) -> None:
    assert _limit(_checks(text), "psi") == (None, None)
    assert _limit(_checks(text), "nulls") == (0.02, None)


def test_a_feature_is_checked_where_all_others_are_not() -> None:
    checks = _checks("{psi: off, features: {age: {psi: {warn: 0.3}}}}")
    assert _limit(checks, "psi") == (0.3, None)
    assert _limit(checks, "psi", "city") == (None, None)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("psi: {warn: 0.3, fail: 0.2}", "found fail 0.2 below warn 0.3"),
        ("rows: {warn: 0.5}", "rows"),
        ("nulls: {warn: 2}", "nulls"),
        ("psi: {wran: 0.3}", "wran"),
        ("features: {age: {rows: {warn: 2}}}", "features.age.rows"),
        ("days: 0", "days"),
        ("psi: on", "psi"),
    ],
)
def test_what_makes_no_sense_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        _checks(text)


def test_a_column_that_is_not_there_is_named_with_its_neighbour() -> None:
    checks = _checks("features: {agee: {psi: off}, city: {psi: off}}")
    assert checks.problems(["age", "city"]) == [
        "checks.features.agee: no such column of samples;"
        " expected one of ['age', 'city'] (did you mean 'age'?)"
    ]
