"""The plan: which range comes next."""

from streaming.schedule.plan import Pace, Plan
from streaming.source import Partition, Range

A, B = Partition("clicks", 0), Partition("clicks", 1)
C = Partition("searches", 0)


def make_plan(start: dict[Partition, int], **options) -> Plan:
    """Returns a plan of records of one sample."""
    plan = Plan(start, **options)
    for partition in start:
        plan.measured(partition, records=1, samples=1)
    return plan


def test_a_plan_covers_every_offset_once_from_the_partition_least_advanced():
    plan = make_plan({A: 0, B: 0}, samples_per_range=10)
    plan.extend({A: 25, B: 100}, now=0.0)
    taken = []
    while (following := plan.take(look_ahead=2, now=0.0)) is not None:
        taken.append(following[0])
    for partition, end in [(A, 25), (B, 100)]:
        offsets = [o for r in taken if r.partition == partition for o in range(r.start, r.end)]
        assert offsets == list(range(end))
    # A's three ranges are spread over B's ten.
    assert [r.partition for r in taken[:2]] == [A, B]
    assert [r.partition for r in taken].index(A, 1) in range(3, 7)
    assert plan.remaining == 0


def test_the_likely_next_range_is_the_one_that_is_taken_then():
    plan = make_plan({A: 0}, samples_per_range=10)
    plan.extend({A: 40}, now=0.0)
    hints, taken = [], []
    while (following := plan.take(look_ahead=2, now=0.0)) is not None:
        taken.append(following[0])
        hints.append(following[1])
    assert hints == [taken[2], taken[3], None, None]


def test_what_is_at_hand_is_what_could_be_taken_at_once():
    plan = make_plan({A: 0, B: 0}, samples_per_range=10, pace=Pace(linger_seconds=5.0))
    plan.extend({A: 25, B: 9}, now=0.0)
    assert plan.at_hand(now=0.0) == 2  # of A; its last 5 records and B wait for full ranges
    assert plan.at_hand(now=5.0) == 3  # B has waited
    taken = 0
    while plan.take(look_ahead=1, now=5.0) is not None:
        taken += 1
        assert plan.at_hand(now=5.0) == 3 - taken
    assert taken == 3


def test_a_plan_grows_with_its_stream():
    plan = make_plan({A: 7}, samples_per_range=10)
    plan.extend({A: 7}, now=0.0)
    assert plan.take(look_ahead=0, now=0.0) is None
    plan.add({A: 0, B: 2})  # A is known: it stays where it is
    plan.extend({A: 9, B: 5}, now=0.0)
    assert plan.remaining == 5
    assert {plan.take(look_ahead=0, now=0.0)[0] for _ in range(2)} == {
        Range(A, 7, 9),
        Range(B, 2, 5),
    }


def test_a_trickle_waits_for_a_full_range_or_until_its_oldest_record_has_waited_long_enough():
    plan = make_plan({A: 0}, samples_per_range=10, pace=Pace(linger_seconds=5.0))
    plan.extend({A: 4}, now=100.0)
    assert plan.take(look_ahead=0, now=104.0) is None
    plan.extend({A: 8}, now=104.0)
    assert plan.take(look_ahead=0, now=104.9) is None
    assert plan.take(look_ahead=0, now=105.0)[0] == Range(A, 0, 8)
    plan.extend({A: 20}, now=109.0)
    assert plan.take(look_ahead=0, now=109.0)[0] == Range(A, 8, 18)
    assert plan.take(look_ahead=0, now=109.0) is None
    plan.extend({A: 20}, now=109.0, ended=[A])  # nothing follows, so nothing is waited for
    assert plan.take(look_ahead=0, now=109.0)[0] == Range(A, 18, 20)


def test_ranges_are_cut_by_the_samples_of_each_partitions_own_records():
    plan = Plan({A: 0, C: 0}, samples_per_range=80)
    plan.measured(A, records=1, samples=80)
    plan.measured(C, records=10, samples=10)
    plan.extend({A: 3, C: 200}, now=0.0, ended=[A, C])
    taken = [plan.take(look_ahead=1, now=0.0)[0] for _ in range(6)]
    assert sorted(r.end - r.start for r in taken if r.partition == A) == [1, 1, 1]
    assert sorted(r.end - r.start for r in taken if r.partition == C) == [40, 80, 80]
    assert plan.take(look_ahead=1, now=0.0) is None


def test_what_was_cut_ahead_is_cut_again_when_records_turn_out_much_larger():
    plan = Plan({A: 0}, samples_per_range=80)
    plan.measured(A, records=1, samples=1)
    plan.extend({A: 1000}, now=0.0)
    assert plan.take(look_ahead=3, now=0.0) == (Range(A, 0, 80), Range(A, 240, 320))
    plan.measured(A, records=80, samples=640)
    assert plan.take(look_ahead=3, now=0.0) == (Range(A, 80, 90), Range(A, 110, 120))
    assert plan.remaining == 910
    assert plan.samples_out == 8 * 120  # cut, those ahead included; nothing is applied


def test_a_partition_that_the_source_lists_no_more_holds_nobody():
    plan = make_plan({A: 0, B: 5}, pace=Pace(idle_seconds=10.0))
    plan.extend({A: 4}, now=0.0)
    assert plan.holds(A)
    assert not plan.holds(B)
    plan.extend({A: 4, B: 6}, now=1.0)  # it is back
    assert plan.holds(B)
