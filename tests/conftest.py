"""Fixtures for the whole suite: a real Kafka broker, started once."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from tests.kafka.broker import Broker
from tests.kafka.install import KafkaMissingError

# Machines are shared and noisy: how long an example takes says nothing.
hypothesis.settings.register_profile("headrace", deadline=None)
hypothesis.settings.load_profile("headrace")


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a broker that tests share: `HEADRACE_KAFKA`, or one that is started here."""
    address = os.environ.get("HEADRACE_KAFKA")
    if address:
        yield address
        return
    with _new_broker(tmp_path_factory.mktemp("kafka")) as broker:
        yield broker.bootstrap


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Broker]:
    """A running broker that one test may stop, kill and start."""
    with _new_broker(tmp_path / "kafka") as broker:
        yield broker


@pytest.fixture
def topic() -> str:
    """A name for a topic that no other test has."""
    return f"test-{uuid.uuid4()}"


def _new_broker(directory: Path) -> Broker:
    try:
        return Broker(directory)
    except KafkaMissingError as error:
        if os.environ.get("HEADRACE_REQUIRE_KAFKA") == "1":
            pytest.fail(f"HEADRACE_REQUIRE_KAFKA=1, but {error}", pytrace=False)
        pytest.skip(str(error))
