"""What all our Kafka clients share: where the brokers are, and errors that say what is wrong.

It imports no Kafka client: for those see `pipeline.topics`.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from pipeline.schema import InputError
from pipeline.topics.security import SaslConfig, TlsConfig, security_options

_CLIENT_LOG: Final = "kafka"
_NETWORK_LOG: Final = "kafka.net"
_CLOSED: Final = "socket disconnected"
_OUT_OF_TIME: Final = ("RequestTimedOut", "Request timed out", "Connection timed out")
_RECENT_SECONDS: Final = 30
_MAX_PORT: Final = 65_535


class BrokerUnavailableError(RuntimeError):
    """No broker answers at present; the message says where, why, and what to check."""


class BrokerRefusedError(InputError):
    """A broker answers but does not let this client in, or is not the one that is trusted."""


def _address(text: str) -> str:
    host, _, port = text.rpartition(":")
    # The client itself would take an address without a port for one with 9092.
    if not host or not (port.isdecimal() and 0 < int(port) <= _MAX_PORT):
        raise ValueError(f"found {text!r}; expected HOST:PORT, as 127.0.0.1:9092")
    return text


class BrokerConnection(BaseModel):
    """How to reach a Kafka cluster; the part that every section for a Kafka client begins with."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", allow_inf_nan=False, hide_input_in_errors=True
    )
    section: ClassVar[str] = ""
    """Path of the section in a configuration file, for messages."""

    bootstrap_servers: Annotated[
        list[Annotated[str, AfterValidator(_address)]], Field(min_length=1)
    ]
    """`host:port` of some of the brokers; the others are learned from them."""
    connect_timeout_seconds: Annotated[float, Field(gt=0)] = 15.0
    """How long to look for a first broker that answers."""
    tls: TlsConfig | None = None
    """Encrypt, and check who the broker is; `tls: {}` trusts the system's authorities."""
    sasl: SaslConfig | None = None
    """Log in with a user name and a password."""

    @model_validator(mode="after")
    def _password_is_hidden(self) -> Self:
        sasl = self.sasl
        if sasl is None:
            return self
        shown = sasl.mechanism == "PLAIN" and self.tls is None
        if shown and not sasl.plaintext:
            raise ValueError(
                "sasl: found mechanism PLAIN without `tls`, which shows the password to anyone on"
                " the way; expected `tls` (`tls: {}` trusts the system's authorities), a SCRAM"
                " mechanism, or, in a network that is trusted, `plaintext: true`"
            )
        if sasl.plaintext and not shown:
            raise ValueError(
                "sasl.plaintext: found true, with `tls` or a SCRAM mechanism; expected false: the"
                " password is not shown"
            )
        return self

    def client_options(self) -> dict[str, Any]:
        """Returns the options that every kafka-python client of ours gets, secrets among them.

        Raises:
            InputError: If a file or a password is not where the configuration says.
        """
        try:
            security = security_options(self.tls, self.sasl)
        except InputError as error:
            where = f"{self.section}." if self.section else ""
            raise InputError(f"{where}{error}") from None
        return {
            "bootstrap_servers": list(self.bootstrap_servers),
            "bootstrap_timeout_ms": round(self.connect_timeout_seconds * 1000),
            # With the default of 30 s a client sleeps long after the broker is back.
            "reconnect_backoff_max_ms": 1000,
            **security,
        }

    def failure(self, doing: str, error: object = None) -> BrokerRefusedError | Exception:
        """Returns the error to raise, with one line for a person: what failed, where, why.

        Args:
            doing: What was tried, such as `connecting` or `writing to topic x`.
            error: What the client raised, if it did; its network log usually knows better.

        Returns:
            BrokerRefusedError if the password or the certificates are wrong, which waiting does not
            mend; otherwise BrokerUnavailableError.
        """
        where = f"Kafka at {', '.join(self.bootstrap_servers)}: {doing}"
        if (refusal := self._refusal()) is not None:
            return BrokerRefusedError(f"{where}: {refusal}")
        return BrokerUnavailableError(self.unavailable(doing, error))

    def unavailable(self, doing: str, error: object = None) -> str:
        """Returns one line for a person: what could not be done, where, why, and what to check.

        Args:
            doing: What was tried, such as `connecting` or `writing to topic x`.
            error: What the client raised, if it did; its network log usually knows better.
        """
        cause = _PROBLEMS.last or (str(error) if error is not None else "no answer")
        if _PROBLEMS.only(_CLOSED, "Invalid frame length", "EOF occurred", "WRONG_VERSION"):
            cause += f" ({self._protocol_hint()})"
        return (
            f"Kafka at {', '.join(self.bootstrap_servers)}: {doing}: {cause}; check that a broker"
            " listens at `bootstrap_servers`, and that its `advertised.listeners` can be reached"
            " from here"
        )

    def _refusal(self) -> str | None:
        """Returns why the broker and this client do not come together, if it is known."""
        if self.sasl is not None and self._login_failed():
            return (
                f"authentication failed for user {self.sasl.username!r} by {self.sasl.mechanism};"
                " expected a user that the broker knows by this mechanism, and its password in"
                " sasl.password_file or sasl.password_environment"
            )
        if _PROBLEMS.any("IllegalSaslStateError"):
            return "found a listener without passwords; expected no `sasl`, or another port"
        if _PROBLEMS.any("UnsupportedSaslMechanism"):
            return f"sasl.mechanism: {_PROBLEMS.last}; expected one that the broker has enabled"
        if self.tls is not None and (reason := _PROBLEMS.find(r"verify failed: ([^(]*[^( .])")):
            trusted = self.tls.ca_file or "the system's authorities"
            return (
                f"the broker's certificate is not accepted: {reason}; expected one for this host"
                f" that is signed by {trusted} (tls.ca_file)"
            )
        if self.tls is not None and (reason := _PROBLEMS.find(r"\w*alert ([a-z ]*certificate)")):
            return (
                f"the broker does not accept our certificate: {reason}; expected"
                " tls.certificate_file and tls.key_file of a client that it trusts"
            )
        return None

    def _login_failed(self) -> bool:
        # The broker hangs up right behind its refusal, which the client then often never reads. But
        # one that stops also hangs up: nothing else may have happened, and more than once.
        answered = _PROBLEMS.only(_CLOSED) and _PROBLEMS.count > 1 and _PROBLEMS.any("version=(")
        return answered or _PROBLEMS.any("SaslAuthenticationFailed")

    def _protocol_hint(self) -> str:
        if self.tls is not None:
            return "does this listener speak TLS? expected one that does, or no `tls`"
        return "the listener may ask for `tls` or `sasl`"


class _NetworkProblems(logging.Handler):
    """Keeps why connections failed, which the client only writes to its log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.clear()

    def clear(self) -> None:
        """Forgets what was."""
        self.last = ""
        self._told = 0.0  # when something else than running out of time was the cause
        self._seen: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # Lines about bootstrapping repeat that it failed; those about connections say why.
        failed = "Connection lost: " in message or message.startswith("Connection failed: ")
        if failed:
            self._seen[message] += 1
        if message.startswith("Bootstrap"):
            return
        # The last attempt is often cut short by our own clock, and tells less than one just before.
        if failed and not any(text in message for text in _OUT_OF_TIME):
            self._told = record.created
        elif record.created - self._told < _RECENT_SECONDS:
            return
        self.last = message.rpartition("failed: ")[2].rpartition("lost: ")[2]

    @property
    def count(self) -> int:
        """How often a connection failed."""
        return self._seen.total()

    def any(self, text: str) -> bool:
        """Returns whether one failed for this."""
        return any(text in message for message in self._seen)

    def only(self, *texts: str) -> bool:
        """Returns whether all failed for one of these; running out of time does not count."""
        told = [m for m in self._seen if not any(text in m for text in _OUT_OF_TIME)]
        return bool(told) and all(any(text in message for text in texts) for message in told)

    def find(self, pattern: str) -> str | None:
        """Returns the first group of the first match in any."""
        found = (re.search(pattern, message) for message in self._seen)
        return next((match.group(1).strip() for match in found if match), None)


_PROBLEMS: Final = _NetworkProblems()


def watch_client_log() -> None:
    """Turns the client's log into causes for `failure`, and keeps it from the terminal.

    kafka-python writes several lines at ERROR for each attempt, some hundred times a second. Give
    the logger `kafka` a handler of its own to see them.
    """
    client = logging.getLogger(_CLIENT_LOG)
    client.propagate = False
    if client.getEffectiveLevel() < logging.INFO:
        client.setLevel(logging.INFO)  # its DEBUG lines show passwords on their way to the broker
    network = logging.getLogger(_NETWORK_LOG)
    _PROBLEMS.clear()
    if _PROBLEMS not in network.handlers:
        network.addHandler(_PROBLEMS)
