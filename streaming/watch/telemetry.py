"""One set of named figures of a run, once a second, for every outlet."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from streaming.watch.meter import Meter
from streaming.watch.outlets import Outlet

_SECONDS = 1.0
TOTALS = ("records", "samples", "batches", "rejects", "lost", "torn")
"""The ledger's counts; their figures are `stream/NAME`."""


class Telemetry:
    """Collects figures and hands them on. Use from one thread at a time.

    Attributes:
        meter: What ranges report goes here.
        facts: Figures that stay until they are set again.
    """

    def __init__(self, outlets: Sequence[Outlet]) -> None:
        self._outlets = list(outlets)
        self._told = time.monotonic()
        self.meter = Meter(now=self._told)
        self.facts: dict[str, float] = {}

    def due(self, now: float) -> bool:
        """Whether it is time to tell."""
        return now - self._told >= _SECONDS

    def tell(self, totals: Mapping[str, int], gauges: Mapping[str, float]) -> None:
        """Hands all figures to the outlets.

        Args:
            totals: The ledger's.
            gauges: What can be known only now.
        """
        now = self._told = time.monotonic()
        figures: dict[str, float] = {f"stream/{name}": totals[name] for name in TOTALS}
        figures |= self.meter.interval(now) | self.meter.recent(now) | self.facts | dict(gauges)
        for outlet in self._outlets:
            outlet.write(totals["batches"], figures)

    def close(self) -> None:
        """Closes the outlets."""
        for outlet in self._outlets:
            outlet.close()
