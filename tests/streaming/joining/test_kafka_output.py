from __future__ import annotations

import pyarrow as pa

from pipeline.topics.record import decode
from streaming.joining.kafka_output import records

SCHEMA = pa.schema([("timestamp_ms", pa.int64()), ("text", pa.string())])


def table(count: int, size: int) -> pa.Table:
    return pa.table([[*range(count, 0, -1)], ["x" * size] * count], SCHEMA)


def test_samples_go_in_records_of_a_number_with_the_time_of_the_newest() -> None:
    samples = table(25, 1)
    found = [
        (decode(value, schema=SCHEMA, where=""), time) for value, _, time in records(samples, 10)
    ]
    assert [(part.num_rows, time) for part, time in found] == [(10, 25), (10, 15), (5, 5)]
    assert pa.concat_tables(part for part, _ in found).equals(samples)


def test_records_of_large_samples_hold_fewer_of_them() -> None:
    samples = table(100, 50_000)  # 5 MB
    values = [value for value, _, _ in records(samples, 100)]
    assert max(map(len, values)) < 1_000_000
    parts = [decode(value, schema=SCHEMA, where="") for value in values]
    assert pa.concat_tables(parts).equals(samples)
    (alone,) = records(table(1, 2_000_000), 10)
    assert len(alone[0]) > 2_000_000
