"""One set of named figures of a run, once a second, for every outlet."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import tensorflow as tf

from streaming.schedule.progress import Position
from streaming.watch.meter import Meter
from streaming.watch.outlets import Outlet

logger = logging.getLogger(__name__)

_SECONDS = 1.0
TOTALS = ("records", "samples", "batches", "rejects", "lost", "torn")
"""The ledger's counts; their figures are `stream/NAME`."""


class Telemetry:
    """Collects figures and hands them on.

    Attributes:
        meter: What ranges report goes here.
        facts: Figures that stay until they are set again.
    """

    def __init__(self, outlets: Sequence[Outlet]) -> None:
        self._outlets = list(outlets)
        self._failed: set[Outlet] = set()
        self._told = time.monotonic()
        self.meter = Meter(now=self._told)
        self.facts: dict[str, float] = {}

    def due(self, now: float) -> bool:
        """Whether it is time to tell."""
        return now - self._told >= _SECONDS

    def collect(self, totals: Mapping[str, int], gauges: Mapping[str, float]) -> dict[str, float]:
        """Returns all figures of this moment; reports of ranges must not come meanwhile.

        Args:
            totals: The ledger's.
            gauges: What can be known only now.
        """
        now = self._told = time.monotonic()
        figures: dict[str, float] = {f"stream/{name}": totals[name] for name in TOTALS}
        return (
            figures | self.meter.interval(now) | self.meter.recent(now) | self.facts | dict(gauges)
        )

    def tell(self, figures: Mapping[str, float]) -> None:
        """Hands figures to the outlets, which may take their time."""
        for outlet in self._outlets:
            with self._forgiving(outlet):
                outlet.write(int(figures["stream/batches"]), figures)
                self._failed.discard(outlet)

    def close(self) -> None:
        """Closes the outlets."""
        for outlet in self._outlets:
            with self._forgiving(outlet):
                outlet.close()

    @contextlib.contextmanager
    def _forgiving(self, outlet: Outlet) -> Iterator[None]:
        """Warns of an outlet that takes nothing, once: a full disk need not end training."""
        try:
            yield
        except (OSError, tf.errors.OpError) as error:
            if outlet not in self._failed:
                self._failed.add(outlet)
                logger.warning("%s takes no figures: %s", type(outlet).__name__, error)


def position_figures(position: Position) -> dict[str, float]:
    """Returns the figures of where a run stands; those that are not known yet are left out."""
    figures: dict[str, float] = {
        "stream/skew_seconds": 1e-3 * position.skew_ms,
        "stream/max_skew_seconds": 1e-3 * position.max_skew_ms,
        "stream/lag_records": sum(position.lag.values()),
    }
    figures |= {f"stream/topic_lag_records/{topic}": lag for topic, lag in position.lag.items()}
    watermarks = {"stream/watermark_ms": position.watermark_ms} | {
        f"stream/topic_watermark_ms/{topic}": time_ms
        for topic, time_ms in position.watermarks_ms.items()
    }
    return figures | {name: time_ms for name, time_ms in watermarks.items() if time_ms is not None}
