"""Features to losses, scores and SavedModels.

Read `contract` (what a trainer may ask of a model), then `config > features > towers > losses >
two_tower`, then `index > evaluate` and `bundle > export` (which write files by `pipeline.durable`).
"""

import os

# TensorFlow Recommenders works with Keras 2 only, which TensorFlow picks by this variable, once, on
# its first import. Every room that imports TensorFlow sets it before it does.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
