"""`headrace bench retrieval`: forms of the correction and sources of negatives, on three logs.

MovieLens-100K is fetched through the package client; Taobao and RetailRocket are read from --data
and left out where they are not there. Split by time; what a question is stands in
`jobs.bench.retrieval.data`, what is compared in `jobs.bench.retrieval.variants`. One core.
Pictures go beside --out.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from rich.console import Console

from jobs.bench.report import bench_parser
from jobs.bench.retrieval.data import LOADERS, Dataset
from jobs.bench.retrieval.measure import REFERENCE, Plan, measure
from jobs.bench.retrieval.variants import VARIANTS
from jobs.main import import_tensorflow
from jobs.settings import EXIT_DONE
from pipeline.schema import InputError
from streaming.source import SourceUnavailableError

logger = logging.getLogger(__name__)

DEFAULT_DATA = Path("../shared/data")


class Named(Protocol):
    """What a command line knows by its name."""

    @property
    def name(self) -> str: ...


Choice = TypeVar("Choice", bound=Named)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark."""
    arguments = _parse(argv)
    logging.getLogger("jobs.bench.retrieval").setLevel(logging.INFO)
    use_one_core()
    from jobs.bench.retrieval import report

    plan = Plan(
        seeds=arguments.seeds,
        max_questions=arguments.questions,
        passes=arguments.passes,
        tune=arguments.tune,
        equal_time=arguments.equal_time,
    )
    variants = named("--variants", arguments.variants, VARIANTS)
    loaded, skipped = load(arguments.datasets.split(","), arguments.data)
    results = [measure(dataset, variants, plan) for dataset in loaded]
    report.show(results)
    if arguments.out is not None:
        report.write(results, arguments.out, skipped=skipped)
    return EXIT_DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = bench_parser("retrieval", __doc__)
    add_data_arguments(parser, default=",".join(LOADERS))
    parser.add_argument("--seeds", type=int, default=3, help="trainings per variant")
    parser.add_argument("--variants", help="comma-separated; all without it")
    parser.add_argument("--questions", type=int, default=10_000, help="at most, per data set")
    parser.add_argument("--passes", type=int, help="over the training samples")
    parser.add_argument(
        "--tune",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="choose temperature and learning rate on the validation cut",
    )
    parser.add_argument(
        "--equal-time",
        action=argparse.BooleanOptionalAction,
        default=True,
        help=f"evaluate at the processor time that {REFERENCE!r} needed as well",
    )
    return parser.parse_args(argv)


def add_data_arguments(parser: argparse.ArgumentParser, *, default: str) -> None:
    """Adds --datasets and --data."""
    parser.add_argument(
        "--datasets", default=default, help=f"comma-separated, of {', '.join(LOADERS)}"
    )
    parser.add_argument(
        "--data", type=Path, default=DEFAULT_DATA, help="folder of taobao.parquet and others"
    )


def use_one_core() -> None:
    """Keeps TensorFlow to one thread, so that processor time is what one core would take.

    Where TensorFlow has begun already, as in a process that runs something else too, it keeps its
    threads, and a warning says so.
    """
    import_tensorflow()
    import tensorflow as tf

    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    except RuntimeError:
        logger.warning("TensorFlow keeps its threads: processor times are not those of one core")


def load(names: Sequence[str], folder: Path) -> tuple[list[Dataset], dict[str, str]]:
    """Loads data sets; one that is not in reach is left out, with the reason.

    Raises:
        InputError: If a name is unknown.
    """
    if unknown := [name for name in names if name not in LOADERS]:
        raise InputError(f"--datasets: found {unknown}; expected some of {list(LOADERS)}")
    cache = Path(os.environ.get("HEADRACE_CACHE", ".cache"))
    found, skipped = [], {}
    for name in names:
        try:
            found.append(LOADERS[name](folder, cache))
        except (InputError, SourceUnavailableError) as error:
            skipped[name] = str(error)
            Console(stderr=True).print(f"{name} is left out: {error}", soft_wrap=True)
    return found, skipped


def named(option: str, names: str | None, known: Sequence[Choice]) -> list[Choice]:
    """Returns what a comma-separated list of names stands for, in the order of what is known.

    A name may hold a comma itself, so names are told by a semicolon where there is one.

    Args:
        option: For the message.
        names: The list; None stands for all.
        known: What there is.

    Raises:
        InputError: If a name is unknown.
    """
    if names is None:
        return list(known)
    there = {each.name for each in known}
    wanted = [names] if names in there else names.split(";" if ";" in names else ",")
    if unknown := [name for name in wanted if name not in there]:
        raise InputError(
            f"{option}: found {unknown}; expected some of {sorted(there)}, by semicolons"
        )
    return [each for each in known if each.name in wanted]
