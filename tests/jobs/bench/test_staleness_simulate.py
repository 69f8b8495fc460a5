from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from jobs.bench.retrieval.data import Split, make_dataset, split
from jobs.bench.retrieval.train import Learner, prepare
from jobs.bench.staleness.simulate import Simulator
from models.config import TwoTowerConfig
from models.two_tower import TwoTower
from streaming.config import FrequencyConfig, MergeConfig

FREQUENCY = FrequencyConfig(buckets=256)
BATCH_SIZE = 16


@pytest.fixture(scope="module")
def toy() -> tuple[TwoTower, Split]:
    random = np.random.default_rng(1)
    events = pl.DataFrame(
        {
            "user_id": random.integers(0, 20, 600),
            "item_id": random.integers(0, 30, 600),
            "timestamp_ms": np.arange(600),
        }
    )
    dataset = make_dataset("toy", events, buckets=128)
    model = TwoTower(dataset.specification, TwoTowerConfig(hidden=(), dim=8))
    return model, split(dataset, cut_ms=500, max_questions=10)


def simulated(toy: tuple[TwoTower, Split], *, workers: int, rule: str) -> dict[str, np.ndarray]:
    model, cut = toy
    material = prepare(cut.training, model, batch_size=BATCH_SIZE, batches_per_range=2)
    simulator = Simulator(
        model,
        batch_size=BATCH_SIZE,
        frequency=FREQUENCY,
        merge=MergeConfig(rule=rule),  # type: ignore[arg-type]
        seed=3,
    )
    simulator.run([chunk.features for chunk in material.chunks], workers=workers)
    return simulator.parameters()


def test_one_simulated_worker_is_a_trainer_in_place(toy) -> None:
    model, cut = toy
    material = prepare(cut.training, model, batch_size=BATCH_SIZE, batches_per_range=2)
    learner = Learner(model, material, frequency=FREQUENCY, exact=False)
    learner.reset(seed=3)
    before = learner.parameters()
    for chunk in material.chunks:
        learner.learn(chunk)
    found = simulated(toy, workers=1, rule="sum")
    for name, expected in learner.parameters().items():
        assert not np.allclose(expected, before[name])
        np.testing.assert_allclose(found[name], expected, atol=2e-6)


def test_rules_change_nothing_for_one_worker_and_something_for_three(toy) -> None:
    alone, three = (
        {r: simulated(toy, workers=w, rule=r) for r in ("sum", "touches")} for w in (1, 3)
    )
    np.testing.assert_allclose(alone["sum"]["item"], alone["touches"]["item"], atol=2e-6)
    assert not np.allclose(three["sum"]["item"], alone["sum"]["item"], atol=1e-3)
    assert not np.allclose(three["sum"]["item"], three["touches"]["item"], atol=1e-3)


def test_exact_counts_give_the_probability_to_be_in_a_batch(toy) -> None:
    model, cut = toy
    material = prepare(cut.training, model, batch_size=BATCH_SIZE, batches_per_range=2)
    items = cut.training.column("item_id").to_pylist()
    share = items.count(items[0]) / len(items)
    expected = 1.0 - (1.0 - share) ** BATCH_SIZE
    assert float(material.chunks[0].probability[0]) == pytest.approx(expected, rel=1e-5)
