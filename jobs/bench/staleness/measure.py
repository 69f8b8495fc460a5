"""Quality by workers, mini-batches between exchanges, and merge rule; real and simulated."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np

from jobs.bench.archive import write_archive
from jobs.bench.retrieval.data import Dataset, Split, test_split
from jobs.bench.retrieval.train import prepare
from jobs.bench.retrieval.variants import DEFAULT, FREQUENCY, VARIANTS, model_config
from jobs.bench.staleness.cluster import Schedule, train
from jobs.bench.staleness.simulate import Simulator
from models.config import TwoTowerConfig
from models.evaluate import evaluate_model
from models.two_tower import TwoTower
from streaming.config import FrequencyConfig, MergeConfig

logger = logging.getLogger(__name__)

SIZES: Final[Mapping[str, tuple[int, int]]] = {
    "movielens": (64, 4),
    "taobao": (256, 4),
    "retailrocket": (64, 3),
}
"""Samples per mini-batch and passes: small mini-batches, for thousands of steps."""
CUTOFF: Final = 50
SIMULATED, REAL, OVERLAP = "simulated", "real", "real, overlap"
_SEED: Final = 1
VARIANT: Final = next(variant for variant in VARIANTS if variant.name == "all")


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Way:
    """How the work of several workers becomes one state.

    Attributes:
        name: As tables have it.
        merge: The rule of the push.
        rate_power: The learning rate is divided by workers to this power.
        lone_share: Share of the ranges that one worker learns alone, at the start, before the
            others join: a warm start.
    """

    name: str
    merge: MergeConfig
    rate_power: float = 0.0
    lone_share: float = 0.0


RULES: Final = (
    Way(name="sum", merge=MergeConfig(rule="sum")),
    Way(name="touches", merge=MergeConfig(rule="touches")),
    Way(name="dense-touches", merge=MergeConfig(rule="dense-touches")),
    Way(name="adagrad", merge=MergeConfig(rule="adagrad")),
    Way(name="agreement", merge=MergeConfig(rule="agreement")),
)
"""What a cluster can be configured to do: every number of workers and of mini-batches."""

_LONE = 0.15
IDEAS: Final = (
    Way(name="touches^.5", merge=MergeConfig(rule="touches", power=0.5)),
    Way(name="sum, rate/W^.5", merge=MergeConfig(rule="sum"), rate_power=0.5),
    Way(name="touches, rate*W^.5", merge=MergeConfig(rule="touches"), rate_power=-0.5),
    *(
        dataclasses.replace(way, name=f"{way.name}, alone at first", lone_share=_LONE)
        for way in RULES
    ),
)
"""Further means, at the number of workers of the aim: the learning rate by workers; and a start by
one worker, until embeddings have grown out of their beginning, where all workers move alike."""
_TWIN_WORKERS: Final = 2
"""Up to so many, `sum` alone is measured, real and simulated: what the simulation is checked by."""
AIMED: Final = (8, 8)
"""Workers and mini-batches at which ideas are tried."""
WAYS: Final = (*RULES, *IDEAS)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """One training.

    Attributes:
        dataset: On which data.
        kind: `SIMULATED`, `REAL`, or `OVERLAP` where a worker pulls a range before it pushes the
            one before.
        way: How differences were merged.
        workers: How many.
        batches: Mini-batches between exchanges.
        seed: Of the parameters.
        hit_rate: HitRate@50 on the test.
        ndcg: NDCG@50 on the test.
        samples_per_second: Of a cluster; NaN of a simulation.
    """

    dataset: str
    kind: str
    way: str
    workers: int
    batches: int
    seed: int
    hit_rate: float
    ndcg: float
    samples_per_second: float


class Bench:
    """One data set, prepared, on which any point can be measured."""

    def __init__(self, dataset: Dataset, *, passes: int | None, max_questions: int) -> None:
        self._dataset = dataset
        self._batch_size, own = SIZES[dataset.name]
        self._passes = passes or own
        self._cut: Split = test_split(dataset, max_questions=max_questions)
        self._frequency = FrequencyConfig(**FREQUENCY)

    def simulate(self, way: Way, *, workers: int, batches: int, seed: int) -> Point:
        """Trains a simulated cluster."""
        model = TwoTower(self._dataset.specification, self._model(way, workers))
        material = prepare(
            self._cut.training, model, batch_size=self._batch_size, batches_per_range=batches
        )
        simulator = Simulator(
            model,
            batch_size=self._batch_size,
            frequency=self._frequency,
            merge=way.merge,
            seed=seed,
        )
        ranges = [chunk.features for chunk in material.chunks] * self._passes
        alone = int(way.lone_share * len(ranges))
        simulator.run(ranges[:alone], workers=1)
        simulator.run(ranges[alone:], workers=workers)
        return self._point(SIMULATED, way, (workers, batches, seed), simulator.parameters())

    def real(self, way: Way, *, workers: int, batches: int, folder: Path, overlap: bool) -> Point:
        """Trains a real cluster."""
        archive = folder / f"{self._dataset.name}-samples"
        if not archive.exists():
            write_archive(
                archive,
                [self._cut.training],
                self._dataset.specification,
                day="1970-01-01",
                row_group_size=32_768,
            )
        trained = train(
            folder / f"{self._dataset.name}-{way.name}-{workers}-{batches}-{overlap}",
            archive,
            sections=(self._dataset.specification, self._model(way, workers), self._frequency),
            schedule=Schedule(
                workers=workers,
                batches=batches,
                merge=way.merge,
                batch_size=self._batch_size,
                passes=self._passes,
                seed=_SEED,
                overlap=overlap,
                alone_samples=int(way.lone_share * self._passes * self._cut.training.num_rows),
            ),
        )
        kind = OVERLAP if overlap else REAL
        point = self._point(kind, way, (workers, batches, _SEED), trained.parameters)
        return dataclasses.replace(point, samples_per_second=trained.samples_per_second)

    def _model(self, way: Way, workers: int) -> TwoTowerConfig:
        temperature, rate = DEFAULT
        settings = (temperature, rate / workers**way.rate_power)
        return model_config(VARIANT, settings=settings, steps_per_pass=1)

    def _point(
        self,
        kind: str,
        way: Way,
        numbers: tuple[int, int, int],
        parameters: Mapping[str, np.ndarray],
    ) -> Point:
        workers, batches, seed = numbers
        model = TwoTower(self._dataset.specification, self._model(way, workers))
        quality = evaluate_model(model, parameters, self._cut.asked, cutoffs=[CUTOFF]).overall
        point = Point(
            dataset=self._dataset.name,
            kind=kind,
            way=way.name,
            workers=workers,
            batches=batches,
            seed=seed,
            hit_rate=quality.hit_rate[CUTOFF],
            ndcg=quality.ndcg[CUTOFF],
            samples_per_second=float("nan"),
        )
        logger.info(
            "%s, %s: %s, %d workers, %d mini-batches, seed %d: HitRate@%d %.4f",
            point.dataset,
            kind,
            way.name,
            workers,
            batches,
            seed,
            CUTOFF,
            point.hit_rate,
        )
        return point


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is measured.

    Attributes:
        seeds: Trainings per simulated point.
        real_workers, simulated_workers: Numbers of workers; 1 is the reference of both.
        batches: Mini-batches between exchanges.
        ways: Rules and ideas of the simulations; ideas at `AIMED` alone.
        real_ways: The same of the clusters.
    """

    seeds: int
    real_workers: Sequence[int]
    simulated_workers: Sequence[int]
    batches: Sequence[int]
    ways: Sequence[Way]
    real_ways: Sequence[Way]


def points(bench: Bench, plan: Plan, folder: Path) -> Iterator[Point]:
    """Measures every point of a plan; one worker needs no rule, so it is measured with `sum`."""
    for batches, workers in itertools.product(plan.batches, plan.simulated_workers):
        for way in _ways(plan.ways, workers, batches):
            for seed in range(1, plan.seeds + 1):
                yield bench.simulate(way, workers=workers, batches=batches, seed=seed)
    for batches, workers in itertools.product(plan.batches, plan.real_workers):
        for way in _ways(plan.real_ways, workers, batches):
            yield bench.real(way, workers=workers, batches=batches, folder=folder, overlap=False)
    for batches, workers in itertools.product(plan.batches, plan.real_workers):
        if batches == AIMED[1] and workers <= _TWIN_WORKERS:
            # A worker that is stale by a range of its own.
            yield bench.real(
                RULES[0], workers=workers, batches=batches, folder=folder, overlap=True
            )


def _ways(ways: Sequence[Way], workers: int, batches: int) -> Sequence[Way]:
    if workers <= _TWIN_WORKERS:
        return RULES[:1]
    return [way for way in ways if way not in IDEAS or (workers, batches) == AIMED]
