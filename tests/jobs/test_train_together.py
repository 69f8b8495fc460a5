"""What the sections of a configuration must agree on, and what a checkpoint must agree with."""

from __future__ import annotations

import models  # noqa: F401 - before TensorFlow: picks Keras 2

import pytest  # isort: skip
from pydantic import ValidationError

from jobs.checks import check_together
from jobs.train import state_shape
from models.config import TwoTowerConfig
from pipeline.schema import InputError
from streaming.config import MergeConfig, TrainConfig
from tests.models import toy

ARCHIVE = {"archive": {"directory": "samples"}}


def kafka(*topics: str) -> dict:
    return {"kafka": {"bootstrap_servers": ["127.0.0.1:9092"], "topics": list(topics)}}


def config(*, source: dict = ARCHIVE, **options: object) -> TrainConfig:
    return TrainConfig.model_validate({"directory": "run", "source": source, **options})


def check(model: dict, train: TrainConfig) -> None:
    check_together(toy.specification(), TwoTowerConfig.model_validate(model), train)


def test_a_merge_rule_of_accumulators_needs_an_optimizer_with_one() -> None:
    train = config(cluster={"merge": {"rule": "adagrad"}})
    check({"optimizer": "adagrad"}, train)
    with pytest.raises(InputError, match=r"merge\.rule: found adagrad with model\.optimizer sgd"):
        check({"optimizer": "sgd"}, train)


def test_a_power_is_one_of_touches() -> None:
    MergeConfig(rule="touches", power=0.5)
    with pytest.raises(ValidationError, match=r"found 0\.5 with rule dense-touches"):
        MergeConfig(power=0.5)


WIDTHS = "specification.features, model.hidden, model.dim, model.learn_temperature"
FREQUENCIES = "train.frequency, train.batch_size, model.logq (from or to none)"


@pytest.mark.parametrize(
    ("model", "source", "found"),
    [
        ({}, ARCHIVE, "2 scenarios in 0 topics"),
        ({}, kafka("all"), "2 scenarios in 1 topics"),
        ({"negatives": {"bank": {"size": 10}}}, kafka("home", "search"), "a bank mixes"),
        ({"negatives": {"corpus": {"count": 10}}}, kafka("home", "search"), "have no scenario"),
    ],
)
def test_estimates_per_scenario_are_refused_where_they_are_wrong(model, source, found) -> None:
    train = config(source=source, frequency={"per_scenario": True})
    with pytest.raises(InputError, match=found):
        check(model, train)
    check(model, config(source=source))
    check({}, config(source=kafka("home", "search"), frequency={"per_scenario": True}))


@pytest.mark.parametrize(
    ("model", "train", "differs"),
    [
        ({"learning_rate": 0.7, "temperature": 0.3, "logq": "negatives"}, {"seed": 5}, []),
        ({"dim": 5}, {}, [WIDTHS]),
        ({"optimizer": "sgd"}, {}, ["model.optimizer"]),
        ({"negatives": {"bank": {"size": 9}}}, {}, ["model.negatives.bank"]),
        (
            {},
            {"batch_size": 2048},
            [FREQUENCIES],
        ),
        (
            {},
            {"frequency": {"buckets": 100}},
            [FREQUENCIES],
        ),
        ({}, {"frequency": {"initial_gap": 9}}, []),
        ({"logq": "none"}, {}, [FREQUENCIES]),
    ],
)
def test_a_checkpoint_must_agree_in_what_its_arrays_mean_and_in_nothing_else(
    model, train, differs
) -> None:
    before = state_shape(toy.model(), config())
    now = state_shape(toy.model(**model), config(**train)) if "dim" not in model else None
    if now is None:
        wider = type(toy.model())(toy.specification(), TwoTowerConfig(hidden=(6,), **model))
        now = state_shape(wider, config(**train))
    assert [name for name in before if before[name] != now[name]] == differs
