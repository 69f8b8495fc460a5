"""The sections `model` and `export`, in a module that does not wait for TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.schema import ITEM_ID, InputError
from pipeline.specification import Specification

LogQ: TypeAlias = Literal["none", "all", "negatives", "positive-excluded"]
"""Forms of the correction for sampled negatives; `models.corrections` says when to use which."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CorpusNegativesConfig(_Section):
    """Negatives drawn from the item corpus for each mini-batch (Yang et al. 2020, MNS)."""

    count: Annotated[int, Field(ge=1)]
    """How many per mini-batch."""
    smoothing: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Items are drawn by their number of samples to this power: 0 is uniform, 1 by frequency."""
    directory: str | None = None
    """Samples, as `headrace samples` writes them, whose items are the corpus, with the features of
    each item's latest sample. Without it, the samples of `train.source.archive`."""


class BankConfig(_Section):
    """Negatives from former mini-batches: a cross-batch bank (Wang et al. 2021, CBNS)."""

    size: Annotated[int, Field(ge=1)]
    """How many candidates it holds, first in, first out."""
    warm_up_steps: Annotated[int, Field(ge=0)] = 4_000
    """Filled from the first mini-batch on, used from this one on: a run must be longer than this
    (`train/bank_rows` tells what is used). The paper waited for 40,000."""
    joint: bool = False
    """Whether candidates learn from one softmax with the bank, as published. Otherwise queries do,
    and candidates learn as if the bank were not there; see `models.negatives`."""


class NegativesConfig(_Section):
    """Where negatives come from; sources add up."""

    in_batch: bool = True
    """The candidates of the mini-batch's other samples."""
    corpus: CorpusNegativesConfig | None = None
    bank: BankConfig | None = None
    hard: bool = False
    """Whether the ids in the column `specification.hard_negatives` are negatives of their own
    sample: impressions without a click, for instance."""

    @model_validator(mode="after")
    def _some(self) -> Self:
        if not self.in_batch and self.corpus is None:
            raise ValueError("expected in_batch: true or a corpus: a bank is empty at the start")
        return self


class TwoTowerConfig(_Section):
    """Section `model` of a deployment's file."""

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    """Widths of each tower's hidden layers; none makes the towers linear."""
    dim: Annotated[int, Field(ge=1)] = 32
    """Length of the query and candidate vectors."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Divides the cosine; small values sharpen the softmax. Where it is learned, its start."""
    learn_temperature: bool = False
    """Whether the temperature is a trained weight, on a logarithmic scale."""
    smallest_temperature: Annotated[float, Field(gt=0)] = 0.01
    """A learned temperature stays above this."""
    logq: LogQ = "all"
    """Which logits are corrected by the sampling probability, and how: `all` is Yi et al."""
    mask_accidental_hits: bool = True
    """Whether a negative that is the positive's own item is left out."""
    negatives: NegativesConfig = NegativesConfig()
    table_bound: Annotated[float, Field(gt=0)] = 0.05
    """Embeddings start uniform in plus or minus this."""
    optimizer: Literal["sgd", "adagrad", "rowwise-adagrad"] = "rowwise-adagrad"
    """`adagrad` keeps a sum for each value in place of one for a row: twice the memory and traffic,
    for no better figures (`headrace bench retrieval`)."""
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    initial_accumulator: Annotated[float, Field(gt=0)] = 0.1

    @model_validator(mode="after")
    def _temperature_above_its_bound(self) -> Self:
        if self.learn_temperature and self.temperature <= self.smallest_temperature:
            raise ValueError(
                f"temperature: a learned one starts above smallest_temperature"
                f" {self.smallest_temperature}, got {self.temperature}"
            )
        if self.logq == "positive-excluded" and not self.mask_accidental_hits:
            raise ValueError("logq: positive-excluded needs mask_accidental_hits: true")
        return self


def hard_negatives_column(specification: Specification, config: TwoTowerConfig) -> str | None:
    """Returns the column that hard negatives are read from, None where they are not used.

    Raises:
        InputError: If they are wanted, and the specification has no use for them.
    """
    if not config.negatives.hard:
        return None
    column = specification.hard_negatives
    if column is None:
        raise InputError(
            "model.negatives.hard: found no column of hard negatives; expected its name in"
            " specification.hard_negatives"
        )
    names = [feature.name for feature in specification.candidate_features]
    if names != [ITEM_ID]:
        raise InputError(
            "model.negatives.hard: hard negatives are given by id, and the candidate tower reads"
            f" {names}; expected [{ITEM_ID!r}] alone, or hard: false"
        )
    if column in {feature.name for feature in specification.query_features}:
        raise InputError(
            f"model.negatives.hard: {column!r} is a query feature too; expected another column"
        )
    return column


class ExportConfig(_Section):
    """Section `export` of a deployment's file."""

    output: Path = Path("bundles")
    """Folder of all models; this one goes to `OUTPUT/NAME OF THE SPECIFICATION`."""
    num_results: Annotated[int, Field(ge=1)] = 100
    """How many items `retrieval` returns, or all if there are fewer."""
    keep: Annotated[int, Field(ge=1)] | None = None
    """Versions that are kept, and the one in CURRENT in any case; None keeps all."""
    follow: bool = False
    """`headrace train --local` also exports each new checkpoint, while training goes on."""
