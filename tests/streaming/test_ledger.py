from __future__ import annotations

import pytest

from pipeline.schema import InputError
from streaming.ledger import Ledger, Totals
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


def test_offsets_of_another_life_of_a_topic_are_refused():
    ledger = Ledger({A: 3}, {"clicks": "id-1"})
    ledger.check_identity({"clicks": "id-1"})
    with pytest.raises(InputError, match="found identity id-2, expected id-1") as other:
        ledger.check_identity({"clicks": "id-2"})
    assert "`headrace offsets reset --to earliest --topic clicks`" in str(other.value)
    with pytest.raises(InputError, match=r"those that are read \(views\)") as retired:
        ledger.check_identity({"views": "id-3"})
    assert "`headrace offsets forget --topic clicks`" in str(retired.value)


def test_new_partitions_join_at_their_start_and_a_shorter_source_is_refused():
    ledger = Ledger({A: 100}, {})
    ledger.adopt({A: 0, B: 40}, {A: 100, B: 50})
    assert ledger.offsets == {A: 100, B: 40}
    with pytest.raises(InputError, match="found its end at 80; expected at least 100"):
        ledger.adopt({A: 0, B: 40}, {A: 80, B: 50})
