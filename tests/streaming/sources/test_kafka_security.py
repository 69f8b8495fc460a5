from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kafka import KafkaAdminClient

from pipeline.publish import PublishConfig, publish
from pipeline.schema import InputError
from streaming.source import Partition, Range, Reject, SourceUnavailableError
from streaming.sources.kafka import KafkaSource, KafkaSourceConfig
from streaming.sources.kafka_dead_letters import DeadLetterTopic
from tests.kafka.broker import Broker
from tests.kafka.install import KafkaMissingError
from tests.kafka.security import PASSWORD, USER, Certificates, make_certificates
from tests.kafka.topics import consume, create, produce
from tests.sample_folder import write_samples

pytestmark = pytest.mark.kafka

SCHEMA = pa.schema([("item_id", pa.int64())])


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def broker(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates
) -> Iterator[Broker]:
    try:
        found = Broker(tmp_path_factory.mktemp("secure") / "kafka", certificates=certificates)
    except KafkaMissingError as error:
        pytest.skip(str(error))
    with found:
        admin = KafkaAdminClient(bootstrap_servers=found.bootstrap)
        create(admin, "clicks")
        create(admin, "dead")
        admin.close()
        produce(found.bootstrap, "clicks", (0, pa.table({"item_id": [1, 2]}, SCHEMA)))
        yield found


@pytest.fixture
def password(tmp_path: Path) -> Path:
    path = tmp_path / "password"
    path.write_text(f"{PASSWORD}\n")
    return path


def config(address: str, **options: Any) -> KafkaSourceConfig:
    options = {"topics": ["clicks"], "connect_timeout_seconds": 2.0} | options
    return KafkaSourceConfig(bootstrap_servers=[address], **options)


def login(password: Path, mechanism: str = "SCRAM-SHA-256") -> dict[str, Any]:
    return {"mechanism": mechanism, "username": USER, "password_file": password}


def items(settings: KafkaSourceConfig) -> list[int]:
    source = KafkaSource(settings, SCHEMA)
    try:
        assert source.end_offsets() == {Partition("clicks", 0): 1}
        return source.read(Range(Partition("clicks", 0), 0, 1)).samples["item_id"].to_pylist()
    finally:
        source.close()


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_a_user_reads_over_tls_with_each_mechanism(
    broker: Broker, certificates: Certificates, password: Path, mechanism: str
) -> None:
    tls = {"ca_file": certificates.ca}
    found = config(broker.address("SECRET"), tls=tls, sasl=login(password, mechanism))
    assert items(found) == [1, 2]


def test_a_user_reads_with_a_password_and_without_tls(broker: Broker, password: Path) -> None:
    assert items(config(broker.address("OPEN"), sasl=login(password))) == [1, 2]


def test_a_client_with_a_certificate_reads_where_one_is_asked_for(
    broker: Broker, certificates: Certificates
) -> None:
    tls = {"ca_file": certificates.ca}
    pair = {"certificate_file": certificates.client, "key_file": certificates.client_key}
    assert items(config(broker.address("MUTUAL"), tls=tls | pair)) == [1, 2]

    with pytest.raises(InputError, match=r"expected tls.certificate_file and tls.key_file"):
        items(config(broker.address("MUTUAL"), tls=tls))


@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256"])
@pytest.mark.parametrize("listener", ["SECRET", "OPEN"])
def test_a_wrong_password_says_which_user_and_shows_no_password(
    broker: Broker,
    certificates: Certificates,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    listener: str,
    mechanism: str,
) -> None:
    (tmp_path / "wrong").write_text("no-such-password")
    tls = {"ca_file": certificates.ca} if listener == "SECRET" else None
    user = login(tmp_path / "wrong", mechanism) | {"plaintext": mechanism == "PLAIN" and not tls}
    wrong = config(broker.address(listener), tls=tls, sasl=user)

    with caplog.at_level(logging.DEBUG), pytest.raises(InputError) as caught:
        items(wrong)

    message = str(caught.value)
    assert f"authentication failed for user 'trainer' by {mechanism}" in message
    assert "sasl.password_file" in message
    assert "\n" not in message
    assert "no-such-password" not in message + caplog.text


def test_a_broker_signed_by_a_stranger_is_refused_with_the_file_to_look_at(
    broker: Broker, certificates: Certificates, password: Path
) -> None:
    stranger = config(
        broker.address("SECRET"),
        tls={"ca_file": certificates.stranger},
        sasl=login(password),
        connect_timeout_seconds=5.0,  # for the handshake, on a busy machine
    )
    with pytest.raises(InputError, match=r"certificate is not accepted: unable to .*stranger.pem"):
        items(stranger)


def test_a_certificate_for_another_host_is_refused_unless_told_otherwise(
    broker: Broker, certificates: Certificates, password: Path
) -> None:
    address = broker.address("SECRET").replace("127.0.0.1", "localhost")
    tls = {"ca_file": certificates.ca}
    with pytest.raises(InputError, match="not accepted: Hostname mismatch"):
        items(config(address, tls=tls, sasl=login(password)))
    loose = config(address, tls=tls | {"check_hostname": False}, sasl=login(password))
    assert items(loose) == [1, 2]


def test_the_wrong_kind_of_listener_is_explained(
    broker: Broker, certificates: Certificates, password: Path
) -> None:
    with pytest.raises(SourceUnavailableError, match="may ask for `tls` or `sasl`"):
        items(config(broker.address("OPEN")))
    with pytest.raises(SourceUnavailableError, match="does this listener speak TLS"):
        items(config(broker.bootstrap, tls={"ca_file": certificates.ca}))
    with pytest.raises(InputError, match="found a listener without passwords"):
        items(config(broker.bootstrap, sasl=login(password)))


def test_publish_and_dead_letters_use_the_same_sections(
    broker: Broker, certificates: Certificates, password: Path, tmp_path: Path
) -> None:
    secure = {"tls": {"ca_file": certificates.ca}, "sasl": login(password)}
    servers = [broker.address("SECRET")]
    write_samples(tmp_path / "s", {("2026-01-01", 0): pa.table({"item_id": [1, 2, 3]}, SCHEMA)})
    published = publish(
        PublishConfig(
            bootstrap_servers=servers,
            directory=tmp_path / "s",
            topic="published",
            create_partitions=1,
            **secure,
        ),
        SCHEMA,
    )
    assert published.counts[0].samples == 3

    letters = DeadLetterTopic(
        KafkaSourceConfig(bootstrap_servers=servers, topics=["clicks"], **secure), "dead"
    )
    letters.write(Range(Partition("clicks", 0), 0, 9), [Reject(7, "undecodable", "found", b"\x00")])
    letters.close()
    assert consume(broker.bootstrap, "dead", 1)[0].key == b"clicks-0-7"
