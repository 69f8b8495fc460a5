"""Certificates and passwords for a broker that asks for them, made anew for each test run."""

from __future__ import annotations

import dataclasses
import datetime
import ipaddress
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

USER: Final = "trainer"
PASSWORD: Final = "correct-horse"

_SERVER = """
listener.name.{name}.ssl.keystore.type=PEM
listener.name.{name}.ssl.keystore.location={server}
listener.name.{name}.ssl.truststore.type=PEM
listener.name.{name}.ssl.truststore.location={ca}
"""
_MUTUAL = """
listener.name.mutual.ssl.client.auth=required
"""
_PASSWORDS = """
listener.name.{name}.sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
listener.name.{name}.plain.sasl.jaas.config=\
org.apache.kafka.common.security.plain.PlainLoginModule required user_{user}="{password}";
listener.name.{name}.scram-sha-256.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.{name}.scram-sha-512.sasl.jaas.config=\
org.apache.kafka.common.security.scram.ScramLoginModule required;
"""


@dataclasses.dataclass(frozen=True)
class Certificates:
    """PEM files in a folder: a broker's, a client's, their authority's, and a stranger's."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The authority that both sides trust."""
        return self.folder / "ca.pem"

    @property
    def stranger(self) -> Path:
        """Another authority, which has signed nothing here."""
        return self.folder / "stranger.pem"

    @property
    def server(self) -> Path:
        """The broker's key and certificate, in one file, as Kafka reads them."""
        return self.folder / "server.pem"

    @property
    def client(self) -> Path:
        """A client's certificate."""
        return self.folder / "client.pem"

    @property
    def client_key(self) -> Path:
        """The key of `client`."""
        return self.folder / "client.key"


def make_certificates(folder: Path) -> Certificates:
    """Writes all files; the broker's certificate is for 127.0.0.1, not for `localhost`."""
    folder.mkdir(parents=True, exist_ok=True)
    made = Certificates(folder)
    for path in (made.ca, made.stranger):
        authority = _Pair.make(path.stem)
        path.write_bytes(authority.certificate_pem)
        if path == made.ca:
            server, client = (_Pair.make(name, authority) for name in ("server", "client"))
            made.server.write_bytes(server.key_pem + server.certificate_pem)
            made.client.write_bytes(client.certificate_pem)
            made.client_key.write_bytes(client.key_pem)
    return made


def listeners(certificates: Certificates) -> tuple[dict[str, str], str]:
    """Returns the protocol of each listener, by its name, and the properties of all of them."""
    properties = _MUTUAL
    for name in ("mutual", "secret"):
        properties += _SERVER.format(name=name, server=certificates.server, ca=certificates.ca)
    for name in ("secret", "open"):
        properties += _PASSWORDS.format(name=name, user=USER, password=PASSWORD)
    return {"MUTUAL": "SSL", "SECRET": "SASL_SSL", "OPEN": "SASL_PLAINTEXT"}, properties


def scram_users() -> list[str]:
    """Returns the arguments with which the broker's storage is formatted."""
    return [
        argument
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for argument in ("--add-scram", f"{mechanism}=[name={USER},password={PASSWORD}]")
    ]


@dataclasses.dataclass(frozen=True)
class _Pair:
    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def make(cls, name: str, authority: _Pair | None = None) -> _Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(authority.certificate.subject if authority else subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(authority is None, None), critical=True)
        )
        if authority is not None:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([address]), critical=False)
        return cls(key, builder.sign(authority.key if authority else key, hashes.SHA256()))

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    @property
    def certificate_pem(self) -> bytes:
        return self.certificate.public_bytes(serialization.Encoding.PEM)
