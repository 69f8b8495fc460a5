from __future__ import annotations

import json
from pathlib import Path

import tensorflow as tf

from streaming.watch.outlets import JsonLines, TensorBoard

LEARNED = {"train/loss": 0.5, "stream/samples": 10}


def test_lines_have_all_figures_and_few_are_written_while_nothing_is_learned(
    tmp_path: Path,
) -> None:
    outlet = JsonLines(tmp_path / "run" / "metrics.jsonl")
    outlet.write(1, LEARNED)
    outlet.write(1, {"stream/samples": 10})  # nothing new, a moment later
    outlet.write(2, LEARNED | {"stream/samples": 20})
    outlet.close()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert [(line["step"], line["stream/samples"]) for line in lines] == [(1, 10), (2, 20)]
    assert all("time" in line for line in lines)


def test_tensorboard_reads_the_figures_as_scalars(tmp_path: Path) -> None:
    outlet = TensorBoard(tmp_path)
    outlet.write(7, LEARNED)
    outlet.close()
    (path,) = tmp_path.iterdir()
    found = {}
    for record in tf.data.TFRecordDataset(str(path)):
        event = tf.compat.v1.Event.FromString(record.numpy())
        for value in event.summary.value:
            assert value.metadata.plugin_data.plugin_name == "scalars"
            found[value.tag] = (event.step, float(tf.make_ndarray(value.tensor)))
    assert found == {"train/loss": (7, 0.5), "stream/samples": (7, 10.0)}
