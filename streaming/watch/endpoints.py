"""A run's figures and health over HTTP, for Prometheus and for Kubernetes' probes."""

from __future__ import annotations

import dataclasses
import logging
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from pipeline.schema import InputError
from streaming.ledger import Totals
from streaming.watch.pulse import Pulse

logger = logging.getLogger(__name__)

_COUNTERS = {f"stream/{field.name}" for field in dataclasses.fields(Totals)} | {"checkpoint/saves"}
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_]")
_MILLISECONDS = "_ms"


class _Figures(Collector):
    """The latest figures as Prometheus' metrics, in its base units: seconds, never milliseconds."""

    def __init__(self, counters: Collection[str]) -> None:
        self.latest: Mapping[str, float] = {}
        self._counters = counters

    def describe(self) -> list[Metric]:
        return []  # unknown until the run has begun

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for figure, value in self.latest.items():
            area, noun, *label = figure.split("/", maxsplit=2)
            key = f"{area}/{noun}"
            name = "headrace_" + _NOT_IN_NAMES.sub("_", key)
            if name.endswith(_MILLISECONDS):
                name, value = name.removesuffix(_MILLISECONDS) + "_timestamp_seconds", value / 1e3
            if name not in families:
                kind = CounterMetricFamily if key in self._counters else GaugeMetricFamily
                names = ["topic"] if label else []
                families[name] = kind(name, f"{key} of metrics.jsonl", labels=names)
            families[name].add_metric(label, value)  # type: ignore[attr-defined]
        yield from families.values()


class Endpoints:
    """Serves /metrics, /healthz (200, or 503: kill it) and /readyz (200, or 503: it stands still).

    Figures come as to any outlet; health is asked of the pulse at each request, so it is told of a
    main thread that hangs, too.
    """

    def __init__(
        self,
        pulse: Pulse,
        *,
        host: str,
        port: int,
        section: str = "train.watch",
        counters: Collection[str] = _COUNTERS,
    ) -> None:
        """Begins to serve.

        Args:
            pulse: What the probes ask.
            host: The address to listen on.
            port: The port; 0 takes a free one.
            section: Where a configuration has the port, for messages.
            counters: Figures, by `area/noun`, that only grow.

        Raises:
            InputError: If the port is taken, or the address is not this machine's.
        """
        self._figures = _Figures(counters)
        registry = CollectorRegistry()
        registry.register(self._figures)
        ProcessCollector(registry=registry)
        try:
            self._server = ThreadingHTTPServer((host, port), _handler(pulse, registry))
        except OSError as error:
            raise InputError(
                f"{section}.port: found {host}:{port} not to be had ({error.strerror}); expected"
                " a free port of this machine: name another"
            ) from error
        self.address = f"{host}:{self._server.server_address[1]}"
        serve = threading.Thread(target=self._server.serve_forever, name="endpoints", daemon=True)
        serve.start()
        logger.info("metrics and health at http://%s/metrics, /healthz, /readyz", self.address)

    def write(self, step: int, figures: Mapping[str, float]) -> None:
        """Takes the figures that /metrics shows from now on."""
        del step  # stream/batches has it
        # What has no value this second (nothing was learned) keeps its last one.
        self._figures.latest = dict(self._figures.latest) | dict(figures)

    def close(self) -> None:
        """Stops serving."""
        self._server.shutdown()
        self._server.server_close()


def _handler(pulse: Pulse, registry: CollectorRegistry) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/metrics":
                encode, kind = choose_encoder(self.headers.get("Accept", ""))
                self._answer(HTTPStatus.OK, encode(registry), kind)
            elif path in ("/healthz", "/readyz"):
                wrong = pulse.unhealthy() if path == "/healthz" else pulse.unready()
                status = HTTPStatus.SERVICE_UNAVAILABLE if wrong else HTTPStatus.OK
                self._answer(status, f"{wrong or 'ok'}\n".encode(), "text/plain; charset=utf-8")
            else:
                text = b"expected /metrics, /healthz or /readyz\n"
                self._answer(HTTPStatus.NOT_FOUND, text, "text/plain; charset=utf-8")

        def _answer(self, status: HTTPStatus, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the library's name
            logger.debug(format, *args)

    return Handler
