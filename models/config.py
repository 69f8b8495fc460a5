"""The `model` section of a configuration file, in a module that does not wait for TensorFlow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class TwoTowerConfig(BaseModel):
    """Section `model` of a deployment's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: tuple[Annotated[int, Field(ge=1)], ...] = (64,)
    """Widths of each tower's hidden layers; none makes the towers linear."""
    dim: Annotated[int, Field(ge=1)] = 32
    """Length of the query and candidate vectors."""
    temperature: Annotated[float, Field(gt=0)] = 0.1
    """Divides the cosine; small values sharpen the softmax."""
    logq: Literal["none", "all"] = "all"
    """Which logits are corrected by the sampling probability: `all` is Yi et al."""
    mask_accidental_hits: bool = True
    """Whether a negative that is the positive's own item is left out."""
    table_bound: Annotated[float, Field(gt=0)] = 0.05
    """Embeddings start uniform in plus or minus this."""
    optimizer: Literal["sgd", "adagrad"] = "adagrad"
    learning_rate: Annotated[float, Field(gt=0)] = 0.1
    initial_accumulator: Annotated[float, Field(gt=0)] = 0.1
