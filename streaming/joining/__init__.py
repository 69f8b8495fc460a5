"""The continuous join: events from Kafka, joined, to samples on Kafka, each once.

Read `config`; `step` (what the loop is handed: it knows neither events nor how they are joined);
`lane` (a topic-partition: its watermark, what is stale, where a replay must begin) and `unit` (all
lanes of one partition number with their joiner); `progress` (what outlives a process);
`kafka_topics > kafka_input > kafka_output` (the clients); `reading > life > loop` (who calls whom);
`figures` (how it is told).

The guarantee: every event of the input topics is consumed once. Samples, dead letters, counts and
the positions that they follow from stand in one transaction, so whoever reads the output under
`read_committed` sees each sample once, whatever became of the processes that wrote it.
"""
