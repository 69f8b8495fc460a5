from __future__ import annotations

import pytest

from pipeline.schema import InputError
from streaming.ledger import Totals
from streaming.rejects import RejectLimit


def counts(records: int, rejects: int, lost: int = 0) -> Totals:
    return Totals(records=records, rejects=rejects, lost=lost)


def test_a_share_that_chance_explains_stops_nothing_before_the_end() -> None:
    limit = RejectLimit(0.06, kept_in="here")
    limit.check(counts(120, 8))  # 6.7%; 7.2 + 3 x 2.6 are allowed
    with pytest.raises(InputError, match=r"16 of all 120 records.*13.33%.*at most 6.00%.*in here"):
        limit.check(counts(120, 16))
    with pytest.raises(InputError, match="8 of all 120"):
        limit.check(counts(120, 8), complete=True)


def test_a_life_that_ends_with_a_few_bad_records_is_judged_with_those_before_it():
    limit = RejectLimit(0.01, kept_in="here")
    limit.note(counts(1, 1))  # all that was left for this life
    limit.check(counts(424, 1), complete=True)
    with pytest.raises(InputError, match="5 of all 424 records"):
        limit.check(counts(424, 5), complete=True)


def test_lost_records_are_no_rejects() -> None:
    RejectLimit(0.0, kept_in="here").check(counts(1000, 0, lost=900), complete=True)


def test_the_latest_are_judged_by_themselves() -> None:
    limit = RejectLimit(0.01, kept_in="here")
    for _ in range(100):
        limit.note(counts(1000, 0))
    for _ in range(10):
        limit.note(counts(1000, 20))  # 200 of the latest 10,000, of which 100 + 3 x 10 are allowed
    with pytest.raises(InputError, match="200 of the latest 10000 records"):
        limit.check(counts(1_000_000, 200))
