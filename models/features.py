"""Sample columns to tower inputs: ids are hashed into buckets, and everything becomes numbers.

All of it runs inside the TensorFlow graph, from native operations only, so that a served model
takes raw ids and gives the same buckets as the trainer did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf

from models.contract import FeatureValue, Input, Tensors
from pipeline.schema import PADDING
from pipeline.specification import FeatureSpec

# The hash seed of every embedding table: features that share a table share its rows. Other users of
# `hash_ids` (the sampling-probability estimator) take other seeds.
TABLE_SEED = 0

_DTYPES: dict[str, tf.DType] = {"int64": tf.int64, "string": tf.string, "float32": tf.float32}


def hash_ids(ids: tf.Tensor, *, seed: int, buckets: int) -> tf.Tensor:
    """Hashes ids into buckets; different seeds are independent hash functions.

    `bucket = F(F(id) ++ seed) mod buckets`, where F is FarmHash Fingerprint64 of a string's bytes
    or of an int64's eight little-endian bytes, the result read as a signed number. It depends on
    nothing else: not on the process, the machine, or TensorFlow's version. The int64 7 and the
    string "7" are different ids.

    Args:
        ids: [num_ids] int64 or string; any value.
        seed: Which of the hash functions.
        buckets: How many buckets.

    Returns:
        [num_ids] int64 in [0, buckets).
    """
    key = identities(ids)
    seeded = tf.stack([key, tf.fill(tf.shape(key), tf.constant(seed, tf.int64))], axis=1)
    return tf.math.floormod(_fingerprint(seeded), tf.constant(buckets, tf.int64))


def identities(ids: tf.Tensor) -> tf.Tensor:
    """Returns [num] int64 fingerprints of raw ids: equal where the ids are, in any process."""
    return _fingerprint(ids if ids.dtype == tf.string else ids[:, tf.newaxis])


def _fingerprint(rows: tf.Tensor) -> tf.Tensor:
    return tf.bitcast(tf.fingerprint(rows), tf.int64)


def feature_input(feature: FeatureSpec, *, column_type: str) -> Input:
    """Returns what a model reads for one feature of the specification.

    Args:
        feature: The feature.
        column_type: Type name of its sample column, such as `list<int64>`.
    """
    element = column_type.removeprefix("list<").removesuffix(">")
    return Input(
        name=feature.name,
        dtype=_DTYPES[element],
        ragged=feature.kind == "ids",
        table=feature.table,
        size=feature.size,
    )


def arrow_features(rows: pa.Table, inputs: Sequence[Input]) -> dict[str, FeatureValue]:
    """Turns Arrow columns into raw features, as `encode` takes them; see `column_arrays`.

    Args:
        rows: [batch] rows with a column for each input.
        inputs: What to read.
    """
    arrays = ((each, column_arrays(rows.column(each.name), each)) for each in inputs)
    return {
        each.name: feature_value([tf.constant(array) for array in values], each)
        for each, values in arrays
    }


def column_arrays(column: pa.ChunkedArray, read: Input) -> list[np.ndarray]:
    """Turns an Arrow column into flat arrays, which can pass where a ragged tensor cannot.

    A null becomes the padding value of its type, NaN in a float column; a null list is an empty
    one, and a null inside a list is dropped.

    Returns:
        [values], shaped [batch] or [batch, size]; of a ragged input [values, row lengths], int64.
    """
    array = _one_chunk(column)
    if read.size is not None:
        return [_values(array.flatten(), read.dtype).reshape(-1, read.size)]
    if not read.ragged:
        return [_values(array, read.dtype)]
    values = array.flatten()
    if not values.null_count:
        lengths = pc.fill_null(pc.list_value_length(array), 0)
        return [_values(values, read.dtype), lengths.to_numpy(zero_copy_only=False).astype("i8")]
    present = pc.is_valid(values)
    rows = pc.filter(pc.list_parent_indices(array), present).to_numpy(zero_copy_only=False)
    lengths = np.bincount(rows, minlength=len(array)).astype("i8")
    return [_values(pc.filter(values, present), read.dtype), lengths]


def feature_value(tensors: Sequence[tf.Tensor], read: Input) -> FeatureValue:
    """Puts the tensors of `column_arrays` together as the feature that they are."""
    shape = [None] if read.size is None else [None, read.size]
    values = tf.ensure_shape(tensors[0], shape)
    if not read.ragged:
        return values
    lengths = tf.ensure_shape(tensors[1], [None])
    return tf.RaggedTensor.from_row_lengths(values, lengths, validate=False)


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # it has no chunk, or too many bytes for one
        return pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], array.type)
    return array


def _values(array: pa.Array, dtype: tf.DType) -> np.ndarray:
    if dtype == tf.string:
        return np.array(pc.fill_null(array, PADDING["string"]).to_pylist(), object)
    missing = float("nan") if dtype == tf.float32 else PADDING["int64"]
    filled = pc.fill_null(array, missing).to_numpy(zero_copy_only=False)
    return filled.astype(dtype.as_numpy_dtype, copy=False)


def signature_inputs(rows: pa.Table, inputs: Sequence[Input]) -> dict[str, tf.Tensor]:
    """Turns Arrow columns into what a signature takes: raw, and multi-valued ones padded."""
    features = arrow_features(rows, inputs)
    for each in inputs:
        if each.ragged:
            padding = PADDING["string" if each.dtype == tf.string else "int64"]
            features[each.name] = features[each.name].to_tensor(padding)
    return features


def encode_ids(value: FeatureValue, *, buckets: int) -> FeatureValue:
    """Replaces raw ids by their int64 buckets, in a tensor [batch] or a ragged one.

    A missing id of a single-valued feature arrives as the padding value of its type and is an id
    like any other: "missing" has an embedding of its own.
    """
    if isinstance(value, tf.RaggedTensor):
        hashed = hash_ids(value.flat_values, seed=TABLE_SEED, buckets=buckets)
        return value.with_flat_values(hashed)
    return hash_ids(value, seed=TABLE_SEED, buckets=buckets)


def ragged_from_padded(padded: tf.Tensor) -> tf.RaggedTensor:
    """Removes the padding of a multi-valued input, wherever in a row it stands.

    Args:
        padded: [batch, length] int64 or string, with `pipeline.schema.PADDING` for "no value".
    """
    padding = PADDING["string" if padded.dtype == tf.string else "int64"]
    return tf.ragged.boolean_mask(padded, tf.not_equal(padded, padding))


def feature_vectors(
    specs: Sequence[FeatureSpec], features: Mapping[str, FeatureValue], *, tables: Tensors
) -> tf.Tensor:
    """Joins a tower's features into its input.

    Args:
        specs: The tower's features, in the order of the result's columns.
        features: Encoded inputs, by name.
        tables: [num_rows, dim] rows of each embedding table, by name.

    Returns:
        [batch, width] float32; `width` is the sum of `feature_width`.
    """
    return tf.concat([_vector(spec, features[spec.name], tables) for spec in specs], axis=1)


def feature_width(feature: FeatureSpec, *, table_dims: Mapping[str, int]) -> int:
    """Returns how many numbers a feature adds to its tower's input."""
    if feature.table is not None:
        return table_dims[feature.table]
    return feature.size or 1


def _vector(spec: FeatureSpec, value: FeatureValue, tables: Tensors) -> tf.Tensor:
    if spec.table is not None:
        table = tables[spec.table]
        return mean_embedding(table, value) if spec.kind == "ids" else tf.gather(table, value)
    if spec.kind == "vector":
        return _finite(value)
    return number(value, log1p=spec.log1p, scale=spec.scale)[:, tf.newaxis]


def mean_embedding(table: tf.Tensor, rows: tf.RaggedTensor) -> tf.Tensor:
    """Averages the embeddings of each sample's values; a sample without any gets zeros.

    Args:
        table: [num_rows, dim] float32.
        rows: [batch, (values)] row numbers of `table`.

    Returns:
        [batch, dim] float32.
    """
    any_values = tf.size(rows.values) > 0

    # Where no sample has a value, TensorFlow (2.21) leaves the gradient as the memory was that it
    # is put in: anything, from zero to not finite.
    @tf.custom_gradient
    def guarded(values: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
        def gradient(upstream: tf.Tensor) -> tf.Tensor:
            dense = tf.convert_to_tensor(upstream)
            return tf.where(any_values, dense, tf.zeros_like(dense))

        return tf.identity(values), gradient

    return tf.sparse.segment_mean(
        guarded(table), rows.values, rows.value_rowids(), num_segments=rows.nrows()
    )


def number(value: tf.Tensor, *, log1p: bool, scale: float) -> tf.Tensor:
    """Scales a number: `scale * log(1 + max(x, 0))` with `log1p`, else `scale * x`.

    What is missing (NaN, or the padding value of an integer column) counts as 0, and has no flag of
    its own.

    Args:
        value: [batch] int64 or float32.
        log1p: Whether to take the logarithm.
        scale: Multiplied in, last.

    Returns:
        [batch] float32, without NaN.
    """
    if value.dtype == tf.int64:
        value = tf.where(value == PADDING["int64"], tf.zeros_like(value), value)
    numbers = _finite(tf.cast(value, tf.float32))
    if log1p:
        numbers = tf.math.log1p(tf.maximum(numbers, 0.0))
    return numbers * scale


def _finite(value: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_nan(value), tf.zeros_like(value), value)
