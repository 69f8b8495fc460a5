"""Raw logs to training samples, with Apache Beam.

A sample passes the modules in this order:

    schema, declarations, specification
                            the contract: what an event, a sample and a feature are
    days                    which days are built, from which events
    events/                 files to Arrow tables; every bad row is a reject with a reason
    shuffle, positions      tables cut by key hash; what "before" means
    join/                   impressions with their outcomes: labels; the same for a live log
    known/                  what was known before an event, or by the end of a day
    kinds/                  the kinds of sample, and what a worker does with a part
    checks/                 a day's samples against the last good days: rows, nulls, new ids, drift
    durable                 files that survive a power cut; one writer at a time
    manifest, write         the account of a run; its files, which appear by one rename
    build                   all of it wired together, as a Beam pipeline
    account, samples        what a build did and left; which builds a command makes
    topics/                 samples as Kafka records; what all Kafka clients share
    publish/                sample files and event logs to Kafka
"""
