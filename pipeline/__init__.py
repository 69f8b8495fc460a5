"""Raw logs to training samples, with Apache Beam.

A sample passes the modules in this order:

    schema, specification   the contract: what an event, a sample and a feature are
    events/                 files to Arrow tables; every bad row is a reject with a reason
    shuffle                 tables cut by key hash, so that one part fits in memory
    positions               what "before" means
    join/                   impressions with their outcomes: labels; the same for a live log
    history > retrieval     what was known *before* the event, never after: retrieval samples
    statistics              the same of items, which takes a second shuffle
    checks/                 a day's samples against the last good days: rows, nulls, new ids, drift
    durable                 files that survive a power cut; one writer at a time
    manifest > write        counts; `dt=YYYY-MM-DD/` files and their manifest, atomically
    samples                 all of it wired together
    topics/                 samples as Kafka records; what all Kafka clients share
    publish/                sample files and event logs to Kafka
"""
