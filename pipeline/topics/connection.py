"""What all our Kafka clients share: where the brokers are, and errors that say what is wrong.

It imports no Kafka client: those live in `pipeline.publish` and `streaming.sources.kafka`.
"""

from __future__ import annotations

import logging
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

_CLIENT_LOG: Final = "kafka"
_NETWORK_LOG: Final = "kafka.net"


class BrokerUnavailableError(RuntimeError):
    """No broker answers at present; the message says where, why, and what to check."""


class BrokerConnection(BaseModel):
    """How to reach a Kafka cluster; the part that every section for a Kafka client begins with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bootstrap_servers: Annotated[list[str], Field(min_length=1)]
    """`host:port` of some of the brokers; the others are learned from them."""
    connect_timeout_seconds: Annotated[float, Field(gt=0)] = 15.0
    """How long to look for a first broker that answers."""

    def client_options(self) -> dict[str, Any]:
        """Returns the options that every kafka-python client of ours gets."""
        return {
            "bootstrap_servers": list(self.bootstrap_servers),
            "bootstrap_timeout_ms": round(self.connect_timeout_seconds * 1000),
            # With the default of 30 s a client sleeps long after the broker is back.
            "reconnect_backoff_max_ms": 1000,
        }

    def unavailable(self, doing: str, error: object = None) -> str:
        """Returns one line for a person: what could not be done, where, why, and what to check.

        Args:
            doing: What was tried, such as `connecting` or `writing to topic x`.
            error: What the client raised, if it did; its network log usually knows better.
        """
        cause = _PROBLEMS.last or (str(error) if error is not None else "no answer")
        return (
            f"Kafka at {', '.join(self.bootstrap_servers)}: {doing}: {cause}; check that a broker"
            " listens at `bootstrap_servers`, and that its `advertised.listeners` can be reached"
            " from here"
        )


class _NetworkProblems(logging.Handler):
    """Keeps the cause of the last failed connection, which the client only writes to its log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        # Lines about bootstrapping repeat that it failed; those about connections say why.
        if not message.startswith("Bootstrap"):
            self.last = message.rpartition("failed: ")[2].rpartition("lost: ")[2]


_PROBLEMS: Final = _NetworkProblems()


def watch_client_log() -> None:
    """Turns the client's log into causes for `unavailable`, and keeps it from the terminal.

    kafka-python writes several lines at ERROR for each attempt, some hundred times a second. Give
    the logger `kafka` a handler of its own to see them.
    """
    logging.getLogger(_CLIENT_LOG).propagate = False
    network = logging.getLogger(_NETWORK_LOG)
    _PROBLEMS.last = ""
    if _PROBLEMS not in network.handlers:
        network.addHandler(_PROBLEMS)
