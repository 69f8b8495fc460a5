"""Towers: multi-layer perceptrons as pure functions of named weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import tensorflow as tf

from models.contract import Optimizer, Tensors, Weight


def tower_weights(name: str, sizes: Sequence[int], *, optimizer: Optimizer) -> list[Weight]:
    """Declares a tower's weights: `NAME/LAYER/kernel` and `NAME/LAYER/bias`, per layer.

    Kernels start Glorot uniform, biases at zero.

    Args:
        name: The tower's name.
        sizes: Width of its input, of each hidden layer, and of its output.
        optimizer: How they are updated.
    """
    weights = []
    for layer, (num_in, num_out) in enumerate(itertools.pairwise(sizes)):
        weights += [
            Weight(
                name=f"{name}/{layer}/kernel",
                shape=(num_in, num_out),
                initial_bound=math.sqrt(6.0 / (num_in + num_out)),
                optimizer=optimizer,
            ),
            Weight(
                name=f"{name}/{layer}/bias",
                shape=(num_out,),
                initial_bound=0.0,
                optimizer=optimizer,
            ),
        ]
    return weights


def tower(name: str, inputs: tf.Tensor, *, weights: Tensors, num_layers: int) -> tf.Tensor:
    """Applies a tower: ReLU between layers, the last one linear, the output L2-normalised.

    Yi et al. 2019 normalise both towers: it "always improves performance and stability".

    Args:
        name: The tower's name, the prefix of its weights.
        inputs: [batch, width] float32.
        weights: The dense parameters, by name.
        num_layers: Number of layers, the output's one included.

    Returns:
        [batch, dim] float32 of length 1 (0 where the last layer gives exactly 0).
    """
    hidden = inputs
    for layer in range(num_layers):
        if layer:
            hidden = tf.nn.relu(hidden)
        kernel, bias = weights[f"{name}/{layer}/kernel"], weights[f"{name}/{layer}/bias"]
        hidden = tf.nn.bias_add(tf.matmul(hidden, kernel), bias)
    return tf.math.l2_normalize(hidden, axis=1)
