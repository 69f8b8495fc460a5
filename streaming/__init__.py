"""Sample streams to parameters, on TensorFlow parameter servers.

Read in the order in which a sample passes: `source > archive, kafka` (where samples come from; what
a Kafka record looks like is `pipeline.record`), `reader > frequency > step` (what a worker does with
a range of them), `ledger > coordinator > checkpoint` (who decides and who remembers), `cluster` (the
processes), `metrics`.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # see models/__init__.py
