"""The two-tower retrieval model: sampling-bias-corrected, after Yi et al., RecSys 2019.

Candidates are the same item where the fingerprints of their raw ids are equal, in whatever
mini-batch, worker or life they are met; so two items that share a bucket stay two.
"""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from models.config import TwoTowerConfig, hard_negatives_column
from models.contract import (
    BankShape,
    Candidates,
    CorpusDraws,
    CorpusSample,
    FeatureValue,
    Input,
    Optimizer,
    Outcome,
    Sampling,
    Table,
    Tensors,
    Weight,
)
from models.features import (
    encode_ids,
    feature_input,
    feature_vectors,
    feature_width,
    identities,
)
from models.losses import HardNegatives
from models.negatives import Sources, mixed_softmax, stream_probability
from models.towers import tower, tower_weights
from pipeline.schema import ITEM_ID, REWARD
from pipeline.specification import FeatureSpec, Specification

_QUERY, _CANDIDATE = "query", "candidate"
_TEMPERATURE = "temperature"
_IDENTITY = "identity"
_HARD_IDENTITY = "hard_identity"


class TwoTower:
    """A query tower and a candidate tower that meet in a cosine.

    Implements `models.contract.Model`: no variables, only pure functions.

    Attributes:
        tables: The embedding tables that the features of either tower use.
        weights: The dense parameters of both towers.
        inputs: Query features, context features, candidate features, and the reward.
        candidate_input: The candidate's identity, whose sampling probability is estimated; None
            where the loss takes no correction, or no negatives from the stream.
        corpus: The draws that the loss asks for, or None.
        bank: The bank that the loss asks for, or None.
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
        if config.learn_temperature:
            zero = Weight(name=_TEMPERATURE, shape=(1,), initial_bound=0.0, optimizer=optimizer)
            self.weights.append(zero)
        self._hard = hard_negatives_column(specification, config)
        self.inputs = [
            *self.query_inputs,
            *self.candidate_inputs,
            Input(name=REWARD, dtype=tf.float32),
            *self._hard_inputs(),
        ]
        self._declare_negatives()
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

    def _hard_inputs(self) -> list[Input]:
        if self._hard is None:
            return []
        (item_input,) = self.candidate_inputs
        return [Input(name=self._hard, dtype=item_input.dtype, ragged=True, table=item_input.table)]

    def _corpus_inputs(self) -> tuple[Input, ...]:
        """The candidate's inputs, and its id where the tower does not read that."""
        if any(each.name == ITEM_ID for each in self.candidate_inputs):
            return tuple(self.candidate_inputs)
        spec = self.specification
        ids = tf.int64 if spec.item_id == "int64" else tf.string
        return (Input(name=ITEM_ID, dtype=ids), *self.candidate_inputs)

    def _declare_negatives(self) -> None:
        negatives, corrected = self.config.negatives, self.config.logq != "none"
        from_stream = negatives.in_batch or negatives.bank is not None
        self.candidate_input = ITEM_ID if corrected and from_stream else None
        self.corpus: CorpusDraws | None = None
        if negatives.corpus is not None:
            self.corpus = CorpusDraws(
                count=negatives.corpus.count,
                smoothing=negatives.corpus.smoothing,
                identity=ITEM_ID,
                inputs=self._corpus_inputs(),
            )
        self.bank: BankShape | None = None
        if negatives.bank is not None:
            self.bank = BankShape(
                size=negatives.bank.size,
                dim=self.config.dim,
                warm_up_steps=negatives.bank.warm_up_steps,
            )

    def encode(self, features: Mapping[str, FeatureValue]) -> dict[str, FeatureValue]:
        """Replaces raw ids by int64 buckets of their tables; other inputs pass unchanged.

        The identities of candidates, by which hits are found, are added.
        """
        encoded = {
            name: encode_ids(value, buckets=self._buckets[self._table_of[name]])
            if name in self._table_of
            else value
            for name, value in features.items()
        }
        if ITEM_ID in features:
            encoded[_IDENTITY] = identities(features[ITEM_ID])
        hard = self._hard
        if hard is not None and hard in features:
            ids = features[hard]
            encoded[_HARD_IDENTITY] = ids.with_values(identities(ids.values))
        return encoded

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
        sampling: Sampling,
    ) -> Outcome:
        """Returns the corrected softmax over all negatives; see `models.contract.Model.loss`."""
        self._check(sampling)
        query = self.query(features, tables=tables, weights=weights)
        batch = Candidates(
            self.candidate(features, tables=tables, weights=weights),
            features[_IDENTITY],
            stream_probability(sampling.sampling_probability, sampling=sampling),
            sampling.corpus_probability,
        )
        loss = mixed_softmax(
            query / self.temperature(weights),
            Sources(
                batch,
                self.config.negatives.in_batch,
                self._corpus_candidates(sampling, tables, weights),
                sampling.bank,
                self._hard_negatives(features, tables, weights),
                joint=self.config.negatives.bank is not None and self.config.negatives.bank.joint,
            ),
            reward=features[REWARD],
            logq=self.config.logq,
            inclusion=sampling.sampling_probability,
            masked=self.config.mask_accidental_hits,
        )
        return Outcome(loss, self._to_enqueue(batch))

    def temperature(self, weights: Tensors) -> tf.Tensor | float:
        """Returns what divides the cosine: fixed, or learned above its bound."""
        if not self.config.learn_temperature:
            return self.config.temperature
        bound = self.config.smallest_temperature
        return bound + (self.config.temperature - bound) * tf.exp(weights[_TEMPERATURE][0])

    def _check(self, sampling: Sampling) -> None:
        if self.candidate_input is not None and sampling.sampling_probability is None:
            raise ValueError(
                f"model.logq: {self.config.logq!r} needs sampling probabilities, got none; expected"
                " an estimator for `candidate_input`, or logq: none"
            )
        if self.corpus is not None and sampling.corpus is None:
            raise ValueError("model.negatives.corpus: got no draws; expected a trainer that draws")

    def _corpus_candidates(
        self, sampling: Sampling, tables: Tensors, weights: Tensors
    ) -> Candidates | None:
        drawn: CorpusSample | None = sampling.corpus if self.corpus is not None else None
        if drawn is None:
            return None
        return Candidates(
            self.candidate(drawn.features, tables=tables, weights=weights),
            drawn.features[_IDENTITY],
            stream_probability(drawn.sampling_probability, sampling=sampling),
            drawn.corpus_probability,
        )

    def _hard_negatives(
        self, features: Mapping[str, FeatureValue], tables: Tensors, weights: Tensors
    ) -> HardNegatives | None:
        column = self._hard
        if column is None:
            return None
        ids = features[column]
        return HardNegatives(
            self.candidate({ITEM_ID: ids.values}, tables=tables, weights=weights),
            features[_HARD_IDENTITY].values,
            ids.value_rowids(),
        )

    def _to_enqueue(self, batch: Candidates) -> Candidates | None:
        if self.bank is None:
            return None
        unknown = tf.zeros_like(batch.vectors[:, 0])
        return Candidates(
            tf.stop_gradient(batch.vectors),
            batch.identity,
            unknown if batch.probability is None else batch.probability,
            unknown if batch.corpus_probability is None else batch.corpus_probability,
        )
