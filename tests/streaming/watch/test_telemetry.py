"""Figures go to every outlet that can take them."""

from __future__ import annotations

import logging

import pytest

from streaming.watch.telemetry import TOTALS, Telemetry


class Taking:
    def __init__(self) -> None:
        self.steps: list[int] = []

    def write(self, step, figures):
        self.steps.append(step)

    def close(self):
        self.steps.append(-1)


class Full(Taking):
    def __init__(self) -> None:
        super().__init__()
        self.full = True

    def write(self, step, figures):
        if self.full:
            raise OSError(28, "No space left on device")
        super().write(step, figures)

    def close(self):
        raise OSError(28, "No space left on device")


def test_a_full_disk_costs_its_figures_and_nothing_else(caplog: pytest.LogCaptureFixture):
    full, other = Full(), Taking()
    telemetry = Telemetry([full, other])

    def tell(batches: int) -> None:
        figures = telemetry.collect(dict.fromkeys(TOTALS, 0) | {"batches": batches}, {"a/b": 2.5})
        assert figures["a/b"] == 2.5
        telemetry.tell(figures)

    with caplog.at_level(logging.WARNING):
        tell(1)
        tell(2)
        full.full = False
        tell(3)
        full.full = True
        tell(4)
        telemetry.close()
    assert full.steps == [3]
    assert other.steps == [1, 2, 3, 4, -1]
    assert [message.split(":")[0] for message in caplog.messages] == ["Full takes no figures"] * 2
