from __future__ import annotations

import socket
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.schema import InputError
from streaming.watch.endpoints import Endpoints
from streaming.watch.pulse import Pulse


@pytest.fixture
def pulse() -> Pulse:
    pulse = Pulse(stall_seconds=100, ready_seconds=50)
    pulse.connected = pulse.training = True
    return pulse


@pytest.fixture
def endpoints(pulse: Pulse) -> Iterator[Endpoints]:
    served = Endpoints(pulse, host="127.0.0.1", port=0)
    yield served
    served.close()


def get(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def metrics(address: str) -> dict[tuple[str, str], float]:
    """Returns values by name and topic; fails if the text is not of Prometheus' format."""
    families = text_string_to_metric_families(get(address, "/metrics")[1])
    return {
        (sample.name, sample.labels.get("topic", "")): sample.value
        for family in families
        for sample in family.samples
    }


def test_figures_become_metrics_with_labels_and_base_units(endpoints: Endpoints) -> None:
    endpoints.write(
        3,
        {
            "stream/samples": 30,
            "train/loss": 0.25,
            "stream/lag_records/clicks": 4,
            "stream/lag_records/buys.eu-1": 5,
            "stream/watermark_ms": 1_500,
        },
    )
    found = metrics(endpoints.address)
    assert found["headrace_stream_samples_total", ""] == 30
    assert found["headrace_train_loss", ""] == 0.25
    assert found["headrace_stream_lag_records", "clicks"] == 4
    assert found["headrace_stream_lag_records", "buys.eu-1"] == 5
    assert found["headrace_stream_watermark_timestamp_seconds", ""] == 1.5
    assert found["process_cpu_seconds_total", ""] > 0


def test_a_figure_without_a_new_value_keeps_its_last(endpoints: Endpoints) -> None:
    endpoints.write(3, {"train/loss": 0.25})
    endpoints.write(3, {"stream/samples": 1})
    assert metrics(endpoints.address)["headrace_train_loss", ""] == 0.25


def test_probes_follow_the_pulse(endpoints: Endpoints, pulse: Pulse) -> None:
    assert get(endpoints.address, "/healthz") == (200, "ok\n")
    assert get(endpoints.address, "/readyz") == (200, "ok\n")
    pulse.training = False
    assert get(endpoints.address, "/readyz") == (503, "not training yet, or no longer\n")
    assert get(endpoints.address, "/healthz") == (200, "ok\n")
    assert get(endpoints.address, "/else")[0] == 404


def test_a_taken_port_is_told_by_its_name(pulse: Pulse) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"train.watch.port: found 127.0.0.1:{port} not to"):
            Endpoints(pulse, host="127.0.0.1", port=port)
