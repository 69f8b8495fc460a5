"""Made-up days of samples, all of one population: whatever is found between them is chance."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from pipeline import schema as s
from pipeline.checks.profile import Profile, profile

MS_PER_DAY = 86_400_000
NUMBERS = ("item_impressions",)


class Population:
    """Users of unequal activity, items of unequal popularity; some features belong to the user."""

    def __init__(self, seed: int, *, num_users: int = 20_000, num_items: int = 5_000) -> None:
        self.rng = np.random.default_rng(seed)
        self.activity = self.rng.pareto(1.5, num_users) + 0.2
        self.activity /= self.activity.sum()
        self.popularity = 1 / np.arange(1, num_items + 1) ** 0.9
        self.popularity /= self.popularity.sum()
        self.age = self.rng.gamma(9, 4, num_users).astype(np.float32)
        self.city = self.rng.choice(
            [f"city {number}" for number in range(30)], num_users, p=shares(30)
        )
        self.history_length = self.rng.poisson(6, num_users)

    def day(self, rows: int, number: int = 0) -> pa.Table:
        """Returns `rows` samples of a day; [rows] of each column."""
        rng = self.rng
        users = rng.choice(len(self.activity), rows, p=self.activity)
        items = rng.choice(len(self.popularity), rows, p=self.popularity)
        lengths = self.history_length[users]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        history = rng.choice(len(self.popularity), offsets[-1], p=self.popularity)
        scenarios = rng.choice(["home", "feed", "search"], rows, p=[0.6, 0.3, 0.1])
        hours = np.clip(rng.normal(15, 4, rows), 0, 23.99)
        return pa.table(
            {
                s.EVENT_ID: pa.array([f"{number}-{row}" for row in range(rows)]),
                s.TIMESTAMP_MS: pa.array(
                    number * MS_PER_DAY + (hours * 3_600_000).astype(np.int64)
                ),
                s.USER_ID: pa.array(users),
                s.ITEM_ID: pa.array(items),
                s.SCENARIO: pa.array(scenarios),
                s.REWARD: pa.array(rng.random(rows).astype(np.float32)),
                "age": pa.array(self.age[users], mask=rng.random(rows) < 0.01),
                "city": pa.array(self.city[users]),
                s.ITEM_IMPRESSIONS: pa.array((self.popularity[items] * 1e5).astype(np.int64)),
                s.HISTORY_ITEM_ID: pa.ListArray.from_arrays(pa.array(offsets), pa.array(history)),
            }
        )

    def profiles(self, days: int, rows: int) -> list[Profile]:
        """Returns the profiles of so many days."""
        return [profile_day(self.day(rows, number)) for number in range(days)]


def shares(count: int) -> np.ndarray:
    """Returns [count] falling shares that add up to 1."""
    weights = 1 / np.arange(1, count + 1)
    return weights / weights.sum()


def profile_day(table: pa.Table) -> Profile:
    return profile(table, numbers=NUMBERS)


def replace(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    """Returns the table with other values in one column."""
    return table.set_column(table.schema.get_field_index(name), name, values)
