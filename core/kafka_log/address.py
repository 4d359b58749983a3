"""The address of a log on Kafka: `kafka://host:9092,other:9092/prefix?option=value`, and what clients are told from it."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit

from ..errors import InvalidInput

FORM = "kafka://host:9092[,host:9092]/prefix[?security_protocol=SASL_SSL&sasl_mechanism=SCRAM-SHA-512&...]"
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}").fullmatch
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")
SECRET_OPTIONS = frozenset({"sasl_password", "ssl_password", "sasl_token"})
_SECURITY = frozenset(
    {"security_protocol", "sasl_mechanism", "sasl_username", "ssl_cafile", "ssl_certfile", "ssl_keyfile"}
) | SECRET_OPTIONS
_OWN = frozenset({"format", "wait_seconds", "state"})
OPTIONS = _SECURITY | _OWN
ENVIRONMENT = "AGL_KAFKA_"
"""Every security option may come from the environment instead: AGL_KAFKA_SASL_PASSWORD and so on."""

WAIT_SECONDS = 120.0
"""How long an append waits for a broker that is away before its outcome is called unknown."""


@dataclass(frozen=True)
class KafkaAddress:
    """Where a log is and how to get in. `repr` and `url` hold no secret.

    `form`: how control values are written (msgpack, or json for people). `wait_seconds`: the policy for outages, small
    to fail fast. `state`: a folder in which this process keeps its copies of keyed topics; None: a temporary one.
    """

    bootstrap: str
    prefix: str
    form: str = "msgpack"
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
        security = {name: environment[ENVIRONMENT + name.upper()] for name in sorted(_SECURITY)
                    if environment is not None and environment.get(ENVIRONMENT + name.upper())}  # fmt: skip
        security.update({name: value for name, value in options.items() if name in _SECURITY})
        form = options.get("format", "msgpack")
        if form not in ("msgpack", "json"):
            raise InvalidInput(f"format is {form!r}; it takes msgpack or json")
        return cls(
            bootstrap=",".join(_server(one) for one in netloc.split(",")),
            prefix=prefix,
            form=form,
            wait_seconds=_seconds(options.get("wait_seconds")),
            state=options.get("state"),
            security=_checked(security),
        )

    @property
    def url(self) -> str:
        """The address without secrets, for people and for logs."""
        shown = {name: value for name, value in self.security.items() if name not in SECRET_OPTIONS}
        if self.form != "msgpack":
            shown["format"] = self.form
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
        security = self.security
        made: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap.split(","),
            "request_timeout_ms": 5000,  # 40 s, the default, lets a frozen broker hold every write for so long
            "security_protocol": security.get("security_protocol", "PLAINTEXT"),
        }
        if "SSL" in made["security_protocol"]:
            made["ssl_context"] = _ssl_context(security)
        if made["security_protocol"].startswith("SASL"):
            made["sasl_mechanism"] = security.get("sasl_mechanism", "PLAIN")
            if made["sasl_mechanism"] == "OAUTHBEARER":
                made["sasl_oauth_token_provider"] = _token_provider(security)
            else:
                made["sasl_plain_username"] = security.get("sasl_username")
                made["sasl_plain_password"] = security.get("sasl_password")
        return made


def from_environment(url: str) -> KafkaAddress:
    """As `KafkaAddress.parse`, with the security options of this process's environment."""
    return KafkaAddress.parse(url, os.environ)


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


def _checked(security: dict[str, str]) -> dict[str, str]:
    protocol = security.get("security_protocol")
    mechanism = security.get("sasl_mechanism")
    if protocol is None and ("sasl_username" in security or mechanism is not None):
        raise InvalidInput("the address has credentials and no security_protocol; add security_protocol=SASL_SSL")
    if protocol is not None and protocol not in _PROTOCOLS:
        raise InvalidInput(f"security_protocol is {protocol!r}; it takes {', '.join(_PROTOCOLS)}")
    if mechanism is not None and mechanism not in _MECHANISMS:
        raise InvalidInput(f"sasl_mechanism is {mechanism!r}; it takes {', '.join(_MECHANISMS)}")
    if protocol is not None and protocol.startswith("SASL"):
        wanted = ("sasl_token",) if mechanism == "OAUTHBEARER" else ("sasl_username", "sasl_password")
        for name in wanted:
            if not security.get(name):
                raise InvalidInput(f"{protocol} needs {name}; set {ENVIRONMENT}{name.upper()} in the environment")
    return security


def _ssl_context(security: Mapping[str, str]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=security.get("ssl_cafile"))
    if security.get("ssl_certfile"):
        context.load_cert_chain(security["ssl_certfile"], security.get("ssl_keyfile"), security.get("ssl_password"))
    return context


def _token_provider(security: Mapping[str, str]) -> Any:
    from .client import AbstractTokenProvider

    base: Any = AbstractTokenProvider

    class Fixed(base):
        """The token of the address or the environment; it is not renewed."""

        async def token(self) -> str:
            return security["sasl_token"]

    return Fixed()
