"""The two-tower retrieval model: sampling-bias-corrected, after Yi et al., RecSys 2019."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from models.config import TwoTowerConfig
from models.contract import FeatureValue, Input, Optimizer, Table, Tensors, Weight
from models.features import encode_ids, feature_input, feature_vectors, feature_width
from models.losses import in_batch_softmax
from models.towers import tower, tower_weights
from pipeline.schema import ITEM_ID, REWARD
from pipeline.specification import FeatureSpec, Specification

_QUERY, _CANDIDATE = "query", "candidate"


class TwoTower:
    """A query tower and a candidate tower that meet in a cosine.

    Implements `models.contract.Model`: no variables, only pure functions.

    Attributes:
        tables: The embedding tables that the features of either tower use.
        weights: The dense parameters of both towers.
        inputs: Query features, context features, candidate features, and the reward.
        candidate_input: The candidate's identity, whose sampling probability is estimated; None
            where the loss takes no correction.
    """

    def __init__(self, specification: Specification, config: TwoTowerConfig) -> None:
        self.specification = specification
        self.config = config
        optimizer = Optimizer(
            kind=config.optimizer,
            learning_rate=config.learning_rate,
            initial_accumulator=config.initial_accumulator,
        )
        used = {spec.table for specs in self._sides.values() for spec in specs if spec.table}
        self.tables = [
            Table(
                name=name,
                buckets=table.buckets,
                dim=table.dim,
                initial_bound=config.table_bound,
                optimizer=optimizer,
            )
            for name, table in specification.tables.items()
            if name in used
        ]
        self.weights: list[Weight] = []
        table_dims = {table.name: table.dim for table in self.tables}
        for side, specs in self._sides.items():
            width = sum(feature_width(spec, table_dims=table_dims) for spec in specs)
            sizes = [width, *config.hidden, config.dim]
            self.weights += tower_weights(side, sizes, optimizer=optimizer)
        self.inputs = [
            *self.query_inputs,
            *self.candidate_inputs,
            Input(name=REWARD, dtype=tf.float32),
        ]
        self.candidate_input = ITEM_ID if config.logq == "all" else None
        self._buckets = {table.name: table.buckets for table in self.tables}
        self._table_of = {each.name: each.table for each in self.inputs if each.table}

    @property
    def _sides(self) -> dict[str, list[FeatureSpec]]:
        return {
            _QUERY: self.specification.query_features,
            _CANDIDATE: self.specification.candidate_features,
        }

    @property
    def query_inputs(self) -> list[Input]:
        """What the query tower reads."""
        return self._side_inputs(_QUERY)

    @property
    def candidate_inputs(self) -> list[Input]:
        """What the candidate tower reads."""
        return self._side_inputs(_CANDIDATE)

    def _side_inputs(self, side: str) -> list[Input]:
        types = self.specification.column_types
        return [feature_input(spec, column_type=types[spec.name]) for spec in self._sides[side]]

    def encode(self, features: Mapping[str, FeatureValue]) -> dict[str, FeatureValue]:
        """Replaces raw ids by int64 buckets of their tables; other inputs pass unchanged."""
        return {
            name: encode_ids(value, buckets=self._buckets[self._table_of[name]])
            if name in self._table_of
            else value
            for name, value in features.items()
        }

    def query(
        self, features: Mapping[str, FeatureValue], *, tables: Tensors, weights: Tensors
    ) -> tf.Tensor:
        """Returns [batch, dim] query vectors of length 1, from encoded query features."""
        return self._tower(_QUERY, features, tables, weights)

    def candidate(
        self, features: Mapping[str, FeatureValue], *, tables: Tensors, weights: Tensors
    ) -> tf.Tensor:
        """Returns [batch, dim] candidate vectors of length 1, from encoded candidate features."""
        return self._tower(_CANDIDATE, features, tables, weights)

    def _tower(
        self, side: str, features: Mapping[str, FeatureValue], tables: Tensors, weights: Tensors
    ) -> tf.Tensor:
        inputs = feature_vectors(self._sides[side], features, tables=tables)
        return tower(side, inputs, weights=weights, num_layers=len(self.config.hidden) + 1)

    def loss(
        self,
        features: Mapping[str, FeatureValue],
        *,
        tables: Tensors,
        weights: Tensors,
        candidate_sampling_probability: tf.Tensor | None,
    ) -> tf.Tensor:
        """Returns the in-batch softmax loss; see `models.contract.Model.loss`.

        Candidates are the same item where their encoded `item_id` is: inside the trainer that is a
        row number of the table, so two items that share a bucket count as one. The model cannot
        tell them apart by id anyway.
        """
        if self.config.logq == "all" and candidate_sampling_probability is None:
            raise ValueError(
                "model.logq: 'all' needs sampling probabilities, got none; expected an estimator"
                " for `candidate_input`, or logq: none"
            )
        corrected = self.config.logq == "all"
        return in_batch_softmax(
            self.query(features, tables=tables, weights=weights),
            self.candidate(features, tables=tables, weights=weights),
            temperature=self.config.temperature,
            reward=features[REWARD],
            candidate_sampling_probability=candidate_sampling_probability if corrected else None,
            candidate_ids=features[ITEM_ID] if self.config.mask_accidental_hits else None,
        )
