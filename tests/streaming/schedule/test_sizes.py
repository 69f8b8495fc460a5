"""How many samples a record holds, by partition."""

from streaming.schedule.sizes import RecordSizes
from streaming.source import Partition

A, B, C = Partition("clicks", 0), Partition("clicks", 1), Partition("searches", 0)


def test_each_partition_has_its_own_size_and_an_unknown_one_that_of_its_topic():
    sizes = RecordSizes(1000)
    assert sizes.records_per_range(A) == 1  # nothing is known: a record may be a whole range
    sizes.note(A, records=2, samples=20)
    sizes.note(C, records=1, samples=500)
    assert sizes.records_per_range(A) == 100
    assert sizes.records_per_range(B) == 100
    assert sizes.records_per_range(C) == 2
    assert sizes.records_per_range(Partition("new", 0)) == 2  # the largest of all


def test_sizes_follow_slowly_but_at_once_when_records_became_much_larger():
    sizes = RecordSizes(1000)
    sizes.note(A, records=1, samples=10)
    assert not sizes.note(A, records=10, samples=200)  # 10 + .3 (20 - 10)
    assert sizes.of(A) == 13.0
    assert sizes.note(A, records=1, samples=100)
    assert sizes.of(A) == 100.0
    assert not sizes.note(A, records=1, samples=10)  # 100 + .3 (10 - 100)
    assert sizes.of(A) == 73.0


def test_what_held_no_sample_tells_nothing_and_holes_make_no_range_longer():
    sizes = RecordSizes(1000)
    sizes.note(A, records=100, samples=80)  # markers of transactions between single samples
    assert sizes.records_per_range(A) == 1000
    assert not sizes.note(A, records=100, samples=0)
    assert not sizes.note(A, records=0, samples=0)  # all lost
    assert sizes.records_per_range(A) == 1000
