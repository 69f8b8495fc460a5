"""TLS and passwords for Kafka clients. Passwords are in no configuration, log or error."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, model_validator

from pipeline.schema import InputError


class _Secret(str):
    """A text that does not show itself: kafka-python logs its whole configuration at DEBUG."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class TlsConfig(_Section):
    """Encryption, the broker's proof of who it is, and the client's; all files are PEM."""

    ca_file: Path | None = None
    """Certificates of the authorities that may have signed the broker's; the system's if unset."""
    certificate_file: Path | None = None
    """The client's certificate, where the broker asks for one."""
    key_file: Path | None = None
    """The key of the client's certificate, not encrypted: mount it as a secret."""
    check_hostname: bool = True
    """Whether the broker's certificate must be for the host that was asked for."""

    @model_validator(mode="after")
    def _pair(self) -> Self:
        if (self.certificate_file is None) != (self.key_file is None):
            raise ValueError("expected 'certificate_file' and 'key_file' together, or neither")
        return self

    def client_options(self) -> dict[str, Any]:
        """Returns kafka-python's options.

        Raises:
            InputError: If a file is not there.
        """
        files = {
            "ca_file": self.ca_file,
            "certificate_file": self.certificate_file,
            "key_file": self.key_file,
        }
        for name, path in files.items():
            if path is not None and not path.is_file():
                raise InputError(f"tls.{name}: found no file {path}; expected one in PEM")
        names = zip(("ssl_cafile", "ssl_certfile", "ssl_keyfile"), files.values(), strict=True)
        options: dict[str, Any] = {name: str(path) for name, path in names if path is not None}
        return options | {"ssl_check_hostname": self.check_hostname}


class SaslConfig(_Section):
    """A user name and where its password is: in a mounted file, or in an environment variable."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]
    """`PLAIN` sends the password itself: with `tls` only, or see `plaintext`."""
    username: str
    password_file: Path | None = None
    """A file whose content is the password; a last line break is left out."""
    password_environment: str | None = None
    """Name of the environment variable that holds the password."""
    plaintext: bool = False
    """Let `PLAIN` send the password where anyone on the way can read it: without `tls`."""

    @model_validator(mode="before")
    @classmethod
    def _no_literal(cls, data: Any) -> Any:
        if isinstance(data, dict) and "password" in data:
            raise ValueError(
                "found a password in the configuration; expected password_file or"
                " password_environment, and the password there"
            )
        return data

    @model_validator(mode="after")
    def _one_of(self) -> Self:
        if (self.password_file is None) == (self.password_environment is None):
            raise ValueError("expected exactly one of 'password_file' and 'password_environment'")
        return self

    def client_options(self) -> dict[str, Any]:
        """Returns kafka-python's options, the password among them: for a client only.

        Raises:
            InputError: If the password is not where it should be.
        """
        return {
            "sasl_mechanism": self.mechanism,
            "sasl_plain_username": self.username,
            "sasl_plain_password": self._password(),
        }

    def _password(self) -> str:
        # Read anew for each client, so that a password may be changed while a run goes on.
        if self.password_file is not None:
            field, place = "password_file", f"file {self.password_file}"
            try:
                password = self.password_file.read_text().removesuffix("\n")
            except (OSError, UnicodeDecodeError) as error:
                cause = getattr(error, "strerror", None) or "not UTF-8"
                raise InputError(
                    f"sasl.{field}: found no readable {place} ({cause}); expected the password"
                    f" of user {self.username!r} in it"
                ) from None
        else:
            field, place = "password_environment", f"variable {self.password_environment}"
            password = os.environ.get(self.password_environment or "", "")
        if not password:
            raise InputError(
                f"sasl.{field}: found nothing in {place}; expected the password of user"
                f" {self.username!r} in it"
            )
        return _Secret(password)


_PROTOCOLS: Final = {
    (False, False): "PLAINTEXT",
    (True, False): "SSL",
    (False, True): "SASL_PLAINTEXT",
    (True, True): "SASL_SSL",
}


def security_options(tls: TlsConfig | None, sasl: SaslConfig | None) -> dict[str, Any]:
    """Returns kafka-python's options for both; see their `client_options`."""
    options = {"security_protocol": _PROTOCOLS[tls is not None, sasl is not None]}
    options |= tls.client_options() if tls is not None else {}
    return options | (sasl.client_options() if sasl is not None else {})
