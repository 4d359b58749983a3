"""The address of a log on Kafka: `kafka://host:9092,other:9092/prefix?option=value`, and what clients are told from it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from ...errors import InvalidInput
from .security import SECRET_OPTIONS, SECURITY, checked, client_options

FORM = "kafka://host:9092[,host:9092]/prefix[?security_protocol=SASL_SSL&sasl_mechanism=SCRAM-SHA-512&...]"
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}").fullmatch
_OWN = frozenset({"wait_seconds", "state"})
OPTIONS = SECURITY | _OWN

WAIT_SECONDS = 120.0
"""How long an append waits for a broker that is away before its outcome is called unknown."""


@dataclass(frozen=True)
class KafkaAddress:
    """Where a log is and how to get in. `repr` and `url` hold no secret.

    `wait_seconds`: the policy for outages, small to fail fast. `state`: a folder in which this process keeps its copies of
    keyed topics; None: a temporary one.
    """

    bootstrap: str
    prefix: str
    wait_seconds: float = WAIT_SECONDS
    state: str | None = None
    security: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)

    @classmethod
    def parse(cls, url: str, environment: Mapping[str, str] | None = None) -> KafkaAddress:
        """Read an address; options of the URL win over `environment`. Raises `InvalidInput` with the right form."""
        parts = urlsplit(url)
        prefix = unquote(parts.path.strip("/"))
        if parts.scheme != "kafka" or not parts.netloc or not _PREFIX(prefix):
            raise InvalidInput(f"{_without_query(url)!r} is not the address of a log on Kafka; it looks like {FORM}")
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        unknown = sorted(options.keys() - OPTIONS)
        if unknown:
            raise InvalidInput(f"unknown option {unknown[0]!r} of a kafka:// address; known are {', '.join(sorted(OPTIONS))}")
        netloc = parts.netloc
        if "@" in netloc:
            user, _, netloc = netloc.rpartition("@")
            name, _, password = user.partition(":")
            options.setdefault("sasl_username", unquote(name))
            if password:
                options.setdefault("sasl_password", unquote(password))
        security = {name: value for name, value in options.items() if name in SECURITY}
        return cls(
            bootstrap=",".join(_server(one) for one in netloc.split(",")),
            prefix=prefix,
            wait_seconds=_seconds(options.get("wait_seconds")),
            state=options.get("state"),
            security=checked(security, environment),
        )

    @property
    def url(self) -> str:
        """The address without secrets, for people and for logs."""
        shown = {name: value for name, value in self.security.items() if name not in SECRET_OPTIONS}
        query = f"?{urlencode(shown)}" if shown else ""
        return f"kafka://{self.bootstrap}/{self.prefix}{query}"

    def topic(self, name: str) -> str:
        """The topic of the broker that carries `name`."""
        return f"{self.prefix}.{name}"

    def group(self, name: str) -> str:
        """The consumer group of this log called `name`: groups of different logs on one cluster do not meet."""
        return f"{self.prefix}.{name}"

    def client(self) -> dict[str, Any]:
        """What every client of the broker is given: servers, deadline, security."""
        return {
            "bootstrap_servers": self.bootstrap.split(","),
            "request_timeout_ms": 5000,  # 40 s, the default, lets a frozen broker hold every write for so long
            **client_options(self.security),
        }


def _without_query(url: str) -> str:
    return re.sub(r"//[^/@]*@", "//", url.partition("?")[0])


def _server(text: str) -> str:
    host, colon, port = text.strip().rpartition(":")
    if not colon:
        host, port = text.strip(), "9092"
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise InvalidInput(f"{text!r} is not a server; a kafka:// address looks like {FORM}")
    return f"{host}:{port}"


def _seconds(text: str | None) -> float:
    if text is None:
        return WAIT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds < 1e6:
        raise InvalidInput(f"wait_seconds is {text!r}; it takes a number of seconds above 0")
    return seconds
