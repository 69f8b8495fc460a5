from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from models.evaluate import evaluate_model, evaluate_popularity, places, questions
from models.index import latest_items, vectors
from tests.models import toy


def rows(user_id: list[int], item_id: list[int], **columns: object) -> pa.Table:
    return pa.table({"user_id": user_id, "item_id": item_id, **columns})


CORPUS = pa.table({"item_id": [10, 11, 12, 13]})
# Counts: item 10 three times, 11 once, 12 once, 13 never.
TRAINING = rows([1, 2, 3, 1, 2], [10, 10, 10, 11, 12])


def test_popularity_by_hand_with_ties_shared() -> None:
    asked = questions(
        rows([1, 1, 1], [10, 11, 13]), candidates=CORPUS, training=TRAINING, exclude_seen=False
    )
    found = evaluate_popularity(asked, cutoffs=(1, 2, 4)).overall
    # Item 10 stands first. Item 11 shares places 2 and 3 with 12. Item 13 is fourth.
    assert found.num_samples == 3
    assert found.hit_rate[1] == pytest.approx(1 / 3)
    assert found.hit_rate[2] == pytest.approx((1 + 1 / 2) / 3)
    assert found.hit_rate[4] == pytest.approx(1)
    second, third, fourth = 1 / math.log2(3), 1 / math.log2(4), 1 / math.log2(5)
    assert found.ndcg[1] == pytest.approx(1 / 3)
    assert found.ndcg[2] == pytest.approx((1 + second / 2) / 3)
    assert found.ndcg[4] == pytest.approx((1 + (second + third) / 2 + fourth) / 3)


def test_scoring_all_alike_is_worth_chance() -> None:
    asked = questions(
        rows([1], [11]), candidates=CORPUS, training=rows([7], [99]), exclude_seen=False
    )
    assert evaluate_popularity(asked, cutoffs=(1,)).overall.hit_rate[1] == pytest.approx(1 / 4)


def test_seen_items_are_no_answers_but_the_target_stays() -> None:
    future = rows([1, 1], [12, 10], history_item_id=pa.array([[13], []], pa.list_(pa.int64())))
    asked = questions(future, candidates=CORPUS, training=TRAINING, exclude_seen=True)
    found = evaluate_popularity(asked, cutoffs=(1,))
    # User 1 has seen 10 and 11, and 13 by history: 12 is left, first. Item 10, a target that the
    # user has seen, still counts, and is first by its own count.
    assert found.overall.hit_rate[1] == 1.0
    assert list(zip(asked.seen_sample, asked.seen_candidate, strict=True)) == [
        (0, 0),
        (0, 1),
        (0, 3),
        (1, 1),
    ]


def test_target_outside_the_corpus_is_a_miss_and_counted() -> None:
    asked = questions(
        rows([1, 1], [10, 99]), candidates=CORPUS, training=TRAINING, exclude_seen=False
    )
    found = evaluate_popularity(asked, cutoffs=(4,))
    assert found.num_outside == 1
    assert found.overall.hit_rate[4] == 0.5
    assert sum(quality.num_samples for quality in found.by_decile) == 1


def test_deciles_hold_equally_many_items_most_popular_first() -> None:
    corpus = pa.table({"item_id": list(range(20))})
    counts = [item for item in range(20) for _ in range(item)]  # item 19 is the most popular
    asked = questions(
        rows([0, 0, 0], [19, 18, 0]),
        candidates=corpus,
        training=rows([1] * len(counts), counts),
        exclude_seen=False,
    )
    found = evaluate_popularity(asked, cutoffs=(1,)).by_decile
    assert [quality.num_samples for quality in found] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 1]
    assert found[0].hit_rate[1] == 0.5
    assert math.isnan(found[1].hit_rate[1])
    assert found[9].hit_rate[1] == 0.0


def test_string_ids_find_their_places() -> None:
    asked = questions(
        pa.table({"user_id": ["u"], "item_id": ["b"]}),
        candidates=pa.table({"item_id": ["a", "b"]}),
        training=pa.table({"user_id": ["u", "v"], "item_id": ["b", "b"]}),
        exclude_seen=False,
    )
    assert asked.targets.tolist() == [1]
    assert asked.popularity.tolist() == [0, 2]


def test_places_counts_above_and_tied() -> None:
    scores = np.array([[3.0, 1.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0]], np.float32)
    above, ties = places(scores, np.array([2, 0]))
    assert above.tolist() == [1, 0]
    assert ties.tolist() == [1, 3]


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_model_equals_a_loop_over_samples(exclude_seen: bool) -> None:
    model = toy.model()
    values = toy.parameters(model)
    training, future = toy.samples().slice(0, 40), toy.samples().slice(40)
    corpus = latest_items(training, model.specification)
    asked = questions(future, candidates=corpus, training=training, exclude_seen=exclude_seen)
    found = evaluate_model(model, values, asked, cutoffs=(3,)).overall

    query = vectors(model, values, future, side="query")
    candidate = vectors(model, values, corpus, side="candidate")
    hits, gains = [], []
    for vector, sample in zip(query, future.to_pylist(), strict=True):
        seen = set(sample["history_item_id"])
        seen |= {r["item_id"] for r in training.to_pylist() if r["user_id"] == sample["user_id"]}
        excluded = seen - {sample["item_id"]} if exclude_seen else set()
        ranking = sorted(
            (
                (-float(vector @ row), item)
                for row, item in zip(candidate, corpus["item_id"].to_pylist(), strict=True)
                if item not in excluded
            ),
        )
        ranked = [item for _, item in ranking]
        target = sample["item_id"]
        place = ranked.index(target) + 1 if target in ranked else math.inf
        hits.append(place <= 3)
        gains.append(1 / math.log2(1 + place) if place <= 3 else 0.0)
    assert 0 < np.mean(hits) < 1
    assert found.hit_rate[3] == pytest.approx(np.mean(hits))
    assert found.ndcg[3] == pytest.approx(np.mean(gains))
