"""Sample streams to parameters, on TensorFlow parameter servers.

Read in the order in which a sample passes: `config`; `source > sources` (where samples come from;
records are `pipeline.topics`); `feed > plan` (which range comes next); `worker` (what a worker does
with a range), `servers` (what the parameter servers hold); `attempts > ledger > coordinator >
checkpoint` (who decides and who remembers; files are written by `pipeline.durable`), `metrics`;
`cluster` (the processes).
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # see models/__init__.py
