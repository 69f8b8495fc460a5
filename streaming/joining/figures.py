"""How a running join is told: a line every few seconds, and figures for Prometheus."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from streaming.joining.config import JoinWatchConfig
from streaming.joining.progress import EVENTS, REJECTS, SAMPLES, STALE, TOTALS, Progress, summed
from streaming.joining.step import FOREVER, NEVER
from streaming.watch.endpoints import Endpoints
from streaming.watch.pulse import Pulse

logger = logging.getLogger(__name__)

_LINE_SECONDS: Final = 10.0
_FIGURE_SECONDS: Final = 1.0
_STALL_SECONDS: Final = 180.0  # a commit may wait for brokers for a minute, and twice
_COUNTERS: Final = frozenset(f"join/{name}" for name in TOTALS)


class JoinFigures:
    """Tells how far a join is. Use from one thread at a time.

    Attributes:
        pulse: What the probes ask.
    """

    def __init__(self, config: JoinWatchConfig) -> None:
        """Begins to serve, if a port is configured.

        Raises:
            InputError: If the port is taken.
        """
        self.pulse = Pulse(stall_seconds=_STALL_SECONDS, ready_seconds=_STALL_SECONDS)
        self._endpoints: Endpoints | None = None
        if config.port is not None:
            self._endpoints = Endpoints(
                self.pulse,
                host=config.host,
                port=config.port,
                section="join.watch",
                counters=_COUNTERS,
            )
        self._told = self._lined = time.monotonic()
        self._events: int | None = None

    @property
    def address(self) -> str | None:
        """Where the figures are served, if they are."""
        return None if self._endpoints is None else self._endpoints.address

    def due(self) -> bool:
        """Whether it is time to tell."""
        return time.monotonic() - self._told >= _FIGURE_SECONDS

    def tell(
        self, progress: Sequence[Progress], *, watermark_ms: int, lag: int, wall_ms: int
    ) -> None:
        """Tells of all units of this process.

        Args:
            progress: What each has committed.
            watermark_ms: The lowest of theirs.
            lag: Records that are not read yet.
            wall_ms: Wall time.
        """
        now = self._told = time.monotonic()
        totals = summed(progress, "totals")
        figures: dict[str, float] = {f"join/{name}": totals.get(name, 0) for name in TOTALS}
        figures |= {f"join/fate_{name}": n for name, n in summed(progress, "fates").items()}
        figures["join/lag_records"] = lag
        if NEVER < watermark_ms < FOREVER:
            figures["join/watermark_ms"] = watermark_ms
            figures["join/watermark_delay_seconds"] = 1e-3 * (wall_ms - watermark_ms)
        if self._endpoints is not None:
            self._endpoints.write(0, figures)
        if self._events is None:
            self._events = totals.get(EVENTS, 0)
        if now - self._lined >= _LINE_SECONDS:
            rate = (totals.get(EVENTS, 0) - self._events) / (now - self._lined)
            self._events, self._lined = totals.get(EVENTS, 0), now
            _line(rate, totals, figures, watermark_ms=watermark_ms)

    def close(self) -> None:
        """Stops serving."""
        if self._endpoints is not None:
            self._endpoints.close()


def _line(
    rate: float, totals: Mapping[str, int], figures: Mapping[str, float], *, watermark_ms: int
) -> None:
    logger.info(
        "%.0f events/s  %d records to go  watermark %s  %d events  %d samples  %d stale"
        "  %d rejected",
        rate,
        figures["join/lag_records"],
        time_text(watermark_ms),
        *(totals.get(name, 0) for name in (EVENTS, SAMPLES, STALE, REJECTS)),
    )


def time_text(time_ms: int) -> str:
    """Returns a watermark for a person."""
    if time_ms <= NEVER:
        return "none yet"
    if time_ms >= FOREVER:
        return "closed"
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(sep=" ", timespec="seconds")
