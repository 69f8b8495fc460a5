"""What a run tells of itself while it trains."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from streaming.ledger import Totals

logger = logging.getLogger(__name__)

_METRICS_SECONDS = 1.0


class MetricWriter:
    """Appends metrics to a file, one JSON object per line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a", buffering=1)

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes the values of `area/noun` names at a step."""
        self._file.write(json.dumps({"time": time.time(), "step": step} | dict(scalars)) + "\n")

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class Watch:
    """Adds up what ranges report, and tells it once a second. Use from one thread at a time."""

    def __init__(self, path: Path) -> None:
        self._writer = MetricWriter(path)
        self._since = time.monotonic()
        self._samples = self._batches = 0
        self._loss_sum = 0.0

    def add(self, totals: Totals, report: Mapping[str, float]) -> None:
        """Notes a range that was applied."""
        self._samples += totals.samples
        self._batches += totals.batches
        self._loss_sum += report["loss_sum"]

    def tell(self, totals: Mapping[str, int], *, remaining: int, final: bool = False) -> None:
        """Writes a line of metrics, if it is time and something was learned, or if it is the last.

        Args:
            totals: The ledger's.
            remaining: Records that can be read and were not handed out.
            final: Whether the run ends now.
        """
        now = time.monotonic()
        if not final and (now - self._since < _METRICS_SECONDS or not self._batches):
            return
        scalars: dict[str, float] = {f"stream/{name}": count for name, count in totals.items()}
        if self._batches:
            scalars["train/loss"] = self._loss_sum / self._batches
            scalars["stream/samples_per_second"] = self._samples / (now - self._since)
        scalars["stream/records_remaining"] = remaining
        self._writer.write(totals["batches"], scalars)
        if self._batches:
            logger.info(
                "step %d  samples %d  loss %.4f  %.0f samples/s  %d records to go",
                totals["batches"],
                totals["samples"],
                scalars["train/loss"],
                scalars["stream/samples_per_second"],
                scalars["stream/records_remaining"],
            )
        self._since, self._samples, self._batches, self._loss_sum = now, 0, 0, 0.0

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()
