from __future__ import annotations

from tests.drills.schedule import KINDS, make_schedule


def test_the_same_seed_gives_the_same_schedule_and_another_seed_another():
    first = make_schedule(60, seed=1)
    assert first == make_schedule(60, seed=1)
    assert first[:20] == make_schedule(20, seed=1), "a longer drill begins as a shorter one"
    assert first != make_schedule(60, seed=2)


def test_every_kind_comes_in_each_round_as_often_as_it_should():
    faults = make_schedule(2 * sum(KINDS.values()), seed=3)
    assert [fault.number for fault in faults] == list(range(1, len(faults) + 1))
    kinds = [fault.kind for fault in faults]
    assert {kind: kinds.count(kind) for kind in KINDS} == {k: 2 * n for k, n in KINDS.items()}


def test_only_the_kinds_that_are_asked_for():
    faults = make_schedule(9, seed=1, kinds=["kill ps"])
    assert {fault.kind for fault in faults} == {"kill ps"}
    assert {fault.target for fault in faults} == {"ps 0", "ps 1"}
