"""What a trainer may ask of a model: parameters by name, and pure functions of them.

A model owns no variables. It declares tables and weights; whoever trains or serves it holds their
values (on parameter servers, in a worker's local copy, in a SavedModel) and passes them in. So the
same functions run in a worker's mini-batch on the few rows it pulled and in a served model on
whole tables.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeAlias

import tensorflow as tf

FeatureValue: TypeAlias = tf.Tensor | tf.RaggedTensor
Tensors: TypeAlias = Mapping[str, tf.Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Optimizer:
    """An update rule whose state adds up, so that concurrent workers merge by differences.

    Attributes:
        kind: `sgd` has no state; `adagrad` keeps the sum of squared gradients of each value;
            `rowwise-adagrad` one sum for each row of a table, of its mean squared gradient, so that
            rows travel in nearly half the bytes (dense weights have a sum for each value).
        learning_rate: Step size.
        initial_accumulator: Adagrad's sum at the start.
    """

    kind: Literal["sgd", "adagrad", "rowwise-adagrad"] = "adagrad"
    learning_rate: float = 0.01
    initial_accumulator: float = 0.1

    def sums_per_row(self, dim: int) -> int:
        """Returns how many sums a table's row of `dim` values has."""
        return {"sgd": 0, "adagrad": dim, "rowwise-adagrad": 1}[self.kind]


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


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class CorpusDraws:
    """Negatives that the trainer draws from the item corpus, for each mini-batch anew.

    Attributes:
        count: How many per mini-batch.
        smoothing: Items are drawn in proportion to their number of samples to this power; 0 is
            uniform.
        identity: The input that names the item.
        inputs: The candidate's columns, as the samples have them, `identity` among them.
    """

    count: int
    smoothing: float
    identity: str
    inputs: tuple[Input, ...]


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class BankShape:
    """A bank of candidate vectors of former mini-batches, first in, first out.

    Attributes:
        size: How many it holds.
        dim: Length of a vector.
        warm_up_steps: The bank is filled from the first step on, and used from this one on.
    """

    size: int
    dim: int
    warm_up_steps: int


class Candidates(NamedTuple):
    """Candidates as a bank holds them.

    Attributes:
        vectors: [num, dim] float32.
        identity: [num] int64, the same for the same item wherever and whenever it is met.
        probability: [num] float32 probability that a sample's candidate is this item, as it was
            estimated when the vector was made.
        corpus_probability: [num] float32 probability that a draw from the corpus is this item.
    """

    vectors: tf.Tensor
    identity: tf.Tensor
    probability: tf.Tensor
    corpus_probability: tf.Tensor


class CorpusSample(NamedTuple):
    """Items drawn from the corpus for one mini-batch.

    Attributes:
        features: Encoded candidate inputs, [num] each.
        sampling_probability: [num] as in `Sampling`, of the drawn items.
        corpus_probability: [num] as in `Sampling`, of the drawn items.
    """

    features: Mapping[str, FeatureValue]
    sampling_probability: tf.Tensor | None
    corpus_probability: tf.Tensor


class Sampling(NamedTuple):
    """What a trainer knows of how a mini-batch's candidates were sampled; a model may ignore it.

    Attributes:
        batch_size: Samples in a full mini-batch, which `sampling_probability` speaks of.
        sampling_probability: [batch] probability of each sample's candidate to appear in a
            mini-batch, in (0, 1]; None without estimation.
        corpus_probability: [batch] probability that a draw from the corpus is the sample's
            candidate, its rarest item's for one that the corpus lacks; None without draws.
        corpus: The draws, None without.
        bank: What the bank holds now, [up to size] rows; None without, and during warm-up.
    """

    batch_size: int | None = None
    sampling_probability: tf.Tensor | None = None
    corpus_probability: tf.Tensor | None = None
    corpus: CorpusSample | None = None
    bank: Candidates | None = None


class Outcome(NamedTuple):
    """What a mini-batch comes to.

    Attributes:
        loss: float32 scalar, the mean over the samples.
        enqueue: [batch] candidates that the bank takes in after the step; None without a bank.
    """

    loss: tf.Tensor
    enqueue: Candidates | None = None


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

    @property
    def corpus(self) -> CorpusDraws | None:
        """The draws from the item corpus that its loss asks for; None for none."""

    @property
    def bank(self) -> BankShape | None:
        """The bank that its loss asks for; None for none."""

    def encode(self, features: Mapping[str, FeatureValue]) -> dict[str, FeatureValue]:
        """Replaces raw ids by int64 buckets of their tables; other inputs pass unchanged."""

    def loss(
        self,
        features: Mapping[str, FeatureValue],
        *,
        tables: Tensors,
        weights: Tensors,
        sampling: Sampling,
    ) -> Outcome:
        """Returns the mini-batch's loss, and what a bank is to remember of it.

        Args:
            features: Encoded inputs; the ids of an input with a table are row numbers of
                `tables[table]`, which here may be a few rows of the whole table.
            tables: [num_rows, dim] rows of each table.
            weights: The dense parameters.
            sampling: How the candidates were sampled, and what `corpus` and `bank` asked for.
        """
