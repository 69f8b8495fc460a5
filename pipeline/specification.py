"""The feature specification: one YAML section that drives samples, towers and signatures.

It says which columns the samples carry, which inputs each tower takes, and, through these, the
signatures of the exported SavedModels.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable
from functools import cached_property
from typing import Annotated, Final, Literal, Self

import pyarrow as pa
from pydantic import Field, model_validator

from pipeline import schema as s
from pipeline.checks.limits import Checks
from pipeline.declarations import ColumnType, Kinds, ScenarioViews, Section, ValidityTable

IdType = Literal["int64", "string"]
Kind = Literal["id", "ids", "number", "vector"]

# Sections that shape nothing unless they are given.
_OPTIONAL: Final = ("users", "items", "kinds", "scenario_views", "hard_negatives")

# Which column types can feed a feature of each kind.
_KIND_ACCEPTS: dict[str, tuple[str, ...]] = {
    "id": ("int64", "string"),
    "ids": ("list<int64>", "list<string>"),
    "number": ("int64", "float32"),
    "vector": ("list<float32>",),
}


def _one_of(name: str | None, known: Iterable[str]) -> str:
    """Returns what was expected instead of a name, the nearest of these pointed out."""
    known = sorted(known)
    near = difflib.get_close_matches(name or "", known, n=1)
    return f"expected one of {known}" + (f" (did you mean {near[0]!r}?)" if near else "")


class TableSpec(Section):
    """An embedding table: ids are hashed into `buckets` rows of `dim` numbers."""

    buckets: Annotated[int, Field(ge=2)]
    dim: Annotated[int, Field(ge=1)] = 32


class FeatureSpec(Section):
    """One input of a tower. Its name is the name of the sample column that feeds it."""

    name: str
    kind: Kind
    table: str | None = None
    """Embedding table of an `id` or `ids` feature; features may share one."""
    size: Annotated[int, Field(ge=1)] | None = None
    """Length of a `vector` feature."""
    log1p: bool = False
    """For a `number`: feed log(1 + x), as counts need."""
    scale: float = 1.0
    """For a `number`: multiplied in, after `log1p`."""


class Features(Section):
    """The features of each side. Context (scenario, daypart, ...) goes into the query tower."""

    query: list[FeatureSpec]
    candidate: list[FeatureSpec]
    context: list[FeatureSpec] = Field(default=[])


class LabelRule(Section):
    """When an impression counts as a positive, in one scenario: exactly one of the two."""

    action: Literal["click", "favourite", "cart", "purchase", "follow", "play"] | None = None
    """An outcome of this kind came within the join window."""
    play_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """At least this share of the duration was played; the reward is the share played."""

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.action is None) == (self.play_share is None):
            raise ValueError("expected exactly one of 'action' and 'play_share'")
        return self


class History(Section):
    """The user's last positives before the event, oldest first."""

    length: Annotated[int, Field(ge=1, le=10_000)] = 20


class Specification(Section):
    """What the events are, and which features are made of them."""

    name: str
    user_id: IdType = "int64"
    item_id: IdType = "int64"
    columns: dict[str, ColumnType] = Field(default={})
    """Event columns beyond the fixed ones of `pipeline.schema`, with their types."""
    users: ValidityTable | None = None
    """Columns of users that change with time and stand in a table of their own."""
    items: ValidityTable | None = None
    """The same of items."""
    kinds: Kinds = Kinds()
    """The kinds of sample to make; retrieval samples alone, if nothing is said."""
    scenarios: Annotated[list[str], Field(min_length=1)]
    labels: dict[str, LabelRule] = Field(default={})
    """Label rule per scenario; a scenario without one is labelled by clicks."""
    history: History = History()
    scenario_views: ScenarioViews = ScenarioViews()
    """Features that are split by scenario, for the kinds `scenario` and `pair`."""
    tables: dict[str, TableSpec]
    features: Features
    checks: Checks = Checks()
    """What a day of samples may differ from the days before it."""
    titles: str | None = None
    """Event column with an item's title, shown by `headrace query`."""
    hard_negatives: str | None = None
    """Column with the ids of items that were shown too and not taken (`model.negatives`): one of
    the events, or `exposed_item_id`, which `kinds.retrieval.exposed_negatives` makes."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [
            *self._column_problems(),
            *self._label_problems(),
            *self._feature_problems(),
            *self._kind_problems(),
        ]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _column_problems(self) -> list[str]:
        fixed = s.event_column_types(user_id=self.user_id, item_id=self.item_id, extra={})
        taken = {*fixed, *s.derived_column_types(item_id=self.item_id), *s.RESERVED_COLUMNS}
        problems = []
        seen: dict[str, str] = {}
        for where, columns in self._declared_columns():
            for name in columns:
                if name in taken or name.startswith(s.RESERVED_PREFIXES):
                    problems.append(f"{where}.{name}: taken by headrace; expected another name")
                if name in seen:
                    problems.append(f"{where}.{name}: already a column, of {seen[name]}")
                seen[name] = where
        if self.titles is not None and self.columns.get(self.titles) != "string":
            problems.append(
                f"titles: found {self.titles!r}; expected the name of a string column in 'columns'"
            )
        if self.hard_negatives is not None:
            found, expected = self._negatives_type(), f"list<{self.item_id}>"
            if found != expected:
                problems.append(
                    f"hard_negatives: found {self.hard_negatives!r}, {found or 'no column'};"
                    f" expected the name of a {expected} column in 'columns'"
                )
        return problems

    def _declared_columns(self) -> list[tuple[str, dict[str, ColumnType]]]:
        tables = (("users.columns", self.users), ("items.columns", self.items))
        declared = [(where, table.columns) for where, table in tables if table is not None]
        return [("columns", self.columns), *declared]

    def _negatives_type(self) -> str | None:
        """Returns the type of the column that `hard_negatives` names, None if there is none."""
        if self.hard_negatives == s.EXPOSED_ITEM_ID and self.exposed_negatives is not None:
            return f"list<{self.item_id}>"
        return self.columns.get(self.hard_negatives or "")

    def _kind_problems(self) -> list[str]:
        known = {**self.columns, **(self.items.columns if self.items is not None else {})}
        wanted = [("scenario_views.preferences", name) for name in self.scenario_views.preferences]
        if (behaviour := self.kinds.behaviour) is not None:
            wanted += [("kinds.behaviour.properties", name) for name in behaviour.properties]
            wanted += [
                (f"kinds.behaviour.tasks.{task}.column", rule.column)
                for task, rule in behaviour.tasks.items()
                if rule.column is not None
            ]
        return [
            f"{where}: no column {name!r} of items; {_one_of(name, known)}"
            for where, name in wanted
            if name not in known
        ]

    def _label_problems(self) -> list[str]:
        return [
            f"labels.{name}: no such scenario; {_one_of(name, self.scenarios)}"
            for name in self.labels
            if name not in self.scenarios
        ]

    def _feature_problems(self) -> list[str]:
        problems = []
        seen: dict[str, str] = {}
        for side in ("query", "candidate", "context"):
            for position, feature in enumerate(getattr(self.features, side)):
                path = f"features.{side}.{position}"
                if feature.name in seen:
                    problems.append(
                        f"{path}.name: {feature.name!r} is already a feature,"
                        f" at {seen[feature.name]}"
                    )
                seen[feature.name] = path
                problems += self._one_feature_problems(path, feature)
        if s.ITEM_ID not in {feature.name for feature in self.features.candidate}:
            problems.append("features.candidate: expected a feature 'item_id'; it names the item")
        return problems

    def _one_feature_problems(self, path: str, feature: FeatureSpec) -> list[str]:
        available = self.column_types
        if feature.name not in available:
            return [
                f"{path}.name: no event column provides {feature.name!r};"
                f" {_one_of(feature.name, available)} (declare others under 'columns')"
            ]
        found, accepted = available[feature.name], _KIND_ACCEPTS[feature.kind]
        if found not in accepted:
            return [
                f"{path}.kind: {feature.kind!r} needs a column of type {' or '.join(accepted)};"
                f" {feature.name!r} is {found}"
            ]
        needs_table = feature.kind in ("id", "ids")
        if needs_table and feature.table not in self.tables:
            found_table = "nothing" if feature.table is None else repr(feature.table)
            return [f"{path}.table: found {found_table}; {_one_of(feature.table, self.tables)}"]
        if not needs_table and feature.table is not None:
            return [f"{path}.table: a {feature.kind!r} feature has no table; expected no such key"]
        if (feature.kind == "vector") != (feature.size is not None):
            return [f"{path}.size: expected a size for kind 'vector', and for no other kind"]
        return []

    @cached_property
    def column_types(self) -> dict[str, str]:
        """Type names of all columns of events, of tables with validity, and derived columns."""
        types = self.event_types | s.derived_column_types(item_id=self.item_id)
        for _, columns in self._declared_columns():
            types |= columns
        if self.exposed_negatives is None:
            del types[s.EXPOSED_ITEM_ID]
        return types

    @property
    def exposed_negatives(self) -> int | None:
        """How many exposed negatives a retrieval sample has at most; None for no such column."""
        retrieval = self.kinds.retrieval
        return None if retrieval is None else retrieval.exposed_negatives

    @cached_property
    def item_columns(self) -> list[str]:
        """Columns of events or of the items' table that say what an item is."""
        names = [feature.name for feature in self.features.candidate]
        names += [*self.scenario_views.preferences, *([self.titles] if self.titles else [])]
        derived = s.derived_column_types(item_id=self.item_id)
        return [n for n in dict.fromkeys(names) if n not in derived and n != s.ITEM_ID]

    @cached_property
    def user_columns(self) -> list[str]:
        """Columns of events or of the users' table that say who a user is."""
        derived = s.derived_column_types(item_id=self.item_id)
        names = [feature.name for feature in self.features.query]
        return [n for n in dict.fromkeys(names) if n not in derived and n != s.USER_ID]

    @property
    def event_types(self) -> dict[str, str]:
        """Type names of all event columns."""
        return s.event_column_types(
            user_id=self.user_id, item_id=self.item_id, extra=dict(self.columns)
        )

    @property
    def event_schema(self) -> pa.Schema:
        """Arrow schema of a validated event."""
        return s.arrow_schema(self.event_types)

    @property
    def query_features(self) -> list[FeatureSpec]:
        """Inputs of the query tower: query, then context."""
        return [*self.features.query, *self.features.context]

    @property
    def candidate_features(self) -> list[FeatureSpec]:
        """Inputs of the candidate tower."""
        return list(self.features.candidate)

    @property
    def sample_schema(self) -> pa.Schema:
        """Arrow schema of a retrieval sample: identity, time, reward, then every feature."""
        types = self.column_types
        names = [s.EVENT_ID, s.TIMESTAMP_MS, s.USER_ID, s.ITEM_ID, s.SCENARIO]
        columns = {name: types[name] for name in names} | {s.REWARD: "float32"}
        features = [*self.query_features, *self.candidate_features]
        columns |= {feature.name: types[feature.name] for feature in features}
        if self.titles is not None:
            columns[self.titles] = "string"
        for name in (self.hard_negatives, s.EXPOSED_ITEM_ID if self.exposed_negatives else None):
            if name is not None:
                columns[name] = types[name]
        return s.arrow_schema(columns)

    @property
    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits that name this content, whatever the order of its keys."""
        # What is not used is no content: a later version may know of more.
        fields = type(self).model_fields
        unused = {n for n in _OPTIONAL if getattr(self, n) == fields[n].get_default()}
        unused.add("checks")  # shapes no sample
        content = json.dumps(self.model_dump(mode="json", exclude=unused), sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    def label_rule(self, scenario: str) -> LabelRule:
        """Returns the rule that labels impressions of a scenario."""
        return self.labels.get(scenario, LabelRule(action="click"))
