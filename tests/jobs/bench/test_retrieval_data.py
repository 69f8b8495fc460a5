from __future__ import annotations

import polars as pl
import pytest

from jobs.bench.retrieval.data import load_parquet, make_dataset, split, validation_split
from jobs.bench.retrieval.data import test_split as cut_for_test
from models.evaluate import Questions
from pipeline.schema import InputError


def ten_days() -> pl.DataFrame:
    """Users 1 and 2 take an item a day each, on ten days; user 1's item 10 comes again on day 5.

    User 3 takes one item in all, a known one.
    """
    rows = [(1, 10 + day, day) for day in range(10)] + [(2, 15 - day % 6, day) for day in range(10)]
    rows += [(1, 10, 5), (3, 11, 9)]
    return pl.DataFrame(
        {
            "user_id": [row[0] for row in rows],
            "item_id": [row[1] for row in rows],
            "timestamp_ms": [row[2] * 1000 for row in rows],
        }
    )


def asked_pairs(asked: Questions) -> list[tuple[int, int]]:
    return list(
        zip(
            asked.samples.column("user_id").to_pylist(),
            asked.samples.column("item_id").to_pylist(),
            strict=True,
        )
    )


def test_a_sample_is_a_first_positive_with_the_items_before_it() -> None:
    samples = make_dataset("toy", ten_days(), buckets=64).samples.to_pylist()
    # User 2 has six items; their days 6 to 9 repeat, as does user 1's item 10 on day 5.
    assert len(samples) == 10 + 6 + 1
    mine = [row for row in samples if row["user_id"] == 1]
    assert mine[0]["history_item_id"] == []
    assert mine[3]["history_item_id"] == [10, 11, 12]
    assert mine[9]["history_item_id"] == [10, 11, 12, 13, 14, 15, 16, 17, 18]
    assert [row["timestamp_ms"] for row in samples] == sorted(r["timestamp_ms"] for r in samples)


def test_questions_are_of_known_items_by_users_with_a_history_and_leave_out_what_was_seen() -> None:
    dataset = make_dataset("toy", ten_days(), buckets=64)
    cut = split(dataset, cut_ms=3000, max_questions=100)
    assert cut.training.num_rows == 6  # three days of two users
    # Trained items: 10, 11, 12 and 15, 14, 13. Later ones among them: user 1's 13, 14, 15 and
    # user 2's 12, 11, 10; all others are unknown.
    assert sorted(asked_pairs(cut.asked)) == [(1, 13), (1, 14), (1, 15), (2, 10), (2, 11), (2, 12)]
    items = cut.asked.candidates.column("item_id").to_pylist()
    row = asked_pairs(cut.asked).index((1, 15))
    seen = cut.asked.seen_candidate[cut.asked.seen_sample == row]
    assert sorted(items[place] for place in seen) == [10, 11, 12, 13, 14]
    assert items[cut.asked.targets[row]] == 15


def test_the_validation_never_sees_the_test() -> None:
    dataset = make_dataset("toy", ten_days(), buckets=64)
    chosen_on = validation_split(dataset, max_questions=100)
    tested_on = cut_for_test(dataset, max_questions=100)
    times = dataset.samples.column("timestamp_ms").to_pylist()
    between = [time for time in times if dataset.validation_ms <= time < dataset.test_ms]
    assert 0 < chosen_on.num_later == len(between) < tested_on.num_later + len(between)
    assert max(tested_on.training.column("timestamp_ms").to_pylist()) < dataset.test_ms
    assert max(chosen_on.training.column("timestamp_ms").to_pylist()) < dataset.validation_ms


def test_of_too_many_questions_the_same_are_drawn() -> None:
    dataset = make_dataset("toy", ten_days(), buckets=64)
    few = [asked_pairs(split(dataset, cut_ms=3000, max_questions=3).asked) for _ in range(2)]
    assert few[0] == few[1]
    assert len(few[0]) == 3


def test_a_file_that_is_not_there_is_named(tmp_path) -> None:
    with pytest.raises(InputError, match=r"taobao\.parquet: found no such file; expected .*--data"):
        load_parquet("taobao", tmp_path)
