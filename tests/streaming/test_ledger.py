from __future__ import annotations

import pytest

from pipeline.schema import InputError
from streaming.ledger import Ledger, Plan, Totals
from streaming.source import Partition, Range

A, B = Partition("clicks", 0), Partition("clicks", 1)


def test_offsets_move_over_finished_ranges_only_when_all_before_are_finished():
    ledger = Ledger({A: 100}, {})
    ledger.commit(Range(A, 120, 130), Totals(samples=10))
    assert ledger.offsets[A] == 100
    assert not ledger.settled
    ledger.commit(Range(A, 100, 120), Totals(samples=20))
    assert ledger.offsets[A] == 130
    assert ledger.settled
    assert ledger.totals.samples == 30


@pytest.mark.parametrize("start", [90, 100])
def test_a_range_counts_once(start):
    ledger = Ledger({A: 100}, {})
    ledger.commit(Range(A, 100, 120), Totals())
    with pytest.raises(ValueError, match="in the ledger already"):
        ledger.commit(Range(A, start, 120), Totals())


def test_an_unsettled_ledger_is_not_saved():
    ledger = Ledger({A: 0}, {})
    ledger.commit(Range(A, 5, 6), Totals())
    with pytest.raises(ValueError, match="holes"):
        ledger.to_json()


def test_json_keeps_all():
    ledger = Ledger({A: 3, B: 9}, {"clicks": "id-1"})
    ledger.commit(Range(B, 9, 12), Totals(records=3, samples=30, batches=2, rejects=1, lost=1))
    same = Ledger.from_json(ledger.to_json())
    assert same.offsets == {A: 3, B: 12}
    assert same.totals == Totals(records=3, samples=30, batches=2, rejects=1, lost=1)
    assert same.identity == {"clicks": "id-1"}
    assert same.totals.reject_share == pytest.approx(2 / 3)


def test_offsets_of_another_life_of_a_topic_are_refused():
    ledger = Ledger({A: 3}, {"clicks": "id-1"})
    ledger.check_identity({"clicks": "id-1"})
    with pytest.raises(InputError, match="found identity id-2, expected id-1"):
        ledger.check_identity({"clicks": "id-2"})


def test_a_plan_covers_every_offset_once_from_the_partition_least_advanced():
    plan = Plan({A: 0, B: 0}, records_per_range=10)
    plan.extend({A: 25, B: 100})
    taken = []
    while (following := plan.take(look_ahead=2)) is not None:
        taken.append(following[0])
    for partition, end in [(A, 25), (B, 100)]:
        offsets = [o for r in taken if r.partition == partition for o in range(r.start, r.end)]
        assert offsets == list(range(end))
    # A's three ranges are spread over B's ten.
    assert [r.partition for r in taken[:2]] == [A, B]
    assert [r.partition for r in taken].index(A, 1) in range(3, 7)
    assert plan.remaining == 0


def test_the_likely_next_range_is_the_one_that_is_taken_then():
    plan = Plan({A: 0}, records_per_range=10)
    plan.extend({A: 40})
    hints, taken = [], []
    while (following := plan.take(look_ahead=2)) is not None:
        taken.append(following[0])
        hints.append(following[1])
    assert hints == [taken[2], taken[3], None, None]


def test_a_plan_grows_with_its_stream():
    plan = Plan({A: 7}, records_per_range=10)
    plan.extend({A: 7})
    assert plan.take(look_ahead=0) is None
    plan.add({A: 0, B: 2})  # A is known: it stays where it is
    plan.extend({A: 9, B: 5})
    assert plan.remaining == 5
    assert {plan.take(look_ahead=0)[0] for _ in range(2)} == {Range(A, 7, 9), Range(B, 2, 5)}


def test_a_trickle_waits_for_a_full_range_or_for_an_end_that_stands_still():
    plan = Plan({A: 0}, records_per_range=10, linger_seconds=5.0)
    plan.extend({A: 4}, now=100.0)
    assert plan.take(look_ahead=0, now=104.0) is None
    plan.extend({A: 8}, now=104.0)
    assert plan.take(look_ahead=0, now=108.0) is None  # it moved meanwhile
    assert plan.take(look_ahead=0, now=109.0)[0] == Range(A, 0, 8)
    plan.extend({A: 20}, now=109.0)
    assert plan.take(look_ahead=0, now=109.0)[0] == Range(A, 8, 18)


def test_new_partitions_join_at_their_start_and_a_shorter_source_is_refused():
    ledger = Ledger({A: 100}, {})
    ledger.adopt({A: 0, B: 40}, {A: 100, B: 50})
    assert ledger.offsets == {A: 100, B: 40}
    with pytest.raises(InputError, match="found its end at 80; expected at least 100"):
        ledger.adopt({A: 0, B: 40}, {A: 80, B: 50})
