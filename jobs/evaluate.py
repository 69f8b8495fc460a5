"""`headrace evaluate`: a checkpoint against the samples of a later time.

The corpus is every item of the training samples, since those are what an export would serve; the
protocol stands in `models.evaluate`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel
from rich.console import Console, Group
from rich.table import Table

from jobs.export import load_samples, load_trained
from jobs.main import import_tensorflow, run_job
from jobs.settings import EXIT_DONE, add_config_arguments, load_settings
from models.config import TwoTowerConfig
from pipeline.specification import Specification
from streaming.config import TrainConfig

if TYPE_CHECKING:
    from models.evaluate import Evaluation


def main(argv: Sequence[str] | None = None) -> int:
    """Prints hit rates and NDCG of the newest checkpoint and of popularity."""
    arguments = _parse(argv)
    from pipeline.samples import SamplesConfig  # Beam: not before the arguments are known

    sections: dict[str, type[BaseModel]] = {
        "specification": Specification,
        "model": TwoTowerConfig,
        "samples": SamplesConfig,
        "train": TrainConfig,
    }
    settings = load_settings(arguments.config, arguments.overrides, sections)
    import_tensorflow()
    from models.evaluate import evaluate_model, evaluate_popularity, questions
    from models.index import latest_items

    specification = settings["specification"]
    trained = load_trained(Path(settings["train"].directory), specification, settings["model"])
    training = load_samples(Path(settings["samples"].output), specification)
    asked = questions(
        load_samples(arguments.samples, specification),
        candidates=latest_items(training, specification),
        training=training,
        exclude_seen=arguments.exclude_seen,
    )
    results = {
        "popularity": evaluate_popularity(asked),
        "two_tower": evaluate_model(trained.model, trained.parameters, asked),
    }
    Console().print(result_tables(results))
    if arguments.out is not None:
        content = {name: dataclasses.asdict(result) for name, result in results.items()}
        arguments.out.write_text(json.dumps(content, indent=2), encoding="utf-8")
    return EXIT_DONE


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="headrace evaluate", description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        "--samples", required=True, type=Path, metavar="DIR", help="samples of the later time"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the numbers as JSON too")
    parser.add_argument(
        "--exclude-seen", action="store_true", help="items a user already had are no answers"
    )
    return parser.parse_args(argv)


def result_tables(results: Mapping[str, Evaluation]) -> Group:
    """Returns a table of the overall quality, and one of the hit rate by popularity decile."""
    some = next(iter(results.values()))
    cutoffs = list(some.overall.hit_rate)
    overall = Table(
        title=f"next item, {some.overall.num_samples:,} samples",
        caption=f"{some.num_outside:,} targets are not in the corpus and count as misses",
    )
    overall.add_column("")
    for name in ("HitRate", "NDCG"):
        for cutoff in cutoffs:
            overall.add_column(f"{name}@{cutoff}", justify="right")
    for name, result in results.items():
        values = [*result.overall.hit_rate.values(), *result.overall.ndcg.values()]
        overall.add_row(name, *(f"{value:.4f}" for value in values))
    return Group(overall, _decile_table(results, cutoff=cutoffs[-1]))


def _decile_table(results: Mapping[str, Evaluation], *, cutoff: int) -> Table:
    table = Table(title=f"HitRate@{cutoff} by the item's popularity", caption="1: most popular")
    for heading in ("decile", "samples", *results):
        table.add_column(heading, justify="right")
    deciles = zip(*(result.by_decile for result in results.values()), strict=True)
    for number, row in enumerate(deciles, start=1):
        hit_rates = (f"{quality.hit_rate[cutoff]:.4f}" for quality in row)
        table.add_row(str(number), f"{row[0].num_samples:,}", *hit_rates)
    return table


if __name__ == "__main__":
    sys.exit(run_job(main))
