"""Sample files and event logs to Kafka topics, each row once, whatever ends the command.

A row passes the modules in this order:

    config          what goes where, in what form, how fast
    sources/        files to rows, each with its partition; by event time in bounded memory
    cut             rows to records, per partition
    pacing          the clock
    form            records to bytes: Arrow batches, single tf.Examples, single JSON objects
    topic           the topic: looked at, made, required to be empty
    transactions    records, and how far they are, in one Kafka transaction
    state           what is remembered of a job
    job             all of it: what `headrace publish` runs
    live            rows that are made while they are sent, for benchmarks
"""

from pipeline.publish.config import PublishConfig
from pipeline.publish.job import Progress, Published, publish
from pipeline.publish.live import live_sender
from pipeline.publish.state import PartitionCount

__all__ = ["PartitionCount", "Progress", "PublishConfig", "Published", "live_sender", "publish"]
