"""`headrace bench stream`: what the cluster costs, and what its sources cost.

The same two-tower model on the same SYNTHETIC samples (Zipf items, ten-item histories), in one run:

  process   one process, samples in memory as tensors, variables in place: no cluster at all
  memory    the cluster (1 parameter server, 1 worker, an exchange every 8 mini-batches), samples in
            the worker's memory
  memory-2  the same with 2 workers
  memory-overlap     the same with 1 worker and `train.cluster.overlap`
  memory-16          the same with an exchange every 16 mini-batches (`train.batches_per_range`)
  memory-32          the same with an exchange every 32 mini-batches
  archive   the cluster, samples from Parquet files
  kafka     the cluster, samples from a Kafka broker
  tfrs      stock TensorFlow Recommenders: `Model.fit` on batches cached in memory
  generator          the same, fed by `Dataset.from_generator` over a kafka-python consumer, one
                     record (a tf.Example, one sample) at a time
  batched-generator  the same, in lists of 1,024 records
  consumer  no training: how fast kafka-python reads those records, undecoded
  example   no training: how fast our Kafka source reads and decodes them

Rounds alternate between them, and each figure is the median of its rounds. A cluster's rate is
taken from its ledger between the first and the last line of metrics, so without start and end.
Processor time is that of all processes of a run, the broker's left out.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import logging
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jobs.bench.report import Cell, add_broker_argument, bench_parser, write_report
from jobs.bench.stream.cluster import Speed, run_cluster, run_module
from jobs.bench.stream.synthetic import (
    EXAMPLE_TOPIC,
    TOPIC,
    broker,
    publish_samples,
    write_samples,
)
from jobs.settings import EXIT_DONE

logger = logging.getLogger(__name__)

Speeds = dict[tuple[int, str], list[Speed]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Cluster:
    source: str
    workers: int = 1
    overlap: bool = False
    batches_per_range: int = 8

    def train(self, size: int) -> dict[str, Any]:
        """Returns what section `train` has of it, for mini-batches of `size` samples."""
        return {
            "batch_size": size,
            "batches_per_range": self.batches_per_range,
            "cluster": {
                "parameter_servers": 1,
                "workers": self.workers,
                "flight": _FLIGHT,
                "overlap": self.overlap,
            },
        }

    def fewest(self, size: int) -> int:
        """Returns how many samples it needs for time to pass between its first and last flight."""
        return _FLIGHTS * _FLIGHT * self.batches_per_range * size


_CLUSTERS = {
    "memory": _Cluster("memory"),
    "memory-2": _Cluster("memory", workers=2),
    "memory-overlap": _Cluster("memory", overlap=True),
    "memory-16": _Cluster("memory", batches_per_range=16),
    "memory-32": _Cluster("memory", batches_per_range=32),
    "archive": _Cluster("archive"),
    "kafka": _Cluster("kafka"),
}
_KERAS = {"tfrs": "fit", "generator": "generator", "batched-generator": "batched-generator"}
_READERS = {"consumer": "bare", "example": "source"}
_VARIANTS = ("process", *_CLUSTERS, *_KERAS, *_READERS)
_ON_ARROW, _ON_EXAMPLES = {"kafka"}, {"generator", "batched-generator", *_READERS}
_FLIGHT, _FLIGHTS = 4, 4  # ranges of a flight, as by default; flights that can be timed
_WARM_UP_BATCHES = 22  # and what `fit` has read ahead
_MOST_EXAMPLES = 200_000  # publishing single samples takes long
_RATIOS = [
    ("process_vs_tfrs", "process", "tfrs"),
    ("kafka_vs_generator", "kafka", "generator"),
    ("kafka_vs_batched_generator", "kafka", "batched-generator"),
    ("example_vs_consumer", "example", "consumer"),
    ("cluster_vs_process", "memory", "process"),
    ("cluster_2_workers_vs_process", "memory-2", "process"),
    ("cluster_overlap_vs_process", "memory-overlap", "process"),
    ("cluster_every_16_vs_process", "memory-16", "process"),
    ("cluster_every_32_vs_process", "memory-32", "process"),
    ("kafka_vs_memory", "kafka", "memory"),
    ("archive_vs_memory", "archive", "memory"),
]


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    parser = bench_parser("stream", __doc__)
    parser.add_argument("--samples", type=int, default=800_000, help="samples a round trains on")
    parser.add_argument("--rounds", type=int, default=3, help="rounds per variant")
    parser.add_argument("--variants", default=",".join(_VARIANTS), help="comma-separated, of those")
    parser.add_argument("--batch-sizes", default="1024,4096", help="comma-separated")
    parser.add_argument(
        "--optimizer",
        default="rowwise-adagrad",
        choices=("adagrad", "rowwise-adagrad"),
        help="of ours; Keras has the first alone",
    )
    add_broker_argument(parser)
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        folder = Path(name)
        write_samples(folder / "samples", arguments.samples)
        with _published(folder, arguments) as address:
            sizes = [int(size) for size in arguments.batch_sizes.split(",")]
            speeds = _measure(folder, address, sizes=sizes, arguments=arguments)
    _report(speeds, arguments)
    return EXIT_DONE


@contextlib.contextmanager
def _published(folder: Path, arguments: argparse.Namespace) -> Iterator[str]:
    variants = set(arguments.variants.split(","))
    if not variants & (_ON_ARROW | _ON_EXAMPLES):
        yield ""
        return
    with broker(arguments.kafka) as address:
        if variants & _ON_ARROW:
            publish_samples(folder / "samples", address, topic=TOPIC)
        if variants & _ON_EXAMPLES:
            write_samples(folder / "few", min(arguments.samples, _MOST_EXAMPLES))
            publish_samples(folder / "few", address, topic=EXAMPLE_TOPIC)
        yield address


def _measure(
    folder: Path, address: str, *, sizes: Sequence[int], arguments: argparse.Namespace
) -> Speeds:
    speeds: Speeds = {}
    for size, round_number in itertools.product(sizes, range(arguments.rounds)):
        for variant in arguments.variants.split(","):
            if variant in _CLUSTERS and arguments.samples < _CLUSTERS[variant].fewest(size):
                logger.warning(
                    "batch %d, %s: left out; it needs --samples %d to be timed",
                    size,
                    variant,
                    _CLUSTERS[variant].fewest(size),
                )
                continue
            speed = _run(
                variant, folder, address, size=size, arguments=arguments, round_number=round_number
            )
            speeds.setdefault((size, variant), []).append(speed)
            logger.info("batch %d, %s: %s", size, variant, speed)
    return speeds


def _run(
    variant: str,
    folder: Path,
    address: str,
    *,
    size: int,
    arguments: argparse.Namespace,
    round_number: int,
) -> Speed:
    samples, count = folder / "samples", arguments.samples
    if variant == "process":
        return run_module("alone", samples, size, count, arguments.optimizer)
    few = min(count, _MOST_EXAMPLES)
    if variant in _READERS:
        return run_module("consumer", _READERS[variant], address, few)
    if variant in _KERAS:
        if variant in _ON_EXAMPLES:  # not to the end of the topic and over again
            count = max(size, few - _WARM_UP_BATCHES * size)
        return run_module("keras", _KERAS[variant], samples, size, count, address)
    cluster = _CLUSTERS[variant]
    return run_cluster(
        folder / f"run-{size}-{variant}-{round_number}",
        samples,
        source=cluster.source,
        address=address,
        train=cluster.train(size),
        optimizer=arguments.optimizer,
    )


def _report(speeds: Speeds, arguments: argparse.Namespace) -> None:
    rates = {key: [speed.samples_per_second for speed in each] for key, each in speeds.items()}
    medians = {key: statistics.median(values) for key, values in rates.items()}
    rows: list[dict[str, Cell]] = [
        {
            "batch": size,
            "variant": variant,
            "samples/s": round(medians[size, variant]),
            "lowest": round(min(values)),
            "highest": round(max(values)),
            "CPU s/1M samples": statistics.median(
                speed.processor_seconds for speed in speeds[size, variant]
            ),
        }
        for (size, variant), values in rates.items()
    ]
    ratios = {
        f"{name}@{size}": medians[size, ours] / medians[size, other]
        for size in sorted({size for size, _ in speeds})
        for name, ours, other in _RATIOS
        if {(size, ours), (size, other)} <= medians.keys()
    }
    write_report("stream (synthetic)", rows, ratios=ratios, out=arguments.out)
