"""The plan: which range comes next."""

from streaming.schedule.plan import Pace, Plan
from streaming.source import Partition, Range

A, B = Partition("clicks", 0), Partition("clicks", 1)


def test_a_plan_covers_every_offset_once_from_the_partition_least_advanced():
    plan = Plan({A: 0, B: 0}, records_per_range=10)
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
    plan = Plan({A: 0}, records_per_range=10)
    plan.extend({A: 40}, now=0.0)
    hints, taken = [], []
    while (following := plan.take(look_ahead=2, now=0.0)) is not None:
        taken.append(following[0])
        hints.append(following[1])
    assert hints == [taken[2], taken[3], None, None]


def test_a_plan_grows_with_its_stream():
    plan = Plan({A: 7}, records_per_range=10)
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
    plan = Plan({A: 0}, records_per_range=10, pace=Pace(linger_seconds=5.0))
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
