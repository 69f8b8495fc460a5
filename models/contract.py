"""What a trainer may ask of a model: parameters by name, and pure functions of them.

A model owns no variables. It declares tables and weights; whoever trains or serves it holds their
values (on parameter servers, in a worker's local copy, in a SavedModel) and passes them in. So the
same functions run in a worker's mini-batch on the few rows it pulled and in a served model on
whole tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, Protocol, TypeAlias

import tensorflow as tf

FeatureValue: TypeAlias = tf.Tensor | tf.RaggedTensor
Tensors: TypeAlias = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """An update rule whose state adds up, so that concurrent workers merge by differences.

    Attributes:
        kind: `sgd` has no state; `adagrad` keeps the sum of squared gradients.
        learning_rate: Step size.
        initial_accumulator: Adagrad's sum at the start.
    """

    kind: Literal["sgd", "adagrad"] = "adagrad"
    learning_rate: float = 0.01
    initial_accumulator: float = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Embedding rows, addressed by bucket; float32 [buckets, dim], uniform in +-`initial_bound`."""

    name: str
    buckets: int
    dim: int
    initial_bound: float
    optimizer: Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Weight:
    """A dense float32 parameter, uniform in +-`initial_bound` (0 for zeros)."""

    name: str
    shape: tuple[int, ...]
    initial_bound: float
    optimizer: Optimizer


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Input:
    """One sample column that the model reads.

    Attributes:
        name: The column's name.
        dtype: `tf.int64`, `tf.string` or `tf.float32`, as in the samples.
        ragged: Whether each sample has a list of values. A ragged value is a `tf.RaggedTensor`
            [batch, (values)], any other a tensor [batch].
        table: The table that its ids address once encoded, or None.
        size: Length of a fixed-size vector ([batch, size]), or None.
    """

    name: str
    dtype: tf.DType
    ragged: bool = False
    table: str | None = None
    size: int | None = None


class Model(Protocol):
    """What `streaming` trains. See `models.two_tower` for the first of them."""

    @property
    def tables(self) -> Sequence[Table]:
        """The embedding tables."""

    @property
    def weights(self) -> Sequence[Weight]:
        """The dense parameters."""

    @property
    def inputs(self) -> Sequence[Input]:
        """The sample columns that it reads."""

    @property
    def candidate_input(self) -> str | None:
        """The id input whose sampling probability the trainer estimates; None for none."""

    def encode(self, features: Mapping[str, FeatureValue]) -> dict[str, FeatureValue]:
        """Replaces raw ids by int64 buckets of their tables; other inputs pass unchanged."""

    def loss(
        self,
        features: Mapping[str, FeatureValue],
        *,
        tables: Tensors,
        weights: Tensors,
        candidate_sampling_probability: tf.Tensor | None,
    ) -> tf.Tensor:
        """Returns the mini-batch's loss, a float32 scalar, the mean over its samples.

        Args:
            features: Encoded inputs; the ids of an input with a table are row numbers of
                `tables[table]`, which here may be a few rows of the whole table.
            tables: [num_rows, dim] rows of each table.
            weights: The dense parameters.
            candidate_sampling_probability: [batch] probability of each sample's candidate to
                appear in a batch, in (0, 1]; None without estimation.
        """
