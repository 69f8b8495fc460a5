"""Sample streams to parameters, on TensorFlow parameter servers.

Read in the order in which a sample passes: `config`, `source > sources` (where samples come
from; records are `pipeline.topics`), `reader > frequency > step > state` (what a worker does
with a range of them, and what the parameter servers hold), `ledger > coordinator > checkpoint` (who
decides and who remembers; its files are written by `pipeline.durable`), `cluster` (the processes).
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # see models/__init__.py
