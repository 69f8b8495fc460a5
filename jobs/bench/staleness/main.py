"""`headrace bench staleness`: what seldom exchanges and many workers cost in quality.

Clusters of 1, 2 and 4 workers on this machine, and 8 and 16 simulated in one process
(`jobs.bench.staleness.simulate`), with an exchange every 1, 4, 8 and 16 mini-batches, by merge
rule. Speed is that of this machine's cores, however many workers share them.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path

from jobs.bench.report import bench_parser
from jobs.bench.retrieval.main import add_data_arguments, load, named, use_one_core
from jobs.settings import EXIT_DONE


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    arguments = _parse(argv)
    logging.getLogger("jobs.bench.staleness").setLevel(logging.INFO)
    use_one_core()
    from jobs.bench.staleness import report
    from jobs.bench.staleness.measure import WAYS, Bench, Plan, points

    plan = Plan(
        seeds=arguments.seeds,
        real_workers=_numbers(arguments.real_workers),
        simulated_workers=_numbers(arguments.simulated_workers),
        batches=_numbers(arguments.every),
        ways=named("--ways", arguments.ways, WAYS),
        real_ways=named("--real-ways", arguments.real_ways, WAYS),
    )
    loaded, skipped = load(arguments.datasets.split(","), arguments.data)
    found = []
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        for dataset in loaded:
            bench = Bench(dataset, passes=arguments.passes, max_questions=arguments.questions)
            found += list(points(bench, plan, Path(folder)))
    report.show(found)
    if arguments.out is not None:
        report.write(found, arguments.out, skipped=skipped)
    return EXIT_DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = bench_parser("staleness", __doc__)
    add_data_arguments(parser, default="movielens,taobao")
    parser.add_argument("--seeds", type=int, default=1, help="trainings per simulated point")
    parser.add_argument("--real-workers", default="1,2,4", help="clusters; '' for none")
    parser.add_argument("--simulated-workers", default="1,2,8,16", help="'' for none")
    parser.add_argument("--every", default="1,4,8,16", help="mini-batches between exchanges")
    parser.add_argument("--ways", help="semicolon-separated merge rules of simulations; else all")
    parser.add_argument("--real-ways", default="sum", help="the same of clusters")
    parser.add_argument("--passes", type=int, help="over the training samples")
    parser.add_argument("--questions", type=int, default=5000, help="at most, per data set")
    return parser.parse_args(argv)


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]
