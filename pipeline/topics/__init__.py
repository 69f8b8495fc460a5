"""Samples as Kafka topics: what those who write and those who read them share.

`record` is the form of a record and `example` that of records of a single `tf.Example`;
`connection` is how a client is set up and how it fails, with TLS and passwords from `security`;
`transactions` is the producer of whoever writes exactly once. It alone imports a Kafka client; the
others have their homes in `pipeline.publish`, `streaming.sources.kafka*` and
`streaming.joining.kafka_*`.
"""
