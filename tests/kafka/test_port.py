"""Where `python -m tests.kafka` serves."""

from __future__ import annotations

import socket

import pytest

from tests.kafka import __main__ as command
from tests.kafka.broker import is_free


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as held:
        yield held.getsockname()[1]


def test_the_usual_port_is_taken_if_it_is_free(monkeypatch, taken):
    monkeypatch.setattr(command, "_USUAL_PORT", taken)
    assert command.chosen_port([]) is None
    monkeypatch.setattr(command, "is_free", lambda port: port == taken)
    assert command.chosen_port([]) == taken


def test_a_port_that_is_asked_for_is_the_one_or_none(capsys, taken):
    assert not is_free(taken)
    for wanted, said in [(taken, "which is taken"), (1 << 16, "expected 0 to 65535")]:
        with pytest.raises(SystemExit) as ended:
            command.chosen_port(["--port", str(wanted)])
        assert ended.value.code == 2
        assert f"found {wanted}" in (error := capsys.readouterr().err)
        assert said in error
    assert command.chosen_port(["--port", "0"]) is None
