"""What ranges report, added up over a moment or a minute."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Mapping

import numpy as np

_WINDOW_SECONDS = 60.0
_POINTS = 16  # into which a range's samples are put, between its oldest and its newest event


@dataclasses.dataclass(frozen=True, slots=True)
class _Trained:
    """A range as it was applied: when, how many samples, and how old the first and last were."""

    at: float
    samples: int
    newest_seconds: float
    oldest_seconds: float


class Meter:
    """Adds up the reports of ranges. Use from one thread at a time.

    Attributes:
        batches: Mini-batches since `interval` was last asked for.
    """

    def __init__(self, *, now: float) -> None:
        self._trained: deque[_Trained] = deque()
        self._heard: dict[str, float] = {}
        self._begin(now)

    def _begin(self, now: float) -> None:
        self._since, self._samples, self.batches = now, 0, 0
        self._ranges = self._ahead = 0
        self._sums: dict[str, float] = {}
        self._counts: dict[str, float] = {}

    def add(self, report: Mapping[str, float], *, worker: str, now: float, wall_ms: float) -> None:
        """Notes a range that was applied.

        Args:
            report: Its `samples`, `batches` and `loss_sum`; `ahead`, 1 if its worker had read it
                while it learned the one before; `first_ms` and `last_ms`, the times of
                its oldest and newest event, below 0 for none; `NAME_sum` of the other scalars of
                its mini-batches, with `NAME_count` if they are not one per mini-batch.
            worker: Who did it.
            now: Seconds of a clock that never goes back.
            wall_ms: Milliseconds since 1970.
        """
        self._samples += int(report["samples"])
        self._ranges += 1
        self._ahead += int(report["ahead"])
        self.batches += int(report["batches"])
        for name, value in report.items():
            if name.endswith("_sum"):
                short = name.removesuffix("_sum")
                self._sums[short] = self._sums.get(short, 0.0) + value
                count = report.get(f"{short}_count", report["batches"])
                self._counts[short] = self._counts.get(short, 0.0) + count
        self._heard[worker] = now
        if report["last_ms"] < 0 or not report["samples"]:
            return
        newest, oldest = (1e-3 * (wall_ms - report[name]) for name in ("last_ms", "first_ms"))
        self._trained.append(_Trained(now, int(report["samples"]), newest, oldest))

    def interval(self, now: float) -> dict[str, float]:
        """Returns the rate and the mean loss since it was last asked, and begins anew."""
        figures: dict[str, float] = {}
        if self.batches:
            figures |= {
                f"train/{name}": total / self._counts[name]
                for name, total in self._sums.items()
                if self._counts[name]
            }
            figures["stream/samples_per_second"] = self._samples / max(1e-9, now - self._since)
        if self._ranges:
            figures["stream/read_ahead_share"] = self._ahead / self._ranges
        self._begin(now)
        return figures

    def recent(self, now: float) -> dict[str, float]:
        """Returns who was heard, and how old events were when they were trained on, of a minute.

        A range's events are taken to lie evenly between its oldest and its newest.
        """
        while self._trained and now - self._trained[0].at > _WINDOW_SECONDS:
            self._trained.popleft()
        heard = sum(now - at <= _WINDOW_SECONDS for at in self._heard.values())
        figures: dict[str, float] = {"cluster/workers_heard": heard}
        if self._trained:
            ends = np.array([[each.newest_seconds, each.oldest_seconds] for each in self._trained])
            share = (np.arange(_POINTS) + 0.5) / _POINTS
            ages = (ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * share).ravel()
            weights = np.repeat([each.samples / _POINTS for each in self._trained], _POINTS)
            order = np.argsort(ages)
            reached = np.cumsum(weights[order]) / weights.sum()
            for name, level in [("p50", 0.5), ("p99", 0.99)]:
                place = min(int(np.searchsorted(reached, level)), len(order) - 1)
                figures[f"stream/staleness_{name}_seconds"] = float(ages[order[place]])
        return figures
