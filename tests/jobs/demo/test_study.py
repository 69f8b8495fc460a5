"""What the demo measures, on tables small enough to check by hand."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml

from jobs.demo import study
from jobs.demo.main import CONFIG
from models.config import TwoTowerConfig
from models.export import Trained, export_bundle
from models.index import collect_candidates, collect_queries
from models.two_tower import TwoTower
from pipeline.specification import Specification


def _samples(rows: list[tuple[int, int, int]]) -> pa.Table:
    users, items, times = zip(*rows, strict=True)
    return pa.table({"user_id": users, "item_id": items, "timestamp_ms": times})


def test_seen_is_strictly_before_the_question_and_by_the_same_user() -> None:
    log = _samples([(1, 10, 100), (1, 11, 200), (1, 12, 300), (2, 13, 50), (1, 99, 10)])
    future = _samples([(1, 11, 200), (1, 12, 300), (3, 10, 400)])
    candidates = pa.table({"item_id": [10, 11, 12, 13]})
    # Item 99 is no candidate; user 2's item is not user 1's; 11 is not before itself.
    assert study.seen_before(future, log, candidates).rows() == [(0, 0), (1, 0), (1, 1)]


def test_metrics_give_a_curve_and_a_rate_over_all(tmp_path: Path) -> None:
    lines = [
        {"stream/samples": 100, "train/loss": 3.0, "stream/samples_per_second": 50.0},  # 2 s
        {"stream/samples": 400, "train/loss": 2.0, "stream/samples_per_second": 100.0},  # 3 s
        {"stream/samples": 400, "stream/records_remaining": 0},  # nothing was trained
    ]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve, rate = study.read_metrics(path)
    np.testing.assert_array_equal(curve, [[100, 3.0], [400, 2.0]])
    assert rate == pytest.approx(400 / 5)


def test_no_metrics_are_no_rate(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.touch()
    curve, rate = study.read_metrics(path)
    assert curve.shape == (0, 2)
    assert rate == 0.0


def test_answers_are_the_items_that_are_not_in_the_history(tmp_path: Path) -> None:
    content = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["specification"]
    specification = Specification.model_validate(content)
    model = TwoTower(specification, TwoTowerConfig(hidden=(6,), dim=4))
    random = np.random.default_rng(0)
    shapes = {table.name: (table.buckets, table.dim) for table in model.tables}
    shapes |= {weight.name: weight.shape for weight in model.weights}
    values = {name: random.normal(size=of).astype(np.float32) for name, of in shapes.items()}
    samples = pa.Table.from_pylist(
        [_visit(user=100 + item, item=item, history=[3, 1, 3, 2]) for item in range(1, 13)],
        schema=specification.sample_schema,
    )
    export_bundle(
        tmp_path / "movielens",
        Trained(model=model, parameters=values),
        candidates=collect_candidates(samples, specification),
        queries=collect_queries(samples, specification),
        num_results=12,
    )
    # A bundle's history ends with the user's last sample.
    example = study.ask(tmp_path / "movielens", 112, "night", num_answers=12)
    assert example.history == ["Film 12", "Film 2", "Film 3", "Film 1"]
    titles = [title for title, _, _ in example.answers]
    assert sorted(titles) == sorted(f"Film {item}" for item in range(4, 12))
    scores = [score for _, _, score in example.answers]
    assert scores == sorted(scores, reverse=True)


def _visit(*, user: int, item: int, history: list[int]) -> dict[str, object]:
    return {
        "event_id": f"e{item}",
        "timestamp_ms": item,
        "user_id": user,
        "item_id": item,
        "scenario": "night",
        "reward": 1.0,
        "history_item_id": history,
        "age": 30,
        "gender": "F",
        "occupation": "engineer",
        "title": f"Film {item}",
        "year": "1997",
        "genres": ["Drama"],
    }
