from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.publish import PublishConfig
from pipeline.schema import InputError
from pipeline.topics.connection import BrokerConnection, BrokerRefusedError, watch_client_log
from streaming.sources.kafka import KafkaSourceConfig

SECRET = "hunter2"


def connection(**options: Any) -> BrokerConnection:
    return BrokerConnection.model_validate({"bootstrap_servers": ["b:1"]} | options)


def sasl(**options: Any) -> BrokerConnection:
    return connection(sasl={"mechanism": "SCRAM-SHA-256", "username": "trainer"} | options)


def test_without_sections_nothing_is_encrypted_and_nobody_logs_in() -> None:
    options = connection().client_options()
    assert options["security_protocol"] == "PLAINTEXT"
    assert not any(name.startswith(("sasl_", "ssl_")) for name in options)


def test_files_and_the_password_of_a_mounted_file_become_the_clients_options(
    tmp_path: Path,
) -> None:
    paths = {name: tmp_path / name for name in ("ca.pem", "c.pem", "c.key", "password")}
    for path in paths.values():
        path.write_text(f"{SECRET}\n")
    tls = {
        "ca_file": paths["ca.pem"],
        "certificate_file": paths["c.pem"],
        "key_file": paths["c.key"],
        "check_hostname": False,
    }
    login = {"mechanism": "PLAIN", "username": "trainer", "password_file": paths["password"]}

    options = connection(tls=tls, sasl=login).client_options()

    assert {name: options[name] for name in options if name.startswith(("s", "ss"))} == {
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(paths["ca.pem"]),
        "ssl_certfile": str(paths["c.pem"]),
        "ssl_keyfile": str(paths["c.key"]),
        "ssl_check_hostname": False,
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "trainer",
        "sasl_plain_password": SECRET,
    }


def test_a_password_is_not_sent_in_the_open_unless_asked_for() -> None:
    login = {"mechanism": "PLAIN", "username": "trainer", "password_file": "p"}
    with pytest.raises(ValidationError, match="found mechanism PLAIN without `tls`"):
        connection(sasl=login)
    with pytest.raises(ValidationError, match=r"sasl.plaintext: found true, with `tls`"):
        connection(sasl=login | {"plaintext": True}, tls={})
    with pytest.raises(ValidationError, match=r"sasl.plaintext: found true, with"):
        connection(sasl=login | {"plaintext": True, "mechanism": "SCRAM-SHA-512"})
    connection(sasl=login | {"plaintext": True})
    connection(sasl=login, tls={})
    connection(sasl=login | {"mechanism": "SCRAM-SHA-512"})  # sends a proof, not the password


def test_the_password_of_an_environment_variable_is_read_when_a_client_is_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = sasl(password_environment="KAFKA_PASSWORD")
    with pytest.raises(InputError, match=r"sasl.password_environment: found nothing in variable K"):
        config.client_options()
    monkeypatch.setenv("KAFKA_PASSWORD", SECRET)
    assert config.client_options()["sasl_plain_password"] == SECRET
    assert config.client_options()["security_protocol"] == "SASL_PLAINTEXT"
    assert SECRET not in f"{config.client_options()}"  # kafka-python logs them


def test_no_text_of_a_configuration_holds_the_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_PASSWORD", SECRET)
    (tmp_path / "password").write_text(SECRET)
    for place in ({"password_environment": "KAFKA_PASSWORD"}, {"password_file": tmp_path / "p"}):
        config = sasl(**place)
        assert SECRET not in repr(config) + str(config) + config.model_dump_json()


@pytest.mark.parametrize("more", [{}, {"password_file": "p"}])
def test_a_password_in_the_configuration_is_refused_without_showing_it(more: dict) -> None:
    with pytest.raises(ValidationError, match="expected password_file or password_env") as caught:
        sasl(password=SECRET, **more)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "places", [{}, {"password_file": "p", "password_environment": "KAFKA_PASSWORD"}]
)
def test_the_password_is_in_exactly_one_place(places: dict) -> None:
    with pytest.raises(ValidationError, match="exactly one of 'password_file' and"):
        sasl(**places)


def test_files_that_are_missing_are_named_with_their_field(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"sasl.password_file: found no readable file .*/p "):
        sasl(password_file=tmp_path / "p").client_options()
    (tmp_path / "p").write_text("\n")
    with pytest.raises(InputError, match=r"sasl.password_file: found nothing in file .*/p"):
        sasl(password_file=tmp_path / "p").client_options()
    with pytest.raises(InputError, match=r"tls.ca_file: found no file .*/ca.pem; expected one in"):
        connection(tls={"ca_file": tmp_path / "ca.pem"}).client_options()


def test_a_file_that_is_missing_is_named_with_its_section(tmp_path: Path) -> None:
    options = {"bootstrap_servers": ["b:1"], "tls": {"ca_file": tmp_path / "ca.pem"}}
    read = KafkaSourceConfig(topics=["clicks"], **options)
    written = PublishConfig(directory=tmp_path, topic="clicks", **options)
    for config, section in [(read, "train.source.kafka"), (written, "publish")]:
        with pytest.raises(InputError, match=rf"^{section}\.tls\.ca_file: found no file "):
            config.client_options()


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "localhost:", ":9092", "b:kafka", "b:0", "b:65536"]
)
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match=f"found '{address}'; expected HOST:PORT, as 127"):
        connection(bootstrap_servers=["b:1", address])
    connection(bootstrap_servers=["[::1]:9092", "kafka-0.kafka:9093"])


def test_a_certificate_without_its_key_is_refused() -> None:
    with pytest.raises(ValidationError, match="'certificate_file' and 'key_file' together"):
        connection(tls={"certificate_file": "c.pem"})


def test_a_broker_that_only_hangs_up_once_has_not_refused_the_password() -> None:
    config = sasl(password_environment="KAFKA_PASSWORD")
    log = logging.getLogger("kafka.net.connection")
    lost = "<KafkaConnection broker_version=(4, 3)>: Connection lost: KafkaConnectionError: %s"
    watch_client_log()
    log.error(lost, "socket disconnected")
    assert not isinstance(config.failure("reading"), BrokerRefusedError)

    log.error(lost, "socket disconnected")
    assert isinstance(config.failure("reading"), BrokerRefusedError)
    log.error("Connection failed: %s", "KafkaConnectionError: Connection timed out")  # our own
    assert isinstance(config.failure("reading"), BrokerRefusedError)

    log.error(lost, "127.0.0.1:1 ECONNREFUSED")  # so it was stopped
    assert not isinstance(config.failure("reading"), BrokerRefusedError)
    watch_client_log()


def test_a_last_attempt_that_our_clock_cut_short_does_not_hide_the_cause() -> None:
    log = logging.getLogger("kafka.net.manager")
    watch_client_log()
    log.error("Connection failed: %s", "KafkaConnectionError: Connection timed out")
    assert "asking: KafkaConnectionError: Connection timed out;" in connection().unavailable(
        "asking"
    )
    log.error("Connection failed: %s", "KafkaConnectionError: 111 ECONNREFUSED")
    log.error("Connection failed: %s", "KafkaConnectionError: Connection timed out")
    log.warning("<KafkaConnection>: Request timed out after 5000 ms. Closing connection.")
    log.warning("FetchRequest throttled by broker (100 ms)")
    assert "asking: KafkaConnectionError: 111 ECONNREFUSED;" in connection().unavailable("asking")
    watch_client_log()
