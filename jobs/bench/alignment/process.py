"""One process of the cluster that `headrace bench alignment` watches.

It is `headrace train`, but that its coordinator also notes each range's loss and event time in
`ranges.jsonl`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jobs.main import run_job
from jobs.train import TrainingProcess, argument_parser, run_role
from streaming import coordinator
from streaming.feed import Feed
from streaming.source import Range


class NotingFeed(Feed):
    """A feed that notes what becomes of its ranges."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._notes = Path(os.environ["BENCH_RANGES"])

    def note(self, done: Range, report: Mapping[str, float]) -> None:
        """See `Feed.note`."""
        super().note(done, report)
        names = ("first_ms", "last_ms", "batches", "loss_sum")
        line = {"topic": done.partition.topic} | {name: report[name] for name in names}
        with self._notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


def main() -> int:
    """Runs the role that the flags name."""
    setattr(coordinator, "Feed", NotingFeed)  # noqa: B010 - a class, in place of the trainer's own
    return run_role(argument_parser().parse_args(), TrainingProcess)


if __name__ == "__main__":
    sys.exit(run_job(lambda _: main()))
