"""`headrace bench alignment`: what keeping many streams together in event time is worth.

Three topics of eight partitions in a Kafka broker, SYNTHETIC: one holds a backlog of three days,
two hold the last six hours; users' preferences move on every twelve hours. The same trainer reads
all of it twice: with `train.stream.max_skew_seconds`, and without. The skew is the largest that the
run's own metrics show. The loss is progressive: of each range before it is learned, averaged over
ranges whose newest event is of the hours that are named.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobs.bench.alignment import drift
from jobs.bench.launch import training
from jobs.bench.report import Cell, add_broker_argument, bench_parser, write_report
from jobs.bench.stream.synthetic import broker
from jobs.settings import EXIT_BAD_INPUT, EXIT_DONE

logger = logging.getLogger(__name__)

_ALIGNED, _FREE = "aligned", "not aligned"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; 2 if the aligned run went beyond its bound."""
    parser = bench_parser("alignment", __doc__)
    parser.add_argument("--samples", type=int, default=360_000, help="of the topic with a backlog")
    parser.add_argument("--max-skew-hours", type=float, default=4.0, help="of the aligned run")
    add_broker_argument(parser)
    arguments = parser.parse_args(argv)
    rows: list[dict[str, Cell]] = []
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-") as name,
        broker(arguments.kafka) as address,
    ):
        folder = Path(name)
        drift.publish_topics(folder / "samples", address, samples=arguments.samples)
        for variant, hours in [(_ALIGNED, arguments.max_skew_hours), (_FREE, None)]:
            run = folder / variant.replace(" ", "-")
            _train(run, address, max_skew_hours=hours)
            rows.append({"run": variant, **_figures(run)})
            logger.info("%s", rows[-1])
    aligned, free = rows
    ratios = {
        name.replace("loss, ", "loss_not_aligned_vs_aligned, "): float(free[name]) / float(value)
        for name, value in aligned.items()
        if name.startswith("loss")
    }
    write_report("alignment (synthetic)", rows, ratios=ratios, out=arguments.out)
    if float(aligned["largest skew, h"]) > arguments.max_skew_hours:
        sys.stderr.write(f"the skew went beyond {arguments.max_skew_hours:g} h\n")
        return EXIT_BAD_INPUT
    return EXIT_DONE


def _figures(run: Path) -> dict[str, Cell]:
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    ranges = [json.loads(line) for line in (run / "ranges.jsonl").read_text().splitlines()]
    skews = [line["stream/max_skew_seconds"] for line in metrics]
    fresh_ms = drift.START_MS + (drift.HOURS - drift.FRESH_HOURS) * drift.HOUR_MS
    newest = [line for line in ranges if line["last_ms"] > fresh_ms]
    by_topic = {topic: [r for r in newest if r["topic"] == topic] for topic in drift.TOPICS}
    return {
        "samples": metrics[-1]["stream/samples"],
        "largest skew, h": round(max(skews) / 3600, 2),
        "loss, all": _loss(ranges),
        f"loss, last {drift.FRESH_HOURS} h": _loss(newest),
    } | {
        f"loss, last {drift.FRESH_HOURS} h of {topic}": _loss(of) for topic, of in by_topic.items()
    }


def _loss(ranges: Sequence[dict[str, Any]]) -> float:
    """Returns the mean loss of the mini-batches of some ranges."""
    return sum(r["loss_sum"] for r in ranges) / sum(r["batches"] for r in ranges)


def _train(run: Path, address: str, *, max_skew_hours: float | None) -> None:
    """Trains once on a cluster of its own: one parameter server, two workers."""
    stream: dict[str, Any] = {"end": "now", "max_skew_seconds": None}
    if max_skew_hours is not None:
        stream["max_skew_seconds"] = 3600 * max_skew_hours
    settings = {
        "specification": drift.SPECIFICATION,
        "model": {
            "dim": drift.DIM,
            "hidden": [],
            "logq": "none",
            "optimizer": "adagrad",
            "learning_rate": 0.2,
        },
        "train": {
            "directory": str(run),
            "source": {"kafka": {"bootstrap_servers": [address], "topics": list(drift.TOPICS)}},
            "stream": stream,
            "batch_size": 250,
            "batches_per_range": 4,
            "checkpoint": {"every_seconds": 3600},
            "cluster": {"parameter_servers": 1, "workers": 2},
        },
    }
    ranges = {"BENCH_RANGES": str(run / "ranges.jsonl")}
    with training(
        run, settings, module="jobs.bench.alignment.process", environment=ranges
    ) as process:
        process.wait()
