"""Samples as Kafka topics: what those who write and those who read them share.

`record` is the form of a record, `connection` how a client is set up and how it fails. Neither
imports a Kafka client: these have their homes in `pipeline.publish` and `streaming.sources.kafka`.
"""
