from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
import tensorflow as tf
from pydantic import ValidationError

from models.config import TwoTowerConfig
from models.contract import Candidates, CorpusSample, Sampling
from models.features import arrow_features, hash_ids
from models.index import split_parameters
from models.two_tower import TwoTower
from pipeline.schema import InputError
from pipeline.specification import Specification
from tests.models import toy


def loss_of(model, features, *, tables, weights, candidate_sampling_probability) -> tf.Tensor:
    sampling = Sampling(60, candidate_sampling_probability)
    return model.loss(features, tables=tables, weights=weights, sampling=sampling).loss


def test_declares_tables_weights_and_inputs_of_the_specification() -> None:
    model = toy.model()
    assert [(each.name, each.buckets, each.dim) for each in model.tables] == [
        ("users", 64, 4),
        ("items", 97, 4),
    ]
    # Query: 4 (user) + 4 (history) + 1 (age); candidate: 4 (item) + 1 (positives) + 2 (image).
    assert [(each.name, each.shape) for each in model.weights if "kernel" in each.name] == [
        ("query/0/kernel", (9, 6)),
        ("query/1/kernel", (6, 4)),
        ("candidate/0/kernel", (7, 6)),
        ("candidate/1/kernel", (6, 4)),
    ]
    names = "user_id history_item_id age item_id item_positives image reward"
    assert [each.name for each in model.inputs] == names.split()
    assert model.candidate_input == "item_id"
    assert toy.model(logq="none").candidate_input is None


def test_a_table_that_no_feature_uses_is_not_trained() -> None:
    content = toy.specification().model_dump()
    content["tables"]["idle"] = {"buckets": 10, "dim": 4}
    model = toy.model()
    wider = type(model)(type(model.specification).model_validate(content), model.config)
    assert [each.name for each in wider.tables] == ["users", "items"]


def test_encode_hashes_ids_and_passes_the_rest() -> None:
    model = toy.model(ids="string")
    raw = {"user_id": tf.constant(["u"]), "reward": tf.constant([0.25])}
    found = model.encode(raw)
    assert found["user_id"].numpy() == hash_ids(raw["user_id"], seed=0, buckets=64).numpy()
    assert found["reward"].numpy().tolist() == [0.25]


def test_vectors_have_length_one() -> None:
    model = toy.model()
    tables, weights = split_parameters(model, toy.parameters(model))
    features = model.encode(arrow_features(toy.samples(), model.inputs))
    for tower in (model.query, model.candidate):
        found = tower(features, tables=tables, weights=weights)
        assert found.shape == [60, 4]
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1.0, rtol=1e-5)


def test_a_few_rows_with_local_numbers_give_the_loss_of_the_whole_table() -> None:
    model = toy.model()
    tables, weights = split_parameters(model, toy.parameters(model))
    features = model.encode(arrow_features(toy.samples(), model.inputs))
    probability = tf.fill([60], 0.5)
    whole = loss_of(
        model, features, tables=tables, weights=weights, candidate_sampling_probability=probability
    )
    item_id, history = features["item_id"], features["history_item_id"]
    items, local = tf.unique(tf.concat([item_id, history.values], 0), out_idx=tf.int64)
    users, local_users = tf.unique(features["user_id"], out_idx=tf.int64)
    features |= {
        "item_id": local[:60],
        "history_item_id": history.with_values(local[60:]),
        "user_id": local_users,
    }
    few = {"items": tf.gather(tables["items"], items), "users": tf.gather(tables["users"], users)}
    pulled = loss_of(
        model, features, tables=few, weights=weights, candidate_sampling_probability=probability
    )
    assert float(pulled) == pytest.approx(float(whole), rel=1e-6)


def test_loss_falls_when_trained_on_a_toy_set() -> None:
    model = toy.model(logq="none")
    tables, weights = split_parameters(model, toy.parameters(model))
    features = model.encode(arrow_features(toy.samples(), model.inputs))
    values = [*tables.values(), *weights.values()]
    losses = []
    for _ in range(30):
        with tf.GradientTape() as tape:
            tape.watch(values)
            named = dict(zip([*tables, *weights], values, strict=True))
            loss = loss_of(
                model, features, tables=named, weights=named, candidate_sampling_probability=None
            )
        losses.append(float(loss))
        gradients = [tf.convert_to_tensor(each) for each in tape.gradient(loss, values)]
        values = [v - 0.05 * g for v, g in zip(values, gradients, strict=True)]
    assert losses[-1] < 0.8 * losses[0]


def test_every_parameter_gets_a_gradient() -> None:
    model = toy.model()
    tables, weights = split_parameters(model, toy.parameters(model))
    features = model.encode(arrow_features(toy.samples(), model.inputs))
    with tf.GradientTape() as tape:
        tape.watch([tables, weights])
        loss = loss_of(
            model,
            features,
            tables=tables,
            weights=weights,
            candidate_sampling_probability=tf.fill([60], 0.5),
        )
    for gradient in tf.nest.flatten(tape.gradient(loss, [tables, weights])):
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 0


def test_logq_without_probabilities_is_refused_and_none_ignores_them() -> None:
    tables, weights = split_parameters(toy.model(), toy.parameters(toy.model()))
    features = toy.model().encode(arrow_features(toy.samples(), toy.model().inputs))

    def loss(logq: str, probability: tf.Tensor | None) -> float:
        model = toy.model(logq=logq)
        return float(
            loss_of(
                model,
                features,
                tables=tables,
                weights=weights,
                candidate_sampling_probability=probability,
            )
        )

    skewed = tf.linspace(0.01, 1.0, 60)
    with pytest.raises(ValueError, match=r"model\.logq: 'all' needs sampling probabilities"):
        loss("all", None)
    assert loss("none", skewed) == loss("none", None)
    assert loss("all", skewed) != pytest.approx(loss("none", None), rel=1e-3)


def test_accidental_hits_are_masked_by_item() -> None:
    tables, weights = split_parameters(toy.model(), toy.parameters(toy.model()))
    samples = toy.samples()
    one_item = samples.filter([item == 2 for item in samples["item_id"].to_pylist()])
    assert one_item.num_rows > 1
    losses = {}
    for masked in (True, False):
        model = toy.model(logq="none", mask_accidental_hits=masked)
        features = model.encode(arrow_features(one_item, model.inputs))
        losses[masked] = float(
            loss_of(
                model, features, tables=tables, weights=weights, candidate_sampling_probability=None
            )
        )
    assert losses[True] == 0.0  # every negative is the positive's own item
    assert losses[False] > 0.1


def test_unknown_configuration_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="temprature"):
        TwoTowerConfig.model_validate({"temprature": 0.1})


def hard_world(**config: object) -> TwoTower:
    """Candidates are ids alone; the column `skipped` holds hard negatives."""
    content = toy.specification().model_dump(mode="json")
    content["columns"]["skipped"] = "list<int64>"
    content["hard_negatives"] = "skipped"
    content["features"]["candidate"] = content["features"]["candidate"][:1]
    specification = Specification.model_validate(content)
    return TwoTower(specification, TwoTowerConfig(hidden=(6,), dim=4, logq="none", **config))


def test_hard_negatives_are_scored_by_the_candidate_tower_in_their_own_row() -> None:
    samples = toy.samples(num=2)
    own = samples["item_id"].to_pylist()
    other = [each for each in range(12) if each not in own]
    # Row 0: one new item and its own positive, which is no negative. Row 1: none.
    samples = samples.append_column("skipped", pa.array([[other[0], own[0]], []]))
    plain, hard = hard_world(), hard_world(negatives={"hard": True})
    assert [each.name for each in hard.inputs][-1] == "skipped"
    tables, weights = split_parameters(plain, toy.parameters(plain))
    given = {"tables": tables, "weights": weights, "candidate_sampling_probability": None}
    before = loss_of(plain, plain.encode(arrow_features(samples, plain.inputs)), **given)
    after = loss_of(hard, hard.encode(arrow_features(samples, hard.inputs)), **given)

    features = hard.encode(arrow_features(samples, hard.inputs))
    query = hard.query(features, tables=tables, weights=weights).numpy()[0] / 0.1
    ids = hard.encode({"item_id": tf.constant([own[0], own[1], other[0]], tf.int64)})
    vectors = hard.candidate(ids, tables=tables, weights=weights).numpy()
    scores = np.exp(vectors @ query)
    expected = (np.log(scores.sum()) - np.log(scores[:2].sum())) / 2  # row 1 is as it was
    assert float(after - before) == pytest.approx(expected, rel=1e-4)


def test_hard_negatives_need_a_column_and_candidates_that_are_ids() -> None:
    with pytest.raises(InputError, match=r"hard: found no column .* specification\.hard_negatives"):
        toy.model(negatives={"hard": True})
    content = hard_world().specification.model_dump(mode="json")
    content["features"]["candidate"].append({"name": "item_positives", "kind": "number"})
    specification = Specification.model_validate(content)
    with pytest.raises(
        InputError, match=r"reads \['item_id', 'item_positives'\]; expected \['item_id'\]"
    ):
        TwoTower(specification, TwoTowerConfig(negatives={"hard": True}))
    content["hard_negatives"] = "title"
    with pytest.raises(ValidationError, match="hard_negatives: found 'title', string"):
        Specification.model_validate(content)


def test_a_learned_temperature_starts_at_its_value_gets_a_gradient_and_keeps_its_bound() -> None:
    fixed, learned = toy.model(logq="none"), toy.model(logq="none", learn_temperature=True)
    assert learned.weights[-1].name == "temperature"
    tables, weights = split_parameters(fixed, toy.parameters(fixed))
    weights = dict(weights) | {"temperature": tf.zeros([1])}
    features = fixed.encode(arrow_features(toy.samples(), fixed.inputs))
    given = {"tables": tables, "candidate_sampling_probability": None}
    with tf.GradientTape() as tape:
        tape.watch(weights["temperature"])
        loss = loss_of(learned, features, weights=weights, **given)
    assert float(loss) == pytest.approx(float(loss_of(fixed, features, weights=weights, **given)))
    gradient = float(tape.gradient(loss, weights["temperature"])[0])
    moved = weights | {"temperature": tf.constant([0.01])}
    change = float(loss_of(learned, features, weights=moved, **given) - loss) / 0.01
    assert gradient == pytest.approx(change, rel=0.1)
    far = learned.temperature({"temperature": tf.constant([-50.0])})
    assert float(far) == pytest.approx(0.01)
    assert float(learned.temperature({"temperature": tf.zeros([1])})) == pytest.approx(0.1)


SOURCES = {
    "in_batch": {},
    "corpus": {"in_batch": False, "corpus": {"count": 5}},
    "in_batch corpus": {"corpus": {"count": 5}},
    "in_batch bank": {"bank": {"size": 7, "warm_up_steps": 0}},
    "corpus bank": {
        "in_batch": False,
        "corpus": {"count": 5},
        "bank": {"size": 7, "warm_up_steps": 0},
    },
    "in_batch corpus bank": {
        "corpus": {"count": 5},
        "bank": {"size": 7, "warm_up_steps": 0},
    },
}


@pytest.mark.parametrize("logq", ["none", "all", "negatives", "positive-excluded"])
@pytest.mark.parametrize("used", SOURCES)
def test_every_form_learns_from_every_mixture_of_sources(logq: str, used: str) -> None:
    # What `streaming.worker.mini_batches` passes: p only where the model names a candidate_input.
    model = toy.model(logq=logq, negatives=SOURCES[used])
    tables, weights = split_parameters(model, toy.parameters(model))
    features = model.encode(arrow_features(toy.samples(num=6), model.inputs))
    estimated = model.candidate_input is not None

    def likely(num: int) -> tf.Tensor | None:
        return tf.linspace(0.05, 0.5, num) if estimated else None

    corpus, bank = None, None
    if model.corpus is not None:
        items = toy.samples(num=40).slice(30, 5)
        drawn = model.encode(arrow_features(items, model.corpus.inputs))
        corpus = CorpusSample(drawn, likely(5), tf.fill([5], 0.1))
    if model.bank is not None:
        vectors = tf.math.l2_normalize(tf.random.stateless_normal([7, 4], [1, 2]), axis=1)
        bank = Candidates(vectors, tf.range(100, 107, dtype=tf.int64), *[tf.fill([7], 0.1)] * 2)
    own = None if corpus is None else tf.fill([6], 0.1)
    sampling = Sampling(6, likely(6), own, corpus, bank)
    with tf.GradientTape() as tape:
        tape.watch([tables, weights])
        outcome = model.loss(features, tables=tables, weights=weights, sampling=sampling)
    assert np.isfinite(float(outcome.loss))
    assert float(outcome.loss) > 0
    assert (outcome.enqueue is not None) == (model.bank is not None)
    for gradient in tf.nest.flatten(tape.gradient(outcome.loss, [tables, weights])):
        assert np.isfinite(tf.convert_to_tensor(gradient)).all()


def test_draws_of_the_corpus_alone_are_corrected_by_its_probabilities() -> None:
    # Five draws, all scores equal, u = .1 of the positive and of three, .3 of two: form `all` is
    # log(1 + 3 + 2 x .1/.3).
    model = toy.model(negatives={"in_batch": False, "corpus": {"count": 5}}, temperature=1e6)
    tables, weights = split_parameters(model, toy.parameters(model))
    features = model.encode(arrow_features(toy.samples(num=1), model.inputs))
    drawn = model.encode(arrow_features(toy.samples(num=5), model.corpus.inputs))
    drawn["identity"] = tf.range(100, 105, dtype=tf.int64)
    corpus = CorpusSample(drawn, None, tf.constant([0.1, 0.1, 0.1, 0.3, 0.3]))
    sampling = Sampling(1, None, tf.constant([0.1]), corpus)
    found = model.loss(features, tables=tables, weights=weights, sampling=sampling).loss
    assert float(found) == pytest.approx(np.log(4 + 2 / 3), rel=1e-4)


def test_what_the_negatives_ask_of_the_trainer() -> None:
    model = toy.model(
        negatives={
            "in_batch": False,
            "corpus": {"count": 7, "smoothing": 0.5},
            "bank": {"size": 9, "warm_up_steps": 3},
        }
    )
    assert (model.corpus.count, model.corpus.smoothing) == (7, 0.5)
    assert [each.name for each in model.corpus.inputs] == ["item_id", "item_positives", "image"]
    assert (model.bank.size, model.bank.dim, model.bank.warm_up_steps) == (9, 4, 3)
    assert model.candidate_input == "item_id"
    # Draws alone need no estimate of the stream.
    alone = toy.model(negatives={"in_batch": False, "corpus": {"count": 7}})
    assert alone.candidate_input is None
    assert (toy.model().corpus, toy.model().bank) == (None, None)


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"negatives": {"in_batch": False}}, "in_batch: true or a corpus"),
        ({"learn_temperature": True, "temperature": 0.005}, "starts above smallest_temperature"),
        ({"logq": "positive-excluded", "mask_accidental_hits": False}, "mask_accidental_hits"),
    ],
)
def test_what_cannot_be_is_refused(config: dict, found: str) -> None:
    with pytest.raises(ValidationError, match=found):
        TwoTowerConfig.model_validate(config)
