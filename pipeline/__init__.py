"""Raw logs to training samples, with Apache Beam.

A sample passes the modules in this order:

    schema, specification   the contract: what an event, a sample and a feature are
    read > validate         files to Arrow tables; every bad row is a reject with a reason
    shuffle                 tables cut by key hash, so that one part fits in memory
    join                    impressions with their outcomes: labels
    history > statistics    what was known *before* the event, never after
    retrieval               retrieval samples
    write                   `dt=YYYY-MM-DD/` files and the manifest, atomically
    publish                 sample files to Kafka
"""
