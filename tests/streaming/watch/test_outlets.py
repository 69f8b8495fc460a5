from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
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


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_disk_that_was_full_costs_tensorboard_a_point_and_no_more(tmp_path: Path) -> None:
    outlet = TensorBoard(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (90, hard))  # its header has 78 bytes
    try:
        with pytest.raises(OSError, match=r"File too large|No space"):
            outlet.write(7, LEARNED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    outlet._written = -100.0
    outlet.write(8, LEARNED)
    outlet.close()
    assert any(b"train/loss" in path.read_bytes() for path in tmp_path.iterdir())
