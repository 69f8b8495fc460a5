"""Sample streams to parameters, on TensorFlow parameter servers.

Read in the order in which a sample passes: `config`; `source > sources` (where samples come from;
records are `pipeline.topics`); `feed > schedule` (which range comes next); `worker` (what a worker
does with a range), `servers` (what the parameter servers hold); `attempts > callers > ledger >
coordinator > checkpoints` (who decides and who remembers; files are written by `pipeline.durable`),
`rejects` (when too much is undecodable); `watch` (how it is told); `cluster` (the processes).
`joining` stands by itself: events to samples, before all that.
"""

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # see models/__init__.py
