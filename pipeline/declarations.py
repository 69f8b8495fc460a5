"""What a specification declares beside features: the kinds of sample, and tables with validity.

Each kind's columns are explained where they are made, in `pipeline.kinds`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

ColumnType = Literal["int64", "float32", "string", "list<int64>", "list<float32>", "list<string>"]


class Section(BaseModel):
    """A part of the specification: nothing in it may be unknown, infinite, or changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ValidityTable(Section):
    """A table of users or items whose rows hold for a time.

    Its files (`samples.users`, `samples.items`) are Parquet with the id, `valid_from_ms`, these
    columns, and, if rows end before the next one begins, `valid_to_ms` (exclusive). An event sees
    the newest row with `valid_from_ms` at or before its own time; where there is none, nulls.
    """

    columns: Annotated[dict[str, ColumnType], Field(min_length=1)]


class ScenarioViews(Section):
    """How users and items are seen in one scenario: features that are split by scenario."""

    history: Annotated[int, Field(ge=0, le=10_000)] = 20
    """`scenario_history_item_id`: at most so many of the user's last positives there."""
    preferences: dict[str, Annotated[int, Field(ge=1, le=1000)]] = {}
    """`scenario_preferred_COLUMN`: so many values of an item's column, the most frequent ones among
    the user's positives there; COLUMN is an event column or one of the items' table."""


class RetrievalKind(Section):
    """One sample for each positive."""

    exposed_negatives: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """`exposed_item_id`: at most so many items of the same request that were not taken."""


class ScenarioKind(Section):
    """A positive and negatives of its scenario, each a row, side by side (SASS, fine-tuning)."""

    negatives: Annotated[int, Field(ge=1, le=1000)] = 4
    """Rows with label 0 behind each positive, drawn in proportion to exposure."""
    seed: int = 0
    """Another seed gives other negatives."""


class PairKind(Section):
    """Two views, in two scenarios, of one user or one item, side by side (SASS, pre-training)."""

    users: Annotated[int, Field(ge=0, le=10_000)] = 3
    """At most so many pairs of a user and day; 0 for no pairs of users."""
    items: Annotated[int, Field(ge=0, le=10_000)] = 3
    """At most so many pairs of an item and day; 0 for no pairs of items."""

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not self.users and not self.items:
            raise ValueError("users: found 0, and 0 items; expected pairs of at least one of them")
        return self


Action = Literal["click", "favourite", "cart", "purchase", "follow", "play"]


class Task(Section):
    """A label of the behaviour kind: exactly one of `action`, `grades` and `column`."""

    action: Action | None = None
    """1 if such an outcome came within the window, else 0."""
    grades: dict[Action, Annotated[float, Field(gt=0)]] | None = None
    """The largest grade of the outcomes that came within the window; 0 without any."""
    column: str | None = None
    """The value of an item's column (a price level, a shop), where an outcome of `of` came."""
    of: Action = "click"
    """With `column`: which outcome makes the label; without that outcome it is null."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if sum(value is not None for value in (self.action, self.grades, self.column)) != 1:
            raise ValueError("expected exactly one of 'action', 'grades' and 'column'")
        return self


class BehaviourKind(Section):
    """One sample for each impression: the user's last behaviours, a label for each task (DUPN)."""

    length: Annotated[int, Field(ge=1, le=10_000)] = 100
    """At most so many behaviours: outcomes of any kind, known before the impression."""
    properties: list[str] = []
    """Item columns that each behaviour carries (category, brand, price level, ...): of the event
    or, where it has none, of its impression; or of the items' table, as of the behaviour's time."""
    time_buckets_seconds: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = [
        60.0,
        600.0,
        3600.0,
        6 * 3600.0,
        86_400.0,
        3 * 86_400.0,
        7 * 86_400.0,
    ]
    """Borders of a behaviour's age, to the millisecond; bucket n has n borders at or below it."""
    tasks: Annotated[dict[str, Task], Field(min_length=1)] = {"ctr": Task(action="click")}
    idle_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the impressions without any outcome that are kept, each with weight 1 / share."""

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        borders = self.time_buckets_seconds
        if sorted(set(borders)) != borders:
            raise ValueError("time_buckets_seconds: expected borders that grow")
        made = ["item_id", "action", "scenario", "time_bucket", *self.properties]
        made += [f"{name}_count" for name in self.properties]
        if twice := {name for name in made if made.count(name) > 1}:
            raise ValueError(
                f"properties: found {', '.join(sorted(twice))} twice; expected names that differ"
                " from each other, from item_id, action, scenario and time_bucket, and from"
                " NAME_count of each"
            )
        return self


class CorpusKind(Section):
    """The items of each scenario, as of the end of a day."""


class Kinds(Section):
    """The kinds of sample that `headrace samples` makes, each to a folder of its name."""

    retrieval: RetrievalKind | None = RetrievalKind()
    scenario: ScenarioKind | None = None
    pair: PairKind | None = None
    behaviour: BehaviourKind | None = None
    corpus: CorpusKind | None = None

    @model_validator(mode="after")
    def _any(self) -> Self:
        if not any(getattr(self, name) is not None for name in type(self).model_fields):
            raise ValueError("expected at least one kind of sample")
        return self
