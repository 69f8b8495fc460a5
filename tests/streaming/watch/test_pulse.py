from __future__ import annotations

from streaming.watch.pulse import Pulse


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def training_pulse() -> tuple[Pulse, Clock]:
    clock = Clock()
    pulse = Pulse(stall_seconds=20, ready_seconds=5, clock=clock)
    pulse.connected = pulse.training = True
    return pulse, clock


def test_readiness_goes_without_progress_and_comes_back_with_it() -> None:
    pulse, clock = training_pulse()
    assert pulse.unready() == ""
    clock.now = 6
    pulse.beat()  # the main thread is alive, but no range was finished
    assert pulse.unready() == "no range was finished for 6 s"
    assert pulse.unhealthy() == ""
    pulse.progressed()
    assert pulse.unready() == ""


def test_a_main_thread_that_hangs_is_unhealthy() -> None:
    pulse, clock = training_pulse()
    clock.now = 21
    assert pulse.unhealthy() == "the main thread did nothing for 21 s"


def test_waiting_for_the_cluster_is_healthy_and_not_ready() -> None:
    pulse, clock = training_pulse()
    pulse.connected = False
    clock.now = 1000
    assert pulse.unhealthy() == ""
    assert pulse.unready() == "waiting for the cluster"


def test_a_source_that_is_away_is_not_ready() -> None:
    pulse, _ = training_pulse()
    pulse.obstacle = "the source cannot be read"
    assert pulse.unready() == "the source cannot be read"


def test_a_restore_may_take_ten_times_as_long_before_it_is_a_hang() -> None:
    pulse, clock = training_pulse()
    with pulse.busy("restoring the checkpoint"):
        assert pulse.unready() == "restoring the checkpoint"
        clock.now = 200
        assert pulse.unhealthy() == ""
        clock.now = 201
        assert pulse.unhealthy() == (
            "the main thread did nothing for 201 s, while restoring the checkpoint"
        )
        clock.now = 400
        assert pulse.hung() == ""
        clock.now = 401
        assert pulse.hung() == "nothing was done for 401 s, while restoring the checkpoint"
    assert pulse.unready() == ""
    clock.now = 442
    assert pulse.hung() == "nothing was done for 41 s"
